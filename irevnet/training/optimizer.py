"""Optimizers: SGD, and Muon for the filters of convolutions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from irevnet.training.config import TrainingConfig

__all__ = ["FilterMuon", "make_optimizers"]


class FilterMuon(torch.optim.Muon):
    """Muon over convolution filters: momentum, made orthogonal before it is applied.

    A filter ``(out, in, height, width)`` is the matrix ``(out, in * height * width)``, as in
    Jordan's speed records for CIFAR-10 (https://kellerjordan.github.io/posts/muon/).
    :class:`torch.optim.Muon` takes matrices only, so it is given views of the filters. They share
    memory with the network: make the optimizer after the network is where it is to stay.

    Args:
        filters: parameters with four dimensions, contiguous in either memory format.
        **options: of :class:`torch.optim.Muon`.
    """

    def __init__(self, filters: Sequence[nn.Parameter], **options: Any) -> None:  # noqa: ANN401
        self.filters = list(filters)
        super().__init__([_matrix(filter_.detach()) for filter_ in self.filters], **options)

    @property
    def matrices(self) -> list[Tensor]:
        """The filters as matrices, in the order given; keys of the optimizer's state."""
        return self.param_groups[0]["params"]

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch declares it as two functions
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Updates the filters from their gradients."""
        for filter_, matrix in zip(self.filters, self.matrices, strict=True):
            matrix.grad = None if filter_.grad is None else _matrix(filter_.grad)
        return super().step(closure)


def _matrix(filter_: Tensor) -> Tensor:
    """``(out, in, height, width)`` to ``(out, in * height * width)``, a view where it can be."""
    if filter_.is_contiguous():
        return filter_.flatten(1)
    # Channels last. The order of the columns is another, which orthogonality does not see.
    return filter_.permute(0, 2, 3, 1).flatten(1)


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
        )
        optimizers.append((muon, [config.muon_learning_rate]))
    return optimizers
