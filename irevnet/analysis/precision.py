"""How exact the inverse and the reversible gradients are, in which arithmetic, and when."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from irevnet.analysis.inversion import reconstruct, relative_error
from irevnet.data import ImageData
from irevnet.model import IRevNet
from irevnet.training import TrainingConfig, train

__all__ = ["drift", "gradient", "known_channels_ignored", "through_training"]


@torch.no_grad()
def drift(model: IRevNet, images: Tensor) -> list[float]:
    """The error of every state that the inverse recovers, as it goes back from the last one.

    Args:
        model: in evaluation mode, or in training mode without dropout: then ``images`` are the
            batch whose statistics batch norm uses.
        images: ``(B, C, H, W)`` of the model's dtype.

    Returns:
        Euclidean norm of the error over that of the state, mean over images; first of the last
        representation (0), last of the entry's.
    """
    states = list(model.states(images))
    recovered = model.inverse_states(states[-1])
    return [
        relative_error(again, state).mean().item()
        for state, again in zip(reversed(states), recovered, strict=True)
    ]


def gradient(model: IRevNet, images: Tensor, labels: Tensor) -> Tensor:
    """All parameters' gradients of the mean cross-entropy, as one vector in float64."""
    model.zero_grad()
    functional.cross_entropy(model(images), labels).backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters()])


@contextmanager
def known_channels_ignored(model: IRevNet) -> Iterator[None]:
    """Lets ``model`` invert every channel, as if nothing were known of any.

    It is what the released code does; see :mod:`irevnet.known_channels`.
    """
    known = model.known
    try:
        model.known = []
        yield
    finally:
        model.known = known


def through_training(
    model: IRevNet, data: ImageData, config: TrainingConfig, images: Tensor
) -> dict[str, list[float]]:
    """Trains ``model`` and measures its inverse after every epoch.

    Args:
        model: freshly made.
        data: what to train it on.
        config: how to train it.
        images: ``(N, C, H, W)`` to encode and invert, in evaluation mode, on the device on which
            to train.

    Returns:
        Mean relative errors after each epoch, ``restored`` with known channels put back and
        ``ignored`` with :func:`known_channels_ignored`.
    """
    errors: dict[str, list[float]] = {"restored": [], "ignored": []}

    def measure(_line: str) -> None:
        model.eval()
        errors["restored"].append(reconstruct(model, images).relative_error.mean().item())
        with known_channels_ignored(model):
            errors["ignored"].append(reconstruct(model, images).relative_error.mean().item())
        model.train()

    train(model, data, config, device=images.device, report=measure)
    return errors
