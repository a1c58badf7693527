"""Parameter-free invertible layers: downsampling, padding, splitting, normalisation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Normalize", "OffsetFirst", "SpaceToDepth", "ZeroChannels", "merge", "split"]


class SpaceToDepth(nn.Module):
    r"""The invertible linear downsampling :math:`S`: it moves blocks of pixels into channels.

    Every ``factor`` x ``factor`` block of pixels becomes ``factor**2`` channels (paper,
    section 3.2, https://arxiv.org/abs/1802.07088). No value is changed, so :math:`S` is a
    permutation: :math:`S^{-1} S x = x` to the bit, and its determinant is 1 or -1.

    Channel order: output channel ``c * factor**2 + i * factor + j`` holds the pixels of
    input channel ``c`` at row ``i`` and column ``j`` of each block, which is the order of
    :func:`torch.nn.functional.pixel_unshuffle`. (The released code of 2018 puts the block
    offset before the channel: a permutation of this one.)

    Args:
        factor: side of a block in pixels; 1 is the identity.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C * factor**2, H / factor, W / factor)``, any dtype."""
        return x if self.factor == 1 else functional.pixel_unshuffle(x, self.factor)

    def inverse(self, y: Tensor) -> Tensor:
        """``(B, C * factor**2, H, W)`` to ``(B, C, H * factor, W * factor)``, any dtype."""
        return y if self.factor == 1 else functional.pixel_shuffle(y, self.factor)

    def extra_repr(self) -> str:
        """What ``repr`` shows in the parentheses."""
        return f"factor={self.factor}"


class OffsetFirst(SpaceToDepth):
    """Space-to-depth whose channels are in the order of the released code.

    Output channel ``(i * factor + j) * channels + c`` holds the pixels of input channel ``c`` at
    row ``i`` and column ``j`` of each block.

    The order is a buffer, so that weights trained with it do not load into a network without it.

    Args:
        factor: side of a block in pixels.
        channels: number of channels of an image.
    """

    order: Tensor

    def __init__(self, factor: int, channels: int) -> None:
        super().__init__(factor)
        order = torch.arange(channels * factor**2).view(channels, factor**2)
        self.register_buffer("order", order.t().flatten())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C * factor**2, H / factor, W / factor)``, any dtype."""
        return super().forward(x)[:, self.order]

    def inverse(self, y: Tensor) -> Tensor:
        """``(B, C * factor**2, H, W)`` to ``(B, C, H * factor, W * factor)``, any dtype."""
        return super().inverse(y[:, self.order.argsort()])


class Normalize(nn.Module):
    """Subtracts the mean of each channel and divides by its standard deviation; invertible.

    Both are buffers, so that weights trained with them do not load into a network without them.

    Args:
        mean: mean of each channel.
        std: standard deviation of each channel, positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)``, floating point, to the same shape."""
        return (x - self.mean) / self.std

    def inverse(self, y: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        return y * self.std + self.mean

    def extra_repr(self) -> str:
        """What ``repr`` shows in the parentheses."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class ZeroChannels(nn.Module):
    """Adds zero channels to the image's own: they make the injective model wider than its input.

    Paper, section 3.2: the injective i-RevNet appends zeros to the entry's output, so that the
    representation has more dimensions than the image.

    Args:
        channels: how many zero channels to append; 0 is the identity (the bijective model).
        before: whether they go before the image's channels instead of after them.
    """

    def __init__(self, channels: int, *, before: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C + channels, H, W)``."""
        if self.channels == 0:
            return x
        padding = (self.channels, 0) if self.before else (0, self.channels)
        return functional.pad(x, (0, 0, 0, 0, *padding))

    def inverse(self, y: Tensor) -> Tensor:
        """``(B, C + channels, H, W)`` to ``(B, C, H, W)``: drops the zero channels."""
        if self.channels == 0:
            return y
        return y[:, self.channels :] if self.before else y[:, : -self.channels]

    def extra_repr(self) -> str:
        """What ``repr`` shows in the parentheses."""
        return f"channels={self.channels}" + ", before=True" * self.before


def split(state: Tensor) -> tuple[Tensor, Tensor]:
    """Splits a state ``(B, 2 * C, H, W)`` into its first and its last ``C`` channels."""
    x_tilde, x = state.chunk(2, dim=1)
    return x_tilde, x


def merge(x_tilde: Tensor, x: Tensor) -> Tensor:
    """Joins two halves ``(B, C, H, W)`` into a state ``(B, 2 * C, H, W)``; undoes :func:`split`."""
    return torch.cat([x_tilde, x], dim=1)
