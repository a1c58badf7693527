"""Whole Jacobians of i-RevNets, computed block by block: many times faster than row by row.

Apart from its residual function F, a block only moves values, and F is local: an output pixel
depends only on the input pixels of a small window. The convolutions of F are linear, and the layers
between them act on every value separately. The derivatives of an output pixel with respect to its
window are therefore a product of small matrices, and the Jacobian of the network is a product of
sparse ones.
"""

from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from irevnet.checks import check_evaluation_mode, check_images
from irevnet.network.bottleneck import Bottleneck
from irevnet.network.model import IRevNet
from irevnet.reversible.coupling import CouplingBlock
from irevnet.reversible.layers import split

__all__ = ["has_coupling_blocks", "irevnet_jacobians"]

# The convolutions of an F at a point, in order, each with the derivatives (1, C, H, W) of its input
# values with respect to the values from which batch norm and ReLU computed them.
Factors = list[tuple[nn.Conv2d, Tensor]]


def has_coupling_blocks(model: nn.Module) -> TypeGuard[IRevNet]:
    """Whether a network is an i-RevNet that has only coupling blocks, no strided projections."""
    return isinstance(model, IRevNet) and all(
        type(block) is CouplingBlock for block in model.blocks
    )


def irevnet_jacobians(model: IRevNet, images: Tensor, *, memory: int = 2**28) -> Tensor:
    r"""The Jacobian of ``model.encode`` at each of several images.

    Up to rounding, the result is that of :func:`irevnet.analysis.jacobian.jacobians`. The Jacobians
    of both halves with respect to the image are propagated from block to block:

    .. math::

        \tilde J_{j+1} = S_{j+1} J_j, \qquad
        J_{j+1} = S_{j+1} \tilde J_j + \frac{\partial F_{j+1}}{\partial x_j} J_j.

    The product in the last term is computed in one of two ways, whichever takes fewer
    multiplications: from the derivatives of every output pixel of F with respect to its window,
    which are computed once for all columns, or by passing every column through F's linear maps.
    The idea that a Jacobian of known sparsity takes fewer derivatives is due to Curtis, Powell and
    Reid (1974), https://doi.org/10.1093/imamat/13.1.117.

    Args:
        model: in evaluation mode, because batch statistics would make the images depend on each
            other; with floating-point streams, because fixed-point ones have no derivative.
        images: ``(N, C, H, W)`` of the model's dtype, which is that of the result.
        memory: bytes that windows, or columns inside F, may take at a time. One image's result and
            the halves' Jacobians take more memory, together at most two and a half times the
            result.

    Returns:
        ``(N, outputs, C * H * W)``, the derivative of every output with respect to every pixel.

    Raises:
        ValueError: if ``model`` is another network or in another state, if ``images`` have another
            shape or dtype, or if ``memory`` is not positive.
    """
    if not has_coupling_blocks(model):
        raise ValueError(
            f"model must be an IRevNet of coupling blocks alone, got {type(model).__name__}"
        )
    if model.streams != "float":
        raise ValueError(f'model must have streams="float", got streams={model.streams!r}')
    check_evaluation_mode(model)
    if not all(isinstance(block.residual, Bottleneck) for block in model.blocks):
        raise ValueError("model must have a Bottleneck as the residual of every block")
    check_images(images, model.in_channels, model.total_stride)
    dtype = model.classifier.linear.weight.dtype
    if images.dtype != dtype:
        raise ValueError(f"images must have the model's dtype {dtype}, got {images.dtype}")
    if memory <= 0:
        raise ValueError(f"memory must be a positive number of bytes, got {memory!r}")
    with torch.no_grad():
        columns = [_jacobian(model, image[None], memory) for image in images]
    # For a single image, as in a loop over images, nothing is copied.
    return (columns[0][None] if len(columns) == 1 else torch.stack(columns)).mT


