"""The invertible block of the i-RevNet."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from irevnet.reversible.layers import SpaceToDepth
from irevnet.reversible.streams import FloatStreams, Streams

__all__ = ["CouplingBlock", "check_residual", "couple", "is_altered", "is_plain"]

_FLOAT = FloatStreams()


class CouplingBlock(nn.Module):
    r"""One block of the i-RevNet, an additive coupling whose inverse is explicit.

    Paper, section 3.1 and figure 1 (https://arxiv.org/abs/1802.07088):

    .. math::

        \tilde x_{j+1} &= S_{j+1} x_j, &\quad x_{j+1} &= S_{j+1} \tilde x_j + F_{j+1} x_j \\
        x_j &= S_{j+1}^{-1} \tilde x_{j+1}, &\quad
        \tilde x_j &= S_{j+1}^{-1} (x_{j+1} - F_{j+1} x_j)

    The same equations also appear, each for its own reason, in ``ReversibleChunk.forward``,
    ``_block_backward`` and ``_recomputed_backward`` of :mod:`irevnet.reversible.chunk`, in
    :mod:`irevnet.reversible.stored` (with gradients), in
    :func:`irevnet.reversible.known_channels.known_values` and ``known_channels`` (for what is the
    same for every image), and in :mod:`irevnet.analysis.blockwise_jacobian` (differentiated).
    All but the last two reject a block that is not :func:`is_plain`.

    Args:
        residual: :math:`F`, any module that maps a half ``(B, C, H, W)`` to
            ``(B, C * stride**2, H / stride, W / stride)``.
        stride: the factor of :math:`S`; 1 is the identity.
    """

    def __init__(self, residual: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.residual = residual
        self.downsample = SpaceToDepth(stride)

    def forward(
        self, x_tilde: Tensor, x: Tensor, streams: Streams = _FLOAT
    ) -> tuple[Tensor, Tensor]:
        """Halves ``(B, C, H, W)`` to halves ``(B, C * stride**2, H / stride, W / stride)``.

        Raises:
            ValueError: if F returns another shape.
        """
        y_tilde = self.downsample(x)
        shifted, residual = self.downsample(x_tilde), self.residual(streams.read(x))
        check_residual(residual, shifted)
        return y_tilde, streams.add(shifted, residual)

    def inverse(
        self, y_tilde: Tensor, y: Tensor, streams: Streams = _FLOAT
    ) -> tuple[Tensor, Tensor]:
        """Undoes :meth:`forward`."""
        x = self.downsample.inverse(y_tilde)
        x_tilde = self.downsample.inverse(streams.subtract(y, self.residual(streams.read(x))))
        return x_tilde, x


def check_residual(residual: Tensor, half: Tensor) -> None:
    """Raises ``ValueError`` unless F's output has the shape of the half to which it is added."""
    if residual.shape != half.shape:
        raise ValueError(
            f"F must return the shape of the half that it is added to, {tuple(half.shape)}, got "
            f"{tuple(residual.shape)}"
        )


def is_altered(module: nn.Module) -> bool:
    """Whether hooks, or an instance attribute ``forward``, may change what a module computes."""
    return bool(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_plain(block: CouplingBlock) -> bool:
    """Whether a block computes what :class:`CouplingBlock` does, and nothing else."""
    return type(block).forward is CouplingBlock.forward and not is_altered(block)


def couple(
    blocks: Iterable[CouplingBlock], x_tilde: Tensor, x: Tensor, streams: Streams = _FLOAT
) -> tuple[Tensor, Tensor]:
    """Applies blocks in turn to the halves ``(B, C, H, W)`` of a state.

    Raises:
        ValueError: if fixed-point streams overflow; the message names the block.
    """
    peaks = [streams.peak(x_tilde), streams.peak(x)]
    for block in blocks:
        x_tilde, x = block(x_tilde, x, streams)
        peaks.append(streams.peak(x))
    if torch.compiler.is_compiling():
        return x_tilde, streams.traced_check(peaks, x)
    streams.check(peaks)
    return x_tilde, x
