"""The backward pass of consecutive coupling blocks, which inverts them one after the other.

In an additive coupling the input of F is part of the output, ``x = S^-1 y~``. One evaluation of F
with gradients enabled therefore gives both the other half of the input and the vector-Jacobian
product; inverting first and differentiating afterwards would take two. Only the output of the last
chunk is kept, however many blocks there are (Gomez et al., 2017, https://arxiv.org/abs/1707.04585).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from irevnet.reversible.autocast import Autocast
from irevnet.reversible.coupling import CouplingBlock, check_residual
from irevnet.reversible.narrow import KEEP_ALL_EVERY, Plan, evaluate_keeping, evaluate_recalling
from irevnet.reversible.randomness import Randomness
from irevnet.reversible.snapshot import Snapshot
from irevnet.reversible.streams import FixedPointStreams, Streams

__all__ = ["Chunk", "ForwardPass", "Outputs", "ReversibleChunk", "merge_halves"]

Outputs = tuple[Tensor, ...]
"""Two halves, or one tensor with both."""


@dataclass
class ForwardPass:
    """What the chunks of one forward pass share."""

    streams: Streams
    autocast: Autocast
    randomness: Randomness
    keep_narrow: bool
    peaks: list[Any] = field(default_factory=list)
    # Passed from one chunk to the next, in the forward and the backward pass: only the last chunk
    # keeps its output; every other chunk receives the halves that its successor has recovered.
    halves: tuple[Tensor, Tensor] | None = None

    def take(self) -> tuple[Tensor, Tensor]:
        """Takes the halves that the preceding or the following chunk has left here."""
        assert self.halves is not None, "the next chunk was not differentiated"
        halves, self.halves = self.halves, None
        return halves


@dataclass(frozen=True)
class Chunk:
    """Consecutive blocks that get their gradients together."""

    shared: ForwardPass
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
    plan: Plan

    def residual(self, x: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """F as it was, on ``x``; ``kept`` are the narrow activations of all blocks."""
        with self.snapshot.function() as residual:
            if x.is_leaf and not self.snapshot.is_in_place:
                # Hooks on the inputs of modules (FlopCounterMode) do not accept a leaf.
                x = x.view_as(x)
            own = kept[self.kept]
            if not own:
                return residual(x)
            return evaluate_recalling(residual, x, own, self.plan)


class ReversibleChunk(torch.autograd.Function):
    """See :func:`irevnet.reversible.stack.reversible_stack`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        chunk: Chunk,
        x_tilde: Tensor,
        x: Tensor,
        *_: Tensor,
    ) -> Outputs:
        """Applies the chunk's blocks; the tensors after the halves are the blocks' parameters."""
        shared, streams = chunk.shared, chunk.shared.streams
        ctx.chunk = chunk
        ctx.steps = []
        start = _without_zeros(x_tilde, x, chunk.zero_channels) if chunk.recomputed else ()
        if chunk.is_first:
            x_tilde, x = streams.write(x_tilde), streams.write(x)
            shared.peaks += [streams.peak(x_tilde), streams.peak(x)]
        else:
            x_tilde, x = shared.take()
        kept: list[Tensor] = []
        exact = isinstance(streams, FixedPointStreams)
        states = shared.randomness.states()
        with shared.autocast.entered():
            for index, (block, own) in enumerate(zip(chunk.blocks, chunk.parameters, strict=True)):
                shared.randomness.check(block)
                snapshot = Snapshot(block.residual)
                count, version = len(kept), x._version
                seen = x
                plan: Plan = ()
                keep_all = (chunk.start + index) % KEEP_ALL_EVERY == KEEP_ALL_EVERY - 1
                if shared.keep_narrow and index >= chunk.recomputed:
                    residual, narrow, plan = evaluate_keeping(
                        block.residual, streams.read(x), keep_all=keep_all, exact=exact
                    )
                    kept += narrow
                    shifted = block.downsample(x_tilde)
                    check_residual(residual, shifted)
                    x_tilde, x = block.downsample(x), streams.add(shifted, residual)
                else:
                    x_tilde, x = block(x_tilde, x, streams)
                if seen._version != version:
                    raise RuntimeError(
                        "F of a block changes its input in place, so the input cannot be "
                        "recovered: set inplace=False in its first layer"
                    )
                snapshot.finish()
                before, states = states, shared.randomness.states()
                drawn = before if shared.randomness.drawn(before, states) else None
                ctx.steps.append(_Step(block, own, snapshot, drawn, slice(count, len(kept)), plan))
                shared.peaks.append(streams.peak(x))
        ctx.start = len(start)
        if chunk.is_last:
            streams.check(shared.peaks)
            outputs = merge_halves([streams.read(x_tilde), streams.read(x)], chunk.merge_dim)
            # In floating point the merged output itself is kept.
            ctx.keeps_output = len(outputs) == 1 and not exact
            ctx.save_for_backward(*start, *kept, *(outputs if ctx.keeps_output else (x_tilde, x)))
            return outputs
        ctx.save_for_backward(*start, *kept)
        ctx.keeps_output = False
        shared.halves = (x_tilde.detach(), x.detach())
        return streams.read(x_tilde), streams.read(x)

    @staticmethod
    def backward(ctx: Any, *gradients_of_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Gradients of the halves and the parameters, block by block from the last one."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the reversible backward gives no gradients of gradients (create_graph=True); "
                'use backward="stored"'
            )
        for step in ctx.steps:
            step.snapshot.check()
        chunk: Chunk = ctx.chunk
        shared = chunk.shared
        saved = ctx.saved_tensors
        start, saved = saved[: ctx.start], saved[ctx.start :]
        grad_tilde, grad = _halves(gradients_of_outputs, chunk.merge_dim)
        if chunk.is_last:
            last = 1 if ctx.keeps_output else 2
            kept, (y_tilde, y) = saved[:-last], _halves(saved[-last:], chunk.merge_dim)
        else:
            kept, (y_tilde, y) = saved, shared.take()
        first, inverted = ctx.steps[: chunk.recomputed], ctx.steps[chunk.recomputed :]
        gradients: list[tuple[Tensor | None, ...]] = []
        with ExitStack() as contexts:
            contexts.enter_context(shared.autocast.entered())
            contexts.enter_context(shared.randomness.restored())
            for step in reversed(inverted):
                shared.randomness.replay(step.random_states)
                y_tilde, y, grad_tilde, grad, own = _block_backward(
                    step, shared.streams, kept, y_tilde, y, grad_tilde, grad
                )
                gradients.append(own)
            if first:
                halves = _with_zeros(start, y_tilde, first)
                grad_tilde, grad, own = _recomputed_backward(
                    first, shared.randomness, halves, grad_tilde, grad
                )
                gradients.append(own)
        if not chunk.is_first:
            shared.halves = (y_tilde, y)
        in_order = [gradient for own in reversed(gradients) for gradient in own]
        return None, grad_tilde, grad, *in_order


