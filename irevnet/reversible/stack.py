"""Backpropagation through coupling blocks without stored activations.

Only the output of the stack is kept, whatever its depth; its backward pass is in
:mod:`irevnet.reversible.chunk`.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from irevnet.reversible.autocast import Autocast
from irevnet.reversible.chunk import Chunk, ForwardPass, Outputs, ReversibleChunk, merge_halves
from irevnet.reversible.coupling import CouplingBlock, couple, is_plain
from irevnet.reversible.narrow import is_layered
from irevnet.reversible.randomness import Randomness
from irevnet.reversible.stored import stored_fixed_point_stack
from irevnet.reversible.streams import FixedPointStreams, FloatStreams, Streams

__all__ = ["BACKWARDS", "merged_stack", "reversible_stack"]

# What is kept to compute gradients: all activations, none, or the narrow ones inside F.
BACKWARDS = ("stored", "reversible", "balanced")

_FLOAT = FloatStreams()


def reversible_stack(
    blocks: Iterable[CouplingBlock],
    x_tilde: Tensor,
    x: Tensor,
    *,
    streams: Streams = _FLOAT,
    recomputed: int = 0,
    zero_channels: int = 0,
    chunks: Sequence[int] | None = None,
    keep_narrow: bool = False,
) -> tuple[Tensor, Tensor]:
    """Applies blocks in turn; backpropagation recovers their inputs instead of storing them.

    Values and gradients are those of :func:`irevnet.reversible.coupling.couple`, up to rounding;
    with fixed-point streams those of
    :func:`irevnet.reversible.stored.stored_fixed_point_stack`. Gradients are returned to autograd
    and not accumulated inside, so that hooks, gradient accumulation and DistributedDataParallel
    work as usual. Batch norm's running statistics are updated only once. The backward pass draws
    the same random numbers and uses the same autocast state as the forward pass.

    Only the halves and the parameters of F receive gradients. It is an error if a buffer of F, or a
    tensor in an attribute of F, requires a gradient; a tensor captured in a closure, or inside a
    list, receives none.

    The backward pass evaluates every F again, as it was in the forward pass, see
    :mod:`irevnet.reversible.snapshot`. If that is impossible, it raises an error instead of
    returning wrong gradients.

    Args:
        blocks: coupling blocks, in forward order.
        x_tilde: first half ``(B, C, H, W)``, floating point.
        x: second half ``(B, C, H, W)``, the one that F reads.
        streams: the arithmetic in which the halves are kept.
        recomputed: how many of the first blocks are evaluated again from ``x_tilde`` and ``x``
            instead of being inverted, because the inverse would be inexact there (blocks that
            follow zero channels).
        zero_channels: how many of the last channels of both halves together are zero and need not
            be kept for that evaluation.
        chunks: how many blocks get their gradients at a time, by default all. The parameters of a
            chunk have their gradients before the preceding chunk is evaluated again.
        keep_narrow: whether the narrow activations inside F are kept, so that less has to be
            evaluated again, see :mod:`irevnet.reversible.narrow`.

    Returns:
        The halves after the last block, floating point.

    Raises:
        RuntimeError: under a functorch transform; if gradients of gradients are asked for; if F
            changes its parameters when it is evaluated, reads other tensors that require
            gradients, or is sharded; in the backward pass, if weights, or running statistics in
            evaluation mode, have changed since the forward pass.
        ValueError: if fixed-point streams overflow, if F's output does not have the shape of its
            half, if a block overrides ``forward`` or has hooks, or if ``keep_narrow`` is set and
            an F is not a plain ``nn.Sequential``.
    """
    options = (streams, recomputed, zero_channels, chunks, keep_narrow)
    y_tilde, y = _traceable(tuple(blocks), x_tilde, x, *options, merge_dim=None)
    return y_tilde, y


def merged_stack(
    blocks: Iterable[CouplingBlock],
    x_tilde: Tensor,
    x: Tensor,
    *,
    backward: str,
    dim: int = 1,
    streams: Streams = _FLOAT,
    recomputed: int = 0,
    zero_channels: int = 0,
    chunks: Sequence[int] | None = None,
) -> Tensor:
    """Applies blocks in turn with any of the ``BACKWARDS``, and merges the halves.

    If activations are not stored, the result of floating-point streams itself is kept for the
    backward pass; halves that are merged afterwards would be in memory twice. The result must
    therefore not be changed in place; autograd raises an error if it is.

    Args:
        blocks: coupling blocks, in forward order.
        x_tilde: first half, floating point.
        x: second half.
        backward: one of ``BACKWARDS``.
        dim: dimension along which the halves are merged, that of channels.
        streams: as for :func:`reversible_stack`, like all the following arguments, which do nothing
            if activations are stored.
        recomputed: how many blocks are evaluated again from their input.
        zero_channels: how many channels of the input are zero and need not be kept.
        chunks: how many blocks get their gradients at a time.

    Returns:
        Both halves after the last block, merged, floating point.

    Raises:
        RuntimeError: as :func:`reversible_stack`; with stored activations only as
            :func:`irevnet.reversible.stored.stored_fixed_point_stack`.
        ValueError: in the same way.
    """
    if backward != "stored":
        options = (streams, recomputed, zero_channels, chunks, backward == "balanced")
        (merged,) = _traceable(tuple(blocks), x_tilde, x, *options, merge_dim=dim)
        return merged
    if isinstance(streams, FixedPointStreams):
        halves = stored_fixed_point_stack(blocks, x_tilde, x, streams)
    else:
        halves = couple(blocks, x_tilde, x)
    return torch.cat(halves, dim)


def _traceable(blocks: tuple[CouplingBlock, ...], *inputs: Any, merge_dim: int | None) -> Outputs:  # noqa: ANN401
    """Calls :func:`_apply`, which functorch cannot transform and the compiler cannot trace."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            'the reversible backward cannot be transformed by torch.func; use backward="stored"'
        )
    # The compiler does not trace torch.autograd.grad in a backward pass.
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        return _uncompiled(blocks, *inputs, merge_dim=merge_dim)
    return _apply(blocks, *inputs, merge_dim=merge_dim)


