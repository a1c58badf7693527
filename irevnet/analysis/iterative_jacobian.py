"""Singular values of Jacobians that do not fit into memory (claim C4).

The Jacobian at a photograph of 224 x 224 pixels has 150,528 columns, and that in the paper's window
of 100 x 100 pixels has 30,000. A product with the Jacobian takes one forward-mode pass, a product
with its transpose one backward pass, and Lanczos' method needs nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn

from irevnet.analysis.jacobian import forward_mode, windowed
from irevnet.analysis.protocols import Encoder
from irevnet.analysis.statistics import mean_of_medians, mean_of_shares, quantile
from irevnet.checks import check_evaluation_mode, check_positive
from irevnet.network.model import IRevNet

__all__ = [
    "PartialSpectrum",
    "as_operator",
    "extreme_singular_values",
    "partial_spectrum",
    "summary",
    "total_energy",
]


@dataclass(frozen=True)
class PartialSpectrum:
    """The two ends of a Jacobian's spectrum, and its total energy.

    Args:
        leading: the largest singular values, decreasing, ``(k,)`` float64.
        trailing: the smallest, decreasing, ``(m,)`` float64; none if ``m`` is 0.
        energy: the sum of all squared singular values.
        dimensions: number of all singular values.
    """

    leading: Tensor
    trailing: Tensor
    energy: float
    dimensions: int

    def condition_number(self) -> float:
        """The largest singular value over the smallest known one.

        Without trailing values it is a lower bound.
        """
        known = torch.cat([self.leading, self.trailing])
        return (known[0] / known[-1]).item()

    def energy_dimensions(self, share: float) -> int | None:
        """How many directions carry a share of the energy; None if more than the leading ones."""
        reached = self.leading.square().cumsum(0) >= share * self.energy
        return int((~reached).sum()) + 1 if reached.any() else None


def as_operator(function: Callable[[Tensor], Tensor], image: Tensor) -> LinearOperator:
    """The Jacobian of a function at an image, as an operator that multiplies vectors.

    Args:
        function: ``(1, C, H, W)`` to ``(1, ...)``, such as a network's ``encode`` in evaluation
            mode or a function that :func:`~irevnet.analysis.jacobian.windowed` returns.
        image: ``(1, C, H, W)``, float32 or float64.

    Returns:
        ``(outputs, C * H * W)``, in the image's dtype, for SciPy.
    """
    point = image.detach()
    with torch.enable_grad():
        pixels = point.clone().requires_grad_()
        # One forward pass serves all products with the transpose.
        out = function(pixels)

    def times(vector: np.ndarray) -> np.ndarray:
        direction = torch.as_tensor(vector, dtype=point.dtype, device=point.device)
        with forward_mode():
            change = torch.func.jvp(function, (point,), (direction.view_as(point),))[1]
        return change.detach().flatten().cpu().numpy()

    def transposed_times(vector: np.ndarray) -> np.ndarray:
        direction = torch.as_tensor(vector, dtype=point.dtype, device=point.device)
        (gradient,) = torch.autograd.grad(out, pixels, direction.view_as(out), retain_graph=True)
        return gradient.flatten().cpu().numpy()

    dtype = np.dtype(str(point.dtype).removeprefix("torch."))
    shape = (out.numel(), point.numel())
    return LinearOperator(shape, matvec=times, rmatvec=transposed_times, dtype=dtype)


def extreme_singular_values(
    function: Callable[[Tensor], Tensor],
    image: Tensor,
    count: int,
    *,
    largest: bool = True,
    most_steps: int | None = None,
    seed: int = 0,
) -> Tensor:
    """The largest singular values of a Jacobian, or the smallest, by ARPACK.

    The smallest lie close together and converge many times more slowly than the largest. For a
    bijective network at a whole image, they are the reciprocals of the largest singular values of
    the inverse's Jacobian, which converge fast.

    Args:
        function: as for :func:`as_operator`.
        image: ``(1, C, H, W)``, in float64 where small values matter.
        count: number of values, less than either side of the Jacobian.
        largest: whether to find the largest values, or else the smallest.
        most_steps: most steps that ARPACK takes; by default ten times the smaller side.
        seed: seed of the start vector.

    Returns:
        ``(count,)`` float64, decreasing, on the CPU.

    Raises:
        ValueError: if ``count`` is out of range.
        RuntimeError: if ARPACK does not converge (SciPy's ``ArpackNoConvergence``).
    """
    end = "LM" if largest else "SM"
    options = {"which": end, "maxiter": most_steps, "return_singular_vectors": False}
    values = _arpack("count", count, as_operator(function, image), seed, **options)
    return _decreasing(values)


def partial_spectrum(
    model: nn.Module,
    image: Tensor,
    leading: int,
    trailing: int = 0,
    *,
    window: int = 0,
    probes: int = 20,
    seed: int = 0,
) -> PartialSpectrum:
    """The largest and the smallest singular values of a representation's Jacobian, and its energy.

    The energy is that of the leading values plus an estimate of the rest. The estimate uses random
    directions from which the leading ones are removed (Meyer et al., 2021,
    https://arxiv.org/abs/2010.09649).

    Args:
        model: a network with a method ``encode``, in evaluation mode.
        image: ``(1, C, H, W)``, of the model's dtype.
        leading: number of largest values.
        trailing: number of smallest values. For a bijective network at a whole image they are
            found with its inverse, otherwise slowly.
        window: if not 0, only the pixels of a square of that side in the middle vary.
        probes: number of directions from which the rest of the energy is estimated, 2 or more.
        seed: seed of these directions and of the start vectors.

    Raises:
        ValueError: if a number is out of range, or if the model is in training mode.
        RuntimeError: if the iteration does not converge (SciPy's ``ArpackNoConvergence``).
    """
    check_evaluation_mode(model)
    function: Callable[[Tensor], Tensor] = cast("Encoder", model).encode
    point = image
    if window:
        function, point = windowed(function, image[0], window)
    operator = as_operator(function, point)
    options = {"return_singular_vectors": "u"}
    vectors, unsorted, _ = _arpack("leading", leading, operator, seed, **options)
    values = _decreasing(unsorted)
    remaining_energy, _ = total_energy(function, point, probes, seed, without=vectors)
    trailing_values = torch.empty(0, dtype=torch.float64)
    if trailing and isinstance(model, IRevNet) and model.is_bijective and not window:
        with torch.no_grad():
            z = model.encode(image)
        largest_of_inverse = extreme_singular_values(model.inverse, z, trailing, seed=seed)
        trailing_values = 1 / largest_of_inverse.flip(0)
    elif trailing:
        trailing_values = extreme_singular_values(
            function, point, trailing, largest=False, seed=seed
        )
    energy = values.square().sum().item() + remaining_energy
    dimensions = min(point.numel(), len(vectors))
    return PartialSpectrum(values, trailing_values, energy, dimensions)


def _arpack(name: str, count: int, operator: LinearOperator, seed: int, **options: Any) -> Any:  # noqa: ANN401
    """Calls ``svds`` with a random start vector; ``name`` is the argument that is ``count``."""
    check_positive(name, count)
    side = min(operator.shape)
    if count >= side:
        raise ValueError(
            f"{name} must be less than {side}, the Jacobian's smaller side, got {count}"
        )
    start = np.random.default_rng(seed).standard_normal(side).astype(operator.dtype)
    return svds(operator, k=count, v0=start, **options)


def _decreasing(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.sort(values)[::-1].astype(np.float64))


def summary(
    spectra: Sequence[Sequence[PartialSpectrum]], share: float, *, windowed: bool = False
) -> dict[str, Any]:
    """Summarises partial spectra of networks of a family at several images.

    Args:
        spectra: for every network, its partial spectra at as many images.
        share: share of the energy for which directions are counted.
        windowed: as for :func:`irevnet.analysis.jacobian.summary`.

    Returns:
        Estimates like those of :func:`irevnet.analysis.jacobian.summary`: ``condition_number``, a
        ``lower_bound`` in a window or without trailing values; ``leading_energy``, the share of the
        energy that leading directions carry; ``energy_share``, the share of all directions that
        carries ``share`` of the energy, present only if the leading ones suffice at every image.
        Numbers: ``networks``, ``images``, ``leading`` and ``dimensions``, the numbers of leading
        and of all singular values.
    """
    first = spectra[0][0]

    def values(function: Callable[[PartialSpectrum], float]) -> np.ndarray:
        return np.array([[function(one) for one in row] for row in spectra])

    conditions = values(PartialSpectrum.condition_number)
    carried = values(lambda one: one.leading.square().sum().item() / one.energy)
    results: dict[str, Any] = {
        "networks": len(spectra),
        "images": len(spectra[0]),
        "condition_number": mean_of_medians(conditions, (1, np.inf), quantile).as_dict(),
        "leading_energy": mean_of_medians(carried, (0, 1), mean_of_shares).as_dict(),
        "leading": len(first.leading),
        "dimensions": first.dimensions,
    }
    if windowed or not len(first.trailing):
        results["condition_number"]["lower_bound"] = True
    # No number if the leading directions do not suffice.
    reached = values(lambda one: (one.energy_dimensions(share) or np.nan) / one.dimensions)
    if not np.isnan(reached).any():
        results["energy_share"] = mean_of_medians(reached, (0, 1), mean_of_shares).as_dict()
    return results


def total_energy(
    function: Callable[[Tensor], Tensor],
    image: Tensor,
    probes: int,
    seed: int = 0,
    *,
    without: np.ndarray | None = None,
) -> tuple[float, float]:
    """The sum of all squared singular values, estimated from random directions.

    It is the mean of ``|J^T v|^2`` over random signs ``v`` (Hutchinson, 1990,
    https://doi.org/10.1080/03610919008812866).

    Args:
        function: as for :func:`as_operator`.
        image: ``(1, C, H, W)``.
        probes: number of directions, 2 or more.
        seed: seed of their signs.
        without: orthonormal directions among the outputs, ``(outputs, k)``, whose energy is
            excluded.

    Returns:
        The estimate and its standard error.

    Raises:
        ValueError: if there are fewer than two probes.
    """
    if probes < 2:
        raise ValueError(f"probes must be 2 or more, got {probes}")
    operator, generator = as_operator(function, image), np.random.default_rng(seed)
    signs = generator.choice([-1.0, 1.0], size=(probes, operator.shape[0])).astype(operator.dtype)
    if without is not None:
        signs = signs - (signs @ without) @ without.T
    energies = [np.square(operator.rmatvec(v), dtype=np.float64).sum() for v in signs]
    return float(np.mean(energies)), float(np.std(energies, ddof=1) / np.sqrt(probes))
