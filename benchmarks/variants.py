"""The ways to train an i-RevNet that are compared with each other."""

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from irevnet import create_model
from irevnet.network.model import IRevNet
from irevnet.reversible.coupling import CouplingBlock
from irevnet.reversible.layers import merge, split

__all__ = ["LABELS", "UnavailableError", "build", "create_irevnet", "unavailable"]

LABELS = {
    "stored": "stored",
    "checkpoint": "checkpoint, per block",
    "reversible": "reversible, float",
    "fixed": "reversible, fixed point",
    "memcnn": "memcnn",
}
"""Names of the variants, and their labels in figures and tables."""

_OWN = {
    "stored": {"backward": "stored"},
    "checkpoint": {"backward": "stored"},
    "reversible": {"backward": "reversible"},
    "fixed": {"backward": "reversible", "streams": "fixed"},
    "memcnn": {"backward": "stored"},
}


class UnavailableError(RuntimeError):
    """A variant cannot be built here; the message says why."""


def create_irevnet(name: str, **overrides: Any) -> IRevNet:  # noqa: ANN401
    """An i-RevNet of the zoo in training mode, on the CPU.

    Args:
        name: name of the network.
        **overrides: its arguments.

    Raises:
        ValueError: if the network of that name is not an i-RevNet.
    """
    network = create_model(name, **overrides)
    if not isinstance(network, IRevNet):
        raise ValueError(f"name must be that of an i-RevNet, got {name!r}")
    return network


def build(variant: str, name: str, **overrides: Any) -> nn.Module:  # noqa: ANN401
    """A network of one variant in training mode, on the CPU.

    Every variant draws the same initial weights from the same random state, and has its
    parameters in the same order.

    Args:
        variant: a key of :data:`LABELS`.
        name: name of an i-RevNet of the zoo.
        **overrides: arguments of the network.

    Raises:
        UnavailableError: if a library that the variant needs is missing or does not work here.
    """
    network = create_irevnet(name, **{**overrides, **_OWN[variant]})
    if variant == "checkpoint":
        return _Checkpointed(network)
    if variant == "memcnn":
        return _Memcnn(network, _import_memcnn())
    return network


def unavailable() -> dict[str, str]:
    """Variants that fail in a training step on this machine, with the reason."""
    reasons = {}
    for variant in LABELS:
        try:
            model = build(variant, "irevnet_digits", blocks=(2, 1, 1))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model(torch.rand(2, 1, 8, 8)).sum().backward()
        except UnavailableError as error:
            reasons[variant] = str(error)
        except Exception as error:
            # In one of our own variants this would be a defect, which must not be hidden.
            if variant != "memcnn":
                raise
            reasons[variant] = f"{type(error).__name__}: {error}".splitlines()[0]
    return reasons


def _import_memcnn() -> Any:  # noqa: ANN401
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about functions that torch has deprecated
        try:
            return importlib.import_module("memcnn")
        except Exception as error:
            raise UnavailableError(f"memcnn cannot be imported: {error}") from error


def _enter(network: IRevNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """The halves that the first block takes."""
    if network.normalize is not None:
        images = network.normalize(images)
    return split(network.zero_channels(network.entry(images)))


class _Checkpointed(nn.Module):
    """Keeps the state before every block; evaluates each block again for its gradients."""

    def __init__(self, network: IRevNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        x_tilde, x = _enter(network, images)
        for block in network.blocks:
            x_tilde, x = checkpoint(block, x_tilde, x, use_reentrant=False)
        return network.classifier(merge(x_tilde, x))


class _Memcnn(nn.Module):
    """Every block in memcnn's wrapper, which inverts first and then evaluates F again."""

    def __init__(self, network: IRevNet, memcnn: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.network = network
        for index, block in enumerate(network.blocks):
            network.blocks[index] = memcnn.InvertibleModuleWrapper(
                _Unaliased(block), keep_input=False, preserve_rng_state=True
            )

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        x_tilde, x = (half.clone() for half in _enter(network, images))
        for block in network.blocks:
            x_tilde, x = block(x_tilde, x)
        return network.classifier(merge(x_tilde, x))


class _Unaliased(nn.Module):
    """A coupling block whose outputs share no storage with its inputs.

    memcnn frees the storage of the inputs, and one output of the block is an input.
    """

    def __init__(self, block: CouplingBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_tilde: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y_tilde, y = self.block(x_tilde, x)
        return y_tilde.clone(), y

    def inverse(self, y_tilde: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x_tilde, x = self.block.inverse(y_tilde, y)
        return x_tilde, x.clone()
