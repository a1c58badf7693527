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
from irevnet.analysis.statistics import mean, mean_of_shares, quantile
from irevnet.checks import check_evaluation_mode

__all__ = [
    "condition_number",
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

    Of the two sides the smaller is gone through, many directions at a time: rows by reverse mode,
    on a batch of copies of the image whose forward pass is made once; columns by forward mode, by
    ``torch.func.vmap`` of ``torch.func.jvp``.

    Args:
        function: ``(B, C, H, W)`` to ``(B, ...)``, each item from its own image alone (a network
            in evaluation mode).
        images: ``(N, C, H, W)``; their dtype is that of the result.
        memory: bytes that the directions computed at a time may take, by :func:`direction_bytes`.
            The result comes on top. On a CPU more than the default is not faster.
        side: ``"rows"`` or ``"columns"``; None for the smaller, rows if both are equal.

    Returns:
        ``(N, outputs, C * H * W)``, the derivative of every output by every pixel.

    Raises:
        ValueError: if ``memory`` is not positive, or ``side`` is something else; if ``function`` is
            a network, or a method of one, in training mode.
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
    # Chunks of the same size: the last would otherwise take as long for fewer directions.
    count = math.ceil(directions / math.ceil(directions / fitting))
    compute = _rows if side == "rows" else _columns
    return torch.stack([compute(function, image, outputs, count) for image in images])


def direction_bytes(function: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """What one more row or column computed at a time adds to the memory in use, in bytes.

    Measured: what one more image in a batch has autograd save, which is what a row needs, and
    the row's two ends, twice, as a gradient is made from another one. A column needs less, as
    forward mode keeps nothing for later.

    Args:
        function: as for :func:`jacobians`.
        image: ``(C, H, W)``.
    """
    # Parameters are saved once, whatever the batch: the difference does not have them.
    one, two = (saved_bytes(functools.partial(function, _copies(image, n))) for n in (1, 2))
    with torch.no_grad():
        row = function(image[None])
    return two - one + 2 * (image.nbytes + row.nbytes)


def _copies(image: Tensor, count: int) -> Tensor:
    """``count`` copies of an image, in the format in which convolutions on a CPU are fastest."""
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

    # Not torch.func.linearize: it saves a forward pass per chunk, and takes seconds to trace one.
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
    """For what :func:`torch.func.jvp` is called in: no graph, and no warning of torch's own.

    Its forward mode uses a deprecated part of torch when it is first called.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
        warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
        yield


def spectra(jacobian: Tensor) -> Tensor:
    """Singular values of Jacobians ``(N, outputs, inputs)``, falling, ``(N, k)``.

    ``k`` is the smaller of ``outputs`` and ``inputs``.
    """
    return torch.linalg.svdvals(jacobian)


def windowed(
    function: Callable[[Tensor], Tensor], image: Tensor, side: int
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A function of the pixels in the middle of an image, the others held fixed.

    The paper takes the Jacobian of a photograph so, in a window of 100 x 100 pixels: as many
    columns as pixels vary, whatever the size of the image.

    Args:
        function: as for :func:`jacobians`.
        image: ``(C, H, W)``.
        side: of the square of pixels.

    Returns:
        The function, of ``(B, C, side, side)``, and what the image has there, of that shape with
        ``B = 1``.

    Raises:
        ValueError: if the square is not positive or does not fit.
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
    """:func:`spectra` of the Jacobians of ``model.encode``, with one of them in memory at a time.

    They are those of :func:`~irevnet.analysis.blockwise_jacobian.irevnet_jacobians` for an
    i-RevNet of coupling blocks alone, else of :func:`jacobians`.

    Args:
        model: a network with a method ``encode``, in evaluation mode.
        images: ``(N, C, H, W)``.
        memory: as for either.
        window: if not 0, :func:`windowed` by a square of that side.

    Returns:
        ``(N, k)``, falling, on the CPU.

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
    """How many singular values are above rounding, ``(N, k)`` to ``(N,)`` int64.

    The bound is the usual one of numpy's and torch's ``matrix_rank``: the largest singular value
    times the longer side of the matrix times the spacing of its dtype at one.

    Args:
        singular_values: ``(N, k)``, falling, in the dtype in which the Jacobian was computed.
        outputs: of the function, one side of the matrix.
        inputs: of the function, the other side: pixels that vary.
    """
    bound = singular_values[:, :1] * max(outputs, inputs) * torch.finfo(singular_values.dtype).eps
    return (singular_values > bound).sum(dim=1)


def condition_number(singular_values: Tensor, rank: Tensor | None = None) -> Tensor:
    """The largest singular value over the smallest, ``(N, k)`` to ``(N,)``.

    Args:
        singular_values: ``(N, k)``, falling.
        rank: ``(N,)`` int64, 1 to ``k``, of :func:`numerical_rank`: the smallest is then that
            of the directions that are not lost. Without it, a map that loses one is infinitely
            ill-conditioned.
    """
    if rank is None:
        return singular_values[:, 0] / singular_values[:, -1]
    return singular_values[:, 0] / singular_values.gather(1, rank[:, None] - 1)[:, 0]


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

    Of a map into more dimensions it is that of the volume within its range; minus infinity where
    a direction is lost. Zero for a bijective i-RevNet, whose blocks shift one half by a function
    of the other and whose downsampling only moves values.
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
    """What the spectra at several images say about one network.

    Args:
        singular_values: ``(N, k)``, falling, ``N`` at least 2, on the CPU.
        share: of the energy for which directions are counted.
        outputs: of the function.
        inputs: of the function: pixels that vary.
        invertible: whether no direction is lost, however small its singular value; where one may
            be, the condition number is that of the others.
        preserves_volume: whether the logarithm of the determinant must be zero.
        windowed: whether only some of the pixels vary; the condition number is then a
            ``lower_bound`` of that of the whole image, whose largest singular value is no smaller
            and whose smallest is no larger.

    Returns:
        By name estimates over images, ``condition_number`` (median), ``energy_share``, the share of
        the directions that carry ``share`` (with the interval of
        :func:`~irevnet.analysis.statistics.mean_of_shares`: in [0, 1], of fewer than five images
        the range), ``effective_rank`` and ``rank``, and numbers, ``full_rank_share``, of the
        images, and ``dimensions``. The ``largest_absolute_log_determinant`` where it must be zero,
        else, if no direction is lost, the ``log_determinant``.
    """
    rank = numerical_rank(singular_values, outputs, inputs)
    full = rank == singular_values.shape[1]
    condition = condition_number(singular_values, None if invertible else rank)
    shares = energy_dimensions(singular_values, share) / singular_values.shape[1]
    results: dict[str, Any] = {
        "condition_number": quantile(condition.numpy()).as_dict(),
        "energy_share": mean_of_shares(shares.numpy()).as_dict(),
        "effective_rank": mean(effective_rank(singular_values).numpy()).as_dict(),
        "rank": mean(rank.numpy()).as_dict(),
        "full_rank_share": full.double().mean().item(),
        "dimensions": singular_values.shape[1],
    }
    if windowed:
        results["condition_number"]["lower_bound"] = True
    volume = log_determinant(singular_values)
    if preserves_volume:
        results["largest_absolute_log_determinant"] = volume.abs().max().item()
    elif full.all():
        results["log_determinant"] = mean(volume.numpy()).as_dict()
    return results


def effective_rank(singular_values: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised singular values, ``(N,)``, 1 to ``k``.

    Source: Roy and Vetterli (2007), https://doi.org/10.5281/zenodo.40428.
    """
    shares = singular_values / singular_values.sum(dim=1, keepdim=True)
    return torch.special.entr(shares).sum(dim=1).clamp(max=math.log(shares.shape[1])).exp()
