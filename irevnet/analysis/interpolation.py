"""Straight lines between representations, seen as images (claim C5)."""

import torch
from torch import Tensor

from irevnet.model import IRevNet

__all__ = ["blend", "interpolate", "nearest_distance", "range_excess"]


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
    """
    z = blend(model.encode(start), model.encode(end), steps)
    return model.inverse(z.flatten(0, 1)).unflatten(0, z.shape[:2])


def range_excess(images: Tensor) -> Tensor:
    """Mean distance of the pixels to the range [0, 1] of images, ``(N, ...)`` to ``(N,)``."""
    return (images - images.clamp(0, 1)).abs().flatten(1).mean(dim=1)


def nearest_distance(images: Tensor, references: Tensor) -> Tensor:
    """Euclidean distance to the nearest of the references, ``(N, ...)`` to ``(N,)``."""
    return torch.cdist(images.flatten(1), references.flatten(1)).min(dim=1).values
