"""Optimizers: SGD, and Muon for the filters of convolutions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from irevnet.training.config import TrainingConfig

__all__ = ["FilterMuon", "make_optimizers", "orthogonal_factor"]


class FilterMuon(torch.optim.Optimizer):
    """Muon for convolution filters: orthogonalises the momentum before applying it.

    A filter ``(out, in, height, width)`` is treated as a matrix ``(out, in * height * width)``, as
    in Jordan's speed records for CIFAR-10 (https://kellerjordan.github.io/posts/muon/).
    :class:`torch.optim.Muon` accepts only matrices and always computes in bfloat16, for which many
    processors have no instructions; there a step takes longer than the network's gradient. With
    ``precision="bfloat16"`` the steps here are equal to its steps, to the bit.

    Args:
        filters: parameters with four dimensions.
        lr: learning rate; a wide matrix moves by singular values of about this size.
        momentum: Nesterov momentum, in [0, 1).
        weight_decay: decoupled: a step shrinks filters by this times the learning rate.
        ns_steps: number of Newton-Schulz iterations.
        precision: precision of the iterations, ``"float32"`` or ``"bfloat16"``.

    Raises:
        ValueError: if a filter does not have four dimensions.
    """

    def __init__(
        self,
        filters: Sequence[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        ns_steps: int = 5,
        precision: str = "float32",
    ) -> None:
        for filter_ in filters:
            if filter_.ndim != 4:
                raise ValueError(
                    "FilterMuon takes filters (out, in, height, width), got a parameter "
                    f"of shape {tuple(filter_.shape)}"
                )
        self.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(filters, options | {"ns_steps": ns_steps})

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch declares it as two functions
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Updates the filters from their gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            momentum, rate = group["momentum"], group["lr"]
            for filter_ in group["params"]:
                if filter_.grad is None:
                    continue
                state = self.state[filter_]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(filter_.grad)
                average = state["momentum_buffer"].lerp_(filter_.grad, 1 - momentum)
                direction = filter_.grad.lerp(average, momentum)
                matrix = _matrix(direction)
                update = orthogonal_factor(matrix, group["ns_steps"], self.dtype)
                # As in torch.optim.Muon: a tall matrix takes a longer step.
                ratio = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
                filter_.mul_(1 - rate * group["weight_decay"])
                filter_.add_(_filter(update, direction), alpha=-rate * ratio)
        return loss


def orthogonal_factor(matrix: Tensor, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Approximates the nearest matrix with orthonormal rows (or columns), by Newton-Schulz steps.

    They use Muon's quintic polynomial, whose coefficients make small singular values grow fastest.
    After five iterations all but the smallest are between 0.7 and 1.2
    (https://kellerjordan.github.io/posts/muon/).

    Args:
        matrix: ``(rows, columns)``.
        steps: number of iterations.
        dtype: dtype of the computation and of the result.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    factor = matrix.to(dtype, copy=True)
    factor = factor.T if tall else factor
    factor.div_(factor.norm().clamp(min=1e-7))
    for _ in range(steps):
        gram = factor @ factor.T
        polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        factor = torch.addmm(factor, polynomial, factor, beta=3.4445)
    return factor.T if tall else factor


def _matrix(filter_: Tensor) -> Tensor:
    """``(out, in, height, width)`` to ``(out, in * height * width)``, a view if possible."""
    if filter_.is_contiguous():
        return filter_.flatten(1)
    # Channels last: the columns have another order, which does not affect orthogonality.
    return filter_.permute(0, 2, 3, 1).flatten(1)


def _filter(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_matrix` for a filter's shape and memory format."""
    if like.is_contiguous():
        return matrix.reshape(like.shape)
    channels, height, width = like.shape[1:]
    return matrix.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def make_optimizers(
    model: nn.Module, config: TrainingConfig
) -> list[tuple[torch.optim.Optimizer, list[float]]]:
    """The optimizers of a recipe, each with the peak learning rate of each parameter group.

    Args:
        model: on its device, in its memory format.
        config: the recipe.
    """
    filters = []
    if config.optimizer == "muon":
        filters = [p for p in model.parameters() if p.ndim == 4 and p.requires_grad]
    by_muon = {id(p) for p in filters}
    by_sgd = [p for p in model.parameters() if id(p) not in by_muon]
    groups: list[dict[str, Any]] = [{"params": by_sgd}]
    if config.norm_bias_factor != 1:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        biases = {id(norm.bias): norm.bias for norm in norms if norm.bias is not None}
        groups = [
            {"params": [p for p in by_sgd if id(p) not in biases]},
            {
                "params": list(biases.values()),
                "weight_decay": config.weight_decay / config.norm_bias_factor,
            },
        ]
    sgd = torch.optim.SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    peaks = [config.learning_rate, config.learning_rate * config.norm_bias_factor]
    optimizers: list[tuple[torch.optim.Optimizer, list[float]]] = [(sgd, peaks[: len(groups)])]
    if filters:
        muon = FilterMuon(
            filters,
            lr=config.muon_learning_rate,
            momentum=config.muon_momentum,
            weight_decay=config.muon_weight_decay,
            ns_steps=config.muon_steps,
            precision=config.precision,
        )
        optimizers.append((muon, [config.muon_learning_rate]))
    return optimizers
