"""How exactly an image comes back from its representation (claims C1 and C9)."""

import hashlib
import io
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from irevnet.model import IRevNet

__all__ = [
    "Reconstruction",
    "flops",
    "png_hash",
    "random_representations",
    "reconstruct",
    "relative_error",
    "to_uint8",
]


@dataclass(frozen=True)
class Reconstruction:
    """Images, what came back of them, and the error of each.

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

    @property
    def peak_signal_to_noise_ratio(self) -> float:
        """10 log10 of one over the mean squared error of all pixels, in dB."""
        squared = (self.reconstructed.double() - self.images.double()).square().mean()
        return float(-10 * torch.log10(squared))


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
    """
    pieces = [model.inverse(model.encode(x)) for x in images.split(batch_size)]
    return Reconstruction(images, torch.cat(pieces))


@torch.no_grad()
def random_representations(
    model: IRevNet, images: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Gaussian representations with the mean and spread that images' have in each channel.

    Args:
        model: in evaluation mode.
        images: ``(N, C, H, W)``, whose representations set mean and spread.
        count: how many to draw.
        generator: on the CPU.

    Returns:
        ``(count, channels, h, w)``: representations of no image in particular.
    """
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
