"""Backpropagation through coupling blocks without stored activations.

In an additive coupling the input of F is read off the output, ``x = S^-1 y~``, so that one
evaluation of F with gradients on gives both the other half of the input and the vector-Jacobian
product: one recomputation where inverting first and differentiating then would take two. Only the
output of the stack is kept, whatever its depth (Gomez et al., 2017,
https://arxiv.org/abs/1707.04585).
"""

import itertools
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from irevnet.reversible.autocast import Autocast
from irevnet.reversible.coupling import CouplingBlock, couple
from irevnet.reversible.narrow import (
    KEEP_ALL_EVERY,
    evaluate_keeping,
    evaluate_recalling,
    is_layered,
)
from irevnet.reversible.randomness import Randomness
from irevnet.reversible.snapshot import Snapshot
from irevnet.reversible.streams import FixedPointStreams, FloatStreams, Streams

__all__ = ["BACKWARDS", "merged_reversible_stack", "reversible_stack"]

# How gradients can be made: all activations kept, none, or the narrow ones inside F.
BACKWARDS = ("stored", "reversible", "balanced")

_FLOAT = FloatStreams()

_Outputs = tuple[Tensor, ...]
"""Two halves, or both in one."""


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
    :func:`irevnet.reversible.stored.stored_fixed_point_stack`. Gradients
    are returned to autograd, none is accumulated inside, so that hooks, gradient accumulation and
    DistributedDataParallel see what they are used to. Batch norm's running statistics are updated
    once, random numbers are drawn again, autocast is entered again.

    The backward pass evaluates every F again, as it was in the forward pass, see
    :mod:`irevnet.reversible.snapshot`. Where that cannot be, it raises instead of giving wrong
    gradients.

    Args:
        blocks: coupling blocks, in forward order.
        x_tilde: first half ``(B, C, H, W)``, floating point.
        x: second half ``(B, C, H, W)``, the one that F reads.
        streams: the arithmetic in which the halves are kept.
        recomputed: how many of the first blocks are evaluated again from ``x_tilde`` and ``x``
            instead of being inverted, because the inverse would be inexact there (those behind
            zero channels).
        zero_channels: how many of the last channels of both halves together are zero, and need not
            be kept for that.
        chunks: how many blocks get their gradients at a time, by default all: the
            parameters of a chunk have theirs before the chunk before it is evaluated again.
        keep_narrow: whether the narrow activations inside F are kept, so that less has to be
            evaluated again, see :mod:`irevnet.reversible.narrow`.

    Returns:
        The halves after the last block, floating point.

    Raises:
        RuntimeError: under a functorch transform; if gradients of gradients are asked for; if F
            changes its parameters when it is evaluated, or is sharded; in the backward pass, if
            weights, or running statistics in evaluation mode, have changed since the forward pass.
        ValueError: if fixed-point streams overflow; the message names the block. If
            ``keep_narrow`` is set and an F is not a plain ``nn.Sequential``.
    """
    options = (streams, recomputed, zero_channels, chunks, keep_narrow)
    y_tilde, y = _traceable(tuple(blocks), x_tilde, x, *options, merge_dim=None)
    return y_tilde, y


def merged_reversible_stack(
    blocks: Iterable[CouplingBlock],
    x_tilde: Tensor,
    x: Tensor,
    *,
    dim: int = 1,
    streams: Streams = _FLOAT,
    recomputed: int = 0,
    zero_channels: int = 0,
    chunks: Sequence[int] | None = None,
    keep_narrow: bool = False,
) -> Tensor:
    """:func:`reversible_stack`, its halves merged along ``dim``.

    In floating point the result is itself what is kept for the backward pass, where halves that are
    merged afterwards would be there twice. It must therefore not be changed in place; autograd
    says so.

    Args:
        blocks: coupling blocks, in forward order.
        x_tilde: first half, floating point.
        x: second half.
        dim: dimension along which halves are parts of one tensor, that of channels.
        streams: as for :func:`reversible_stack`, like all that follow.
        recomputed: how many blocks are evaluated again from their input.
        zero_channels: of the input, that need not be kept.
        chunks: how many blocks get their gradients at a time.
        keep_narrow: whether the narrow activations inside F are kept.

    Returns:
        Both halves after the last block, floating point.

    Raises:
        RuntimeError: as :func:`reversible_stack`.
        ValueError: as :func:`reversible_stack`.
    """
    options = (streams, recomputed, zero_channels, chunks, keep_narrow)
    (merged,) = _traceable(tuple(blocks), x_tilde, x, *options, merge_dim=dim)
    return merged


def _traceable(blocks: tuple[CouplingBlock, ...], *inputs: Any, merge_dim: int | None) -> _Outputs:  # noqa: ANN401
    """:func:`_apply`, which transforms and the compiler must not look into."""
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
) -> _Outputs:
    parameters = [[p for p in block.parameters() if p.requires_grad] for block in blocks]
    inputs = (x_tilde, x, *itertools.chain(*parameters))
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in inputs):
        halves = couple(blocks, streams.write(x_tilde), streams.write(x), streams)
        return _merged([streams.read(half) for half in halves], merge_dim)
    if keep_narrow:
        for index, block in enumerate(blocks):
            if not is_layered(block.residual):
                raise ValueError(
                    'backward="balanced" needs every F to be a plain nn.Sequential with two or '
                    f"more convolutions or linear layers; that of block {index} is a "
                    f'{type(block.residual).__name__}: use backward="reversible"'
                )
    run = _Run(streams, Autocast.current(x.device), Randomness(x.device), keep_narrow)
    # The recomputed blocks are in the first chunk.
    ends = [end for end in itertools.accumulate(chunks or ()) if recomputed <= end < len(blocks)]
    bounds = list(itertools.pairwise([0, *(end for end in ends if end > 0), len(blocks)]))
    for number, (start, stop) in enumerate(bounds):
        chunk = _Chunk(
            run,
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
        outputs = _ReversibleChunk.apply(chunk, x_tilde, x, *flat)
        if not chunk.is_last:
            x_tilde, x = outputs
    return outputs


_uncompiled = torch.compiler.disable(
    _apply, reason='the reversible backward runs uncompiled: compile every F, or use "stored"'
)


@dataclass
class _Run:
    """What the chunks of one forward pass share."""

    streams: Streams
    autocast: Autocast
    randomness: Randomness
    keep_narrow: bool
    peaks: list[Any] = field(default_factory=list)
    # Passed from one chunk to the next, in the forward pass and back: the last chunk alone keeps
    # its output, every other one is handed what its successor has recovered.
    halves: tuple[Tensor, Tensor] | None = None

    def take(self) -> tuple[Tensor, Tensor]:
        assert self.halves is not None, "the next chunk was not differentiated"
        halves, self.halves = self.halves, None
        return halves


@dataclass(frozen=True)
class _Chunk:
    """Consecutive blocks that get their gradients together."""

    run: _Run
    start: int
    blocks: tuple[CouplingBlock, ...]
    parameters: list[list[nn.Parameter]]
    is_first: bool
    is_last: bool
    recomputed: int
    zero_channels: int
    merge_dim: int | None  # of the last chunk's output


@dataclass(frozen=True)
class _Step:
    """A block in the forward pass."""

    block: CouplingBlock
    parameters: list[nn.Parameter]
    snapshot: Snapshot
    random_states: tuple[Tensor, ...] | None
    kept: slice
    keep_all: bool
    exact: bool

    def residual(self, x: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """F as it was, on ``x``; ``kept`` are the narrow activations of all blocks."""
        with self.snapshot.function() as residual:
            if x.is_leaf and not self.snapshot.is_in_place:
                # Hooks on the inputs of modules (FlopCounterMode) do not take a leaf.
                x = x.view_as(x)
            own = kept[self.kept]
            if not own:
                return residual(x)
            return evaluate_recalling(residual, x, own, keep_all=self.keep_all, exact=self.exact)


class _ReversibleChunk(torch.autograd.Function):
    """See :func:`reversible_stack`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        chunk: _Chunk,
        x_tilde: Tensor,
        x: Tensor,
        *_: Tensor,
    ) -> _Outputs:
        run, streams = chunk.run, chunk.run.streams
        ctx.chunk = chunk
        ctx.steps = []
        start = _without_zeros(x_tilde, x, chunk.zero_channels) if chunk.recomputed else ()
        if chunk.is_first:
            x_tilde, x = streams.write(x_tilde), streams.write(x)
            run.peaks += [streams.peak(x_tilde), streams.peak(x)]
        else:
            x_tilde, x = run.take()
        kept: list[Tensor] = []
        exact = isinstance(streams, FixedPointStreams)
        states = run.randomness.states()
        with run.autocast.entered():
            for index, (block, own) in enumerate(zip(chunk.blocks, chunk.parameters, strict=True)):
                run.randomness.check_captured(block)
                snapshot = Snapshot(block.residual)
                count, version = len(kept), x._version
                seen = x
                keep_all = (chunk.start + index) % KEEP_ALL_EVERY == KEEP_ALL_EVERY - 1
                if run.keep_narrow and index >= chunk.recomputed:
                    residual, narrow = evaluate_keeping(
                        block.residual, streams.read(x), keep_all=keep_all, exact=exact
                    )
                    kept += narrow
                    x_tilde, x = (
                        block.downsample(x),
                        streams.add(block.downsample(x_tilde), residual),
                    )
                else:
                    x_tilde, x = block(x_tilde, x, streams)
                if seen._version != version:
                    raise RuntimeError(
                        "F of a block changes its input in place, so that the input cannot be "
                        "recovered: set inplace=False in its first layer"
                    )
                snapshot.finish()
                before, states = states, run.randomness.states()
                drawn = before if run.randomness.drawn(before, states) else None
                ctx.steps.append(
                    _Step(block, own, snapshot, drawn, slice(count, len(kept)), keep_all, exact)
                )
                run.peaks.append(streams.peak(x))
        ctx.start = len(start)
        if chunk.is_last:
            streams.check(run.peaks)
            outputs = _merged([streams.read(x_tilde), streams.read(x)], chunk.merge_dim)
            # In floating point the merged output is what is kept.
            ctx.keeps_output = len(outputs) == 1 and not exact
            ctx.save_for_backward(*start, *kept, *(outputs if ctx.keeps_output else (x_tilde, x)))
            return outputs
        ctx.save_for_backward(*start, *kept)
        ctx.keeps_output = False
        run.halves = (x_tilde.detach(), x.detach())
        return streams.read(x_tilde), streams.read(x)

    @staticmethod
    def backward(ctx: Any, *gradients_of_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the reversible backward gives no gradients of gradients (create_graph=True); "
                'use backward="stored"'
            )
        for step in ctx.steps:
            step.snapshot.check()
        chunk: _Chunk = ctx.chunk
        run = chunk.run
        saved = ctx.saved_tensors
        start, saved = saved[: ctx.start], saved[ctx.start :]
        grad_tilde, grad = _halves(gradients_of_outputs, chunk.merge_dim)
        if chunk.is_last:
            last = 1 if ctx.keeps_output else 2
            kept, (y_tilde, y) = saved[:-last], _halves(saved[-last:], chunk.merge_dim)
        else:
            kept, (y_tilde, y) = saved, run.take()
        first, inverted = ctx.steps[: chunk.recomputed], ctx.steps[chunk.recomputed :]
        gradients: list[tuple[Tensor | None, ...]] = []
        with ExitStack() as contexts:
            contexts.enter_context(run.autocast.entered())
            contexts.enter_context(run.randomness.restored())
            for step in reversed(inverted):
                run.randomness.replay(step.random_states)
                y_tilde, y, grad_tilde, grad, own = _block_backward(
                    step, run.streams, kept, y_tilde, y, grad_tilde, grad
                )
                gradients.append(own)
            if first:
                halves = _with_zeros(start, y_tilde, first)
                grad_tilde, grad, own = _recomputed_backward(
                    first, run.randomness, halves, grad_tilde, grad
                )
                gradients.append(own)
        if not chunk.is_first:
            run.halves = (y_tilde, y)
        in_order = [gradient for own in reversed(gradients) for gradient in own]
        return None, grad_tilde, grad, *in_order


