"""The i-RevNet: a classifier whose representation is an invertible function of the image."""

import math
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import ExitStack
from typing import cast

import torch
from torch import Tensor, nn

from irevnet.checks import (
    check_fraction_bits,
    check_images,
    check_in_shape,
    check_interval,
    check_per_stage,
    check_positive,
    check_stages,
    choice,
)
from irevnet.network.bottleneck import Bottleneck
from irevnet.network.classifier import Classifier
from irevnet.reversible.batch_norm import frozen_statistics
from irevnet.reversible.coupling import CouplingBlock, couple
from irevnet.reversible.inversion import INEXACT, check_checksum, inverse_states, is_traced
from irevnet.reversible.known_channels import KnownChannels, known_channels, known_values
from irevnet.reversible.layers import (
    Normalize,
    OffsetFirst,
    SpaceToDepth,
    ZeroChannels,
    merge,
    split,
)
from irevnet.reversible.snapshot import Snapshot
from irevnet.reversible.stack import BACKWARDS, merged_stack
from irevnet.reversible.streams import ARITHMETICS, FixedPointStreams, FloatStreams, Streams

__all__ = ["IRevNet"]


class IRevNet(nn.Module):
    r"""A deep invertible network that classifies images (Jacobsen et al., ICLR 2018).

    An invertible space-to-depth moves the image into channels. If the first stage is wider than
    that, zero channels are appended (the *injective* model; without them it is the *bijective*
    one). The two halves of the channels then pass through a stack of
    :class:`~irevnet.reversible.coupling.CouplingBlock`. The final representation holds all the
    information in the image, and :meth:`inverse` recovers the image from it. Only the classifier on
    top of it (batch norm, ReLU, spatial average and a linear layer) discards information.

    Source: https://arxiv.org/abs/1802.07088, section 3 and table 1.

    Args:
        in_shape: channels, height and width of an image. The network is convolutional and takes
            any size whose height and width are multiples of ``total_stride``; this one is
            checked at construction.
        num_classes: length of the logits.
        entry_factor: side of the blocks of pixels that the entry moves into channels.
        entry_order: order of these channels, which decides which pixels go into which half:
            ``"channel"`` sorts by colour first, ``"offset"`` by the position in a block first, as
            in the released code.
        normalization: mean and standard deviation of each channel, used to normalise images at
            the entry and undone by the inverse; None skips it.
        blocks: coupling blocks in each stage.
        strides: downsampling of the first block of each stage.
        half_channels: channels of one half of the state in each stage. S multiplies channels by
            the square of its stride, so each entry is the previous one times ``stride**2``; the
            first determines how many zero channels are appended.
        zeros: where the zero channels go: ``"after"`` the image's channels, as in the released
            code, whose first F reads nothing but zeros, or ``"before"`` them.
        kernel_sizes: kernel sizes of the three convolutions of F, odd.
        bottleneck_ratio: how many times narrower than a half the middle of F is.
        bottleneck_channels: width of the middle of F in each stage; overrides the ratio.
        stride_on: which convolution of F carries the stride, ``"first"`` (the paper) or
            ``"middle"``.
        dropout: probability of dropping a value inside F (the released CIFAR-10 network: 0.1).
        backward: how gradients are computed: ``"stored"`` keeps every activation for the backward
            pass, ``"reversible"`` recovers them from the representation, see
            :mod:`irevnet.reversible.stack`, ``"balanced"`` keeps the narrow ones inside F, see
            :mod:`irevnet.reversible.narrow`. Values and gradients are the same up to rounding.
        streams: how the halves of the state are kept: ``"float"``, or ``"fixed"`` for int32 fixed
            point, which recovers states to the bit and images up to rounding, see :meth:`inverse`
            and :mod:`irevnet.reversible.streams`.
        fraction_bits: binary digits after the point of fixed-point streams, 8 to 24. The streams
            hold magnitudes below ``2**(30 - fraction_bits)``: 16,384 at 16.

    Raises:
        ValueError: if an argument or a combination of them cannot work; the message names the
            argument, its value and what is allowed.
    """

    backwards: tuple[str, ...] = BACKWARDS
    arithmetics: tuple[str, ...] = ARITHMETICS
    backward = choice("backward", "backwards")
    streams = choice("streams", "arithmetics")

    def __init__(
        self,
        *,
        in_shape: Sequence[int] = (3, 224, 224),
        num_classes: int = 1000,
        entry_factor: int = 2,
        entry_order: str = "channel",
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
        blocks: Sequence[int] = (6, 16, 72, 6),
        strides: Sequence[int] = (2, 2, 2, 2),
        half_channels: Sequence[int] = (24, 96, 384, 1536),
        zeros: str = "after",
        kernel_sizes: Sequence[int] = (1, 3, 1),
        bottleneck_ratio: int = 4,
        bottleneck_channels: Sequence[int] | None = None,
        stride_on: str = "first",
        dropout: float = 0.0,
        backward: str = "stored",
        streams: str = "float",
        fraction_bits: int = 16,
    ) -> None:
        super().__init__()
        check_positive("num_classes", num_classes)
        check_positive("entry_factor", entry_factor)
        blocks = check_stages("blocks", blocks)
        strides = check_per_stage("strides", strides, len(blocks))
        half_channels = check_per_stage("half_channels", half_channels, len(blocks))
        self.in_channels, height, width = check_in_shape(in_shape)
        self.total_stride = entry_factor * math.prod(strides)
        if height % self.total_stride or width % self.total_stride:
            raise ValueError(
                f"in_shape must have a height and width divisible by {self.total_stride}, the "
                f"total stride (entry_factor {entry_factor} times strides {strides}); "
                f"got {tuple(in_shape)}"
            )
        if entry_order not in ("channel", "offset"):
            raise ValueError(f'entry_order must be "channel" or "offset", got {entry_order!r}')
        _check_normalization(normalization, self.in_channels)
        if zeros not in ("after", "before"):
            raise ValueError(f'zeros must be "after" or "before", got {zeros!r}')
        kernel_sizes = _check_kernel_sizes(kernel_sizes)
        if stride_on not in ("first", "middle"):
            raise ValueError(f'stride_on must be "first" or "middle", got {stride_on!r}')
        check_interval("dropout", dropout, "[0, 1)")
        self.backward = backward
        self.streams = streams
        check_fraction_bits(fraction_bits)
        bottleneck_channels = _bottleneck_channels(
            bottleneck_channels, bottleneck_ratio, half_channels
        )
        half = _first_half(half_channels, strides)

        self.blocks_per_stage = blocks
        self.fraction_bits = fraction_bits
        self.num_classes = num_classes
        self.in_shape = (self.in_channels, height, width)
        self.normalize = None if normalization is None else Normalize(*normalization)
        # With blocks of one pixel the orders are the same.
        offset_first = entry_order == "offset" and entry_factor > 1
        self.entry = (
            OffsetFirst(entry_factor, self.in_channels)
            if offset_first
            else SpaceToDepth(entry_factor)
        )
        self.zero_channels = ZeroChannels(
            _zero_channels(self.in_channels, entry_factor, half, half_channels, strides),
            before=zeros == "before",
        )
        self.blocks = cast("MutableSequence[CouplingBlock]", nn.ModuleList())
        for stage, block_count in enumerate(blocks):
            for index in range(block_count):
                stride = strides[stage] if index == 0 else 1
                residual = Bottleneck(
                    half,
                    half_channels[stage],
                    bottleneck_channels[stage],
                    stride=stride,
                    kernel_sizes=kernel_sizes,
                    stride_on=stride_on,
                    dropout=dropout,
                    preactivation=len(self.blocks) > 0,
                )
                self.blocks.append(self._make_block(residual, half, stride))
                half = half_channels[stage]
        appended = [False] * (self.in_channels * entry_factor**2)
        zero = [True] * self.zero_channels.channels
        appended = [*zero, *appended] if zeros == "before" else [*appended, *zero]
        first, second = appended[: len(appended) // 2], appended[len(appended) // 2 :]
        self.known = self._known_channels(KnownChannels(tuple(first), tuple(second)))
        self.channels = 2 * half
        self.classifier = Classifier(self.channels, num_classes)

    def _make_block(self, residual: nn.Module, channels: int, stride: int) -> CouplingBlock:
        """Makes the block of an F that reads ``channels`` channels."""
        return CouplingBlock(residual, stride)

    def _known_channels(self, entry: KnownChannels) -> list[KnownChannels]:
        """The known channels of the states, from those at the entry."""
        return known_channels(entry, self.blocks)

    @property
    def is_bijective(self) -> bool:
        """Whether every representation belongs to an image (no zero channels are appended)."""
        return self.zero_channels.channels == 0

    def extra_repr(self) -> str:
        """What ``repr`` shows before the layers."""
        shown = f"backward={self.backward}, streams={self.streams}"
        return f"{shown}, fraction_bits={self.fraction_bits}" if self.streams == "fixed" else shown

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, num_classes)``."""
        return self.classifier(self._represent(x))

    def encode(self, x: Tensor) -> Tensor:
        """The final representation of images.

        Args:
            x: images ``(B, C, H, W)``, floating point, ``H`` and ``W`` multiples of
                ``total_stride``.

        Returns:
            Both halves, merged, ``(B, 2 * half_channels[-1], H / total_stride,
            W / total_stride)``; of ``x``'s dtype, or int32 and without gradients with fixed-point
            streams. It determines ``x``, see :meth:`inverse`.

        Raises:
            ValueError: if ``x`` has another shape or an integer dtype, or if fixed-point streams
                overflow.
        """
        if self.streams == "float":
            return self._represent(x)
        streams = self._streams()
        x_tilde, x = (streams.write(half) for half in self._enter(x))
        return merge(*couple(self.blocks, x_tilde, x, streams))

    def inverse(
        self, z: Tensor, *, verify: bool | None = None, checksum: Tensor | None = None
    ) -> Tensor:
        """The images whose final representation is ``z``; undoes :meth:`encode`.

        It evaluates every F once, as :meth:`encode` does; an injective network whose first F reads
        nothing but zeros also evaluates that F on zeros. Some channels are known to have the same
        values for every image: those that descend from appended zeros alone. The inverse restores
        these values on the way, see :mod:`irevnet.reversible.known_channels`; in an injective
        model, this projects a ``z`` that no image has. Running statistics are never updated. In
        training mode batch norm uses the statistics of the batch, so ``z`` must be the whole batch
        that was encoded.

        With fixed-point streams, states are recovered to the bit if F is computed as :meth:`encode`
        computed it: on the same device, with the same batch, layout, threads, mode and backend
        flags. Images are rounded to multiples of ``2**-fraction_bits`` (after normalisation), so
        images with 256 grey levels are equal as uint8. An injective network can detect that F was
        computed differently: its known channels then come back with other values.

        Args:
            z: representations ``(B, 2 * half_channels[-1], h, w)`` of the dtype that
                :meth:`encode` returns.
            verify: with fixed-point streams, how to check that the inverse is exact: ``None``
                compares the known channels, which costs nothing but needs an injective network;
                ``True`` also applies the blocks to the recovered state again, which costs as much
                as the inverse; ``False`` checks neither. In a bijective network every ``z`` has an
                image that is encoded as ``z`` again, so only a checksum detects an error.
            checksum: with fixed-point streams, the result of :meth:`checksum` for the images that
                were encoded.

        Returns:
            Images ``(B, C, h * total_stride, w * total_stride)``.

        Raises:
            ValueError: if ``z`` has another shape or dtype or is not finite; if F draws random
                numbers, which an inverse cannot know; if fixed-point streams overflow, or are
                found not to be exact.
        """
        for halves in self._inverse_halves(z, exact=verify is not False):
            entry = halves
        check_checksum(self._streams(), entry, checksum)
        if verify and self.streams == "fixed":
            with frozen_statistics(*self.blocks):
                # Apply them to the state, not to the images, whose normalisation may round it.
                again = merge(*couple(self.blocks, *entry, self._streams()))
            if not torch.equal(again, z):
                raise ValueError(
                    f"the inverse is not exact: encoding it again gives a different z. {INEXACT}"
                )
        return self._leave(*entry)

    def checksum(self, x: Tensor) -> Tensor:
        """A checksum of each image, with which :meth:`inverse` checks that it is exact to the bit.

        Args:
            x: images ``(B, C, H, W)`` as for :meth:`encode`.

        Returns:
            int64, ``(B,)``.

        Raises:
            ValueError: if streams are not fixed-point, or if :meth:`encode` does not accept ``x``.
        """
        streams = self._streams()
        return streams.checksum(*(streams.write(half) for half in self._enter(x)))

    def classify(self, z: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of representations ``(B, 2 * half_channels[-1], h, w)``.

        Args:
            z: what :meth:`encode` returns.

        Raises:
            ValueError: if ``z`` has another shape or dtype.
        """
        self._check_representation(z)
        return self.classifier(self._streams().read(z))

    def states(self, x: Tensor) -> Iterator[Tensor]:
        """The representation after the entry and after every block, merged, one at a time.

        Args:
            x: images ``(B, C, H, W)`` as for :meth:`encode`.

        Yields:
            ``len(blocks) + 1`` tensors ``(B, 2 * half, h, w)``; the last is ``encode(x)``.
        """
        streams = self._streams()
        x_tilde, x = (streams.write(half) for half in self._enter(x))
        yield merge(x_tilde, x)
        for block in self.blocks:
            x_tilde, x = couple([block], x_tilde, x, streams)
            yield merge(x_tilde, x)

    def inverse_states(self, z: Tensor) -> Iterator[Tensor]:
        """The representations that :meth:`inverse` recovers on its way, merged, one at a time.

        Args:
            z: as for :meth:`inverse`.

        Yields:
            ``len(blocks) + 1`` tensors ``(B, 2 * half, h, w)``: those of :meth:`states`, in
            reverse; the first is ``z``.
        """
        for x_tilde, x in self._inverse_halves(z):
            yield merge(x_tilde, x)

    def _inverse_halves(self, z: Tensor, *, exact: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        self._check_representation(z)
        if self.streams == "float" and not is_traced(z) and not z.isfinite().all():
            raise ValueError(
                f"z must be finite, got {(~z.isfinite()).sum().item()} values that are not"
            )
        streams = self._streams()
        values = self._known_values(z, streams)
        yield from inverse_states(
            self.blocks, *split(z), streams, known=self.known, values=values, exact=exact
        )

    def _represent(self, x: Tensor) -> Tensor:
        """The final representation in floating point, with gradients."""
        x_tilde, x = self._enter(x)
        # A state with known channels is recovered inexactly in floating point: the blocks that read
        # it are recomputed from the image instead.
        recomputed = max(0, len(self.known) - 1) if self.streams == "float" else 0
        return merged_stack(
            self.blocks,
            x_tilde,
            x,
            backward=self.backward,
            streams=self._streams(),
            recomputed=recomputed,
            zero_channels=0 if self.zero_channels.before else self.zero_channels.channels,
            chunks=self.blocks_per_stage,
        )

    def _streams(self) -> Streams:
        if self.streams == "float":
            return FloatStreams()
        return FixedPointStreams(self.fraction_bits, self.classifier.linear.weight.dtype)

    def _enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_images(x, self.in_channels, self.total_stride)
        dtype = self.classifier.linear.weight.dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"x must have the dtype of the network's weights, {dtype}, got {x.dtype}; convert "
                "one of them, or use torch.autocast"
            )
        if self.normalize is not None:
            x = self.normalize(x)
        return split(self.zero_channels(self.entry(x)))

    def _leave(self, x_tilde: Tensor, x: Tensor) -> Tensor:
        x = self.entry.inverse(self.zero_channels.inverse(merge(x_tilde, x)))
        x = self._streams().read(x)
        return x if self.normalize is None else self.normalize.inverse(x)

    def _known_values(self, z: Tensor, streams: Streams) -> list[tuple[Tensor, Tensor]]:
        if not self.known:
            return []
        # Use as many zero images as z has, not one: kernels chosen for another batch size may round
        # differently, and the values must be equal to the bit.
        shape = (z.shape[0], self.in_channels, *(n * self.total_stride for n in z.shape[2:]))
        zeros = torch.zeros(shape, dtype=self.classifier.linear.weight.dtype, device=z.device)
        x_tilde, x = (streams.write(half) for half in self._enter(zeros))
        blocks = self.blocks[: len(self.known) - 1]
        if is_traced(z) or not any(m.training for block in blocks for m in block.modules()):
            with frozen_statistics(*blocks):
                return known_values(self.known, blocks, x_tilde, x, streams)
        with ExitStack() as contexts:
            copies = [contexts.enter_context(Snapshot(block).function()) for block in blocks]
            return known_values(
                self.known, cast("list[CouplingBlock]", copies), x_tilde, x, streams
            )

    def _check_representation(self, z: Tensor) -> None:
        if not isinstance(z, Tensor):
            raise ValueError(f"z must be a tensor, got {type(z).__name__}")
        if z.ndim != 4 or z.shape[1] != self.channels or min(z.shape) < 1:
            raise ValueError(
                f"z must be a representation of shape (B, {self.channels}, h, w), none of them "
                f"0, got {tuple(z.shape)}"
            )
        if self.streams == "fixed":
            if z.dtype != torch.int32:
                raise ValueError(f"z must be int32 with fixed-point streams, got dtype {z.dtype}")
        elif not z.is_floating_point():
            raise ValueError(f"z must be floating point, got dtype {z.dtype}")


