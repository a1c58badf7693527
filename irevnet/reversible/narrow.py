"""Between stored and recomputed: keep the narrow activations inside F, compute the wide ones again.

In a bottleneck the convolutions but the last return few channels. With those outputs kept, the
backward pass evaluates normalisation and activations again, which is cheap, and of the
convolutions the last one alone, which recovers the other half of the state. Dropout masks (a byte a
value) and the statistics of batch norm are kept, too. In every sixth block the output of the last
convolution is kept as well: of the released network a quarter of all activations is then kept.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from irevnet.reversible.coupling import is_altered

__all__ = ["KEEP_ALL_EVERY", "Plan", "evaluate_keeping", "evaluate_recalling", "is_layered"]

Plan = Sequence[tuple[str, bool]]
"""For every layer what is recalled of it, and whether a later one writes into its output."""

KEEP_ALL_EVERY = 6
"""In one of so many blocks the last convolution is not evaluated again either."""

_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}
"""Batch norms, and how many dimensions their input has."""


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
    """F of ``x``, without gradients, and what :func:`evaluate_recalling` needs of it.

    Args:
        residual: F, see :func:`is_layered`.
        x: what F reads.
        keep_all: whether the output of the last convolution or linear layer is kept, too.
        exact: whether F will have to be the same to the bit again: batch norm computes its
            statistics again then.

    Raises:
        RuntimeError: if a layer changes an output that is kept in place, and has no attribute
            ``inplace`` that says so.
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
                versions.append((kept[-1], kept[-1]._version))
    if any(output._version != version for output, version in versions):
        raise RuntimeError(
            'F of a block changes the output of a layer in place, which backward="balanced" keeps: '
            'use backward="reversible"'
        )
    return x, kept, plan


def evaluate_recalling(
    residual: nn.Module, x: Tensor, kept: Sequence[Tensor], plan: Plan
) -> Tensor:
    """F of ``x`` again, with gradients, from what :func:`evaluate_keeping` has kept of it."""
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
    """What is recalled of a layer that reads ``x``: if ``keep``, a linear one's output."""
    if _is_linear(layer):
        # Without a dimension for the batch the gradients are not those that are known here.
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
        # cuDNN would compute it with other kernels than it is called with here.
        and x.device.type == "cpu"
        and not exact
    ):
        return "norm"
    return "evaluated"


def _is_overwritten(following: Sequence[nn.Module]) -> bool:
    """Whether one of the layers that follow writes into the output of the one before them."""
    for layer in following:
        if any(getattr(module, "inplace", False) for module in layer.modules()):
            return True
        # Other layers may return what they read: identities, dropout in evaluation mode.
        if _is_linear(layer) or (type(layer) in _NORMS and not is_altered(layer)):
            return False
    return False


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a plain convolution or linear layer, whose gradients are known here."""
    return (
        type(layer) in _LINEAR
        and not is_altered(layer)
        and (
            type(layer) is nn.Linear
            or (layer.padding_mode == "zeros" and isinstance(layer.padding, tuple))
        )
    )


def _normalise(norm: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    """Batch norm in training mode, with the mean and inverse deviation of the batch."""
    if x.ndim not in _NORMS[type(norm)] or x.numel() == x.shape[1]:
        norm(x)  # raises what it always raises: another shape, or one value a channel
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
