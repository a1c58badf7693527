"""The singular values of a representation's Jacobian at an image (claim C4)."""

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from irevnet.analysis.blockwise_jacobian import has_coupling_blocks, irevnet_jacobians
from irevnet.analysis.memory import saved_bytes
from irevnet.analysis.protocols import Encoder
from irevnet.analysis.statistics import (
    Estimate,
    mean,
    mean_of_medians,
    mean_of_shares,
    quantile,
)
from irevnet.checks import check_evaluation_mode

__all__ = [
    "condition_number",
    "cumulated_energy",
    "direction_bytes",
    "effective_rank",
    "energy_dimensions",
    "forward_mode",
    "jacobians",
    "log_determinant",
    "numerical_rank",
    "singular_values",
    "spectra",
    "summary",
    "windowed",
]


def jacobians(
    function: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    memory: int = 2**28,
    side: str | None = None,
) -> Tensor:
    """The Jacobian of a function of one image at each of several images.

    The directions of the smaller side are computed, many at a time: rows in reverse mode, from one
    forward pass of a batch of copies of the image; columns in forward mode, with
    ``torch.func.vmap`` of ``torch.func.jvp``.

    Args:
        function: ``(B, C, H, W)`` to ``(B, ...)``, where each item depends only on its own image
            (a network in evaluation mode).
        images: ``(N, C, H, W)``; their dtype is that of the result.
        memory: bytes that the directions computed together may take, as :func:`direction_bytes`
            estimates them. The result takes more memory. On a CPU, more than the default is not
            faster.
        side: ``"rows"`` or ``"columns"``; None for the smaller, rows if both are equal.

    Returns:
        ``(N, outputs, C * H * W)``, the derivative of every output with respect to every pixel.

    Raises:
        ValueError: if ``memory`` is not positive, or ``side`` is none of these; if ``function`` is
            a network, or a method of a network, in training mode.
    """
    network = getattr(function, "__self__", function)
    if isinstance(network, nn.Module):
        check_evaluation_mode(network)
    if side not in (None, "rows", "columns"):
        raise ValueError(f'side must be "rows", "columns" or None, got {side!r}')
    if memory <= 0:
        raise ValueError(f"memory must be a positive number of bytes, got {memory!r}")
    with torch.no_grad():
        outputs = function(images[:1]).numel()
    pixels = images[0].numel()
    if side is None:
        side = "rows" if outputs <= pixels else "columns"
    directions = outputs if side == "rows" else pixels
    fitting = max(1, int(memory // direction_bytes(function, images[0])))
    # Chunks of about equal size: a smaller last one would take as long as the others.
    count = math.ceil(directions / math.ceil(directions / fitting))
    compute = _rows if side == "rows" else _columns
    return torch.stack([compute(function, image, outputs, count) for image in images])


def direction_bytes(function: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """Bytes of memory that each row or column needs when several are computed together.

    It is measured for a row: the bytes that autograd saves for one more image in a batch, plus
    twice the sizes of the image and of the output, because each gradient is computed from another
    one. A column needs less, because forward mode keeps nothing for later.

    Args:
        function: as for :func:`jacobians`.
        image: ``(C, H, W)``.
    """
    # Parameters are saved once, whatever the batch, so the difference excludes them.
    one, two = (saved_bytes(functools.partial(function, _copies(image, n))) for n in (1, 2))
    with torch.no_grad():
        row = function(image[None])
    return two - one + 2 * (image.nbytes + row.nbytes)


def _copies(image: Tensor, count: int) -> Tensor:
    """``count`` copies of an image, in the memory format with the fastest convolutions on a CPU."""
    copies = image.detach().expand(count, *image.shape)
    return copies.contiguous(memory_format=torch.channels_last).requires_grad_()


def _rows(function: Callable[[Tensor], Tensor], image: Tensor, outputs: int, count: int) -> Tensor:
    """The Jacobian at one image, ``count`` rows at a time."""
    copies = _copies(image, count)
    with torch.enable_grad():
        out = function(copies).flatten(1)
    result = image.new_empty(outputs, image.numel())
    for start in range(0, outputs, count):
        rows = torch.arange(start, min(start + count, outputs), device=image.device)
        chosen = torch.zeros_like(out)
        chosen[rows - start, rows] = 1
        (gradient,) = torch.autograd.grad(out, copies, chosen, retain_graph=True)
        result[rows] = gradient[: len(rows)].flatten(1)
    return result


def _columns(
    function: Callable[[Tensor], Tensor], image: Tensor, outputs: int, count: int
) -> Tensor:
    """The Jacobian at one image, ``count`` columns at a time."""
    pixels = image.numel()
    point = _copies(image, 1).detach()
    result = image.new_empty(outputs, pixels)

    def derivative(direction: Tensor) -> Tensor:
        return torch.func.jvp(function, (point,), (direction,))[1]

    # torch.func.linearize would save a forward pass per chunk but takes seconds to trace one.
    columns = torch.func.vmap(derivative)
    with forward_mode():
        for start in range(0, pixels, count):
            chosen = torch.arange(start, min(start + count, pixels), device=image.device)
            directions = image.new_zeros(len(chosen), pixels)
            directions[chosen - start, chosen] = 1
            directions = directions.view(-1, 1, *image.shape)
            result[:, chosen] = columns(directions).flatten(1).T
    return result


@contextmanager
def forward_mode() -> Iterator[None]:
    """A context for calls of :func:`torch.func.jvp`, without a graph or torch's own warnings.

    The first call of its forward mode uses a deprecated part of torch.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
        warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
        yield


def spectra(jacobian: Tensor) -> Tensor:
    """Singular values of Jacobians ``(N, outputs, inputs)``, decreasing, ``(N, k)``.

    ``k`` is the smaller of ``outputs`` and ``inputs``.
    """
    return torch.linalg.svdvals(jacobian)


def windowed(
    function: Callable[[Tensor], Tensor], image: Tensor, side: int
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A function of the pixels in the middle of an image, with the others held fixed.

    The paper computes the Jacobian at a photograph this way, in a window of 100 x 100 pixels. The
    Jacobian has one column for every value that varies, whatever the size of the image.

    Args:
        function: as for :func:`jacobians`.
        image: ``(C, H, W)``.
        side: side of the square of pixels.

    Returns:
        The function, of ``(B, C, side, side)``, and the image's own pixels there,
        ``(1, C, side, side)``.

    Raises:
        ValueError: if ``side`` is not positive or the square does not fit into the image.
    """
    height, width = image.shape[1:]
    if not 1 <= side <= min(height, width):
        raise ValueError(
            f"side must be from 1 to {min(height, width)}, the image's shorter side, got {side!r}"
        )
    top, left = (height - side) // 2, (width - side) // 2
    around = (left, width - side - left, top, height - side - top)
    outside = image.clone()
    outside[:, top : top + side, left : left + side] = 0

    def of_window(pixels: Tensor) -> Tensor:
        return function(functional.pad(pixels, around) + outside)

    return of_window, image[None, :, top : top + side, left : left + side]


def singular_values(
    model: nn.Module, images: Tensor, *, memory: int = 2**28, window: int = 0
) -> Tensor:
    """The :func:`spectra` of the Jacobians of ``model.encode``, computed one image at a time.

    For an i-RevNet with only coupling blocks, and without a window, the Jacobians come from
    :func:`~irevnet.analysis.blockwise_jacobian.irevnet_jacobians`, otherwise from
    :func:`jacobians`.

    Args:
        model: a network with a method ``encode``, in evaluation mode.
        images: ``(N, C, H, W)``.
        memory: as for either function.
        window: if not 0, side of the square to which :func:`windowed` restricts the pixels.

    Returns:
        ``(N, k)``, decreasing, on the CPU.

    Raises:
        ValueError: if the model is in training mode.
    """
    check_evaluation_mode(model)

    def compute(image: Tensor) -> Tensor:
        if window:
            encode, pixels = windowed(cast("Encoder", model).encode, image[0], window)
            return jacobians(encode, pixels, memory=memory)
        if has_coupling_blocks(model):
            return irevnet_jacobians(model, image, memory=memory)
        return jacobians(cast("Encoder", model).encode, image, memory=memory)

    return torch.cat([spectra(compute(image[None])) for image in images]).cpu()


def numerical_rank(singular_values: Tensor, outputs: int, inputs: int) -> Tensor:
    """The number of singular values above rounding error, ``(N, k)`` to ``(N,)`` int64.

    The bound is the usual one of numpy's and torch's ``matrix_rank``: the largest singular value
    times the longer side of the matrix times the spacing of its dtype at one.

    Args:
        singular_values: ``(N, k)``, decreasing, in the dtype in which the Jacobian was computed.
        outputs: number of outputs of the function, one side of the matrix.
        inputs: number of inputs, the pixels that vary, the other side.
    """
    bound = singular_values[:, :1] * max(outputs, inputs) * torch.finfo(singular_values.dtype).eps
    return (singular_values > bound).sum(dim=1)


def condition_number(singular_values: Tensor, rank: Tensor | None = None) -> Tensor:
    """The largest singular value over the smallest, ``(N, k)`` to ``(N,)``.

    Args:
        singular_values: ``(N, k)``, decreasing.
        rank: ``(N,)`` int64, 1 to ``k``, from :func:`numerical_rank`; the smallest value is then
            taken over the directions that are not lost. Without a rank, a map that loses a
            direction is infinitely ill-conditioned.
    """
    if rank is None:
        return singular_values[:, 0] / singular_values[:, -1]
    return singular_values[:, 0] / singular_values.gather(1, rank[:, None] - 1)[:, 0]


def cumulated_energy(singular_values: Tensor) -> Tensor:
    """The share of the energy that the first 1, 2, ... directions carry, ``(N, k)``.

    Args:
        singular_values: ``(N, k)``, decreasing; the energy is the sum of their squares.
    """
    energy = singular_values.square().cumsum(dim=1)
    return energy / energy[:, -1:]


def energy_dimensions(singular_values: Tensor, share: float) -> Tensor:
    """How many directions carry ``share`` of the energy, see :func:`cumulated_energy`.

    Args:
        singular_values: ``(N, k)``, decreasing.
        share: share of the energy, 0 to 1.

    Returns:
        ``(N,)`` int64, 1 to ``k``.
    """
    return (cumulated_energy(singular_values) < share).sum(dim=1) + 1


def log_determinant(singular_values: Tensor) -> Tensor:
    """Natural logarithm of the volume change, ``(N, k)`` to ``(N,)``.

    For a map into more dimensions, the volume is measured within its range. The result is minus
    infinity if a direction is lost, and zero for a bijective i-RevNet, whose blocks shift one half
    by a function of the other and whose downsampling only moves values.
    """
    return singular_values.log().sum(dim=1)


def summary(
    singular_values: Tensor,
    share: float,
    outputs: int,
    inputs: int,
    *,
    invertible: bool,
    preserves_volume: bool = False,
    windowed: bool = False,
) -> dict[str, Any]:
    """Summarises the spectra of networks of a family at several images.

    Args:
        singular_values: ``(networks, N, k)``, decreasing, ``N`` at least 2, on the CPU.
        share: share of the energy for which directions are counted.
        outputs: number of outputs of the function.
        inputs: number of inputs of the function, the pixels that vary.
        invertible: whether no direction can be lost, however small its singular value; otherwise
            the condition number is that of the directions that are not lost.
        preserves_volume: whether the logarithm of the determinant must be zero.
        windowed: whether only some of the pixels vary; the condition number is then a
            ``lower_bound`` on that at the whole image, whose largest singular value is no smaller
            and whose smallest is no larger.

    Returns:
        Estimates are means over networks of each network's median over its images, and ``n`` counts
        networks; for a single network they are over its images, see
        :func:`~irevnet.analysis.statistics.mean_of_medians`: ``condition_number`` (the median for a
        single network); ``energy_share``, the share of the directions that carries ``share`` of
        the energy (for a single network with the interval of
        :func:`~irevnet.analysis.statistics.mean_of_shares`, which is the range for fewer than five
        images); ``effective_rank`` and ``rank``. Plain numbers are ``networks``, ``images``,
        ``full_rank_share``, the share of all spectra with full rank, and ``dimensions``. Also
        ``largest_absolute_log_determinant`` if the logarithm must be zero, or ``log_determinant``
        if it need not be and no direction is lost.
    """
    networks, images, dimensions = singular_values.shape
    flat = singular_values.flatten(0, 1)
    rank = numerical_rank(flat, outputs, inputs)
    full = rank == dimensions
    shares = energy_dimensions(flat, share) / dimensions

    def estimate(
        values: Tensor, bounds: tuple[float, float], of_images: Callable[..., Estimate] = mean
    ) -> dict[str, float]:
        rows = values.unflatten(0, (networks, images)).numpy()
        return mean_of_medians(rows, bounds, of_images).as_dict()

    condition = condition_number(flat, None if invertible else rank)
    results: dict[str, Any] = {
        "networks": networks,
        "images": images,
        "condition_number": estimate(condition, (1, math.inf), quantile),
        "energy_share": estimate(shares, (0, 1), mean_of_shares),
        "effective_rank": estimate(effective_rank(flat), (1, dimensions)),
        "rank": estimate(rank, (0, dimensions)),
        "full_rank_share": full.double().mean().item(),
        "dimensions": dimensions,
    }
    if windowed:
        results["condition_number"]["lower_bound"] = True
    volume = log_determinant(flat)
    if preserves_volume:
        results["largest_absolute_log_determinant"] = volume.abs().max().item()
    elif full.all():
        results["log_determinant"] = estimate(volume, (-math.inf, math.inf))
    return results


def effective_rank(singular_values: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised singular values, ``(N,)``, 1 to ``k``.

    Source: Roy and Vetterli (2007), https://doi.org/10.5281/zenodo.40428.
    """
    shares = singular_values / singular_values.sum(dim=1, keepdim=True)
    return torch.special.entr(shares).sum(dim=1).clamp(max=math.log(shares.shape[1])).exp()
