"""How well simple classifiers tell classes apart, by depth (C6).

Paper, section 4 (https://arxiv.org/abs/1802.07088): a linear support vector machine and a
1-nearest-neighbour classifier on the representation of every depth, averaged over space and
standardised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul, truediv

import numpy as np
import torch
from scipy import stats
from scipy.spatial.distance import pdist
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from irevnet.analysis.protocols import HasStates
from irevnet.analysis.statistics import Estimate, mean_of_networks, proportion
from irevnet.checks import check_evaluation_mode

__all__ = [
    "ClassDistances",
    "Penalty",
    "averaged_states",
    "by_depth",
    "choose_penalty",
    "class_distances",
    "errors_removed",
    "nearest_neighbour_correct",
    "penalty_summary",
    "scores",
    "standardised",
    "summary",
]

_MOST_BEYOND = 3  # penalties that are tried beyond either end of a grid


@torch.no_grad()
def averaged_states(model: HasStates, images: Tensor, batch_size: int = 256) -> list[np.ndarray]:
    """The spatially averaged representation at every depth.

    Args:
        model: in evaluation mode.
        images: ``(N, C, H, W)`` on the model's device.
        batch_size: images at a time.

    Returns:
        Per depth, ``(N, channels)`` float32; the first is the entry's, the last the final
        representation's.

    Raises:
        ValueError: if the model is in training mode.
    """
    if isinstance(model, nn.Module):
        check_evaluation_mode(model)
    batches = [
        [state.mean(dim=(2, 3)).cpu().numpy() for state in model.states(x)]
        for x in images.split(batch_size)
    ]
    return [np.concatenate(depth) for depth in zip(*batches, strict=True)]


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardises features ``(N, d)`` and ``(M, d)`` by the training items' mean and spread.

    Features that are the same for all training items become zero for them.
    """
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


@dataclass(frozen=True)
class ClassDistances:
    """Mean Euclidean distances of pairs of items.

    Args:
        within: mean distance of two items of the same class.
        between: mean distance of two items of different classes.
    """

    within: float
    between: float

    @property
    def ratio(self) -> float:
        """``within / between``: 1 if classes are not separated, smaller as they contract."""
        return self.within / self.between


def class_distances(features: np.ndarray, labels: np.ndarray) -> ClassDistances:
    """Mean distances between items of one class and between items of different classes.

    Args:
        features: ``(N, d)``.
        labels: ``(N,)``.

    Raises:
        ValueError: if no two items share a class, or if there is only one class.
    """
    first, second = np.triu_indices(len(labels), k=1)  # pairs in the order of pdist
    same = labels[first] == labels[second]
    if not 0 < same.sum() < len(same):
        raise ValueError(
            f"labels must have two classes or more, one of them twice; got {np.unique(labels)} "
            f"for {len(labels)} items"
        )
    distances = pdist(features.astype(np.float64))
    return ClassDistances(float(distances[same].mean()), float(distances[~same].mean()))


