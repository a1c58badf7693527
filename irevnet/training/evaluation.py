"""How well a network classifies a set of images."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from irevnet.checks import check_positive
from irevnet.data import FolderImages, TensorImages
from irevnet.training.config import PRECISIONS

__all__ = [
    "VIEWS",
    "Evaluation",
    "autocast",
    "combine",
    "evaluate",
    "evaluation_mode",
    "lacks_bfloat16",
]

VIEWS = ("one", "mirrored", "shifted")


@dataclass(frozen=True)
class Evaluation:
    """How well a network classifies a set.

    Args:
        accuracy: share of the images classified correctly, 0 to 1.
        loss: mean cross-entropy in nats.
        n: number of images.
    """

    accuracy: float
    loss: float
    n: int


def evaluate(
    model: nn.Module,
    images: TensorImages | FolderImages,
    *,
    batch_size: int = 256,
    precision: str = "float32",
    views: str = "one",
) -> Evaluation:
    """Classifies every image of a set, in evaluation mode; the mode is restored.

    Args:
        model: images ``(B, C, H, W)`` to logits ``(B, num_classes)``.
        images: the set.
        batch_size: images at a time.
        precision: precision of the convolutions, ``"float32"`` or ``"bfloat16"``.
        views: views of an image whose logits are averaged: ``"one"``, the image; ``"mirrored"``,
            also its mirror image; ``"shifted"``, also both of these moved by one pixel up and
            left and down and right, with half the weight of the unmoved views (Jordan, 2024,
            section 3.5, https://arxiv.org/abs/2404.00498).

    Raises:
        ValueError: if an argument has another value.

    Example:
        >>> import irevnet
        >>> from irevnet.data import load_digits
        >>> from irevnet.training import evaluate
        >>> model = irevnet.create_model("irevnet_digits", pretrained="digits")
        >>> evaluate(model, load_digits().test).accuracy > 0.95
        True
    """
    check_positive("batch_size", batch_size)
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if views not in VIEWS:
        raise ValueError(f"views must be one of {VIEWS}, got {views!r}")
    if len(images) == 0:
        return Evaluation(accuracy=math.nan, loss=math.nan, n=0)
    device = next(model.parameters()).device
    correct = loss = torch.zeros((), dtype=torch.float64, device=device)
    with evaluation_mode(model), torch.no_grad(), autocast(device, precision):
        for x, labels in images.batches(batch_size):
            logits = _logits(model, x.to(device), views)
            targets = labels.to(device)
            correct = correct + (logits.argmax(dim=1) == targets).sum()
            loss = loss + functional.cross_entropy(logits, targets, reduction="sum")
    return Evaluation(correct.item() / len(images), loss.item() / len(images), len(images))


def combine(shares: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of a set from those of its shares, some of which may be empty."""
    shares = [share for share in shares if share.n] or list(shares[:1])
    if len(shares) == 1:
        return shares[0]
    n = sum(share.n for share in shares)
    correct = sum(round(share.accuracy * share.n) for share in shares)
    return Evaluation(correct / n, sum(share.loss * share.n for share in shares) / n, n)


def _logits(model: nn.Module, x: Tensor, views: str) -> Tensor:
    logits = model(x).float()
    if views == "one":
        return logits
    logits = (logits + model(x.flip(3)).float()) / 2
    if views == "mirrored":
        return logits
    padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")
    height, width = x.shape[2:]
    moved = [padded[:, :, at : at + height, at : at + width] for at in (0, 2)]
    shifted = sum(model(view).float() + model(view.flip(3)).float() for view in moved) / 4
    return (logits + shifted) / 2


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts every module into evaluation mode, and always restores its own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """A context with convolutions in ``precision``, ``"float32"`` or ``"bfloat16"``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def lacks_bfloat16() -> bool:
    """Whether convolutions in bfloat16 are far slower on this processor than in float32.

    An x86 processor without AVX-512 has no kernels for them.
    """
    return torch.backends.cpu.get_cpu_capability() in ("NO AVX", "AVX2")
