"""Between stored and recomputed: keep the narrow activations inside F, compute the wide ones again.

In a bottleneck the convolutions but the last return few channels. With those outputs kept, the
backward pass evaluates normalisation and activations again, which is cheap, and of the
convolutions the last one alone, which recovers the other half of the state. Dropout masks (a byte a
value) and the statistics of batch norm are kept, too. In every sixth block the output of the last
convolution is kept as well: of the released network a quarter of all activations is then kept.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["KEEP_ALL_EVERY", "evaluate_keeping", "evaluate_recalling", "is_layered"]

KEEP_ALL_EVERY = 6
"""In one of so many blocks the last convolution is not evaluated again either."""

_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def is_layered(residual: nn.Module) -> bool:
    """Whether F is an ``nn.Sequential`` with two or more plain convolutions or linear layers."""
    return (
        isinstance(residual, nn.Sequential)
        and type(residual).forward is nn.Sequential.forward
        and not _has_hooks(residual)
        and sum(map(_is_linear, residual)) > 1
    )


def evaluate_keeping(
    residual: nn.Module, x: Tensor, *, keep_all: bool = False, exact: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """F of ``x``, without gradients, and what :func:`evaluate_recalling` needs of it.

    Args:
        residual: F, see :func:`is_layered`.
        x: what F reads.
        keep_all: whether the output of the last convolution or linear layer is kept, too.
        exact: whether F will have to be the same to the bit again: batch norm computes its
            statistics again then.
    """
    kept: list[Tensor] = []
    for layer, kind, is_overwritten in _plan(residual, x.device, keep_all=keep_all, exact=exact):
        if kind == "norm":
            x, mean, inverse_deviation = _normalise(layer, x)
            kept += [mean, inverse_deviation]
        elif kind == "dropout":
            # What nn.Dropout multiplies with, drawn as it draws.
            if x.device.type == "cpu":
                factors = torch.empty_like(x).bernoulli_(1 - layer.p).div_(1 - layer.p)
            else:
                factors = layer(torch.ones_like(x))
            kept.append(factors.bool())
            x = x * factors
        else:
            x = layer(x)
            if kind == "linear":
                kept.append(x.clone() if is_overwritten else x)
    return x, kept


def evaluate_recalling(
    residual: nn.Module,
    x: Tensor,
    kept: Sequence[Tensor],
    *,
    keep_all: bool = False,
    exact: bool = False,
) -> Tensor:
    """F of ``x`` again, with gradients, from what :func:`evaluate_keeping` has kept of it."""
    recalled = iter(kept)
    for layer, kind, is_overwritten in _plan(residual, x.device, keep_all=keep_all, exact=exact):
        if kind == "norm":
            mean, inverse_deviation = next(recalled), next(recalled)
            x = _RecallNorm.apply(x, layer.weight, layer.bias, mean, inverse_deviation, layer.eps)
        elif kind == "dropout":
            x = x * next(recalled).to(x.dtype).div_(1 - layer.p)
        elif kind == "linear":
            output = next(recalled)
            if is_overwritten:
                output = output.clone()
            # Under autocast a layer computes in the type of its output.
            weight = layer.weight.to(output.dtype)
            bias = None if layer.bias is None else layer.bias.to(output.dtype)
            x = _RecallLinear.apply(layer, x.to(output.dtype), weight, bias, output)
        else:
            x = layer(x)
    return x


def _plan(
    residual: nn.Module, device: torch.device, *, keep_all: bool, exact: bool
) -> Iterator[tuple[Any, str, bool]]:
    """Layers, what is recalled of them, and whether the next layer writes into their output."""
    layers: list[Any] = list(cast("nn.Sequential", residual))
    last = max(index for index, layer in enumerate(layers) if _is_linear(layer))
    for index, layer in enumerate(layers):
        following = layers[index + 1] if index + 1 < len(layers) else None
        if _is_linear(layer) and (index < last or keep_all):
            kind = "linear"
        elif not layer.training or _has_hooks(layer):
            kind = "evaluated"
        elif type(layer) is nn.Dropout and 0 < layer.p < 1 and not layer.inplace:
            kind = "dropout"
        elif (
            type(layer) in _NORMS
            and layer.affine
            and layer.momentum is not None
            # cuDNN would compute it with other kernels than it is called with here.
            and device.type == "cpu"
            and not exact
        ):
            kind = "norm"
        else:
            kind = "evaluated"
        yield layer, kind, getattr(following, "inplace", False)


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a plain convolution or linear layer, whose gradients are known here."""
    return (
        type(layer) in _LINEAR
        and not _has_hooks(layer)
        and (
            type(layer) is nn.Linear
            or (layer.padding_mode == "zeros" and isinstance(layer.padding, tuple))
        )
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _normalise(norm: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    """Batch norm in training mode, with the mean and inverse deviation of the batch."""
    if x.ndim != {nn.BatchNorm1d: x.ndim, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}[type(norm)]:
        norm(x)  # raises what it always raises
    if norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    mean, variance = (
        (norm.running_mean, norm.running_var) if norm.track_running_stats else (None, None)
    )
    return torch.native_batch_norm(
        x, norm.weight, norm.bias, mean, variance, True, norm.momentum, norm.eps
    )


class _RecallLinear(torch.autograd.Function):
    """A layer whose output is known already: nothing forward, the layer's gradients backward."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        layer: nn.Module,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor,
    ) -> Tensor:
        ctx.layer = layer
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)
        return output.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        layer = ctx.layer
        of_x, of_weight, of_bias = ctx.needs_input_grad[1:4]
        if isinstance(layer, nn.Linear):
            rows = grad.flatten(0, -2)
            gradients = (
                grad @ weight if of_x else None,
                rows.t() @ x.flatten(0, -2) if of_weight else None,
                rows.sum(0) if of_bias else None,
            )
        else:
            gradients = torch.ops.aten.convolution_backward(
                grad,
                x,
                weight,
                [len(weight)] if ctx.has_bias else None,
                layer.stride,
                layer.padding,
                layer.dilation,
                False,
                [0] * (weight.ndim - 2),
                layer.groups,
                [of_x, of_weight, of_bias],
            )
        return None, *gradients, None


class _RecallNorm(torch.autograd.Function):
    """Batch norm with the statistics of a batch that are known already."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        inverse_deviation: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, inverse_deviation)
        variance = inverse_deviation**-2 - eps
        return torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, mean, inverse_deviation = ctx.saved_tensors
        gradients = torch.ops.aten.native_batch_norm_backward(
            grad,
            x,
            weight,
            None,
            None,
            mean,
            inverse_deviation,
            True,
            ctx.eps,
            ctx.needs_input_grad[:3],
        )
        return *gradients, None, None, None
