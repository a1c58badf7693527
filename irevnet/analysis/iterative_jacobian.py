"""Singular values of Jacobians that do not fit into memory (claim C4).

That of a photograph of 224 pixels has 150,528 columns, and that of the paper's window of 100 pixels
30,000. Products with it and with its transpose are a forward-mode and a backward pass each, and
Lanczos' method needs nothing else.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from irevnet.checks import check_positive

__all__ = ["as_operator", "extreme_singular_values", "total_energy"]


def as_operator(function: Callable[[Tensor], Tensor], image: Tensor) -> LinearOperator:
    """The Jacobian of a function at an image, as its products with vectors.

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
        # The forward pass is made once for all products with the transpose.
        out = function(pixels)

    def times(vector: np.ndarray) -> np.ndarray:
        direction = torch.as_tensor(vector, dtype=point.dtype, device=point.device)
        with torch.no_grad():
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

    The smallest lie close together, and converge many times as slowly as the largest. Those of a
    bijective network at a whole image are the inverses of the largest of its inverse, which are
    found as fast.

    Args:
        function: as for :func:`as_operator`.
        image: ``(1, C, H, W)``, in float64 where small values matter.
        count: how many, less than either side of the Jacobian.
        largest: which end.
        most_steps: of ARPACK before it gives up; by default ten times the smaller side.
        seed: of the vector that it starts from.

    Returns:
        ``(count,)`` float64, falling, on the CPU.

    Raises:
        ValueError: if ``count`` does not fit.
        RuntimeError: if it gives up (SciPy's ``ArpackNoConvergence``).
    """
    check_positive("count", count)
    operator = as_operator(function, image)
    if count >= min(operator.shape):
        raise ValueError(
            f"count must be less than {min(operator.shape)}, the Jacobian's smaller side, got "
            f"{count}"
        )
    start = np.random.default_rng(seed).standard_normal(min(operator.shape))
    values = svds(
        operator,
        k=count,
        which="LM" if largest else "SM",
        v0=start.astype(operator.dtype),
        maxiter=most_steps,
        return_singular_vectors=False,
    )
    return torch.from_numpy(np.sort(values)[::-1].astype(np.float64))


def total_energy(
    function: Callable[[Tensor], Tensor], image: Tensor, probes: int, seed: int = 0
) -> tuple[float, float]:
    """The sum of all squared singular values, estimated from random directions.

    The mean of ``|J^T v|^2`` over random signs ``v`` (Hutchinson, 1990,
    https://doi.org/10.1080/03610919008812866).

    Args:
        function: as for :func:`as_operator`.
        image: ``(1, C, H, W)``.
        probes: how many directions, 2 or more.
        seed: of their signs.

    Returns:
        The estimate and its standard error.

    Raises:
        ValueError: if there are fewer than two probes.
    """
    if probes < 2:
        raise ValueError(f"probes must be 2 or more, got {probes}")
    operator, generator = as_operator(function, image), np.random.default_rng(seed)
    signs = generator.choice([-1.0, 1.0], size=(probes, operator.shape[0])).astype(operator.dtype)
    energies = [np.square(operator.rmatvec(v), dtype=np.float64).sum() for v in signs]
    return float(np.mean(energies)), float(np.std(energies, ddof=1) / np.sqrt(probes))
