"""How well simple classifiers tell classes apart, by depth or in few dimensions (C6, C7)."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn

__all__ = [
    "averaged_states",
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
) -> np.ndarray:
    """Which test items a linear support vector machine gets right.

    Features are standardised; the penalty is chosen by three-fold cross-validation on the
    training items.

    Args:
        train: ``(N, d)``.
        train_labels: ``(N,)``.
        test: ``(M, d)``.
        test_labels: ``(M,)``.
        penalties: values of the penalty C to choose from.

    Returns:
        ``(M,)`` bool.
    """
    machine = make_pipeline(StandardScaler(), LinearSVC(dual=False, tol=1e-3))
    search = GridSearchCV(machine, {"linearsvc__C": list(penalties)}, cv=3)
    search.fit(train, train_labels)
    return search.predict(test) == test_labels


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
