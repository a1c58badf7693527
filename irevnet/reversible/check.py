"""Checks that a network's inverse undoes it and that its memory-saving gradients are correct."""

import copy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from irevnet.reversible.layers import Normalize

__all__ = ["Invertibility", "Invertible", "check_invertible"]

# An nn.Module that is also Invertible: Python cannot express the intersection of two types.
_Module = Any


class Invertible(Protocol):
    """A network with an inverse."""

    def encode(self, x: Tensor) -> Tensor:
        """A representation that determines ``x``."""

    def inverse(self, z: Tensor) -> Tensor:
        """The input whose representation is ``z``; undoes :meth:`encode`."""


@dataclass(frozen=True)
class Invertibility:
    """The errors that :func:`check_invertible` measured.

    Args:
        error: largest difference between an input and its reconstruction, relative to the input's
            largest magnitude, in the network's own precision.
        double_error: the same in float64, where a true inverse has almost no error.
        gradient_error: relative Euclidean distance between all gradients and those with stored
            activations, in float64; None for a network without ``backward``.
    """

    error: float
    double_error: float
    gradient_error: float | None


def check_invertible(
    module: nn.Module, example: Tensor, *, tolerance: float = 1e-3
) -> Invertibility:
    """Checks a network's inverse, determinism, running statistics and gradients.

    The checks run on copies: the module, its statistics and the random state do not change.

    Args:
        module: a network with ``encode`` (or ``forward`` alone) and ``inverse``.
        example: an input, floating point, of the module's dtype and device.
        tolerance: the largest error allowed in the network's own precision. In float64, the inverse
            and gradients may be off by 1e-8. The rounding of fixed-point streams is allowed in
            addition.

    Returns:
        The errors measured.

    Raises:
        ValueError: if the network has no inverse, or a wrong one; if it draws random numbers;
            if the inverse changes a buffer; if gradients differ. The message says which.

    Example:
        >>> import torch, irevnet
        >>> model = irevnet.ReversibleSequential(torch.nn.Linear(3, 3), dim=-1)
        >>> irevnet.check_invertible(model, torch.rand(4, 6)).double_error < 1e-12
        True
    """
    if not callable(getattr(module, "inverse", None)):
        raise ValueError(f"module must have a method inverse, {type(module).__name__} has none")
    devices = [example.device] if example.device.type == "cuda" else []
    rounding = _rounding(module, example)
    with torch.random.fork_rng(devices):
        error = _round_trip(copy.deepcopy(module), example, tolerance + rounding)
        double = copy.deepcopy(module).double()
        double_error = _round_trip(double, example.double(), 1e-8 + rounding)
        return Invertibility(error, double_error, _gradient_error(module, example))


def _encode(module: _Module, x: Tensor) -> Tensor:
    return module.encode(x) if callable(getattr(module, "encode", None)) else module(x)


def _rounding(module: _Module, x: Tensor) -> float:
    """The largest rounding error of fixed-point inputs, relative to their largest magnitude.

    Rounding changes a value by at most half a unit. The network may have divided the inputs by a
    standard deviation before.
    """
    if getattr(module, "streams", None) != "fixed":
        return 0.0
    normalize = getattr(module, "normalize", None)
    std = normalize.std.max().item() if isinstance(normalize, Normalize) else 1.0
    return 2.0 ** -(module.fraction_bits + 1) * std / max(x.abs().max().item(), 1e-30)


@torch.no_grad()
def _round_trip(module: _Module, x: Tensor, tolerance: float) -> float:
    # encode runs on a copy: in training mode batch norm would update the buffers compared below.
    z = _encode(copy.deepcopy(module), x)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    back = module.inverse(z)
    for name, buffer in module.named_buffers():
        if not torch.equal(buffer, before[name]):
            raise ValueError(
                f"inverse changes the buffer {name}: a reversible backward would update it twice"
            )
    if back.shape != x.shape:
        raise ValueError(
            f"inverse returns the shape {tuple(back.shape)} for inputs of shape {tuple(x.shape)}"
        )
    if not torch.equal(_encode(copy.deepcopy(module), x), z):
        raise ValueError(
            "encode gives different results for the same input: it draws random numbers (dropout "
            "in training mode?) or is not deterministic"
        )
    error = ((back - x).abs().max() / x.abs().max().clamp_min(1e-30)).item()
    if not error <= tolerance:
        raise ValueError(
            f"inverse is off by {error:.2g} relative to the input in {x.dtype}, more than "
            f"{tolerance:.2g}: it does not undo encode"
        )
    return error


def _gradient_error(module: _Module, example: Tensor) -> float | None:
    backward = getattr(module, "backward", None)
    if backward not in ("stored", "reversible", "balanced"):
        return None
    gradients = []
    for mode in ("stored", backward):
        model = copy.deepcopy(module).double()
        model.backward = mode
        torch.manual_seed(0)
        x = example.detach().double().requires_grad_()
        out = model(x)
        direction = torch.randn(out.shape, dtype=out.dtype).to(out.device)
        (out * direction).sum().backward()
        grads = [x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]
        gradients.append(torch.cat([g.flatten() for g in grads if g is not None]))
    stored, other = gradients
    error = ((other - stored).norm() / stored.norm().clamp_min(1e-30)).item()
    if not error <= 1e-8:
        raise ValueError(
            f'backward="{backward}" gives gradients that differ from those with stored activations '
            f"by {error:.2g}, relative, in float64"
        )
    return error
