"""A reversible stack of arbitrary residual functions."""

from collections.abc import Iterator, MutableSequence
from typing import cast

import torch
from torch import Tensor, nn

from irevnet.checks import check_fraction_bits, choice
from irevnet.reversible.coupling import CouplingBlock, couple
from irevnet.reversible.inversion import check_checksum, inverse_states, is_traced
from irevnet.reversible.stack import BACKWARDS, merged_stack
from irevnet.reversible.streams import ARITHMETICS, FixedPointStreams, FloatStreams, Streams

__all__ = ["ReversibleSequential"]

_CHUNK = 4
"""Blocks that get their gradients together."""


class ReversibleSequential(nn.Module):
    r"""A sequence of residual functions with an inverse, trained without stored activations.

    The input is split into halves :math:`(x_1, x_2)`. A single function F gives the coupling of an
    i-RevNet, a pair (F, G) that of a RevNet (https://arxiv.org/abs/1707.04585):

    .. math::

        F:&\quad (x_1, x_2) \mapsto (x_2,\; x_1 + F(x_2)) \\
        (F, G):&\quad (x_1, x_2) \mapsto (y_1, y_2),\quad y_1 = x_1 + F(x_2),\; y_2 = x_2 + G(y_1)

    F and G may be any modules that keep the shape of a half, including modules with dropout, batch
    norm or spectral norm, in training or evaluation mode. They are never inverted. Unless
    activations are stored, only the input and the parameters of F and G receive gradients. It is
    then an error if a buffer, or a tensor in an attribute, requires a gradient; a tensor captured
    in a closure, or inside a list, receives none.

    Args:
        *functions: in the order in which they are applied, each a module F, a pair ``(F, G)`` or a
            :class:`~irevnet.reversible.coupling.CouplingBlock`, which may downsample images.
        dim: the dimension that is split, of even size: 1 for images ``(B, C, H, W)``, -1 for
            tokens ``(B, N, C)``.
        backward: how gradients are computed: ``"reversible"`` recovers activations from the output,
            ``"balanced"`` keeps the narrow ones inside F and G, which must then be plain
            ``nn.Sequential``, ``"stored"`` keeps all. Values and gradients are the same.
        streams: how the halves are kept: ``"float"``, or ``"fixed"`` for int32 fixed point, whose
            inverse is exact to the bit.
        fraction_bits: binary digits after the point of fixed-point streams, 8 to 24.

    Raises:
        ValueError: if an argument cannot work; the message names it.

    Example:
        >>> import torch, irevnet
        >>> from torch import nn
        >>> mlps = [nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)) for _ in range(6)]
        >>> model = irevnet.ReversibleSequential(*mlps, dim=-1)
        >>> x = torch.rand(2, 5, 8)
        >>> torch.allclose(model.inverse(model(x)), x, atol=1e-5)
        True
    """

    backwards = BACKWARDS
    arithmetics = ARITHMETICS
    backward = choice("backward", "backwards")
    streams = choice("streams", "arithmetics")

    def __init__(
        self,
        *functions: nn.Module | tuple[nn.Module, nn.Module],
        dim: int = 1,
        backward: str = "reversible",
        streams: str = "float",
        fraction_bits: int = 16,
    ) -> None:
        super().__init__()
        if type(dim) is not int:
            raise ValueError(f"dim must be an integer, got {dim!r}")
        check_fraction_bits(fraction_bits)
        self.dim = dim
        self.backward = backward
        self.streams = streams
        self.fraction_bits = fraction_bits
        self.blocks = cast("MutableSequence[CouplingBlock]", nn.ModuleList())
        for index, function in enumerate(functions):
            parts = function if isinstance(function, tuple) else (function,)
            if len(parts) > 2 or not all(isinstance(part, nn.Module) for part in parts):
                raise ValueError(
                    f"functions[{index}] must be a module or a pair of modules, got {function!r}"
                )
            for part in parts:
                self.blocks.append(part if isinstance(part, CouplingBlock) else CouplingBlock(part))

    def extra_repr(self) -> str:
        """What ``repr`` shows before the layers."""
        return f"dim={self.dim}, backward={self.backward}, streams={self.streams}"

    def forward(self, x: Tensor) -> Tensor:
        """Applies the functions.

        Args:
            x: floating point, of even size in ``dim``.

        Returns:
            The result, floating point, with gradients; fixed-point streams round it.

        Raises:
            ValueError: if ``x`` has an odd size in ``dim`` or an integer dtype, if a function
                changes the shape of a half, or if fixed-point streams overflow.
            RuntimeError: see :func:`irevnet.reversible.stack.reversible_stack`.
        """
        return merged_stack(
            self.blocks,
            *self._split(x),
            backward=self.backward,
            dim=self.dim,
            streams=self._streams(),
            chunks=[_CHUNK] * (len(self.blocks) // _CHUNK),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Like :meth:`forward`; with fixed-point streams, int32 as :meth:`inverse` takes it."""
        if self.streams == "float":
            return self(x)
        streams = self._streams()
        x_tilde, x = (streams.write(half) for half in self._split(x))
        return torch.cat(couple(self.blocks, x_tilde, x, streams), self.dim)

    def inverse(self, z: Tensor, *, checksum: Tensor | None = None) -> Tensor:
        """Undoes :meth:`encode`; running statistics are not updated.

        With fixed-point streams the result is exact to the bit if F is computed as
        :meth:`encode` computed it, see :mod:`irevnet.reversible.streams`.

        Args:
            z: what :meth:`encode` returned.
            checksum: with fixed-point streams, what :meth:`checksum` gave for the input.

        Raises:
            ValueError: if ``z`` has an odd size in ``dim`` or another dtype; if a function draws
                random numbers or changes itself; if the recovered input has a different checksum.
        """
        for halves in self._inverse_halves(z):
            entry = halves
        check_checksum(self._streams(), entry, checksum)
        return torch.cat([self._streams().read(half) for half in entry], self.dim)

    def checksum(self, x: Tensor) -> Tensor:
        """A checksum of each input, int64 ``(B,)``, for :meth:`inverse` to check its result.

        Raises:
            ValueError: if streams are not fixed-point.
        """
        streams = self._streams()
        x_tilde, x = (streams.write(half) for half in self._split(x))
        return streams.checksum(x_tilde, x)

    def states(self, x: Tensor) -> Iterator[Tensor]:
        """``x`` and the state after every block, ``x_tilde`` first; a pair (F, G) is two blocks."""
        streams = self._streams()
        x_tilde, x = (streams.write(half) for half in self._split(x))
        yield torch.cat([x_tilde, x], self.dim)
        for block in self.blocks:
            x_tilde, x = couple([block], x_tilde, x, streams)
            yield torch.cat([x_tilde, x], self.dim)

    def inverse_states(self, z: Tensor) -> Iterator[Tensor]:
        """The states of :meth:`states` in reverse, recovered from the last one."""
        for halves in self._inverse_halves(z):
            yield torch.cat(halves, self.dim)

    def _inverse_halves(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        self._check(z, "z", integers=self.streams == "fixed")
        if self.streams == "float" and not is_traced(z) and not z.isfinite().all():
            raise ValueError(
                f"z must be finite, got {(~z.isfinite()).sum().item()} values that are not"
            )
        y_tilde, y = z.chunk(2, self.dim)
        yield from inverse_states(self.blocks, y_tilde, y, self._streams())

    def _streams(self) -> Streams:
        if self.streams == "float":
            return FloatStreams()
        floating = (p.dtype for p in self.parameters() if p.is_floating_point())
        return FixedPointStreams(self.fraction_bits, next(floating, torch.get_default_dtype()))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check(x, "x", integers=False)
        x_tilde, x = x.chunk(2, self.dim)
        return x_tilde, x

    def _check(self, x: Tensor, name: str, *, integers: bool) -> None:
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(x).__name__}")
        if integers and x.dtype != torch.int32:
            raise ValueError(f"{name} must be int32 with fixed-point streams, got dtype {x.dtype}")
        if not integers and not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got dtype {x.dtype}")
        if not -x.ndim <= self.dim < x.ndim or x.shape[self.dim] % 2 or x.numel() == 0:
            raise ValueError(
                f"{name} must have an even size in dimension {self.dim} and not be empty, got "
                f"shape {tuple(x.shape)}"
            )
