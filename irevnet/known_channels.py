"""The part of a state that is the same for every image, which the inverse need not compute.

The injective model appends zero channels to the image. Until the first F that reads the image
has been added, some channels hold values that do not depend on the image. Batch norm's running
variance of such channels decays towards zero in training, so the next F amplifies whatever
rounding error an inverse has left there by up to ``1 / sqrt(eps)``, and the float32 inverse is
lost. An inverse that puts the known values back stays exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from irevnet.coupling import CouplingBlock

__all__ = ["KnownChannels", "known_states"]


@dataclass(frozen=True)
class KnownChannels:
    """The channels of a half whose values are the same for every image.

    Args:
        values: a half ``(B, C, H, W)``; only the channels in ``mask`` mean anything.
        mask: ``(C,)`` bool, which channels are known.
    """

    values: Tensor
    mask: Tensor

    def restore(self, half: Tensor) -> Tensor:
        """Returns ``half`` ``(B, C, H, W)`` with the known channels at their exact values."""
        return torch.where(self.mask[:, None, None], self.values, half)


def known_states(
    blocks: Sequence[CouplingBlock], x_tilde: KnownChannels, x: KnownChannels
) -> list[tuple[KnownChannels, KnownChannels]]:
    """Follows known channels through the blocks for as long as there are any.

    Args:
        blocks: the coupling blocks, in forward order.
        x_tilde: what is known of the first half before the first block.
        x: what is known of the second half before the first block, the one that F reads.

    Returns:
        One pair of halves per state that has known channels: before the first block, after
        it, and so on.
    """
    states = []
    for block in blocks:
        if not (x_tilde.mask.any() or x.mask.any()):
            return states
        states.append((x_tilde, x))
        x_tilde, x = _after(block, x_tilde, x)
    if x_tilde.mask.any() or x.mask.any():
        states.append((x_tilde, x))
    return states


def _after(
    block: CouplingBlock, x_tilde: KnownChannels, x: KnownChannels
) -> tuple[KnownChannels, KnownChannels]:
    """The coupling on known channels: F's output is known only if all of its input is."""
    offsets = block.downsample.factor**2
    y_values = block.downsample(x_tilde.values)
    y_mask = x_tilde.mask.repeat_interleave(offsets)
    if x.mask.all():
        y_values = y_values + block.residual(x.values)
    else:
        y_mask = torch.zeros_like(y_mask)
    y_tilde = KnownChannels(block.downsample(x.values), x.mask.repeat_interleave(offsets))
    return y_tilde, KnownChannels(y_values, y_mask)