def nearest_neighbour_correct(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> np.ndarray:
    """Which test items have the class of their nearest training item (Euclidean).

    Args:
        train: ``(N, d)``.
        train_labels: ``(N,)``.
        test: ``(M, d)``.
        test_labels: ``(M,)``.

    Returns:
        ``(M,)`` bool.
    """
    classifier = KNeighborsClassifier(1).fit(train, train_labels)
    return classifier.predict(test) == test_labels


@dataclass(frozen=True)
class Penalty:
    """The penalty C of a linear support vector machine.

    Args:
        value: the penalty.
        at_edge: whether it is the smallest or the largest that was tried, so that a better one may
            lie beyond.
    """

    value: float
    at_edge: bool


def choose_penalty(
    train: np.ndarray,
    train_labels: np.ndarray,
    penalties: Sequence[float],
    search_tolerance: float = 1e-3,
) -> Penalty:
    """Chooses the penalty of a linear support vector machine on a third of the training items.

    If the best of ``penalties`` is at an end of them, the search goes on beyond in factors of 10,
    at most three of them, as long as each is better than the one before.

    Args:
        train: ``(N, d)``, standardised.
        train_labels: ``(N,)``.
        penalties: values to choose from; the smallest of equally good ones is chosen. A single
            value is taken as it is.
        search_tolerance: tolerance at which optimisation stops while penalties are compared, which
            takes most of the time.
    """
    if len(penalties) == 1:
        return Penalty(penalties[0], at_edge=False)
    split = StratifiedShuffleSplit(1, test_size=1 / 3, random_state=0)
    fitted, held_out = next(split.split(train, train_labels))

    def accuracy(value: float) -> float:
        machine = _machine(value, search_tolerance).fit(train[fitted], train_labels[fitted])
        return float(machine.score(train[held_out], train_labels[held_out]))

    accuracies = {value: accuracy(value) for value in sorted(penalties)}
    best = max(accuracies, key=lambda value: accuracies[value])
    for end, further in ((min, truediv), (max, mul)):
        for _ in range(_MOST_BEYOND):
            if best != end(accuracies):
                break
            beyond = further(best, 10)
            accuracies[beyond] = accuracy(beyond)
            if accuracies[beyond] > accuracies[best]:
                best = beyond
    return Penalty(best, at_edge=best in (min(accuracies), max(accuracies)))


def _machine(penalty: float, tolerance: float) -> LinearSVC:
    # The dual problem takes few passes if the penalty is small; otherwise the primal is faster.
    return LinearSVC(C=penalty, dual=penalty <= 1e-3, tol=tolerance, random_state=0)


def scores(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    penalties: Sequence[float],
    search_tolerance: float = 1e-3,
) -> dict[str, float]:
    """Test accuracies of both classifiers.

    Args:
        train: ``(N, d)``, standardised, to which the classifiers are fitted.
        train_labels: ``(N,)``.
        test: ``(M, d)``, on which they are scored.
        test_labels: ``(M,)``.
        penalties: see :func:`choose_penalty`.
        search_tolerance: see the same function; the optimisation of the scored machine stops at
            1e-3.

    Returns:
        ``svm`` and ``knn``, 0 to 1; ``penalty``, that of the machine, and ``penalty_at_edge``, 1 if
        it is at an edge of the search, else 0.
    """
    penalty = choose_penalty(train, train_labels, penalties, search_tolerance)
    machine = _machine(penalty.value, 1e-3).fit(train, train_labels)
    neighbour = nearest_neighbour_correct(train, train_labels, test, test_labels)
    return {
        "svm": float(machine.score(test, test_labels)),
        "knn": float(neighbour.mean()),
        "penalty": penalty.value,
        "penalty_at_edge": float(penalty.at_edge),
    }


def penalty_summary(penalties: np.ndarray, at_edge: np.ndarray) -> dict[str, object]:
    """Summarises the penalties that were chosen.

    Args:
        penalties: of each network's machine on all of its last features, ``(networks,)``.
        at_edge: ``penalty_at_edge`` of every machine of a family, of any shape.

    Returns:
        ``svm_penalty``, the median with its range; ``svm_fits``, the number of machines;
        ``svm_fits_at_edge``, how many of them have a penalty at an edge of the search.
    """
    ends = float(np.min(penalties)), float(np.max(penalties))
    return {
        "svm_penalty": Estimate(float(np.median(penalties)), *ends, len(penalties)).as_dict(),
        "svm_fits": int(np.size(at_edge)),
        "svm_fits_at_edge": int(np.sum(at_edge)),
    }


def by_depth(
    model: HasStates,
    train: Tensor,
    train_labels: np.ndarray,
    test: Tensor,
    test_labels: np.ndarray,
    penalties: Sequence[float],
    search_tolerance: float = 1e-3,
) -> dict[str, list[float]]:
    """Accuracies of both classifiers at every depth, and how far classes have contracted.

    Args:
        model: in evaluation mode.
        train: images ``(N, C, H, W)`` on the model's device, to which the classifiers are fitted.
        train_labels: ``(N,)``.
        test: images ``(M, C, H, W)`` on which they are scored.
        test_labels: ``(M,)``.
        penalties: see :func:`choose_penalty`.
        search_tolerance: see the same function.

    Returns:
        Lists with one value per depth. Their names are those of :func:`scores`, on standardised
        features; ``within`` and ``between``, mean distances of test images; and ``contraction``,
        the ratio of these two.
    """
    rows = []
    states = zip(averaged_states(model, train), averaged_states(model, test), strict=True)
    for train_features, test_features in states:
        fitted, scored = standardised(train_features, test_features)
        items = (fitted, train_labels, scored, test_labels)
        distances = class_distances(scored, test_labels)
        rows.append(
            scores(*items, penalties, search_tolerance)
            | {
                "within": distances.within,
                "between": distances.between,
                "contraction": distances.ratio,
            }
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


def errors_removed(trained: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """The share of a classifier's errors at initialisation that training has removed.

    Args:
        trained: accuracies, 0 to 1.
        initial: accuracies at initialisation, of a shape that broadcasts.

    Returns:
        1 if no errors remain, 0 if there are as many as before or if there were none, negative if
        there are more.
    """
    errors = 1 - np.asarray(initial, dtype=float)
    gain = np.asarray(trained, dtype=float) - initial
    return np.divide(gain, errors, out=np.zeros_like(gain), where=errors > 0)


def summary(
    trained: Mapping[str, np.ndarray], initial: Mapping[str, np.ndarray], test_images: int
) -> dict[str, object]:
    """Summarises the results of a family's networks, compared with networks at initialisation.

    Args:
        trained: what :func:`by_depth` returns, ``(networks, depths)`` each.
        initial: the same for networks at initialisation.
        test_images: number of images on which accuracies were measured.

    Returns:
        For each classifier, estimates with intervals over networks (for a single network,
        accuracies have intervals over test images): ``*_first`` and ``*_last``, accuracy at the
        entry and at the end; ``*_errors_removed``, the share that training removed at the last
        depth; ``*_gain_rank_correlation``, Spearman's, of depth and errors removed; ``*_jump``, the
        gain in accuracy over the last three blocks, or over all if there are fewer. Means:
        ``initial_*_last`` and ``initial_*_jump``; by depth, ``*_by_depth``,
        ``initial_*_by_depth`` and ``*_errors_removed_by_depth``. Also ``contraction_first`` and
        ``contraction_last``, and those of :func:`penalty_summary`.
    """
    rows = {name: np.asarray(values, dtype=float) for name, values in trained.items()}
    results: dict[str, object] = {"networks": len(rows["svm"]), "test_images": test_images}
    for name in ("svm", "knn"):
        before = np.asarray(initial[name], dtype=float).mean(axis=0)
        removed = errors_removed(rows[name], before)
        for place, column in (("first", 0), ("last", -1)):
            accuracies = rows[name][:, column]
            single = proportion(round(accuracies[0] * test_images), test_images)
            results[f"{name}_{place}"] = mean_of_networks(accuracies, (0, 1), single).as_dict()
        earlier = max(rows[name].shape[1] - 4, 0)
        jumps = rows[name][:, -1] - rows[name][:, earlier]
        ranks = np.array([_rank_correlation(row) for row in removed])
        results |= {
            f"{name}_gain_rank_correlation": mean_of_networks(ranks, (-1, 1)).as_dict(),
            f"{name}_errors_removed": mean_of_networks(removed[:, -1], (-np.inf, 1)).as_dict(),
            f"{name}_jump": mean_of_networks(jumps, (-1, 1)).as_dict(),
            f"initial_{name}_last": float(before[-1]),
            f"initial_{name}_jump": float(before[-1] - before[earlier]),
            f"{name}_errors_removed_by_depth": removed.mean(axis=0).tolist(),
            f"initial_{name}_by_depth": before.tolist(),
        }
    for name in ("svm", "knn", "within", "between", "contraction"):
        results[f"{name}_by_depth"] = rows[name].mean(axis=0).tolist()
    for place, column in (("first", 0), ("last", -1)):
        ratio = mean_of_networks(rows["contraction"][:, column], (0, np.inf))
        results[f"contraction_{place}"] = ratio.as_dict()
    at_edge = np.concatenate([one["penalty_at_edge"] for one in (trained, initial)])
    return results | penalty_summary(rows["penalty"][:, -1], at_edge)


def _rank_correlation(values: np.ndarray) -> float:
    """Spearman's correlation of values and their positions; 0 if all values are equal."""
    if np.ptp(values) == 0:
        return 0.0
    return float(stats.spearmanr(np.arange(len(values)), values).statistic)
