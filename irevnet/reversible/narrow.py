"""The balanced backward pass: keeps the narrow activations inside F and recomputes the wide ones.

In a bottleneck every convolution except the last returns few channels. With those outputs kept, the
backward pass evaluates the normalisation and activation functions again, which is cheap, and only
the last convolution, which recovers the other half of the state. Dropout masks (one byte per value)
and the statistics of batch norm are kept, too. Every sixth block also keeps the output of its last
convolution. For the released network this keeps a quarter of all activations.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from irevnet.reversible.coupling import is_altered

__all__ = ["KEEP_ALL_EVERY", "Plan", "evaluate_keeping", "evaluate_recalling", "is_layered"]

Plan = Sequence[tuple[str, bool]]
"""For every layer, how it is evaluated again, and whether a later layer overwrites its output."""

KEEP_ALL_EVERY = 6
"""One in this many blocks also keeps the output of its last convolution."""

_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}
"""Batch norms, and how many dimensions their input may have."""


def is_layered(residual: nn.Module) -> bool:
    """Whether F is an ``nn.Sequential`` with two or more plain convolutions or linear layers."""
    return (
        isinstance(residual, nn.Sequential)
        and type(residual).forward is nn.Sequential.forward
        and not is_altered(residual)
        and sum(map(_is_linear, residual)) > 1
    )


def evaluate_keeping(
    residual: nn.Module, x: Tensor, *, keep_all: bool = False, exact: bool = False
) -> tuple[Tensor, list[Tensor], Plan]:
    """Evaluates F on ``x`` without gradients and keeps what :func:`evaluate_recalling` needs.

    Args:
        residual: F, see :func:`is_layered`.
        x: the input of F.
        keep_all: whether the output of the last convolution or linear layer is kept, too.
        exact: whether the second evaluation must give the same bits; batch norm then computes its
            statistics again.

    Raises:
        RuntimeError: if a layer without an attribute ``inplace`` changes a kept output in place.
    """
    layers: list[Any] = list(cast("nn.Sequential", residual))
    last = max(index for index, layer in enumerate(layers) if _is_linear(layer))
    kept: list[Tensor] = []
    plan: list[tuple[str, bool]] = []
    versions: list[tuple[Tensor, int]] = []
    for index, layer in enumerate(layers):
        kind = _kind(layer, x, keep=index < last or keep_all, exact=exact)
        is_overwritten = kind == "linear" and _is_overwritten(layers[index + 1 :])
        plan.append((kind, is_overwritten))
        if kind == "norm":
            x, mean, inverse_deviation = _normalise(layer, x)
            kept += [mean, inverse_deviation]
        elif kind == "dropout":
            # The factors of nn.Dropout, drawn as nn.Dropout draws them.
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
                versions.append((kept[-1], kept[-1]._version))
    if any(output._version != version for output, version in versions):
        raise RuntimeError(
            'F of a block changes the output of a layer in place, but backward="balanced" keeps '
            'that output: use backward="reversible"'
        )
    return x, kept, plan


def evaluate_recalling(
    residual: nn.Module, x: Tensor, kept: Sequence[Tensor], plan: Plan
) -> Tensor:
    """Evaluates F on ``x`` again, with gradients, from what :func:`evaluate_keeping` kept."""
    recalled = iter(kept)
    layers: list[Any] = list(cast("nn.Sequential", residual))
    for layer, (kind, is_overwritten) in zip(layers, plan, strict=True):
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


def _kind(layer: Any, x: Tensor, *, keep: bool, exact: bool) -> str:  # noqa: ANN401
    """How a layer that reads ``x`` is evaluated again; ``keep`` keeps a linear layer's output."""
    if _is_linear(layer):
        # The gradients of _RecallLinear assume a batch dimension.
        has_batch = x.ndim >= 2 if type(layer) is nn.Linear else x.ndim == layer.weight.ndim
        return "linear" if keep and has_batch else "evaluated"
    if not layer.training or is_altered(layer):
        return "evaluated"
    if type(layer) is nn.Dropout and 0 < layer.p < 1 and not layer.inplace:
        return "dropout"
    if (
        type(layer) in _NORMS
        and layer.affine
        and layer.momentum is not None
        # On a GPU, cuDNN would compute batch norm with kernels that are not called here.
        and x.device.type == "cpu"
        and not exact
    ):
        return "norm"
    return "evaluated"


def _is_overwritten(following: Sequence[nn.Module]) -> bool:
    """Whether one of the following layers overwrites the output of the layer before them."""
    for layer in following:
        if any(getattr(module, "inplace", False) for module in layer.modules()):
            return True
        # Other layers may return their input itself: identities, dropout in evaluation mode.
        if _is_linear(layer) or (type(layer) in _NORMS and not is_altered(layer)):
            return False
    return False


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a plain convolution or linear, as :class:`_RecallLinear` needs it."""
    return (
        type(layer) in _LINEAR
        and not is_altered(layer)
        and (
            type(layer) is nn.Linear
            or (layer.padding_mode == "zeros" and isinstance(layer.padding, tuple))
        )
    )


def _normalise(norm: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    """Batch norm in training mode; also returns the batch's mean and inverse deviation."""
    if x.ndim not in _NORMS[type(norm)] or x.numel() == x.shape[1]:
        norm(x)  # raises batch norm's own error: a wrong shape, or one value per channel
    if norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    mean, variance = (
        (norm.running_mean, norm.running_var) if norm.track_running_stats else (None, None)
    )
    return torch.native_batch_norm(
        x, norm.weight, norm.bias, mean, variance, True, norm.momentum, norm.eps
    )


class _RecallLinear(torch.autograd.Function):
    """A layer with a known output: computes nothing forward, the layer's gradients backward."""

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
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[1:4]
        if isinstance(layer, nn.Linear):
            rows = grad.flatten(0, -2)
            gradients = (
                grad @ weight if needs_x else None,
                rows.t() @ x.flatten(0, -2) if needs_weight else None,
                rows.sum(0) if needs_bias else None,
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
                [needs_x, needs_weight, needs_bias],
            )
        return None, *gradients, None


class _RecallNorm(torch.autograd.Function):
    """Batch norm with known batch statistics."""

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
