"""The arithmetic of a state's two halves, its streams: floating point, or exact fixed point.

In floating point, ``(a + f) - f`` is ``a`` up to rounding. With both halves kept as whole numbers
and F's output rounded to one before it is added, subtracting the same number gives ``a`` to the
bit (after MacKay et al., 2018, https://arxiv.org/abs/1810.10999). F itself is computed in floating
point as ever; it has to give the same bits both times, which it does on the same device, with the
same batch and in the same mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["FixedPointStreams", "FloatStreams", "Streams", "straight_through"]


@dataclass(frozen=True)
class FloatStreams:
    """Halves in floating point: reading and writing are the identity."""

    def read(self, stream: Tensor) -> Tensor:
        """What F gets to see of a half."""
        return stream

    def write(self, x: Tensor) -> Tensor:
        """A half from floating point."""
        return x

    def add(self, stream: Tensor, residual: Tensor) -> Tensor:
        """Adds F's output to a half."""
        return stream + residual

    def subtract(self, stream: Tensor, residual: Tensor) -> Tensor:
        """Undoes :meth:`add` up to rounding."""
        return stream - residual

    def peak(self, stream: Tensor) -> None:
        """Nothing to watch: floating point has its infinities."""

    def check(self, peaks: Sequence[None]) -> None:
        """Nothing to check."""


@dataclass(frozen=True)
class FixedPointStreams:
    """Halves as int32 multiples of ``2**-fraction_bits``.

    A half must stay below ``2**(30 - fraction_bits)``. That leaves one bit in reserve, so that
    adding one more output of F, which is clipped to the same limit, cannot wrap around:
    an overflow is always seen, by :meth:`check`, in the half that it falls into. Infinite outputs
    of F and NaN count as the limit.

    Args:
        fraction_bits: binary digits behind the point.
        dtype: floating-point type that F computes with.
    """

    fraction_bits: int
    dtype: torch.dtype

    def read(self, stream: Tensor) -> Tensor:
        """What F gets to see of a half: int32 to ``dtype``."""
        return stream.to(self.dtype) * 2.0**-self.fraction_bits

    def write(self, x: Tensor) -> Tensor:
        """A half from floating point: the nearest multiples, int32."""
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
        """The largest magnitude in a half, a float64 tensor of no dimensions."""
        low, high = (bound.double() for bound in stream.aminmax())
        return torch.maximum(-low, high) * 2.0**-self.fraction_bits

    def check(self, peaks: Sequence[Tensor]) -> None:
        """Raises ``ValueError`` if a half has overflowed.

        Args:
            peaks: of both halves at the entry, then of the second half after every block, the one
                that the block has added to.
        """
        largest = 2.0 ** (30 - self.fraction_bits)
        # One transfer from the device for all blocks.
        for index, peak in enumerate(torch.stack(list(peaks)).tolist()):
            if peak >= largest:
                where = f"after block {index - 2}" if index > 1 else "at the entry"
                raise ValueError(
                    f"fixed-point overflow {where}: magnitude {peak:.6g} or more, but "
                    f"fraction_bits {self.fraction_bits} allows less than {largest:g}; use fewer "
                    "fraction_bits, or check that weights and images are finite"
                )


Streams = FloatStreams | FixedPointStreams


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