def _merged(halves: Sequence[Tensor], dim: int | None) -> _Outputs:
    return tuple(halves) if dim is None else (torch.cat(list(halves), dim),)


def _halves(outputs: Sequence[Tensor], dim: int | None) -> Sequence[Tensor]:
    """Undoes :func:`_merged`; copies, as layers are slow on slices and round otherwise there."""
    if len(outputs) == 2:
        return outputs
    assert dim is not None
    return [half.clone() for half in outputs[0].chunk(2, dim)]


def _block_backward(
    step: _Step,
    streams: Streams,
    kept: Sequence[Tensor],
    y_tilde: Tensor,
    y: Tensor,
    grad_tilde: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
    """From a block's output and its gradients to its input and theirs, with one F."""
    upsample = step.block.downsample.inverse
    x = upsample(y_tilde)
    with torch.enable_grad():
        seen = streams.read(x).detach().requires_grad_()
        residual = step.residual(seen, kept)
    x_tilde = upsample(streams.subtract(y, residual.detach()))
    grad_through, *own = torch.autograd.grad(
        residual, [seen, *step.parameters], grad.to(residual.dtype), allow_unused=True
    )
    grad_x = upsample(grad_tilde)
    if grad_through is not None:  # F that does not depend on its input
        grad_x = grad_x + grad_through
    return x_tilde, x, upsample(grad), grad_x, tuple(own)


def _recomputed_backward(
    steps: Sequence[_Step],
    randomness: Randomness,
    start: Sequence[Tensor],
    grad_tilde: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """Gradients of the first blocks, evaluated again from their input."""
    parameters = [p for step in steps for p in step.parameters]
    inputs = [half.detach().requires_grad_() for half in start]
    with torch.enable_grad():
        y_tilde, y = inputs
        for step in steps:
            randomness.replay(step.random_states)
            downsample = step.block.downsample
            y_tilde, y = downsample(y), downsample(y_tilde) + step.residual(y, ())
    grad_tilde, grad, *own = torch.autograd.grad(
        (y_tilde, y), [*inputs, *parameters], (grad_tilde, grad), allow_unused=True
    )
    return grad_tilde, grad, tuple(own)


def _without_zeros(x_tilde: Tensor, x: Tensor, zero_channels: int) -> tuple[Tensor, Tensor]:
    """The halves without the zeros in their last channels."""
    if zero_channels == 0:
        return x_tilde, x
    half = x.shape[1]
    in_second = min(zero_channels, half)
    in_first = zero_channels - in_second
    return x_tilde[:, : half - in_first].clone(), x[:, : half - in_second].clone()


def _with_zeros(start: Sequence[Tensor], after: Tensor, steps: Sequence[_Step]) -> list[Tensor]:
    """Undoes :func:`_without_zeros`; ``after`` is a half after ``steps``, which tells the width."""
    half = after.shape[1]
    for step in steps:
        half //= step.block.downsample.factor**2
    return [
        nn.functional.pad(kept, (0, 0, 0, 0, 0, half - kept.shape[1]))
        if kept.shape[1] < half
        else kept
        for kept in start
    ]
