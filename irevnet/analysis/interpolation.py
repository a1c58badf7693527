"""Straight lines between representations, seen as images (claim C5)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irevnet.checks import check_evaluation_mode
from irevnet.network.model import IRevNet

__all__ = [
    "Confidence",
    "blend",
    "choose_pairs",
    "confidence",
    "interpolate",
    "midpoints",
    "nearest_distance",
    "range_excess",
]

_CHUNK = 256  # images whose distances to all references are in memory at a time


@dataclass(frozen=True)
class Confidence:
    """Softmax probabilities of a network along paths, each ``(P, steps)``.

    Args:
        start: probability of the class of the path's start.
        end: probability of the class of its end.
        largest: probability of the most probable class.
    """

    start: Tensor
    end: Tensor
    largest: Tensor


def choose_pairs(
    labels: Tensor, count: int, generator: torch.Generator, *, same_class: bool
) -> tuple[Tensor, Tensor]:
    """Draws pairs of images of the same class, or of different ones, no image twice.

    Images are taken in random order. Each is paired with the first earlier one that fits and has no
    partner yet.

    Args:
        labels: ``(N,)`` int64.
        count: pairs to draw.
        generator: on the CPU; its state alone determines the pairs.
        same_class: whether the two of a pair have the same label.

    Returns:
        Indices of the starts and of the ends, ``(count,)`` int64 on the CPU.

    Raises:
        ValueError: if fewer pairs are found.
    """
    classes = labels.tolist()
    unpaired: list[int] = []
    pairs: list[tuple[int, int]] = []
    for index in torch.randperm(len(classes), generator=generator).tolist():
        if len(pairs) == count:
            break
        fits = (other for other in unpaired if (classes[other] == classes[index]) == same_class)
        partner = next(fits, None)
        if partner is None:
            unpaired.append(index)
        else:
            unpaired.remove(partner)
            pairs.append((partner, index))
    if len(pairs) < count:
        kind = "the same class" if same_class else "different classes"
        raise ValueError(
            f"count must be at most {len(pairs)}, the pairs found of {kind}, got {count}"
        )
    start, end = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return start, end


def blend(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Points on straight lines, ends included.

    Args:
        start: ``(P, ...)``.
        end: ``(P, ...)``.
        steps: points on each line.

    Returns:
        ``(P, steps, ...)``.
    """
    weights = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    weights = weights.view(1, steps, *[1] * (start.ndim - 1))
    return start[:, None] * (1 - weights) + end[:, None] * weights


@torch.no_grad()
def interpolate(model: IRevNet, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Images along the straight line between the representations of two images.

    Args:
        model: in evaluation mode.
        start: images ``(P, C, H, W)``.
        end: images ``(P, C, H, W)``.
        steps: points on each path, ends included.

    Returns:
        ``(P, steps, C, H, W)``, not clipped.

    Raises:
        ValueError: if the model is in training mode.
    """
    check_evaluation_mode(model)
    z = blend(model.encode(start), model.encode(end), steps)
    return model.inverse(z.flatten(0, 1)).unflatten(0, z.shape[:2])


def midpoints(model: IRevNet, start: Tensor, end: Tensor) -> Tensor:
    """The images halfway along the paths of :func:`interpolate`, ``(P, C, H, W)``, not clipped."""
    return interpolate(model, start, end, 3)[:, 1]


@torch.no_grad()
def confidence(model: nn.Module, path: Tensor, start: Tensor, end: Tensor) -> Confidence:
    """A network's class probabilities for the images of paths, which are not clipped.

    Args:
        model: any classifier in evaluation mode.
        path: images ``(P, steps, C, H, W)``.
        start: classes of the paths' starts, ``(P,)`` int64.
        end: classes of their ends, ``(P,)`` int64.

    Raises:
        ValueError: if the model is in training mode.
    """
    check_evaluation_mode(model)
    probabilities = model(path.flatten(0, 1)).softmax(dim=1).unflatten(0, path.shape[:2])
    steps = path.shape[1]
    start_probability, end_probability = (
        probabilities.gather(2, labels.view(-1, 1, 1).expand(-1, steps, 1)).squeeze(2)
        for labels in (start, end)
    )
    return Confidence(start_probability, end_probability, probabilities.amax(dim=2))


def range_excess(images: Tensor) -> Tensor:
    """Mean distance of images' pixels from the range [0, 1], ``(N, ...)`` to ``(N,)``."""
    return (images - images.clamp(0, 1)).abs().flatten(1).mean(dim=1)


def nearest_distance(images: Tensor, references: Tensor) -> Tensor:
    """Euclidean distance to the nearest of the references, ``(N, ...)`` to ``(N,)``."""
    references = references.flatten(1)
    chunks = images.flatten(1).split(_CHUNK)
    return torch.cat([torch.cdist(chunk, references).min(dim=1).values for chunk in chunks])
