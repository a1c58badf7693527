"""How many dimensions simple classifiers need to tell classes apart (C7).

Paper, section 4 (https://arxiv.org/abs/1802.07088): the classifiers of
:mod:`irevnet.analysis.separation` on the first principal components of the final representation,
averaged over space and standardised.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from irevnet.analysis.separation import penalty_summary, scores, standardised
from irevnet.analysis.statistics import mean_of_networks, proportion

__all__ = ["by_dimension", "keep_components", "plateau", "principal_components", "summary"]


def principal_components(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, ...]:
    """Projects onto the principal components of the training items.

    Args:
        train: ``(N, d)``.
        test: ``(M, d)``.

    Returns:
        Projections ``(N, k)`` and ``(M, k)``, with components in order of decreasing variance, and
        the share of the variance in the first 1 to ``k`` components, ``(k,)``.
    """
    analysis = PCA(svd_solver="full").fit(train)
    cumulated = np.cumsum(analysis.explained_variance_ratio_)
    return analysis.transform(train), analysis.transform(test), cumulated


def by_dimension(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    dimensions: Sequence[int],
    penalties: Sequence[float],
    search_tolerance: float = 1e-3,
) -> dict[str, list[float]]:
    """Accuracies of both classifiers on the first principal components of standardised features.

    Args:
        train: ``(N, d)``, to which components and classifiers are fitted.
        train_labels: ``(N,)``.
        test: ``(M, d)``, on which they are scored.
        test_labels: ``(M,)``.
        dimensions: numbers of components, increasing. Those that reach the number of all
            components are left out, and that number is added.
        penalties: see :func:`irevnet.analysis.separation.choose_penalty`.
        search_tolerance: see the same function.

    Returns:
        ``tried``, numbers of components; for each of them, what
        :func:`irevnet.analysis.separation.scores` returns; ``variance``, the share of the
        variance in the first 1, 2, ... components.
    """
    projected, scored, variance = principal_components(*standardised(train, test))
    full = projected.shape[1]
    tried = [*(d for d in dimensions if d < full), full]
    rows = [
        scores(
            projected[:, :d], train_labels, scored[:, :d], test_labels, penalties, search_tolerance
        )
        for d in tried
    ]
    by_name = {name: [row[name] for row in rows] for name in rows[0]}
    return {"tried": tried, **by_name, "variance": variance.tolist()}


def keep_components(fitted: Tensor, z: Tensor, counts: Sequence[int]) -> Tensor:
    """Projects representations onto their first principal components.

    Args:
        fitted: ``(N, ...)``, the representations from which the components are computed.
        z: ``(M, ...)``, the representations to project.
        counts: numbers of components to keep, from 0 to that of all; with 0 the mean remains.

    Returns:
        ``(len(counts), M, ...)``, in the dtype of ``z``.

    Raises:
        ValueError: if a count is out of range.
    """
    analysis = PCA(svd_solver="full").fit(fitted.flatten(1).double().cpu().numpy())
    most = len(analysis.components_)
    if wrong := [count for count in counts if not 0 <= count <= most]:
        raise ValueError(f"counts must be from 0 to {most}, got {wrong[0]}")
    projected = analysis.transform(z.flatten(1).double().cpu().numpy())
    kept = [
        projected[:, :count] @ analysis.components_[:count] + analysis.mean_ for count in counts
    ]
    return torch.stack([torch.from_numpy(rows).to(z).view_as(z) for rows in kept])


def plateau(dimensions: Sequence[float], accuracies: Sequence[float], tolerance: float) -> int:
    """The smallest number of dimensions from which accuracy stays near that with all of them.

    Args:
        dimensions: numbers of dimensions, increasing; the last is that of all.
        accuracies: accuracies of a classifier with each number of dimensions.
        tolerance: how far below the last accuracy still counts as the plateau.
    """
    start = dimensions[-1]
    for dimension, accuracy in reversed(list(zip(dimensions, accuracies, strict=True))):
        if accuracy < accuracies[-1] - tolerance:
            break
        start = dimension
    return int(start)


def summary(
    trained: Sequence[Mapping[str, list[float]]],
    initial: Sequence[Mapping[str, list[float]]],
    own_accuracies: Sequence[float],
    *,
    classes: int,
    tolerance: float,
    test_images: int,
) -> dict[str, object]:
    """Summarises the results of a family's networks, compared with networks at initialisation.

    Args:
        trained: what :func:`by_dimension` returns for each network's final features.
        initial: the same for networks at initialisation.
        own_accuracies: accuracies of the trained networks' own read-outs on the same test images.
        classes: number of classes.
        tolerance: see :func:`plateau`.
        test_images: number of images on which accuracies were measured.

    Returns:
        For each classifier, estimates with intervals over networks (for a single network,
        accuracies have intervals over test images): ``*_plateau``, in components;
        ``*_per_class``, the plateau divided by the number of classes; ``*_plateau_share``, divided
        by the number of components; ``*_against_initial``, divided by the mean plateau at
        initialisation; ``variance_at_*_plateau``; ``*_accuracy``, on all components. Also
        ``initial_*_plateau``, a mean, and ``readout_loss``, the network's own accuracy minus that
        of the linear support vector machine on all components, which is a linear read-out; and what
        :func:`irevnet.analysis.separation.penalty_summary` returns, of machines on all components
        and on fewer.
    """
    tried = trained[0]["tried"]
    full = int(tried[-1])
    results: dict[str, object] = {
        "networks": len(trained),
        "test_images": test_images,
        "dimensions": full,
    }

    def plateaus(networks: Sequence[Mapping[str, list[float]]], name: str) -> np.ndarray:
        return np.array([plateau(one["tried"], one[name], tolerance) for one in networks])

    for name in ("svm", "knn"):
        starts, before = plateaus(trained, name), plateaus(initial, name).mean()
        held = np.array(
            [one["variance"][start - 1] for one, start in zip(trained, starts, strict=True)]
        )
        accuracies = np.array([one[name][-1] for one in trained])
        single = proportion(round(accuracies[0] * test_images), test_images)
        estimates = {
            f"{name}_plateau": mean_of_networks(starts, (1, full)),
            f"{name}_per_class": mean_of_networks(starts / classes, (0, full / classes)),
            f"{name}_plateau_share": mean_of_networks(starts / full, (1 / full, 1)),
            f"{name}_against_initial": mean_of_networks(starts / before, (0, np.inf)),
            f"variance_at_{name}_plateau": mean_of_networks(held, (0, 1)),
            f"{name}_accuracy": mean_of_networks(accuracies, (0, 1), single),
        }
        results |= {key: estimate.as_dict() for key, estimate in estimates.items()}
        results[f"initial_{name}_plateau"] = float(before)
    loss = np.array(own_accuracies) - [one["svm"][-1] for one in trained]
    results["readout_loss"] = mean_of_networks(loss, (-1, 1)).as_dict()
    last = np.array([one["penalty"][-1] for one in trained])
    at_edge = np.array([one["penalty_at_edge"] for one in (*trained, *initial)])
    return results | penalty_summary(last, at_edge)
