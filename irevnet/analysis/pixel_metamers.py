"""Images with the logits of given images and pixels near those of other images.

No inverse is needed: the search is for changes of pixels that the logits of a classifier do not
see. :mod:`irevnet.analysis.metamers` searches for such changes in the representation of an
i-RevNet.
"""

import torch
from torch import Tensor, nn

from irevnet.checks import check_evaluation_mode

__all__ = ["logit_difference", "resembling"]

_VALUES = 2**24  # values whose gradients are computed together: 111 images of 3 x 224 x 224


@torch.no_grad()
def resembling(
    model: nn.Module,
    images: Tensor,
    appearance: Tensor,
    *,
    approach: int = 30,
    corrections: int = 30,
) -> Tensor:
    """Images with the logits of ``images`` and pixels near those of ``appearance``.

    In evaluation mode a network of convolutions, batch norms and ReLUs is piecewise linear, so
    Newton's method matches the logits to the last bit once it stays within one linear piece. The
    search begins at ``appearance``. Every step corrects the logits by the smallest change of pixels
    and moves part of the way back to ``appearance``, as far as the logits do not see the move. This
    part decreases to zero. The search is local: it may end at images that are not the nearest, or
    not match the logits at all; see :func:`logit_difference`.

    Args:
        model: any classifier in evaluation mode; no inverse is needed.
        images: ``(N, C, H, W)``, whose logits are wanted.
        appearance: ``(N, C, H, W)``, whose pixels the result should be near.
        approach: number of steps that move part of the way back.
        corrections: largest number of further steps, which only correct the logits.

    Returns:
        ``(N, C, H, W)``, not clipped. The cost grows with the number of classes: every step
        computes one gradient per image and class.

    Raises:
        ValueError: if the model is in training mode, or if the shapes differ.
    """
    check_evaluation_mode(model)
    if appearance.shape != images.shape:
        raise ValueError(
            f"appearance must have the shape of images, {tuple(images.shape)}, got "
            f"{tuple(appearance.shape)}"
        )
    logits = model(images)
    tolerance = 32 * torch.finfo(images.dtype).eps
    current = appearance.clone()
    for step in range(approach + corrections):
        values, slopes = _logits_and_slopes(model, current)
        missing = (logits - values).double()
        if step >= approach and (missing.abs() <= tolerance * _largest(logits)[:, None]).all():
            break
        part = max(0.0, 0.75 * (1 - step / approach)) if approach else 0.0
        change = part * (appearance - current).double().flatten(1)
        missing = missing - torch.einsum("nkp,np->nk", slopes, change)
        change = change + torch.einsum("npk,nk->np", torch.linalg.pinv(slopes), missing)
        current = (current + change.view_as(current)).to(images.dtype)
    return current


@torch.no_grad()
def logit_difference(model: nn.Module, images: Tensor, logits: Tensor) -> Tensor:
    """The largest difference of images' logits from given ones, relative to the largest of these.

    Args:
        model: in evaluation mode.
        images: ``(N, C, H, W)``.
        logits: ``(N, num_classes)``.

    Returns:
        ``(N,)`` float64.

    Raises:
        ValueError: if the model is in training mode.
    """
    check_evaluation_mode(model)
    return _largest(model(images).double() - logits.double()) / _largest(logits)


def _largest(logits: Tensor) -> Tensor:
    """Largest magnitude of each item, ``(N, num_classes)`` to ``(N,)`` float64."""
    return logits.double().abs().amax(dim=1)


def _logits_and_slopes(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``(N, K)`` and their gradients for the pixels, ``(N, K, C * H * W)`` float64."""
    classes = model(images[:1]).shape[1]
    # A copy of each image for each class, so that few backward passes are enough.
    copies = images.repeat_interleave(classes, dim=0)
    wanted = torch.arange(classes, device=images.device).repeat(len(images))[:, None]
    count = max(1, _VALUES // images[0].numel())
    logits, slopes = [], []
    for part, own in zip(copies.split(count), wanted.split(count), strict=True):
        with torch.enable_grad():
            part = part.clone().requires_grad_()
            values = model(part)
            (gradient,) = torch.autograd.grad(values.gather(1, own).sum(), part)
        logits.append(values.detach())
        slopes.append(gradient.flatten(1))
    by_class = torch.cat(slopes).unflatten(0, (-1, classes)).double()
    return torch.cat(logits)[::classes], by_class
