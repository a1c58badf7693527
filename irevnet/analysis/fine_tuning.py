"""Further training of the last block alone, with dropout (claim C5).

The manuscript as submitted to ICLR (OpenReview HJsjkMb0Z, October 2017) shows paths between
representations of a network whose last layer was fine-tuned with dropout, which looked nicer.
"""

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from irevnet.checks import check_interval
from irevnet.data import ImageData
from irevnet.network.model import IRevNet
from irevnet.reversible.coupling import couple
from irevnet.reversible.layers import merge, split
from irevnet.training import TrainingConfig, shortened, train

__all__ = ["gentle_recipe", "with_last_block_fine_tuned"]


def gentle_recipe(recipe: Mapping[str, Any], epochs: int) -> TrainingConfig:
    """A network's recipe for a few more epochs, with a tenth of its learning rates.

    Otherwise it is :func:`~irevnet.training.config.shortened`, without ``residual_scale``, which
    would damage a trained network.

    Args:
        recipe: arguments of :class:`~irevnet.training.config.TrainingConfig`.
        epochs: number of epochs, in place of the recipe's.
    """
    kept = {name: value for name, value in recipe.items() if name != "residual_scale"}
    rates = {name: kept[name] / 10 for name in kept if name.endswith("learning_rate")}
    return shortened(kept | rates, epochs)


def with_last_block_fine_tuned(
    model: IRevNet, data: ImageData, config: TrainingConfig, *, dropout: float, seed: int = 0
) -> IRevNet:
    """A copy of a trained network whose last block and read-out are trained further.

    All blocks before the last one stay in evaluation mode and do not change, including batch norm's
    running statistics. Values that enter the last batch norm of the last F are dropped at random,
    where the released code has its dropout.

    Args:
        model: trained, with float streams; it is not modified.
        data: as for :func:`irevnet.training.trainer.train`.
        config: the recipe.
        dropout: probability of dropping a value, in [0, 1).
        seed: seed of order, augmentation and dropout.

    Returns:
        The copy, on the model's device, in evaluation mode, which drops no values.

    Raises:
        ValueError: if ``dropout`` is out of range, or the recipe does not fit.
    """
    check_interval("dropout", dropout, "[0, 1)")
    tuned = copy.deepcopy(model)
    for block in list(tuned.blocks)[:-1]:
        block.requires_grad_(False)
    with _dropped(cast("nn.Sequential", tuned.blocks[-1].residual), dropout):
        device = tuned.classifier.linear.weight.device
        train(_LastBlock(tuned), data, config, seed=seed, device=device)
    return tuned.requires_grad_(True).eval()


class _LastBlock(nn.Module):
    """A network as a classifier of which only the last block and the read-out are trained."""

    def __init__(self, model: IRevNet) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for block in list(self.model.blocks)[:-1]:
            block.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        blocks = list(self.model.blocks)
        with torch.no_grad():
            (state,) = deque(islice(self.model.states(x), len(blocks)), maxlen=1)
        return self.model.classifier(merge(*couple(blocks[-1:], *split(state))))


@contextmanager
def _dropped(residual: nn.Sequential, probability: float) -> Iterator[None]:
    """Makes F drop values before its last batch norm, in training mode."""

    def drop(norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        return (functional.dropout(inputs[0], probability, norm.training),)

    handle = residual[-3].register_forward_pre_hook(drop)
    try:
        yield
    finally:
        handle.remove()
