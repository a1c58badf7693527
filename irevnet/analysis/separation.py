"""How well simple classifiers tell classes apart, by depth or in few dimensions (C6, C7)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn

__all__ = [
    "ClassDistances",
    "averaged_states",
    "class_distances",
    "nearest_neighbour_correct",
    "plateau",
    "principal_components",
    "svm_correct",
]


@torch.no_grad()
def averaged_states(model: nn.Module, images: Tensor, batch_size: int = 256) -> list[np.ndarray]:
    """The spatially averaged representation at every depth.

    Args:
        model: with a method ``states``, in evaluation mode.
        images: ``(N, C, H, W)`` on the model's device.
        batch_size: images at a time.

    Returns:
        Per depth, ``(N, channels)`` float32; the first is the entry's, the last the final
        representation's.
    """
    batches = [
        [state.mean(dim=(2, 3)).cpu().numpy() for state in model.states(x)]
        for x in images.split(batch_size)
    ]
    return [np.concatenate(depth) for depth in zip(*batches, strict=True)]


@dataclass(frozen=True)
class ClassDistances:
    """Mean Euclidean distances of pairs of items.

    Args:
        within: of two items of the same class.
        between: of two items of different classes.
    """

    within: float
    between: float

    @property
    def ratio(self) -> float:
        """``within / between``: one where classes do not show, falling as they contract."""
        return self.within / self.between


def class_distances(features: np.ndarray, labels: np.ndarray) -> ClassDistances:
    """How far items of one class and of different classes are from each other.

    Args:
        features: ``(N, d)``.
        labels: ``(N,)``.

    Raises:
        ValueError: if no two items share a class, or if there is one class only.
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


def svm_correct(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    penalties: Sequence[float],
    search_tolerance: float = 1e-3,
) -> np.ndarray:
    """Which test items a linear support vector machine gets right.

    Features are standardised; the penalty is chosen by three-fold cross-validation on the
    training items.

    Args:
        train: ``(N, d)``.
        train_labels: ``(N,)``.
        test: ``(M, d)``.
        test_labels: ``(M,)``.
        penalties: values of the penalty C to choose from; of one, nothing is compared.
        search_tolerance: at which optimisation stops while penalties are compared, which takes
            most of the time; the machine that is scored stops at 1e-3.

    Returns:
        ``(M,)`` bool.
    """
    # The dual problem takes few passes where the penalty is small; else the primal is faster.
    svm = LinearSVC(dual=max(penalties) <= 1e-3, tol=search_tolerance, random_state=0)
    machine = make_pipeline(StandardScaler(), svm)
    best = {"linearsvc__C": penalties[0]}
    if len(penalties) > 1:
        search = GridSearchCV(machine, {"linearsvc__C": list(penalties)}, cv=3, refit=False)
        best = search.fit(train, train_labels).best_params_
    machine.set_params(**best, linearsvc__tol=1e-3).fit(train, train_labels)
    return machine.predict(test) == test_labels


def principal_components(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, ...]:
    """Projects on the principal components of the training items.

    Args:
        train: ``(N, d)``.
        test: ``(M, d)``.

    Returns:
        Projections ``(N, k)`` and ``(M, k)``, components by falling variance, and the share of
        the variance that the first 1 to ``k`` components hold together, ``(k,)``.
    """
    analysis = PCA(svd_solver="full").fit(train)
    cumulated = np.cumsum(analysis.explained_variance_ratio_)
    return analysis.transform(train), analysis.transform(test), cumulated


def plateau(dimensions: Sequence[int], accuracies: Sequence[float], tolerance: float) -> int:
    """The smallest number of dimensions from which on accuracy stays near that of all.

    Args:
        dimensions: rising; the last is all of them.
        accuracies: of a classifier that sees so many.
        tolerance: how far below the last accuracy still counts as the plateau.
    """
    start = dimensions[-1]
    for dimension, accuracy in reversed(list(zip(dimensions, accuracies, strict=True))):
        if accuracy < accuracies[-1] - tolerance:
            break
        start = dimension
    return start