def _apply(
    blocks: tuple[CouplingBlock, ...],
    x_tilde: Tensor,
    x: Tensor,
    streams: Streams,
    recomputed: int,
    zero_channels: int,
    chunks: Sequence[int] | None,
    keep_narrow: bool,
    *,
    merge_dim: int | None,
) -> Outputs:
    parameters = [[p for p in block.parameters() if p.requires_grad] for block in blocks]
    inputs = (x_tilde, x, *itertools.chain(*parameters))
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in inputs):
        halves = couple(blocks, streams.write(x_tilde), streams.write(x), streams)
        return merge_halves([streams.read(half) for half in halves], merge_dim)
    for index, block in enumerate(blocks):
        if not is_plain(block):
            raise ValueError(
                f"block {index} overrides forward or has hooks, which the reversible backward "
                'would not follow: use backward="stored"'
            )
        if keep_narrow and not is_layered(block.residual):
            raise ValueError(
                'backward="balanced" needs every F to be a plain nn.Sequential with two or '
                f"more convolutions or linear layers; that of block {index} is a "
                f'{type(block.residual).__name__}: use backward="reversible"'
            )
    shared = ForwardPass(streams, Autocast.current(x.device), Randomness(x.device), keep_narrow)
    # The recomputed blocks are in the first chunk.
    ends = [end for end in itertools.accumulate(chunks or ()) if recomputed <= end < len(blocks)]
    bounds = list(itertools.pairwise([0, *(end for end in ends if end > 0), len(blocks)]))
    for number, (start, stop) in enumerate(bounds):
        chunk = Chunk(
            shared,
            start,
            blocks[start:stop],
            parameters[start:stop],
            is_first=number == 0,
            is_last=number == len(bounds) - 1,
            recomputed=recomputed if number == 0 else 0,
            zero_channels=zero_channels,
            merge_dim=merge_dim,
        )
        flat = itertools.chain(*parameters[start:stop])
        outputs = ReversibleChunk.apply(chunk, x_tilde, x, *flat)
        if not chunk.is_last:
            x_tilde, x = outputs
    return outputs


_uncompiled = torch.compiler.disable(
    _apply, reason='the reversible backward runs uncompiled: compile every F, or use "stored"'
)
