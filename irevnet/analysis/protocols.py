"""The methods of a network that analyses call, for i-RevNets, baselines and test doubles."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Encoder", "HasStates"]


class HasStates(Protocol):
    """A network that returns its representation after every block."""

    def states(self, x: Tensor) -> Iterator[Tensor]:
        """The representations ``(B, C, h, w)`` of images ``(B, C, H, W)``, from the entry on."""


class Encoder(HasStates, Protocol):
    """A network with a final representation."""

    in_shape: Sequence[int]

    def encode(self, x: Tensor) -> Tensor:
        """The final representation ``(B, C, h, w)`` of images ``(B, C, H, W)``."""
