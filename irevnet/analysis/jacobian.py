"""The singular values of a representation's Jacobian at an image (claim C4)."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "condition_number",
    "effective_rank",
    "energy_dimensions",
    "jacobians",
    "log_determinant",
    "spectra",
]


def jacobians(
    function: Callable[[Tensor], Tensor], images: Tensor, *, chunk_size: int = 64
) -> Tensor:
    """The Jacobian of a function of one image at each of several images.

    Args:
        function: ``(B, C, H, W)`` to ``(B, ...)``, each item from its own image alone (a network
            in evaluation mode).
        images: ``(N, C, H, W)``; their dtype is that of the result.
        chunk_size: columns that are computed at a time; memory grows with it.

    Returns:
        ``(N, outputs, C * H * W)``, the derivative of every output by every pixel.
    """
    pixels = images[0].numel()
    directions = torch.eye(pixels, dtype=images.dtype, device=images.device)

    def derivative(image: Tensor, direction: Tensor) -> Tensor:
        def flat(x: Tensor) -> Tensor:
            return function(x[None]).flatten()

        return torch.func.jvp(flat, (image,), (direction.view_as(image),))[1]

    columns = torch.func.vmap(derivative, in_dims=(None, 0), chunk_size=chunk_size)
    with warnings.catch_warnings():
        # torch's own forward mode uses a deprecated part of torch when it is first called.
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
        warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
        return torch.stack([columns(image, directions).T.detach() for image in images])


def spectra(jacobian: Tensor) -> Tensor:
    """Singular values of Jacobians ``(N, outputs, inputs)``, falling, ``(N, inputs)``."""
    return torch.linalg.svdvals(jacobian)


def condition_number(singular_values: Tensor) -> Tensor:
    """The largest singular value over the smallest, ``(N, k)`` to ``(N,)``."""
    return singular_values[:, 0] / singular_values[:, -1]


def energy_dimensions(singular_values: Tensor, share: float) -> Tensor:
    """How many directions carry ``share`` of the energy, the sum of squared singular values.

    Args:
        singular_values: ``(N, k)``, falling.
        share: of the energy, 0 to 1.

    Returns:
        ``(N,)`` int64, 1 to ``k``.
    """
    energy = singular_values.square().cumsum(dim=1)
    return (energy < share * energy[:, -1:]).sum(dim=1) + 1


def log_determinant(singular_values: Tensor) -> Tensor:
    """Natural logarithm of the volume change, ``(N, k)`` to ``(N,)``.

    Zero for a bijective i-RevNet, whose blocks shift one half by a function of the other and
    whose downsampling only moves values.
    """
    return singular_values.log().sum(dim=1)


def effective_rank(singular_values: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised singular values, ``(N,)``, 1 to ``k``.

    Source: Roy and Vetterli (2007), https://doi.org/10.5281/zenodo.40428.
    """
    shares = singular_values / singular_values.sum(dim=1, keepdim=True)
    return torch.special.entr(shares).sum(dim=1).clamp(max=math.log(shares.shape[1])).exp()
