"""The networks that the paper compares with: RevNet and ResNet, both with pre-activation."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import cast

from torch import Tensor, nn

from irevnet.checks import (
    check_images,
    check_in_shape,
    check_per_stage,
    check_positive,
    check_stages,
    choice,
)
from irevnet.network.bottleneck import Bottleneck
from irevnet.network.classifier import Classifier
from irevnet.reversible.coupling import CouplingBlock, couple
from irevnet.reversible.layers import merge, split
from irevnet.reversible.stack import BACKWARDS, reversible_stack

__all__ = ["ResNet", "RevNet"]


class _StagedNetwork(nn.Module):
    """A stem, stages of units and a classifier; a stage's first unit may change the shape."""

    unit: type[nn.Module]
    shape_changing_unit: type[nn.Module]
    backwards: tuple[str, ...] = ("stored",)
    backward = choice("backward", "backwards")

    def __init__(
        self,
        *,
        in_shape: Sequence[int] = (3, 224, 224),
        num_classes: int = 1000,
        stem: str = "imagenet",
        stem_channels: int = 128,
        units: Sequence[int] = (2, 2, 3, 2),
        strides: Sequence[int] = (1, 2, 2, 2),
        channels: Sequence[int] = (512, 1024, 2048, 3328),
        backward: str = "stored",
    ) -> None:
        super().__init__()
        self.backward = backward
        check_positive("num_classes", num_classes)
        units = check_stages("units", units)
        strides = check_per_stage("strides", strides, len(units))
        channels = check_per_stage("channels", channels, len(units))
        for name, value in [
            ("stem_channels", stem_channels),
            *((f"channels[{stage}]", value) for stage, value in enumerate(channels)),
        ]:
            check_positive(name, value)
            if value % 8:
                raise ValueError(
                    f"{name} must be a multiple of 8 (two halves, bottlenecks of a quarter), "
                    f"got {value}"
                )
        if stem not in ("imagenet", "small"):
            raise ValueError(f'stem must be "imagenet" or "small", got {stem!r}')
        self.in_shape = check_in_shape(in_shape)
        self.in_channels = self.in_shape[0]
        self.num_classes = num_classes
        self.stem = _stem(stem, self.in_channels, stem_channels)
        self.units = nn.ModuleList()
        width = stem_channels
        for stage, unit_count in enumerate(units):
            for index in range(unit_count):
                if index > 0:
                    self.units.append(self.unit(channels[stage]))
                else:
                    # The stem ends in batch norm and ReLU: the first F needs none of its own.
                    self.units.append(
                        self.shape_changing_unit(
                            width, channels[stage], strides[stage], preactivation=stage > 0
                        )
                    )
            width = channels[stage]
        self.classifier = Classifier(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, num_classes)``."""
        return self.classify(self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        """The last representation ``(B, channels[-1], h, w)`` of images ``(B, C, H, W)``.

        Raises:
            ValueError: if ``x`` has another number of dimensions or channels, or an integer dtype.
        """
        check_images(x, self.in_channels, 1)
        return self._apply_units(self.stem(x))

    def classify(self, z: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of representations ``(B, channels[-1], h, w)``."""
        return self.classifier(z)

    def states(self, x: Tensor) -> Iterator[Tensor]:
        """The representation after the stem and after every unit, one at a time."""
        check_images(x, self.in_channels, 1)
        z = self.stem(x)
        yield z
        for unit in self.units:
            z = unit(z)
            yield z

    def _apply_units(self, z: Tensor) -> Tensor:
        for unit in self.units:
            z = unit(z)
        return z


def _stem(kind: str, in_channels: int, channels: int) -> nn.Sequential:
    if kind == "imagenet":
        convolution = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        pool: list[nn.Module] = [nn.MaxPool2d(3, stride=2, padding=1)]
    else:
        convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        pool = []
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(), *pool)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


class _ResidualUnit(nn.Module):
    """``y = x + F(x)``, pre-activation (He et al., 2016, https://arxiv.org/abs/1603.05027)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = Bottleneck(channels, channels, channels // 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


class _ResidualProjectionUnit(nn.Module):
    """``y = P(x) + F(x)`` with a strided 1x1 projection P: the first unit of a stage."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, preactivation: bool
    ) -> None:
        super().__init__()
        self.projection = _projection(in_channels, out_channels, stride)
        self.residual = Bottleneck(
            in_channels,
            out_channels,
            out_channels // 4,
            stride=stride,
            stride_on="middle",
            preactivation=preactivation,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x) + self.residual(x)


