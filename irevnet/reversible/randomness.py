"""The random numbers that F draws: noticed, and drawn again."""

import contextlib

import torch
from torch import Tensor, nn

__all__ = ["Randomness", "may_draw"]

_RANDOM = ("FractionalMaxPool2d", "FractionalMaxPool3d", "RReLU")


def may_draw(module: nn.Module) -> bool:
    """Whether a module has a layer that draws random numbers, or could, judged by its class.

    This is for captured CUDA graphs, in which a generator cannot be read. Layers that
    come from neither PyTorch nor this package count as random while they are in training mode.
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

    Generators that a layer owns itself, Python's and NumPy's are not seen.

    Args:
        device: where F is evaluated.
    """

    def __init__(self, device: torch.device) -> None:
        self._used = False
        self._cuda = [device] if device.type == "cuda" else []
        # While a CUDA graph is captured, its generator cannot be read.
        self._captured = bool(self._cuda) and torch.cuda.is_current_stream_capturing()

    def states(self) -> tuple[Tensor, ...]:
        """The states of the generators; nothing while a CUDA graph is captured."""
        if self._captured:
            return ()
        return (torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda))

    def drawn(self, before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> bool:
        """Whether the generators have moved between two results of :meth:`states`."""
        moved = not all(map(torch.equal, before, after))
        self._used |= moved
        return moved

    def check_captured(self, module: nn.Module) -> None:
        """Raises ``RuntimeError`` if a CUDA graph is captured of a module that may draw."""
        if self._captured and may_draw(module):
            raise RuntimeError(
                "in a CUDA graph the reversible backward cannot draw the random numbers of F "
                '(dropout) again: use backward="stored"'
            )

    def replay(self, states: tuple[Tensor, ...] | None) -> None:
        """Sets the generators to what :meth:`states` has returned; ``None`` leaves them."""
        if states:
            torch.set_rng_state(states[0])
            for device, state in zip(self._cuda, states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)

    def restored(self) -> contextlib.AbstractContextManager[None]:
        """Leaves the generators as they were found, whatever is replayed inside."""
        return torch.random.fork_rng(self._cuda) if self._used else contextlib.nullcontext()
