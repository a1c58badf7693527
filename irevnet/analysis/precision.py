"""How exact the inverse and the reversible gradients are, also in the course of training."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from irevnet.analysis.inversion import (
    known_channels_ignored,
    reconstruct,
    relative_error,
)
from irevnet.data import ImageData
from irevnet.network.model import IRevNet
from irevnet.training import TrainingConfig, train

__all__ = ["drift", "gradient", "gradient_errors", "through_training"]


@torch.no_grad()
def drift(model: IRevNet, images: Tensor) -> list[float]:
    """The error of every state that the inverse recovers, from the last one to the first.

    Args:
        model: in evaluation mode, or in training mode without dropout: then ``images`` are the
            batch whose statistics batch norm uses.
        images: ``(B, C, H, W)`` of the model's dtype.

    Returns:
        The Euclidean norm of the error over that of the state, averaged over images. The first
        value belongs to the last representation (it is 0), the last value to the entry.
    """
    states = list(model.states(images))
    recovered = model.inverse_states(states[-1])
    return [
        relative_error(again, state).mean().item()
        for state, again in zip(reversed(states), recovered, strict=True)
    ]


def gradient(model: IRevNet, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy for all parameters, as one vector in float64."""
    model.zero_grad()
    functional.cross_entropy(model(images), labels).backward()
    gradients = (parameter.grad for parameter in model.parameters())
    return torch.cat([grad.flatten().double() for grad in gradients if grad is not None])


def gradient_errors(
    model: IRevNet, batches: Sequence[tuple[Tensor, Tensor]], expected: Sequence[Tensor]
) -> np.ndarray:
    """Errors of :func:`gradient`, one per batch.

    Args:
        model: in training mode.
        batches: images and labels.
        expected: the true gradients of each, as :func:`gradient` returns them.

    Returns:
        ``(batches,)``, Euclidean norms relative to those of the true gradients.
    """
    errors = [
        (gradient(model, images, labels) - truth).norm() / truth.norm()
        for (images, labels), truth in zip(batches, expected, strict=True)
    ]
    return torch.stack(errors).cpu().numpy()


def through_training(
    model: IRevNet, data: ImageData, config: TrainingConfig, images: Tensor
) -> dict[str, list[float]]:
    """Trains ``model`` and measures its inverse after every epoch.

    Args:
        model: a new network.
        data: what to train it on.
        config: how to train it.
        images: ``(N, C, H, W)`` to encode and invert, in evaluation mode, on the device on which
            to train.

    Returns:
        Values after each epoch. ``restored`` and ``ignored`` are mean relative errors with known
        channels restored and with :func:`~irevnet.analysis.inversion.known_channels_ignored`;
        ``smallest_running_variance`` is that of any channel in any batch norm.
    """
    names = ("restored", "ignored", "smallest_running_variance")
    values: dict[str, list[float]] = {name: [] for name in names}

    def measure(_row: object) -> None:
        variances = [buffer for name, buffer in model.named_buffers() if name.endswith("var")]
        values["smallest_running_variance"].append(torch.cat(variances).min().item())
        model.eval()
        values["restored"].append(reconstruct(model, images).relative_error.mean().item())
        with known_channels_ignored(model):
            values["ignored"].append(reconstruct(model, images).relative_error.mean().item())
        model.train()

    train(model, data, config, device=images.device, on_epoch=measure)
    return values