def _check_normalization(
    normalization: tuple[Sequence[float], Sequence[float]] | None, channels: int
) -> None:
    if normalization is None:
        return
    try:
        mean, std = ([float(value) for value in values] for values in normalization)
        fits = len(mean) == len(std) == channels and min(std) > 0
        fits = fits and all(math.isfinite(value) for value in (*mean, *std))
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"normalization must be the mean and the positive standard deviation of each of "
            f"{channels} channels, got {normalization!r}"
        )


def _check_kernel_sizes(kernel_sizes: Sequence[int]) -> tuple[int, ...]:
    if (
        not isinstance(kernel_sizes, Sequence)
        or len(kernel_sizes) != 3
        or any(type(size) is not int or size < 1 or size % 2 == 0 for size in kernel_sizes)
    ):
        raise ValueError(f"kernel_sizes must be three odd positive integers, got {kernel_sizes!r}")
    return tuple(kernel_sizes)


def _bottleneck_channels(
    widths: Sequence[int] | None, ratio: int, half_channels: tuple[int, ...]
) -> tuple[int, ...]:
    if widths is not None:
        return check_per_stage("bottleneck_channels", widths, len(half_channels))
    check_positive("bottleneck_ratio", ratio)
    for half in half_channels:
        if half < ratio:
            raise ValueError(
                f"bottleneck_ratio must be at most the smallest entry of half_channels, "
                f"{min(half_channels)}, got {ratio}; or give bottleneck_channels"
            )
    return tuple(half // ratio for half in half_channels)


def _first_half(half_channels: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Channels of one half before the first block, from those of the first stage."""
    for stage in range(1, len(strides)):
        expected = half_channels[stage - 1] * strides[stage] ** 2
        if half_channels[stage] != expected:
            raise ValueError(
                f"half_channels[{stage}] must be {expected}, that is half_channels[{stage - 1}] "
                f"times strides[{stage}]**2, got {half_channels[stage]}: space-to-depth keeps "
                "the number of values"
            )
    if half_channels[0] % strides[0] ** 2:
        raise ValueError(
            f"half_channels[0] must be divisible by strides[0]**2 = {strides[0] ** 2}, "
            f"got {half_channels[0]}"
        )
    return half_channels[0] // strides[0] ** 2


def _zero_channels(
    in_channels: int,
    entry_factor: int,
    half: int,
    half_channels: tuple[int, ...],
    strides: tuple[int, ...],
) -> int:
    entry_channels = in_channels * entry_factor**2
    if 2 * half < entry_channels:
        allowed = math.ceil(entry_channels / 2) * strides[0] ** 2
        raise ValueError(
            f"half_channels[0] must be at least {allowed} for two halves to hold the entry's "
            f"{entry_channels} channels ({in_channels} channels, entry_factor {entry_factor}, "
            f"strides[0] {strides[0]}), got {half_channels[0]}"
        )
    return 2 * half - entry_channels
