"""Detects the random numbers that F draws, and draws them again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Randomness", "may_draw"]

_RANDOM = ("FractionalMaxPool2d", "FractionalMaxPool3d", "RReLU")


def may_draw(module: nn.Module) -> bool:
    """Whether a module has a layer that may draw random numbers, judged by its class.

    It is used where a generator cannot be read, as in captured CUDA graphs. Layers that come from
    neither PyTorch nor this package count as random while they are in training mode.
    """
    return any(_layer_may_draw(layer) for layer in module.modules())


def _layer_may_draw(layer: nn.Module) -> bool:
    if not layer.training:
        return False
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return layer.dropout > 0
    kind = type(layer)
    is_familiar = kind.__module__.startswith(("torch.nn.modules.", "irevnet."))
    return not is_familiar or kind.__name__ in _RANDOM


class Randomness:
    """PyTorch's default generators of the CPU and of one device.

    Generators that a layer owns, and those of Python and NumPy, are not tracked.

    Args:
        device: where F is evaluated.
    """

    def __init__(self, device: torch.device) -> None:
        self._used = False
        self._device = device
        # The module of a device that has its own generator: torch.cuda, torch.mps or torch.xpu.
        has_own = device.type not in ("cpu", "meta")
        self._module: Any = getattr(torch, device.type, None) if has_own else None
        # While a CUDA graph is captured, its generator cannot be read.
        self._unreadable = has_own and (
            not hasattr(self._module, "get_rng_state")
            or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
        )

    def states(self) -> tuple[Tensor, ...]:
        """The states of the generators; empty if they cannot be read."""
        if self._unreadable:
            return ()
        if self._module is None:
            return (torch.get_rng_state(),)
        return torch.get_rng_state(), self._module.get_rng_state(self._device)

    def drawn(self, before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> bool:
        """Whether the generators have moved between two results of :meth:`states`."""
        moved = not all(map(torch.equal, before, after))
        self._used |= moved
        return moved

    def check(self, module: nn.Module) -> None:
        """Raises ``RuntimeError`` if a module may draw and the generators cannot be read."""
        if self._unreadable and may_draw(module):
            kind = self._device.type
            where = "in a CUDA graph" if kind == "cuda" else f"on {kind} devices"
            raise RuntimeError(
                f"{where} the reversible backward cannot draw the random numbers of F "
                '(dropout) again: use backward="stored"'
            )

    def replay(self, states: tuple[Tensor, ...] | None) -> None:
        """Sets the generators to the result of :meth:`states`; ``None`` leaves them unchanged."""
        if states:
            torch.set_rng_state(states[0])
            for state in states[1:]:
                self._module.set_rng_state(state, self._device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restores the generators at the end, whatever was replayed inside."""
        before = self.states() if self._used else None
        try:
            yield
        finally:
            self.replay(before)
