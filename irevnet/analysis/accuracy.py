"""Accuracies of families of trained networks, and the differences between families."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from irevnet.analysis.statistics import Estimate, difference_of_accuracies, mean, proportion
from irevnet.checks import check_evaluation_mode
from irevnet.data import TensorImages

__all__ = ["accuracy_of", "correct", "differences", "spread"]


@torch.no_grad()
def correct(model: nn.Module, images: TensorImages, batch_size: int = 256) -> np.ndarray:
    """Which images of a set a network classifies correctly, ``(N,)`` bool.

    Args:
        model: in evaluation mode.
        images: on any device.
        batch_size: images at a time.

    Raises:
        ValueError: if the model is in training mode.
    """
    check_evaluation_mode(model)
    device = next(model.parameters()).device
    hits = [
        model(x.to(device)).argmax(dim=1) == labels.to(device)
        for x, labels in images.batches(batch_size)
    ]
    return torch.cat(hits).cpu().numpy()


def accuracy_of(accuracies: Sequence[float], images: int) -> Estimate:
    """Mean accuracy of the networks of a family.

    Args:
        accuracies: the accuracy of each network, 0 to 1.
        images: number of images on which each was measured.

    Returns:
        The mean over networks with Student's t interval at 95%; for a single network, its accuracy
        with Wilson's score interval, where ``n`` is ``images``.
    """
    if len(accuracies) == 1:
        return proportion(round(accuracies[0] * images), images)
    return mean(accuracies)


def spread(accuracies: Sequence[float]) -> float | None:
    """Standard deviation over the networks of a family, or None for one network."""
    return float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None


def differences(
    correct_images: Mapping[str, np.ndarray], pairs: Iterable[tuple[str, str]], level: float
) -> dict[str, Estimate]:
    """Mean accuracy of one family minus that of another, for pairs of families.

    Args:
        correct_images: which test images the networks of each family get right,
            ``(networks, images)`` bool, by the family's name.
        pairs: names of both families. A pair has no entry if one of them is missing or has a single
            network, which has no spread.
        level: level of each one-sided test, such as 0.95. Both tests share one interval, whose
            coverage is ``1 - 2 * (1 - level)``, see
            :func:`irevnet.analysis.statistics.difference_of_accuracies`.

    Returns:
        Estimates by ``FAMILY_minus_OTHER``, whose ``n`` counts the networks of both.
    """
    several = {family: rows for family, rows in correct_images.items() if len(rows) > 1}
    return {
        f"{family}_minus_{other}": difference_of_accuracies(
            several[family], several[other], level=1 - 2 * (1 - level)
        )
        for family, other in pairs
        if family in several and other in several
    }
