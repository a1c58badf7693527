"""Backpropagation through coupling blocks without stored activations.

In an additive coupling the input of F is read off the output, ``x = S^-1 y~``, so that one
evaluation of F with gradients on gives both the other half of the input and the vector-Jacobian
product: one recomputation where inverting first and differentiating then would take two. Only the
output of the stack is kept, whatever its depth (Gomez et al., 2017,
https://arxiv.org/abs/1707.04585).
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

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
    parameters = [p for block in blocks for p in block.parameters() if p.requires_grad]
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (x_tilde, x, *parameters)):
        y_tilde, y = couple(blocks, streams.write(x_tilde), streams.write(x), streams)
        return streams.read(y_tilde), streams.read(y)
    return _ReversibleStack.apply(blocks, streams, recomputed, x_tilde, x, *parameters)


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
        streams: Streams,
        recomputed: int,
        x_tilde: Tensor,
        x: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.blocks = blocks
        ctx.streams = streams
        ctx.recomputed = recomputed
        ctx.autocast = _Autocast.current(x.device)
        ctx.randomness = []
        kept = (x_tilde, x) if recomputed else ()
        x_tilde, x = streams.write(x_tilde), streams.write(x)
        peaks = [streams.peak(x_tilde), streams.peak(x)]
        with ctx.autocast.entered():
            for block in blocks:
                ctx.randomness.append(_Randomness.before(block))
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
        gradients: list[tuple[Tensor | None, ...]] = []
        with ctx.autocast.entered():
            steps = list(zip(ctx.blocks, ctx.randomness, strict=True))
            for block, randomness in reversed(steps[ctx.recomputed :]):
                y_tilde, y, grad_tilde, grad, own = _block_backward(
                    block, randomness, ctx.streams, y_tilde, y, grad_tilde, grad
                )
                gradients.append(own)
            if ctx.recomputed:
                grad_tilde, grad, own = _recomputed_backward(
                    steps[: ctx.recomputed], start, grad_tilde, grad
                )
                gradients.append(own)
        in_order = [gradient for own in reversed(gradients) for gradient in own]
        return None, None, None, grad_tilde, grad, *in_order


def _block_backward(
    block: CouplingBlock,
    randomness: "_Randomness",
    streams: Streams,
    y_tilde: Tensor,
    y: Tensor,
    grad_tilde: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
    """From a block's output and its gradients to its input and theirs, with one F."""
    upsample = block.downsample.inverse
    parameters = _trainable(block)
    with torch.enable_grad(), frozen_statistics(block), randomness.replayed():
        x = upsample(y_tilde)
        seen = streams.read(x).detach().requires_grad_()
        residual = block.residual(seen)
    x_tilde = upsample(streams.subtract(y, residual.detach()))
    grad_through, *own = torch.autograd.grad(
        residual, [seen, *parameters], grad.to(residual.dtype), allow_unused=True
    )
    return x_tilde, x, upsample(grad), upsample(grad_tilde) + grad_through, tuple(own)


def _recomputed_backward(
    blocks: Sequence[tuple[CouplingBlock, "_Randomness"]],
    start: Sequence[Tensor],
    grad_tilde: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """Gradients of the first blocks, evaluated again from their input."""
    parameters = [p for block, _ in blocks for p in _trainable(block)]
    inputs = [half.detach().requires_grad_() for half in start]
    with torch.enable_grad():
        y_tilde, y = inputs
        for block, randomness in blocks:
            with frozen_statistics(block), randomness.replayed():
                y_tilde, y = block(y_tilde, y)
    grad_tilde, grad, *own = torch.autograd.grad(
        (y_tilde, y), [*inputs, *parameters], (grad_tilde, grad), allow_unused=True
    )
    return grad_tilde, grad, tuple(own)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


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


@dataclass(frozen=True)
class _Randomness:
    """The random generators before a block with active dropout, to draw the same masks again."""

    cpu: Tensor | None = None
    devices: tuple[int, ...] = ()
    states: tuple[Tensor, ...] = ()

    @classmethod
    def before(cls, block: nn.Module) -> "_Randomness":
        if not any(m.training and m.p > 0 for m in block.modules() if isinstance(m, nn.Dropout)):
            return cls()
        devices, states = get_device_states(*block.parameters())
        return cls(torch.get_rng_state(), tuple(devices), tuple(states))

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        if self.cpu is None:
            yield
            return
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states)
            yield