def merge_halves(halves: Sequence[Tensor], dim: int | None) -> Outputs:
    """Two halves as parts of one tensor along ``dim``, or as they are if that is None."""
    return tuple(halves) if dim is None else (torch.cat(list(halves), dim),)


def _halves(outputs: Sequence[Tensor], dim: int | None) -> Sequence[Tensor]:
    """Undoes :func:`merge_halves`; copies: layers are slow on slices and round differently."""
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
    """A block's input and all gradients, from its output's, with one evaluation of F."""
    upsample = step.block.downsample.inverse
    x = upsample(y_tilde)
    with torch.enable_grad():
        seen = streams.read(x).detach().requires_grad_()
        residual = step.residual(seen, kept)
    x_tilde = upsample(streams.subtract(y, residual.detach()))
    inputs = [seen, *step.parameters]
    gradients: tuple[Tensor | None, ...] = (None,) * len(inputs)
    if residual.requires_grad:  # False if F is constant
        gradients = torch.autograd.grad(
            residual, inputs, grad.to(residual.dtype), allow_unused=True
        )
    grad_through, *own = gradients
    grad_x = upsample(grad_tilde)
    if grad_through is not None:  # None if F does not depend on its input
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
    """Undoes :func:`_without_zeros`; ``after``, a half after ``steps``, determines the width."""
    half = after.shape[1]
    for step in steps:
        half //= step.block.downsample.factor**2
    return [
        nn.functional.pad(kept, (0, 0, 0, 0, 0, half - kept.shape[1]))
        if kept.shape[1] < half
        else kept
        for kept in start
    ]
