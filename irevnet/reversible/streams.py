"""The arithmetic of a state's two halves, its streams: floating point, or exact fixed point.

In floating point, ``(a + f) - f`` is ``a`` up to rounding. If both halves are kept as integers and
F's output is rounded to an integer before it is added, subtracting the same integer gives ``a`` to
the bit (after MacKay et al., 2018, https://arxiv.org/abs/1810.10999). F itself is still computed in
floating point, and must give the same bits both times. The inverse therefore needs the same device,
batch, memory layout, number of threads, mode, and backend flags (cuDNN, TF32, oneDNN, deterministic
algorithms) as the forward pass. :meth:`irevnet.network.model.IRevNet.inverse` raises an error if it
detects a difference, which it cannot always do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ARITHMETICS", "FixedPointStreams", "FloatStreams", "Streams", "straight_through"]

ARITHMETICS = ("float", "fixed")


@dataclass(frozen=True)
class FloatStreams:
    """Halves in floating point: reading and writing are the identity."""

    def read(self, stream: Tensor) -> Tensor:
        """The values of a half that F reads."""
        return stream

    def write(self, x: Tensor) -> Tensor:
        """Converts floating-point values to a half."""
        return x

    def add(self, stream: Tensor, residual: Tensor) -> Tensor:
        """Adds F's output to a half."""
        return stream + residual

    def subtract(self, stream: Tensor, residual: Tensor) -> Tensor:
        """Undoes :meth:`add` up to rounding."""
        return stream - residual

    def peak(self, stream: Tensor) -> None:
        """Nothing to record: floating point overflows to infinity."""

    def checksum(self, x_tilde: Tensor, x: Tensor) -> Tensor:
        """Raises ``ValueError``: in floating point an inverse is exact up to rounding only."""
        raise ValueError('a checksum needs exact streams: streams="fixed", got "float"')

    def check(self, peaks: Sequence[Tensor | None], *, inverse: bool = False) -> None:
        """Nothing to check."""

    def traced_check(
        self, peaks: Sequence[Tensor | None], stream: Tensor, *, inverse: bool = False
    ) -> Tensor:
        """Returns ``stream``: there is nothing to check."""
        return stream


