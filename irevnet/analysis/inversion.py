"""How exactly an image is recovered from its representation (claims C1 and C9)."""

import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from irevnet.analysis import statistics
from irevnet.checks import check_evaluation_mode
from irevnet.network.model import IRevNet
from irevnet.reversible.layers import merge, split

__all__ = [
    "Reconstruction",
    "flops",
    "known_channels_ignored",
    "moved_back",
    "png_hash",
    "random_representations",
    "reconstruct",
    "relative_error",
    "summarise",
    "there_and_back",
    "to_uint8",
]


@dataclass(frozen=True)
class Reconstruction:
    """Images, their reconstructions, and the error of each.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        reconstructed: ``(N, C, H, W)``.
    """

    images: Tensor
    reconstructed: Tensor

    @property
    def relative_error(self) -> Tensor:
        """Euclidean norm of the error over that of the image, ``(N,)``."""
        return relative_error(self.reconstructed, self.images)

    @property
    def equal_as_uint8(self) -> Tensor:
        """Whether every pixel is the same after rounding to 256 levels, ``(N,)`` bool."""
        same = to_uint8(self.images) == to_uint8(self.reconstructed)
        return same.flatten(1).all(dim=1)


def summarise(reconstructions: Sequence[Reconstruction]) -> dict[str, Any]:
    """Summarises reconstructions by several networks; the network is the statistical unit.

    Args:
        reconstructions: reconstructions of the same images, one per trained network.

    Returns:
        ``relative_error``, the mean over networks of the mean over images, with its interval;
        ``equal_as_uint8``, the share of images that are equal as uint8, over all networks;
        ``largest_relative_error``; ``relative_errors`` and ``shares_equal``, a number per network.
    """
    errors = [one.relative_error.mean().item() for one in reconstructions]
    shares = [one.equal_as_uint8.double().mean().item() for one in reconstructions]
    images = reconstructions[0].relative_error.cpu().numpy()
    single = statistics.mean(images) if len(images) > 1 else statistics.exact(errors[0], 1)
    return {
        "networks": len(errors),
        "relative_error": statistics.mean_of_networks(errors, (0, math.inf), single).as_dict(),
        "equal_as_uint8": statistics.exact(sum(shares) / len(shares), len(shares)).as_dict(),
        "largest_relative_error": max(one.relative_error.max().item() for one in reconstructions),
        "relative_errors": errors,
        "shares_equal": shares,
    }


def to_uint8(x: Tensor) -> Tensor:
    """Images in [0, 1] as 256 levels, clipped."""
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


def png_hash(image: Tensor) -> str:
    """SHA-256, in hexadecimal, of the PNG file of one image ``(C, H, W)`` in [0, 1]."""
    from torchvision.transforms.functional import to_pil_image

    file = io.BytesIO()
    to_pil_image(to_uint8(image).cpu()).save(file, "PNG")
    return hashlib.sha256(file.getvalue()).hexdigest()


def relative_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """``|estimate - truth| / |truth|`` per item of a batch, Euclidean, in float64."""
    error = (estimate.double() - truth.double()).flatten(1).norm(dim=1)
    return error / truth.double().flatten(1).norm(dim=1)


@torch.no_grad()
def reconstruct(model: IRevNet, images: Tensor, batch_size: int = 256) -> Reconstruction:
    """Encodes images and inverts the representations.

    Args:
        model: in evaluation mode.
        images: ``(N, C, H, W)`` on the model's device.
        batch_size: images at a time.

    Raises:
        ValueError: if the model is in training mode.
    """
    check_evaluation_mode(model)
    pieces = [model.inverse(model.encode(x)) for x in images.split(batch_size)]
    return Reconstruction(images, torch.cat(pieces))


def moved_back(model: IRevNet, state: Tensor, depth: int) -> Tensor:
    """Shows a state as a picture: the image that would have this state if all F were zero.

    Without F, an i-RevNet only moves values, so every value in the state of a bijective network has
    a place in the image. Normalisation is undone: at depth 0 the picture is the image.

    Args:
        model: a bijective one, with floating-point streams.
        state: ``(B, channels, h, w)``, one of :meth:`~irevnet.network.model.IRevNet.states`.
        depth: index of the state, 0 to ``len(model.blocks)``.

    Returns:
        ``(B, C, H, W)``, the same values apart from normalisation.

    Raises:
        ValueError: if the network is not bijective, so that a state has more values than an image.
    """
    if not model.is_bijective:
        raise ValueError("model must be bijective: a wider state has no place in the image")
    x_tilde, x = split(state)
    for block in reversed(model.blocks[:depth]):
        x_tilde, x = block.downsample.inverse(x), block.downsample.inverse(x_tilde)
    picture = model.entry.inverse(merge(x_tilde, x))
    return picture if model.normalize is None else model.normalize.inverse(picture)


@torch.no_grad()
def there_and_back(model: IRevNet, images: Tensor) -> Tensor:
    """All states on the way to the representation and back, as :func:`moved_back` shows them.

    Args:
        model: a bijective one, in evaluation mode, with floating-point streams.
        images: ``(B, C, H, W)``.

    Returns:
        ``(B, 2, len(model.blocks) + 1, C, H, W)``: the way there and the way back, both by depth.

    Raises:
        ValueError: if the model is in training mode or not bijective.
    """
    check_evaluation_mode(model)
    there = list(model.states(images))
    back = list(model.inverse_states(there[-1]))[::-1]
    ways = [
        [moved_back(model, state, depth) for depth, state in enumerate(states)]
        for states in (there, back)
    ]
    return torch.stack([torch.stack(way, dim=1) for way in ways], dim=1)


@contextmanager
def known_channels_ignored(model: IRevNet) -> Iterator[None]:
    """Makes ``model`` invert every channel, as if it knew no channel's values.

    This is the plain inverse of the paper and of the released code; see
    :mod:`irevnet.reversible.known_channels`.
    """
    known = model.known
    try:
        model.known = []
        yield
    finally:
        model.known = known


@torch.no_grad()
def random_representations(
    model: IRevNet, images: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Gaussian representations with the channel means and spreads of images' representations.

    Args:
        model: in evaluation mode.
        images: ``(N, C, H, W)``, whose representations determine mean and spread.
        count: number of representations to draw.
        generator: on the CPU.

    Returns:
        ``(count, channels, h, w)``: representations of no image in particular.

    Raises:
        ValueError: if the model is in training mode.
    """
    check_evaluation_mode(model)
    z = model.encode(images)
    mean = z.mean(dim=(0, 2, 3), keepdim=True)
    spread = z.std(dim=(0, 2, 3), keepdim=True)
    noise = torch.randn(count, *z.shape[1:], generator=generator)
    return mean + spread * noise.to(z)


@torch.no_grad()
def flops(model: IRevNet, images: Tensor) -> tuple[int, int]:
    """Floating-point operations of the convolutions of ``encode`` and of ``inverse``."""
    with FlopCounterMode(display=False) as forward:
        z = model.encode(images)
    with FlopCounterMode(display=False) as backward:
        model.inverse(z)
    return forward.get_total_flops(), backward.get_total_flops()
