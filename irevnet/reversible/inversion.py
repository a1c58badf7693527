"""Inverts coupling blocks one by one, and detects inexact inverses where it can."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from irevnet.reversible.batch_norm import frozen_statistics
from irevnet.reversible.coupling import CouplingBlock, is_altered
from irevnet.reversible.known_channels import KnownChannels
from irevnet.reversible.randomness import Randomness
from irevnet.reversible.snapshot import Snapshot
from irevnet.reversible.streams import FixedPointStreams, Streams

__all__ = ["INEXACT", "check_checksum", "inverse_states", "is_traced"]

INEXACT = (
    "F was computed differently: another batch, device, memory layout, number of threads, mode or "
    "backend flag, or z is not a representation of this network"
)
"""Why a fixed-point inverse may be inexact, for error messages."""


def is_traced(x: Tensor) -> bool:
    """Whether values are not available: in transformed, compiled and shape-only evaluation."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or x.is_meta


def check_checksum(
    streams: Streams, halves: tuple[Tensor, Tensor], checksum: Tensor | None
) -> None:
    """Raises ``ValueError`` if recovered halves do not have the given checksum ``(B,)``."""
    if checksum is None:
        return
    actual = streams.checksum(*halves)
    if checksum.shape != actual.shape or checksum.dtype != actual.dtype:
        raise ValueError(
            f"checksum must be int64 of shape {tuple(actual.shape)}, got {checksum.dtype} of shape "
            f"{tuple(checksum.shape)}"
        )
    wrong = (actual != checksum.to(actual.device)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"the inverse is not exact: {len(wrong)} of {len(actual)} inputs (first: {wrong[0]}) "
            f"have a different checksum. {INEXACT}"
        )


def inverse_states(
    blocks: Sequence[CouplingBlock],
    x_tilde: Tensor,
    x: Tensor,
    streams: Streams,
    *,
    known: Sequence[KnownChannels] = (),
    values: Sequence[tuple[Tensor, Tensor]] = (),
    exact: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Recovers the halves before every block, from the last block to the first.

    Running statistics do not change. No module is modified while it is evaluated, unless F is
    traced or has to be evaluated in place, for example because it is compiled.

    Args:
        blocks: in forward order.
        x_tilde: first half ``(B, C, H, W)`` after the last block, in the arithmetic of ``streams``.
        x: second half.
        streams: the arithmetic in which the halves are kept.
        known: channels of the first states that are the same for every input.
        values: the values of these channels, to which they are restored.
        exact: whether it is an error if known channels of fixed-point streams do not come back
            with these values.

    Yields:
        ``len(blocks) + 1`` pairs of halves, the given ones first.

    Raises:
        ValueError: if F draws random numbers or changes itself; if a block has hooks; if
            fixed-point streams overflow or, with ``exact``, are found not to be exact.
    """
    traced = is_traced(x)
    randomness = Randomness(x.device)
    peaks = [streams.peak(x_tilde), streams.peak(x)]
    for index in reversed(range(len(blocks) + 1)):
        if index < len(values):
            restored = known[index].restore((x_tilde, x), values[index])
            if (
                isinstance(streams, FixedPointStreams)
                and exact
                and not traced
                and not all(map(torch.equal, restored, (x_tilde, x)))
            ):
                raise ValueError(
                    "the inverse is not exact: channels that are the same for every image did not "
                    f"come back with the values that encode gave. {INEXACT}; verify=False returns "
                    "the images anyway"
                )
            x_tilde, x = restored
        if index == 0:
            if torch.compiler.is_compiling():
                x = streams.traced_check(peaks, x, inverse=True)
            else:
                streams.check(peaks, inverse=True)
            yield x_tilde, x
            return
        yield x_tilde, x
        block = blocks[index - 1]
        if is_altered(block):
            raise ValueError(
                f"block {index - 1} has hooks or an instance attribute forward, which inverse "
                "cannot undo: remove them"
            )
        if traced:
            with frozen_statistics(block):
                x_tilde, x = block.inverse(x_tilde, x, streams)
        else:
            before = randomness.states()
            x_tilde, x = _inverse(index - 1, block, x_tilde, x, streams)
            if randomness.drawn(before, randomness.states()):
                raise ValueError(
                    f"inverse needs F to be the same function as in encode, but block {index - 1} "
                    "draws random numbers (dropout): call model.eval() or construct with dropout=0"
                )
        peaks.append(streams.peak(x_tilde))


def _inverse(
    index: int, block: CouplingBlock, y_tilde: Tensor, y: Tensor, streams: Streams
) -> tuple[Tensor, Tensor]:
    if not any(module.training for module in block.modules()):
        return block.inverse(y_tilde, y, streams)
    # Evaluating F itself would update running statistics.
    snapshot = Snapshot(block)
    with snapshot.function() as same:
        x_tilde, x = cast("CouplingBlock", same).inverse(y_tilde, y, streams)
    if changed := snapshot.changed_buffers():
        raise ValueError(
            "inverse needs F to be the same function as in encode, but every evaluation of block "
            f"{index} changes its {', '.join(changed)}: call model.eval()"
        )
    return x_tilde, x
