"""Fixed-point streams with stored activations."""

from collections.abc import Iterable

import torch
from torch import Tensor

from irevnet.reversible.coupling import CouplingBlock, check_residual, is_plain
from irevnet.reversible.streams import FixedPointStreams, straight_through

__all__ = ["stored_fixed_point_stack"]


def stored_fixed_point_stack(
    blocks: Iterable[CouplingBlock], x_tilde: Tensor, x: Tensor, streams: FixedPointStreams
) -> tuple[Tensor, Tensor]:
    """Applies blocks in turn in fixed point, with stored activations.

    Each half is kept both as integers and as floating-point values equal to them. Gradients flow
    through the latter as if nothing had been rounded.

    Args:
        blocks: coupling blocks, in forward order.
        x_tilde: first half ``(B, C, H, W)``, floating point.
        x: second half ``(B, C, H, W)``, the one that F reads.
        streams: the arithmetic in which the halves are kept.

    Returns:
        The halves after the last block, floating point.

    Raises:
        RuntimeError: under a functorch transform.
        ValueError: if the streams overflow, or if a block overrides ``forward`` or has hooks; the
            message names the block. If F's output does not have the shape of its half.
    """
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            'fixed-point streams cannot be transformed by torch.func; use streams="float"'
        )
    n_tilde, n = streams.write(x_tilde), streams.write(x)
    x_tilde = straight_through(streams.read(n_tilde), x_tilde)
    x = straight_through(streams.read(n), x)
    peaks = [streams.peak(n_tilde), streams.peak(n)]
    for index, block in enumerate(blocks):
        if not is_plain(block):
            raise ValueError(
                f"block {index} overrides forward or has hooks, which fixed-point gradients would "
                'not follow: use streams="float" and backward="stored"'
            )
        residual, shifted = block.residual(x), block.downsample(x_tilde)
        check_residual(residual, shifted)
        shifted = shifted + residual
        n_tilde, n = (
            block.downsample(n),
            streams.add(block.downsample(n_tilde), residual.detach()),
        )
        x_tilde, x = block.downsample(x), straight_through(streams.read(n), shifted)
        peaks.append(streams.peak(n))
    if torch.compiler.is_compiling():
        return x_tilde, straight_through(streams.read(streams.traced_check(peaks, n)), x)
    streams.check(peaks)
    return x_tilde, x
