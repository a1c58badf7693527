"""The trivial invertible map: the image with a network's features beside it.

For any network ``phi``, the map from ``x`` to ``(x, phi(x))`` has an inverse and classifies as well
as ``phi``. Reviewers of the paper asked what an i-RevNet offers beyond that
(https://openreview.net/forum?id=HJsjkMb0Z). With this module, the analyses of this package measure
both.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from irevnet.analysis.dimensionality import principal_components
from irevnet.analysis.protocols import Encoder
from irevnet.analysis.separation import scores, standardised

__all__ = ["TrivialMap", "accuracies", "equal_dimension", "image_shares"]


class TrivialMap(nn.Module):
    """``x`` to ``(x, phi(x))``: every pixel, then the network's spatially averaged features.

    It has the methods of an i-RevNet that the analyses call.

    Args:
        network: ``phi``, such as :class:`irevnet.network.baselines.ResNet`.
    """

    network: Encoder

    def __init__(self, network: Encoder) -> None:
        super().__init__()
        self.network = network
        self.pixels = math.prod(network.in_shape)

    def encode(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to ``(B, C * H * W + features, 1, 1)``."""
        return _beside(x, self.network.encode(x))

    def inverse(self, z: Tensor) -> Tensor:
        """The images of which ``z`` holds a copy: drops the features."""
        return z[:, : self.pixels].reshape(-1, *self.network.in_shape)

    def states(self, x: Tensor) -> Iterator[Tensor]:
        """``(x, phi_j(x))`` for the features after the stem and after every unit of the network."""
        return (_beside(x, state) for state in self.network.states(x))


def _beside(x: Tensor, features: Tensor) -> Tensor:
    """Joins ``(B, C, H, W)`` and averaged ``(B, F, h, w)`` to ``(B, C * H * W + F, 1, 1)``."""
    return torch.cat([x.flatten(1), features.mean(dim=(2, 3))], dim=1)[:, :, None, None]


def image_shares(codes: np.ndarray, pixels: int) -> tuple[float, float]:
    """The shares of the copied image in the codes.

    Args:
        codes: ``(N, d)``, the pixels first.
        pixels: number of pixels.

    Returns:
        The image's share of the sum of squares, and of the variance.
    """
    squares, variance = np.square(codes).sum(axis=0), codes.var(axis=0)
    return (
        float(squares[:pixels].sum() / squares.sum()),
        float(variance[:pixels].sum() / variance.sum()),
    )


def equal_dimension(
    train: np.ndarray, test: np.ndarray, pixels: int, features: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes with as many dimensions as the image, some of which are the network's features.

    The leading principal components of the features replace the last ones of the image. The loss of
    an image is the part of the replaced components that the best affine function of its code, in
    least squares over the training images, does not recover.

    Args:
        train: codes ``(N, n + m)`` of the trivial map, to which components are fitted.
        test: codes ``(M, n + m)``.
        pixels: number of values of a code that are the image, ``n``.
        features: number of dimensions for the features, ``k``.

    Returns:
        Codes ``(N, n)`` and ``(M, n)``, ``n - k`` components of the image and then ``k`` of the
        features; and the norm of each test image's loss over that of the image, ``(M,)``.

    Raises:
        ValueError: if the image or the features have too few components.
    """
    train, test = train.astype(np.float64), test.astype(np.float64)
    image = principal_components(train[:, :pixels], test[:, :pixels])[:2]
    network = principal_components(train[:, pixels:], test[:, pixels:])[:2]
    most = min(pixels, network[0].shape[1])
    if image[0].shape[1] < pixels or not 0 <= features <= most:
        raise ValueError(
            f"features must be from 0 to {most}, and train must have more items than pixels, "
            f"{pixels}; got {features} and {len(train)} items"
        )
    kept = pixels - features
    codes, test_codes = (
        np.concatenate([x[:, :kept], y[:, :features]], axis=1)
        for x, y in zip(image, network, strict=True)
    )
    # Both sides have mean zero over the training items, so the affine fit needs no constant.
    fit = np.linalg.lstsq(codes, image[0][:, kept:], rcond=None)[0]
    error = np.linalg.norm(image[1][:, kept:] - test_codes @ fit, axis=1)
    return codes, test_codes, error / np.linalg.norm(test[:, :pixels], axis=1)


def accuracies(
    train: np.ndarray,
    test: np.ndarray,
    labels: tuple[np.ndarray, np.ndarray],
    penalties: Sequence[float],
    search_tolerance: float,
) -> dict[str, float]:
    """Test accuracies of both classifiers of :mod:`irevnet.analysis.separation`, standardised.

    Args:
        train: ``(N, d)``.
        test: ``(M, d)``.
        labels: of the training items, ``(N,)``, and of the test items, ``(M,)``.
        penalties: as for :func:`irevnet.analysis.separation.choose_penalty`.
        search_tolerance: as for the same function.

    Returns:
        What :func:`irevnet.analysis.separation.scores` returns.
    """
    train, test = standardised(train, test)
    return scores(train, labels[0], test, labels[1], penalties, search_tolerance)
