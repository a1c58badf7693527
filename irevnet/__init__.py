"""i-RevNet: deep invertible networks (Jacobsen et al., ICLR 2018) in PyTorch.

Example:
    >>> import torch, irevnet
    >>> model = irevnet.create_model("irevnet_digits_bijective", pretrained="digits")
    >>> images = torch.rand(2, 1, 8, 8)
    >>> torch.allclose(model.inverse(model.encode(images)), images, atol=1e-4)
    True
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from irevnet.network import IRevNet, ResNet, RevNet
    from irevnet.reversible.check import check_invertible
    from irevnet.reversible.sequential import ReversibleSequential
    from irevnet.zoo import create_model, list_models

__all__ = [
    "IRevNet",
    "ResNet",
    "RevNet",
    "ReversibleSequential",
    "__version__",
    "check_invertible",
    "create_model",
    "list_models",
]

__version__ = "0.1.0"

_MODULES = {
    "IRevNet": "network",
    "ResNet": "network",
    "RevNet": "network",
    "ReversibleSequential": "reversible.sequential",
    "check_invertible": "reversible.check",
    "create_model": "zoo",
    "list_models": "zoo",
}


def __getattr__(name: str) -> object:
    # Loaded on demand, so that importing irevnet.training.config does not import PyTorch.
    if name in _MODULES:
        return getattr(importlib.import_module(f"irevnet.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
