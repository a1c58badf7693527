"""The part of a state that is the same for every image, which the inverse need not compute.

The injective model appends zero channels to the image. Until the first F that reads the image
has been added, some channels hold values that do not depend on the image. Batch norm's running
variance of such channels decays towards zero in training, so the next F amplifies whatever
rounding error an inverse has left there by up to ``1 / sqrt(eps)``, and the float32 inverse is
lost. An inverse that puts the known values back stays exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from irevnet.reversible.coupling import CouplingBlock
from irevnet.reversible.streams import FloatStreams, Streams

__all__ = ["KnownChannels", "known_channels", "known_values"]

_FLOAT = FloatStreams()


@dataclass(frozen=True)
class KnownChannels:
    """Which channels of a state's halves are the same for every image.

    Args:
        first: per channel of the first half, whether it is known.
        second: per channel of the second half, the one that F reads.
    """

    first: tuple[bool, ...]
    second: tuple[bool, ...]
    _masks: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __bool__(self) -> bool:
        return any(self.first) or any(self.second)

    def restore(
        self, state: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns ``state``, halves ``(B, C, H, W)``, with the known channels from ``values``."""
        first, second = (
            torch.where(mask, exact, half)
            for mask, half, exact in zip(self.masks(state[0].device), state, values, strict=True)
        )
        return first, second

    def masks(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``first`` and ``second`` as tensors ``(C, 1, 1)``, copied to a device once.

        They are not buffers of the network: if it were created without memory and filled from a
        file, they would stay empty.
        """
        if device in self._masks:
            return self._masks[device]
        # Tensors created under inference_mode could not be used by autograd later.
        with torch.inference_mode(False):
            first, second = (
                torch.tensor(known, device=device)[:, None, None]
                for known in (self.first, self.second)
            )
        # Do not cache the placeholders that replace tensors while a network is traced.
        if type(first) is Tensor and not torch.compiler.is_compiling():
            self._masks[device] = first, second
        return first, second


def known_channels(entry: KnownChannels, blocks: Sequence[CouplingBlock]) -> list[KnownChannels]:
    """Follows known channels through the blocks for as long as there are any.

    Mirrors :meth:`irevnet.reversible.coupling.CouplingBlock.forward`: S moves known channels, and
    F's output is known only if all of its input is.

    Args:
        entry: the known channels before the first block: the appended zeros.
        blocks: in forward order.

    Returns:
        The known channels of the state before the first block, after it, and so on.
    """
    states = []
    known = entry
    for block in [*blocks, None]:
        if not known:
            break
        states.append(known)
        if block is not None:
            copies = block.downsample.factor**2
            moved = [k and all(known.second) for k in known.first for _ in range(copies)]
            known = KnownChannels(
                tuple(k for k in known.second for _ in range(copies)), tuple(moved)
            )
    return states


def known_values(
    known: Sequence[KnownChannels],
    blocks: Sequence[CouplingBlock],
    x_tilde: Tensor,
    x: Tensor,
    streams: Streams = _FLOAT,
) -> list[tuple[Tensor, Tensor]]:
    """Computes the values of the known channels in every state that has any, from any image.

    Args:
        known: what :func:`known_channels` returns.
        blocks: in forward order.
        x_tilde: first half ``(B, C, H, W)`` of any images' state before the first block.
        x: second half.
        streams: the arithmetic in which the halves are kept.

    Returns:
        A pair of halves for each entry of ``known``; only their known channels have a meaning.
    """
    values = [(x_tilde, x)]
    for before, block in zip(known[:-1], blocks, strict=False):
        if all(before.second):
            x_tilde, x = block(x_tilde, x, streams)
        else:
            x_tilde, x = block.downsample(x), block.downsample(x_tilde)
        values.append((x_tilde, x))
    return values