def _jacobian(model: IRevNet, image: Tensor, memory: int) -> Tensor:
    """The transposed Jacobian at one image ``(1, C, H, W)``: ``(C * H * W, outputs)``.

    Columns of a half's Jacobian have the shape of the half and are kept as ``(columns, height,
    width, channels)``, so that neighbouring pixels of a line form one slice.
    """
    states = model.states(image)
    _, x = split(next(states))
    # The entry moves pixels and appends zeros: numbering the pixels from one shows where they go.
    numbers = torch.arange(1, image.numel() + 1, device=image.device)
    entry = model.zero_channels(model.entry(numbers.view_as(image)))
    j_tilde, j = (
        (half.permute(0, 2, 3, 1) == numbers.view(-1, 1, 1, 1)).to(image.dtype)
        for half in split(entry)
    )
    for block, state in zip(model.blocks, states, strict=True):
        y_tilde, y = (
            block.downsample(half.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
            for half in (j, j_tilde)
        )
        _add_product(_factors(cast("Bottleneck", block.residual), x), j, y, memory)
        j_tilde, j = y_tilde, y
        _, x = split(state)
    result = image.new_empty(image.numel(), state.numel())
    for half, columns in zip((j_tilde, j), result.chunk(2, dim=1), strict=True):
        moved = half.permute(0, 3, 1, 2)
        columns.unflatten(1, moved.shape[1:]).copy_(moved)
    if model.normalize is not None:
        result.unflatten(0, image.shape[1:]).div_(model.normalize.std[..., None])
    return result


def _factors(residual: Bottleneck, x: Tensor) -> Factors:
    """The factors of F at the half ``(1, C, H, W)`` that it reads."""
    factors: Factors = []
    with torch.enable_grad():
        start = x.detach().requires_grad_()
        value = start.clone()  # ReLU may work in place
        for layer in residual:
            if isinstance(layer, nn.Conv2d):
                # Every value depends only on its own start: the sum's gradient has all derivatives.
                (slope,) = torch.autograd.grad(value.sum(), start)
                factors.append((layer, slope))
                start = layer(value).detach().requires_grad_()
                value = start.clone()
            else:
                value = layer(value)
    return factors


def _add_product(factors: Factors, j: Tensor, out: Tensor, memory: int) -> None:
    """Adds F's Jacobian times ``j`` to ``out``, both ``(columns, height, width, channels)``."""
    columns, height, width, channels = out.shape
    by_windows = by_columns = largest = 0
    kernel, pixels = 1, height * width
    for conv, slope in reversed(factors):
        by_windows += height * width * channels * kernel**2 * conv.weight.numel()
        by_columns += columns * pixels * conv.weight.numel()
        kernel = (kernel - 1) * conv.stride[0] + conv.kernel_size[0]
        pixels *= conv.stride[0] ** 2
        largest = max(largest, channels * kernel**2 * slope.shape[1] * slope.itemsize)
    by_windows += columns * height * width * channels * kernel**2 * j.shape[3]
    # Each step of either method holds both its input and its output in memory.
    if by_windows < by_columns:
        _add_by_windows(factors, j, out, max(1, memory // (2 * largest)))
    else:
        largest = max(out[0].nbytes, *(slope.nbytes for _, slope in factors))
        _add_by_columns(factors, j, out, max(1, memory // (2 * largest)))


def _add_by_windows(factors: Factors, j: Tensor, out: Tensor, count: int) -> None:
    """:func:`_add_product` with the windows of ``count`` output pixels at a time."""
    _, height, width, channels = j.shape
    _, out_height, out_width, out_channels = out.shape
    j, sums = j.flatten(1), out.flatten(1).split(out_channels, dim=1)
    for pixels in torch.arange(out_height * out_width, device=j.device).split(count):
        windows, stride, padding = _windows(factors, pixels // out_width, pixels % out_width)
        kernel = windows.shape[2]
        for pixel, window in zip(pixels.tolist(), windows, strict=True):
            top, left = (stride * place - padding for place in divmod(pixel, out_width))
            first, last = max(left, 0), min(left + kernel, width)
            for line in range(max(top, 0), min(top + kernel, height)):
                read = slice((line * width + first) * channels, (line * width + last) * channels)
                part = window[:, line - top, first - left : last - left].flatten(1)
                sums[pixel].addmm_(j[:, read], part.T)


def _windows(factors: Factors, rows: Tensor, columns: Tensor) -> tuple[Tensor, int, int]:
    """The derivatives of some output pixels of F with respect to their windows.

    They are computed in reverse mode, within the windows alone. The window of the pixel at ``(row,
    column)`` begins at ``(stride * row - padding, stride * column - padding)``, which may be beyond
    the border.

    Args:
        factors: the factors of F.
        rows: rows of the pixels, ``(P,)``.
        columns: columns of the pixels, ``(P,)``.

    Returns:
        ``(P, out_channels, kernel, kernel, in_channels)``, stride and padding.
    """
    weight = factors[-1][0].weight
    channels = len(weight)
    units = torch.eye(channels, dtype=weight.dtype, device=weight.device)
    windows = units.view(1, channels, 1, 1, channels)
    stride, padding = 1, 0
    for conv, slope in reversed(factors):
        images = windows.flatten(0, 1).permute(0, 3, 1, 2)
        images = functional.conv_transpose2d(images, conv.weight, stride=conv.stride)
        kernel = images.shape[2]
        stride, padding = stride * conv.stride[0], padding * conv.stride[0] + int(conv.padding[0])
        # Derivatives are zero beyond the border, where a convolution reads a constant.
        padded = functional.pad(slope[0], [padding] * 4)
        slopes = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)[:, rows, columns]
        windows = images.permute(0, 2, 3, 1).unflatten(0, (-1, channels))
        windows = windows * slopes.permute(1, 2, 3, 0)[:, None]
    return windows.contiguous(), stride, padding


def _add_by_columns(factors: Factors, j: Tensor, out: Tensor, count: int) -> None:
    """:func:`_add_product` with ``count`` columns at a time, as images for F's linear maps."""
    for images, sums in zip(j.split(count), out.split(count), strict=True):
        images = images.permute(0, 3, 1, 2)
        for conv, slope in factors:
            images = functional.conv2d(
                images * slope, conv.weight, stride=conv.stride, padding=conv.padding
            )
        sums += images.permute(0, 2, 3, 1)
