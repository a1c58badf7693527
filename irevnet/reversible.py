"""Backpropagation through coupling blocks without stored activations.

In an additive coupling the input of F is read off the output, ``x = S^-1 y~``, so that one
evaluation of F with gradients on gives both the other half of the input and the vector-Jacobian
product: one recomputation where inverting first and differentiating then would take two. Only the
output of the stack is kept, whatever its depth (Gomez et al., 2017,
https://arxiv.org/abs/1707.04585).
"""

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from irevnet.batch_norm import frozen_statistics
from irevnet.coupling import CouplingBlock, couple
from irevnet.streams import FixedPointStreams, FloatStreams, Streams, straight_through

__all__ = ["reversible_stack", "stored_fixed_point_stack"]

_FLOAT = FloatStreams()


def reversible_stack(
    blocks: Iterable[CouplingBlock],
    x_tilde: Tensor,
    x: Tensor,
    *,
    streams: Streams = _FLOAT,
    recomputed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Applies blocks in turn; backpropagation recovers their inputs instead of storing them.

    Values and gradients are those of :func:`irevnet.coupling.couple`, up to rounding; with
    fixed-point streams those of :func:`stored_fixed_point_stack`. Gradients
    are returned to autograd, none is accumulated inside, so that hooks, gradient accumulation and
    DistributedDataParallel see what they are used to. Batch norm's running statistics are updated
    once, dropout masks are replayed, autocast is entered again.

    Args:
        blocks: coupling blocks, in forward order.
        x_tilde: first half ``(B, C, H, W)``, floating point.
        x: second half ``(B, C, H, W)``, the one that F reads.
        streams: the arithmetic in which the halves are kept.
        recomputed: how many of the first blocks are evaluated again from ``x_tilde`` and ``x``
            instead of being inverted, because the inverse would be inexact there (those behind
            zero channels).

    Returns:
        The halves after the last block, floating point.

    Raises:
        RuntimeError: under a functorch transform, or if gradients of gradients are asked for.
        ValueError: if fixed-point streams overflow; the message names the block.
    """
    blocks = tuple(blocks)
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            'the reversible backward cannot be transformed by torch.func; use backward="stored"'
        )
    parameters = [[p for p in block.parameters() if p.requires_grad] for block in blocks]
    inputs = (x_tilde, x, *itertools.chain(*parameters))
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in inputs):
        y_tilde, y = couple(blocks, streams.write(x_tilde), streams.write(x), streams)
        return streams.read(y_tilde), streams.read(y)
    return _ReversibleStack.apply(blocks, parameters, streams, recomputed, *inputs)


def stored_fixed_point_stack(
    blocks: Iterable[CouplingBlock], x_tilde: Tensor, x: Tensor, streams: FixedPointStreams
) -> tuple[Tensor, Tensor]:
    """Applies blocks in turn in fixed point, with stored activations.

    Beside the whole numbers of each half goes a floating-point half of the same value, through
    which gradients flow as if nothing had been rounded.

    Args:
        blocks: coupling blocks, in forward order.
        x_tilde: first half ``(B, C, H, W)``, floating point.
        x: second half ``(B, C, H, W)``, the one that F reads.
        streams: the arithmetic in which the halves are kept.

    Returns:
        The halves after the last block, floating point.

    Raises:
        ValueError: if the streams overflow; the message names the block.
    """
    n_tilde, n = streams.write(x_tilde), streams.write(x)
    x_tilde = straight_through(streams.read(n_tilde), x_tilde)
    x = straight_through(streams.read(n), x)
    peaks = [streams.peak(n_tilde), streams.peak(n)]
    for block in blocks:
        residual = block.residual(x)
        shifted = block.downsample(x_tilde) + residual
        n_tilde, n = (
            block.downsample(n),
            streams.add(block.downsample(n_tilde), residual.detach()),
        )
        x_tilde, x = block.downsample(x), straight_through(streams.read(n), shifted)
        peaks.append(streams.peak(n))
    streams.check(peaks)
    return x_tilde, x


class _ReversibleStack(torch.autograd.Function):
    """See :func:`reversible_stack`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        blocks: tuple[CouplingBlock, ...],
        parameters: list[list[nn.Parameter]],
        streams: Streams,
        recomputed: int,
        x_tilde: Tensor,
        x: Tensor,
        *_: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.streams = streams
        ctx.recomputed = recomputed
        ctx.autocast = _Autocast.current(x.device)
        ctx.randomness = _Randomness(x.device)
        ctx.steps = []
        kept = (x_tilde, x) if recomputed else ()
        x_tilde, x = streams.write(x_tilde), streams.write(x)
        peaks = [streams.peak(x_tilde), streams.peak(x)]
        with ctx.autocast.entered():
            for block, own in zip(blocks, parameters, strict=True):
                ctx.steps.append(_Step(block, own, ctx.randomness.before(block)))
                x_tilde, x = block(x_tilde, x, streams)
                peaks.append(streams.peak(x))
        streams.check(peaks)
        ctx.save_for_backward(x_tilde, x, *kept)
        return streams.read(x_tilde), streams.read(x)

    @staticmethod
    def backward(ctx: Any, grad_tilde: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the reversible backward gives no gradients of gradients (create_graph=True); "
                'use backward="stored"'
            )
        y_tilde, y, *start = ctx.saved_tensors
        first, inverted = ctx.steps[: ctx.recomputed], ctx.steps[ctx.recomputed :]
        gradients: list[tuple[Tensor | None, ...]] = []
        # Once for all blocks: walking through the modules of each would cost a fiftieth of a step.
        with (
            ctx.autocast.entered(),
            frozen_statistics(*(step.block for step in ctx.steps)),
            ctx.randomness.restored(),
        ):
            for step in reversed(inverted):
                ctx.randomness.replay(step.random_states)
                y_tilde, y, grad_tilde, grad, own = _block_backward(
                    step, ctx.streams, y_tilde, y, grad_tilde, grad
                )
                gradients.append(own)
            if first:
                grad_tilde, grad, own = _recomputed_backward(
                    first, ctx.randomness, start, grad_tilde, grad
                )
                gradients.append(own)
        in_order = [gradient for own in reversed(gradients) for gradient in own]
        return None, None, None, None, grad_tilde, grad, *in_order


@dataclass(frozen=True)
class _Step:
    """A block in the forward pass: its trainable parameters, its randomness before it ran."""

    block: CouplingBlock
    parameters: list[nn.Parameter]
    random_states: tuple[Tensor, ...] | None


def _block_backward(
    step: _Step,
    streams: Streams,
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
        residual = step.block.residual(seen)
    x_tilde = upsample(streams.subtract(y, residual.detach()))
    grad_through, *own = torch.autograd.grad(
        residual, [seen, *step.parameters], grad.to(residual.dtype), allow_unused=True
    )
    return x_tilde, x, upsample(grad), upsample(grad_tilde) + grad_through, tuple(own)


def _recomputed_backward(
    steps: Sequence[_Step],
    randomness: "_Randomness",
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
            y_tilde, y = step.block(y_tilde, y)
    grad_tilde, grad, *own = torch.autograd.grad(
        (y_tilde, y), [*inputs, *parameters], (grad_tilde, grad), allow_unused=True
    )
    return grad_tilde, grad, tuple(own)


@dataclass(frozen=True)
class _Autocast:
    """The autocast state of the forward pass, to be entered again in the backward pass."""

    device: str
    dtype: torch.dtype
    enabled: bool

    @classmethod
    def current(cls, device: torch.device) -> "_Autocast":
        kind = device.type
        return cls(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def entered(self) -> torch.autocast:
        # Without its cache of cast weights: those cast while gradients are off would be used,
        # without their history, when they are on.
        return torch.autocast(self.device, self.dtype, self.enabled, cache_enabled=False)


class _Randomness:
    """The random generators that dropout draws from, so that it draws the same masks again."""

    def __init__(self, device: torch.device) -> None:
        self.used = False
        self._cuda = [device] if device.type == "cuda" else []

    def before(self, block: nn.Module) -> tuple[Tensor, ...] | None:
        """The states of the generators if the block is about to draw from them, else None."""
        if not any(m.training and m.p > 0 for m in block.modules() if isinstance(m, nn.Dropout)):
            return None
        self.used = True
        return (torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda))

    def replay(self, states: tuple[Tensor, ...] | None) -> None:
        """Sets the generators to what :meth:`before` has returned."""
        if states is not None:
            torch.set_rng_state(states[0])
            for device, state in zip(self._cuda, states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)

    def restored(self) -> contextlib.AbstractContextManager[None]:
        """Leaves the generators as they were found, whatever is replayed inside."""
        return torch.random.fork_rng(self._cuda) if self.used else contextlib.nullcontext()