@dataclass(frozen=True)
class FixedPointStreams:
    """Halves as int32 multiples of ``2**-fraction_bits``.

    Magnitudes must stay below ``2**(30 - fraction_bits)``, which leaves one bit in reserve. Adding
    an output of F, which is clipped to the same limit, therefore cannot wrap around, and
    :meth:`check` finds every overflow in the half where it happens. Infinite and NaN outputs of F
    are replaced by the limit.

    Args:
        fraction_bits: binary digits after the point.
        dtype: floating-point type that F computes with.
    """

    fraction_bits: int
    dtype: torch.dtype

    def read(self, stream: Tensor) -> Tensor:
        """The values of a half that F reads: int32 to ``dtype``."""
        # Scale before rounding to a narrower dtype, whose range may not hold the unscaled values.
        wide = torch.promote_types(self.dtype, torch.float32)
        return (stream.to(wide) * 2.0**-self.fraction_bits).to(self.dtype)

    def write(self, x: Tensor) -> Tensor:
        """Rounds floating-point values to the nearest multiples, int32."""
        # Scaling by a power of two is exact; bfloat16 could not hold the rounded value.
        scaled = x.to(torch.promote_types(x.dtype, torch.float32)) * 2.0**self.fraction_bits
        limit = 2.0**30
        return scaled.round().clamp(-limit, limit).nan_to_num(nan=limit).to(torch.int32)

    def add(self, stream: Tensor, residual: Tensor) -> Tensor:
        """Adds F's output, rounded, to a half."""
        return stream + self.write(residual)

    def subtract(self, stream: Tensor, residual: Tensor) -> Tensor:
        """Undoes :meth:`add` to the bit."""
        return stream - self.write(residual)

    def peak(self, stream: Tensor) -> Tensor:
        """The largest magnitude in a half, as a zero-dimensional float64 tensor."""
        low, high = (bound.double() for bound in stream.aminmax())
        return torch.maximum(-low, high) * 2.0**-self.fraction_bits

    def checksum(self, x_tilde: Tensor, x: Tensor) -> Tensor:
        """The sum of each state's values with pseudorandom weights, int64 ``(B,)``.

        Two states that differ in exactly one value always have different checksums. Others may
        have the same by chance: with probability ``2**-63`` if any value differs by an odd number,
        and at most ``2**-32`` in general. The checksum does not protect against deliberate
        collisions.
        """
        flat = torch.cat([half.flatten(1) for half in (x_tilde, x)], 1).long()
        return (flat * _odd_weights(flat.shape[1], flat.device)).sum(1)

    def check(self, peaks: Sequence[Tensor | None], *, inverse: bool = False) -> None:
        """Raises ``ValueError`` if a half has overflowed.

        Args:
            peaks: largest magnitudes: of both halves at the entry, then, after every block, of the
                second half, to which the block has added.
            inverse: whether the peaks are those of an inverse: of both halves of the
                representation, then, from the last block to the first, of the half from which the
                block has subtracted.
        """
        if torch.compiler.is_compiling() or any(p is not None and p.is_meta for p in peaks):
            return  # the values are not available: see traced_check
        largest = 2.0 ** (30 - self.fraction_bits)
        # One transfer from the device for all blocks.
        for index, peak in enumerate(_stacked(peaks).tolist()):
            if peak >= largest:
                where = f"after block {index - 2}" if index > 1 else "at the entry"
                if inverse:
                    block = len(peaks) - 1 - index
                    where = f"inverting block {block}" if index > 1 else "in the representation"
                raise ValueError(
                    f"fixed-point overflow {where}: magnitude {peak:.6g} or more, but "
                    f"fraction_bits {self.fraction_bits} allows less than {largest:g}; use fewer "
                    "fraction_bits, or check that weights and images are finite"
                )

    def traced_check(
        self, peaks: Sequence[Tensor | None], stream: Tensor, *, inverse: bool = False
    ) -> Tensor:
        """Does what :meth:`check` does, as part of a compiled or exported graph.

        Args:
            peaks: as for :meth:`check`.
            stream: a half, through which the graph depends on the check.
            inverse: as for :meth:`check`.

        Returns:
            ``stream``.
        """
        if torch.compiler.is_exporting():
            # An operator of PyTorch, so that the exported program runs without this package.
            largest = 2.0 ** (30 - self.fraction_bits)
            torch._assert_async(
                (_stacked(peaks) < largest).all(),
                f"fixed-point overflow: {self.fraction_bits} fraction_bits are too many",
            )
            return stream
        return stream + _refuse_overflow(_stacked(peaks), self.fraction_bits, inverse)


Streams = FloatStreams | FixedPointStreams


def _odd_weights(count: int, device: torch.device) -> Tensor:
    """Pseudorandom odd numbers, int64 ``(count,)``: the first outputs of SplitMix64.

    Odd weights keep the difference of a single value from vanishing modulo ``2**64``. Weights
    without a pattern keep regular differences of several values from cancelling.
    Source: Steele et al. (2014), https://doi.org/10.1145/2660193.2660195.
    """

    def shifted(z: Tensor, bits: int) -> Tensor:  # right shifts of int64 copy the sign bit
        return (z >> bits) & (2 ** (64 - bits) - 1)

    z = torch.arange(1, count + 1, device=device) * (0x9E3779B97F4A7C15 - 2**64)
    z = (z ^ shifted(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ shifted(z, 27)) * (0x94D049BB133111EB - 2**64)
    return (z ^ shifted(z, 31)) | 1


def _stacked(peaks: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([peak for peak in peaks if peak is not None])


@torch.library.custom_op("irevnet::refuse_overflow", mutates_args=())
def _refuse_overflow(peaks: Tensor, fraction_bits: int, inverse: bool) -> Tensor:
    """Raises if a half has overflowed; else returns zero, to be added to what depends on it."""
    FixedPointStreams(fraction_bits, torch.float32).check(list(peaks), inverse=inverse)
    return peaks.new_zeros((), dtype=torch.int32)


@_refuse_overflow.register_fake
def _(peaks: Tensor, fraction_bits: int, inverse: bool) -> Tensor:
    return peaks.new_zeros((), dtype=torch.int32)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rounded: Tensor, exact: Tensor) -> Tensor:  # noqa: ANN401
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # noqa: ANN401
        return None, grad


def straight_through(rounded: Tensor, exact: Tensor) -> Tensor:
    """The values of ``rounded`` with the gradient of ``exact``: rounding counts as the identity.

    Source: Bengio et al. (2013), https://arxiv.org/abs/1308.3432.
    """
    return _StraightThrough.apply(rounded, exact)