class ResNet(_StagedNetwork):
    """Pre-activation ResNet with bottlenecks (He et al., 2016, https://arxiv.org/abs/1603.05027).

    Args:
        in_shape: channels, height and width of an image; the network takes any size.
        num_classes: length of the logits.
        stem: ``"imagenet"`` (7x7 convolution with stride 2, max pooling) or ``"small"`` (3x3).
        stem_channels: channels after the stem.
        units: residual units in each stage.
        strides: downsampling of the first unit of each stage.
        channels: channels in each stage, multiples of 8.
        backward: ``"stored"``, the only option of a ResNet.

    Raises:
        ValueError: if an argument cannot work; the message names it.
    """

    unit = _ResidualUnit
    shape_changing_unit = _ResidualProjectionUnit


class _ReversibleUnit(nn.Module):
    """``y1 = x1 + F(x2)``, ``y2 = x2 + G(y1)`` on the two halves of the channels.

    Two coupling blocks without downsampling: the first maps ``(x1, x2)`` to ``(x2, y1)``, the
    second that to ``(y1, y2)``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        blocks = nn.ModuleList(CouplingBlock(Bottleneck(half, half, half // 4)) for _ in range(2))
        self.blocks = cast("Sequence[CouplingBlock]", blocks)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        return couple(self.blocks, x1, x2)

    def inverse(self, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
        for block in reversed(self.blocks):
            y1, y2 = block.inverse(y1, y2)
        return y1, y2


class _ReversibleProjectionUnit(nn.Module):
    """``y1 = P1(x1) + F(x2)``, ``y2 = P2(x2) + G(y1)``: changes the shape, is not reversible."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, preactivation: bool
    ) -> None:
        super().__init__()
        in_half, half = in_channels // 2, out_channels // 2
        self.projection_1 = _projection(in_half, half, stride)
        self.projection_2 = _projection(in_half, half, stride)
        self.residual_f = Bottleneck(
            in_half,
            half,
            half // 4,
            stride=stride,
            stride_on="middle",
            preactivation=preactivation,
        )
        self.residual_g = Bottleneck(half, half, half // 4)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = self.projection_1(x1) + self.residual_f(x2)
        return y1, self.projection_2(x2) + self.residual_g(y1)


class RevNet(_StagedNetwork):
    """RevNet with bottlenecks (Gomez et al., 2017, https://arxiv.org/abs/1707.04585).

    All units of a stage are reversible except the first, which changes width or resolution by a
    strided projection. The whole network therefore has no inverse.

    Args:
        in_shape: channels, height and width of an image; the network takes any size.
        num_classes: length of the logits.
        stem: ``"imagenet"`` (7x7 convolution with stride 2, max pooling) or ``"small"`` (3x3).
        stem_channels: channels after the stem.
        units: units in each stage, of two bottlenecks each.
        strides: downsampling of the first unit of each stage.
        channels: channels of both halves together in each stage, multiples of 8.
        backward: how gradients are computed: ``"stored"`` keeps every activation;
            ``"reversible"`` recovers those of the reversible units, see
            :mod:`irevnet.reversible.stack`; ``"balanced"`` does so, too, but keeps the narrow ones
            inside these units.

    Raises:
        ValueError: if an argument cannot work; the message names it.
    """

    unit = _ReversibleUnit
    shape_changing_unit: type[nn.Module] = _ReversibleProjectionUnit

    backwards = BACKWARDS

    def states(self, x: Tensor) -> Iterator[Tensor]:
        """The representation after the stem and after every unit, merged, one at a time."""
        check_images(x, self.in_channels, 1)
        z = self.stem(x)
        yield z
        halves = split(z)
        for unit in self.units:
            halves = unit(*halves)
            yield merge(*halves)

    def _apply_units(self, z: Tensor) -> Tensor:
        # The halves stay apart between units: batch norm takes several times as long on a slice.
        halves = split(z)
        for reversible, units in groupby(self.units, lambda u: isinstance(u, _ReversibleUnit)):
            if reversible and self.backward != "stored":
                blocks = [block for unit in units for block in unit.blocks]  # type: ignore[union-attr]
                halves = reversible_stack(blocks, *halves, keep_narrow=self.backward == "balanced")
            else:
                for unit in units:
                    halves = unit(*halves)
        return merge(*halves)
