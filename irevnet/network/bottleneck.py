"""The residual function F of every network here: three convolutions with a narrow middle."""

from collections.abc import Sequence

from torch import nn

__all__ = ["Bottleneck"]


class Bottleneck(nn.Sequential):
    r"""The residual function :math:`F`: three convolutions, each after batch norm and ReLU.

    Paper, section 3.1 (https://arxiv.org/abs/1802.07088): "bottleneck" means that the middle
    convolution is narrower than the half it adds to. :math:`F` never has to be inverted, so it
    may be any function; batch norm, ReLU and stride are allowed here and nowhere else.

    Maps ``(B, in_channels, H, W)`` to ``(B, out_channels, H / stride, W / stride)``.

    Args:
        in_channels: channels that it reads.
        out_channels: channels that it returns.
        bottleneck_channels: channels between the convolutions.
        stride: the downsampling of this block.
        kernel_sizes: kernel sizes of the three convolutions; ``(1, 3, 1)`` is the paper's text,
            ``(3, 3, 3)`` the released code's default.
        stride_on: which convolution carries the stride: ``"first"`` (the paper; with a 1x1
            kernel it reads one pixel of each block) or ``"middle"``.
        dropout: probability of dropping a value before the last batch norm (released code).
        preactivation: whether batch norm and ReLU precede the first convolution. The first
            block of a network has none: they would clip the image.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bottleneck_channels: int,
        *,
        stride: int = 1,
        kernel_sizes: Sequence[int] = (1, 3, 1),
        stride_on: str = "first",
        dropout: float = 0.0,
        preactivation: bool = True,
    ) -> None:
        widths = (in_channels, bottleneck_channels, bottleneck_channels, out_channels)
        strides = (stride, 1, 1) if stride_on == "first" else (1, stride, 1)
        layers: list[nn.Module] = []
        for index, (kernel_size, conv_stride) in enumerate(zip(kernel_sizes, strides, strict=True)):
            if index == 2 and dropout > 0:
                layers.append(nn.Dropout(dropout))
            if index > 0 or preactivation:
                # ReLU works in place: no gradient needs the output of batch norm.
                layers += [nn.BatchNorm2d(widths[index]), nn.ReLU(inplace=True)]
            layers.append(
                nn.Conv2d(
                    widths[index],
                    widths[index + 1],
                    kernel_size,
                    stride=conv_stride,
                    padding=kernel_size // 2,
                    bias=False,
                )
            )
        super().__init__(*layers)
