"""i-RevNet: deep invertible networks (Jacobsen et al., ICLR 2018) in PyTorch."""

from irevnet.baselines import ResNet, RevNet
from irevnet.model import IRevNet
from irevnet.zoo import create_model, list_models

__all__ = ["IRevNet", "ResNet", "RevNet", "__version__", "create_model", "list_models"]

__version__ = "0.1.0"
