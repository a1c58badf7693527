"""Whether networks trained on noisy images recognise the class of noisy images (claim C5)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irevnet.checks import check_evaluation_mode
from irevnet.data import TensorImages

__all__ = [
    "Recognition",
    "judge",
    "noise_strength",
    "noisy",
    "noisy_copies",
    "recognised",
    "recognised_along",
]

_CHUNK = 256  # images that a judge sees at a time


@dataclass(frozen=True)
class Recognition:
    """How judges classify the midpoints of paths.

    Args:
        recognised: share of midpoints classified as the class of one of the path's ends.
        yardstick: share of test images, as noisy as the midpoints, classified as their own class.
        control: share of midpoints classified as a class of another path's ends.
        noise_strength: how far midpoints are from the blends of pixels, see :func:`noise_strength`.
    """

    recognised: float
    yardstick: float
    control: float
    noise_strength: float

    @property
    def recognised_of_yardstick(self) -> float:
        """``recognised`` over ``yardstick``: 1 if a path hides the class no more than noise."""
        return self.recognised / self.yardstick

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return dataclasses.asdict(self) | {"recognised_of_yardstick": self.recognised_of_yardstick}


def judge(
    judges: Sequence[nn.Module],
    midpoints: Tensor,
    ends: tuple[Tensor, Tensor],
    classes: Tensor,
    test: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> Recognition:
    """Compares how often judges recognise midpoints and equally noisy images.

    Args:
        judges: classifiers in evaluation mode.
        midpoints: ``(P, C, H, W)``; judges see them clipped to [0, 1].
        ends: images at the starts and at the ends of the paths, each ``(P, C, H, W)``.
        classes: classes of both ends, int64 ``(P, 2)``; either one counts as recognised.
        test: images ``(N, C, H, W)`` in [0, 1] and their classes, for the yardstick.
        generator: on the CPU, for the noise on these images.

    Raises:
        ValueError: if a judge is in training mode.
    """
    strength = noise_strength(midpoints, (ends[0] + ends[1]) / 2)
    images, labels = test
    as_noisy = noisy(images, strength, generator)
    return Recognition(
        recognised=recognised(judges, midpoints, classes),
        yardstick=recognised(judges, as_noisy, labels[:, None]),
        control=recognised(judges, midpoints, classes.roll(1, dims=0)),
        noise_strength=strength,
    )


def noise_strength(images: Tensor, clean: Tensor) -> float:
    """Root mean square difference of two sets of images ``(N, ...)``, clipped to [0, 1]."""
    return float((images.clamp(0, 1) - clean.clamp(0, 1)).square().mean().sqrt())


def noisy(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Adds Gaussian noise to images and clips them to [0, 1].

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        strength: standard deviation of the noise before clipping.
        generator: on the CPU.
    """
    noise = torch.randn(images.shape, generator=generator).to(images)
    return (images + strength * noise).clamp(0, 1)


def noisy_copies(images: TensorImages, strengths: Sequence[float], seed: int) -> TensorImages:
    """A set that has a noisy copy of every image for each strength, see :func:`noisy`."""
    generator = torch.Generator().manual_seed(seed)
    x, labels = images.first(len(images))
    copies = [noisy(x, strength, generator) for strength in strengths]
    return TensorImages(
        (255 * torch.cat(copies)).round().to(torch.uint8), labels.repeat(len(strengths))
    )


@torch.no_grad()
def recognised(judges: Sequence[nn.Module], images: Tensor, classes: Tensor) -> float:
    """How often networks assign images to one of the classes that count as right.

    Args:
        judges: classifiers in evaluation mode.
        images: ``(N, C, H, W)``; judges see them clipped to [0, 1].
        classes: int64 ``(N, k)``, those that count as right.

    Returns:
        The share, over images and judges.

    Raises:
        ValueError: if a judge is in training mode.
    """
    for judge in judges:
        check_evaluation_mode(judge)
    seen = images.clamp(0, 1)
    shares = [
        (torch.cat([judge(x).argmax(dim=1) for x in seen.split(_CHUNK)])[:, None] == classes)
        .any(dim=1)
        .double()
        .mean()
        for judge in judges
    ]
    return float(torch.stack(shares).mean())


def recognised_along(
    judges: Sequence[nn.Module],
    paths: Tensor,
    blends: Tensor,
    classes: Tensor,
    test: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> tuple[list[float], list[float]]:
    """How often judges recognise the images at each position of paths, and equally noisy images.

    Args:
        judges: classifiers in evaluation mode.
        paths: images ``(P, steps, C, H, W)``.
        blends: of the pixels of the paths' ends, at the same positions, ``(P, steps, C, H, W)``.
        classes: classes of both ends, int64 ``(P, 2)``; either one counts as recognised.
        test: images ``(N, C, H, W)`` in [0, 1] and their classes. They get as much noise as the
            paths have at a position, see :func:`noise_strength`.
        generator: on the CPU, for that noise.

    Returns:
        Shares by position, of the paths and of the noisy images.
    """
    images, labels = test
    seen, yardstick = [], []
    for points, blend in zip(paths.unbind(1), blends.unbind(1), strict=True):
        as_noisy = noisy(images, noise_strength(points, blend), generator)
        seen.append(recognised(judges, points, classes))
        yardstick.append(recognised(judges, as_noisy, labels[:, None]))
    return seen, yardstick
