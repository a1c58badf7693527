"""Images near to others in their pixels that a network gives the logits of given ones.

No inverse is needed: what is searched for are changes of pixels that the logits of a classifier do
not see. :mod:`irevnet.analysis.metamers` looks for them in the representation of an i-RevNet.
"""

import torch
from torch import Tensor, nn

from irevnet.checks import check_evaluation_mode

__all__ = ["logit_difference", "resembling"]

_VALUES = 2**24  # pixels whose gradients are made at a time: 111 images of 224 x 224


@torch.no_grad()
def resembling(
    model: nn.Module,
    images: Tensor,
    appearance: Tensor,
    *,
    approach: int = 30,
    corrections: int = 30,
) -> Tensor:
    """Images with the logits of ``images`` that are near to others in their pixels.

    In evaluation mode a network of convolutions, batch norms and ReLUs is linear but for its kinks,
    so that Newton's method meets the logits to the last bit once it stays between two of them.
    Beginning at ``appearance``, every step corrects the logits by the smallest change of pixels and
    moves a part of the way back to ``appearance``, as far as the logits do not see it. That part
    falls to zero. The search is local: it may end at other images than the nearest, or at none;
    see :func:`logit_difference`.

    Args:
        model: any classifier in evaluation mode; no inverse is needed.
        images: ``(N, C, H, W)``, whose logits are wanted.
        appearance: ``(N, C, H, W)``, to which to be near.
        approach: steps that go back a part of the way.
        corrections: steps after these that correct the logits alone, at most.

    Returns:
        ``(N, C, H, W)``, not clipped. The cost grows with the number of classes: of every image,
        a gradient for each in every step.

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
    exact_enough = 32 * torch.finfo(images.dtype).eps
    current = appearance.clone()
    for step in range(approach + corrections):
        values, slopes = _logits_and_slopes(model, current)
        missing = (logits - values).double()
        if step >= approach and (missing.abs() <= exact_enough * _largest(logits)[:, None]).all():
            break
        part = max(0.0, 0.75 * (1 - step / approach)) if approach else 0.0
        way = part * (appearance - current).double().flatten(1)
        missing = missing - torch.einsum("nkp,np->nk", slopes, way)
        way = way + torch.einsum("npk,nk->np", torch.linalg.pinv(slopes), missing)
        current = (current + way.view_as(current)).to(images.dtype)
    return current


@torch.no_grad()
def logit_difference(model: nn.Module, images: Tensor, logits: Tensor) -> Tensor:
    """The largest difference of images' logits from given ones, over the largest of these.

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
    """Logits ``(N, K)`` and their gradients by the pixels, ``(N, K, C * H * W)`` float64."""
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
