"""Networks that differ from others only in their downsampling, to measure the effect of S (C3).

The i-RevNet downsamples by a permutation S, the RevNet by strided projections. Here each network
uses the other's downsampling: an i-RevNet layout with projections, which is no longer invertible,
and a RevNet with S.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from irevnet.network.baselines import RevNet
from irevnet.network.bottleneck import Bottleneck
from irevnet.network.model import IRevNet
from irevnet.reversible.coupling import CouplingBlock
from irevnet.reversible.known_channels import KnownChannels
from irevnet.reversible.layers import SpaceToDepth
from irevnet.reversible.streams import FloatStreams, Streams

__all__ = ["ProjectedIRevNet", "ShuffledRevNet"]

_FLOAT = FloatStreams()


class _ProjectionBlock(CouplingBlock):
    r"""A coupling block with strided 1x1 convolutions in place of S, and no inverse.

    .. math:: \tilde x_{j+1} = P x_j, \quad x_{j+1} = \tilde P \tilde x_j + F x_j
    """

    def __init__(self, residual: nn.Module, channels: int, stride: int) -> None:
        super().__init__(residual)
        out_channels = channels * stride**2
        self.projection = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
        self.projection_tilde = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)

    def forward(
        self, x_tilde: Tensor, x: Tensor, streams: Streams = _FLOAT
    ) -> tuple[Tensor, Tensor]:
        return self.projection(x), self.projection_tilde(x_tilde) + self.residual(x)

    def inverse(
        self, y_tilde: Tensor, y: Tensor, streams: Streams = _FLOAT
    ) -> tuple[Tensor, Tensor]:
        raise ValueError("strided projections discard information: they have no inverse")


class ProjectedIRevNet(IRevNet):
    """An i-RevNet in which strided projections replace each S between stages.

    The entry stays a space-to-depth. It classifies and has states, but no inverse.

    Its arguments are those of :class:`~irevnet.network.model.IRevNet`; ``backward`` must be
    ``"stored"`` and ``streams`` ``"float"``.
    """

    backwards = ("stored",)
    arithmetics = ("float",)

    def _make_block(self, residual: nn.Module, channels: int, stride: int) -> CouplingBlock:
        if stride == 1:
            return CouplingBlock(residual)
        return _ProjectionBlock(residual, channels, stride)

    def _known_channels(self, entry: KnownChannels) -> list[KnownChannels]:
        return []

    @property
    def is_bijective(self) -> bool:
        """Never: strided projections have no inverse."""
        return False

    def inverse(
        self, z: Tensor, *, verify: bool | None = None, checksum: Tensor | None = None
    ) -> Tensor:
        """Raises ``ValueError``: strided projections have no inverse."""
        raise ValueError("a ProjectedIRevNet has no inverse: its projections discard information")

    def inverse_states(self, z: Tensor) -> Iterator[Tensor]:
        """Raises ``ValueError``, as :meth:`inverse` does."""
        raise ValueError("a ProjectedIRevNet has no inverse: its projections discard information")


class _ReversibleShuffleUnit(nn.Module):
    """``y1 = S x1 + F(x2)``, ``y2 = S x2 + G(y1)``: changes the shape by S, which is reversible."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, preactivation: bool
    ) -> None:
        super().__init__()
        if out_channels != in_channels * stride**2:
            raise ValueError(
                f"channels must grow by the square of the stride, from {in_channels} to "
                f"{in_channels * stride**2}, where S downsamples; got {out_channels}"
            )
        in_half, half = in_channels // 2, out_channels // 2
        self.downsample = SpaceToDepth(stride)
        self.residual_f = Bottleneck(
            in_half, half, half // 4, stride=stride, stride_on="middle", preactivation=preactivation
        )
        self.residual_g = Bottleneck(half, half, half // 4)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = self.downsample(x1) + self.residual_f(x2)
        return y1, self.downsample(x2) + self.residual_g(y1)


class ShuffledRevNet(RevNet):
    """A RevNet in which S replaces the strided projections between stages.

    Its arguments are those of :class:`~irevnet.network.baselines.RevNet`; the channels of a stage
    must be those of the stage before, or ``stem_channels``, times the square of its stride.

    Raises:
        ValueError: if an argument cannot work; the message names it.
    """

    shape_changing_unit = _ReversibleShuffleUnit
