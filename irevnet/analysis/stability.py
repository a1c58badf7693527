"""How stable the inverse is: bi-Lipschitz estimates, gradients, and a search for failures.

After Behrmann et al. (2021), https://arxiv.org/abs/2006.09347.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from irevnet.analysis.inversion import known_channels_ignored
from irevnet.analysis.precision import gradient
from irevnet.checks import check_evaluation_mode
from irevnet.data import ImageData
from irevnet.network.model import IRevNet
from irevnet.training import TrainingConfig, train

__all__ = [
    "angle",
    "break_inverse",
    "distributions",
    "errors",
    "fixed_point_outcome",
    "gradient_angle",
    "largest_singular_values",
    "lipschitz_bounds",
    "measure",
    "scaled_errors",
    "through_training",
]

# Simulates float32's rounding: large compared with that of float64, but small enough for the
# network to be almost linear.
_ROUNDING = 1e-4


def distributions(images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The given images, and images of the same shape from other distributions.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        generator: on the CPU.

    Returns:
        ``data``, the images; ``noise``, values uniform in [0, 1]; ``inverted``, the images as
        negatives; ``shuffled``, their pixels in another order, the same for all.
    """
    order = torch.randperm(images[0, 0].numel(), generator=generator).to(images.device)
    return {
        "data": images,
        "noise": torch.rand(images.shape, generator=generator).to(images),
        "inverted": 1 - images,
        "shuffled": images.flatten(2)[:, :, order].view_as(images),
    }


def largest_singular_values(
    function: Callable[[Tensor], Tensor], points: Tensor, steps: int
) -> Tensor:
    """The largest singular value of a function's Jacobian ``J`` at each of several points.

    Power iteration, ``v`` to ``J^T J v``, approaches it from below: up to rounding, the result is
    never larger than the singular value. It starts from the same random directions every time.

    Args:
        function: ``(N, ...)`` to ``(N, ...)``, where each item depends only on its own point (a
            network in evaluation mode), twice differentiable by autograd.
        points: ``(N, ...)``, floating point.
        steps: number of iterations.

    Returns:
        ``(N,)``.
    """
    start = torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
    direction = _normalised(start.to(points))
    points = points.detach().requires_grad_()
    out = function(points)
    # J^T u is linear in u, so its derivative for u in the direction v is J v. This takes two
    # backward passes through one graph; forward mode would evaluate the function at every step.
    zero = torch.zeros_like(out, requires_grad=True)
    (pulled,) = torch.autograd.grad(out, points, zero, create_graph=True)

    def push(direction: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, zero, direction, retain_graph=True)[0]

    for _ in range(steps):
        (back,) = torch.autograd.grad(out, points, push(direction), retain_graph=True)
        direction = _normalised(back)
    return push(direction).flatten(1).norm(dim=1)


def lipschitz_bounds(model: IRevNet, images: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """How much ``encode`` and ``inverse`` stretch a small change, at each of several images.

    These are the largest singular values of the Jacobians of ``encode`` at the images and of
    ``inverse`` at their representations, and lower bounds on the two Lipschitz constants. For a
    bijective network the second is the reciprocal of the smallest singular value of ``encode``. For
    an injective network it may be larger, because the inverse is also defined away from the
    representations of images, where rounding leads.

    Args:
        model: in evaluation mode, with stored activations and floating-point streams.
        images: ``(N, C, H, W)`` of the model's dtype.
        steps: number of power iterations, see :func:`largest_singular_values`.

    Returns:
        The values for ``encode`` and for ``inverse``, ``(N,)`` each.

    Raises:
        ValueError: if the model is in training mode.
    """
    check_evaluation_mode(model)
    with torch.no_grad():
        z = model.encode(images)
    return (
        largest_singular_values(model.encode, images, steps),
        largest_singular_values(model.inverse, z, steps),
    )


def angle(first: Tensor, second: Tensor) -> float:
    """The angle between two vectors, in degrees; small angles are accurate, too."""
    first, second = (v.double() / v.double().norm() for v in (first, second))
    return math.degrees(2 * math.atan2((first - second).norm(), (first + second).norm()))


def gradient_angle(model: IRevNet, images: Tensor, labels: Tensor) -> float:
    """The angle between the gradients with stored and with recovered activations, in degrees.

    Args:
        model: in either mode; it is not modified, and dropout is disabled.
        images: ``(B, C, H, W)``.
        labels: ``(B,)``.
    """
    # Use a copy: a forward pass in training mode changes running statistics.
    twin = copy.deepcopy(model)
    for layer in twin.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # two masks would give two gradients
    gradients = []
    for twin.backward in ("stored", "reversible"):
        gradients.append(gradient(twin, images, labels))
    return angle(*gradients)


@torch.no_grad()
def errors(model: IRevNet, images: Tensor) -> Tensor:
    """The Euclidean norm of ``inverse(encode(x)) - x``, infinite if the inverse fails.

    Args:
        model: in evaluation mode.
        images: ``(N, C, H, W)``; they are encoded as one batch.

    Returns:
        ``(N,)`` float64; all infinite if the representation of any image is not finite or if
        fixed-point streams overflow.

    Raises:
        ValueError: if the model is in training mode.
    """
    check_evaluation_mode(model)
    with _refusal_allowed():
        z = model.encode(images)
        if not z.is_floating_point() or z.isfinite().all():
            difference = model.inverse(z).double() - images.double()
            return difference.flatten(1).norm(dim=1).nan_to_num(nan=math.inf)
    return images.new_full((len(images),), math.inf, dtype=torch.float64)


@contextmanager
def _refusal_allowed() -> Iterator[None]:
    """Suppresses the error of an overflow in fixed-point streams, and no other error."""
    try:
        yield
    except ValueError as error:
        if "fixed-point overflow" not in str(error):
            raise


def measure(
    model: IRevNet, sets: Mapping[str, Tensor], labels: Tensor, steps: int
) -> dict[str, dict[str, float]]:
    """Bi-Lipschitz estimates, inversion error and gradient angle on several sets of images.

    Args:
        model: with stored activations and floating-point streams; it is left in training mode.
        sets: images ``(N, C, H, W)`` by name.
        labels: ``(N,)``, for the gradients on any of them.
        steps: number of power iterations.

    Returns:
        For each name in ``sets``: ``encode`` and ``inverse``, the largest of
        :func:`lipschitz_bounds`, and ``error``, the largest relative error of the inverse, all in
        evaluation mode; ``angle``, the :func:`gradient_angle` of the batch in training mode.
    """
    model.eval()
    # All sets at once: the number of images hardly affects the time.
    bounds = lipschitz_bounds(model, torch.cat(list(sets.values())), steps)
    encode, inverse = (bound.split([len(x) for x in sets.values()]) for bound in bounds)
    result = {
        name: {
            "encode": stretch.max().item(),
            "inverse": back.max().item(),
            "error": _relative(errors(model, images), images).max().item(),
        }
        for (name, images), stretch, back in zip(sets.items(), encode, inverse, strict=True)
    }
    model.train()
    for name, images in sets.items():
        result[name]["angle"] = gradient_angle(model, images, labels)
    return result


def through_training(
    model: IRevNet,
    data: ImageData,
    config: TrainingConfig,
    sets: Mapping[str, Tensor],
    labels: Tensor,
    steps: int,
) -> dict[str, dict[str, list[float]]]:
    """Trains ``model`` and measures its stability after every epoch.

    Args:
        model: a new network, with stored activations.
        data: what to train it on.
        config: how to train it.
        sets: as for :func:`measure`, on the device on which to train.
        labels: as for :func:`measure`.
        steps: as for :func:`measure`.

    Returns:
        What :func:`measure` returns, with a list over epochs for each number. A network with
        known channels also has ``NAME_ignored`` for the first of ``sets``: the same with
        :func:`irevnet.analysis.inversion.known_channels_ignored`.
    """
    first = next(iter(sets))
    history: dict[str, dict[str, list[float]]] = {}

    def follow(_row: object) -> None:
        rows = measure(model, sets, labels, steps)
        if model.known:
            with known_channels_ignored(model):
                rows[f"{first}_ignored"] = measure(model, {first: sets[first]}, labels, steps)[
                    first
                ]
        for name, row in rows.items():
            for quantity, value in row.items():
                history.setdefault(name, {}).setdefault(quantity, []).append(value)

    train(model, data, config, device=labels.device, on_epoch=follow)
    return history


def break_inverse(
    model: IRevNet,
    images: Tensor,
    steps: int,
    step_size: float,
    limits: tuple[float, float] = (0.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Searches for images that the floating-point inverse does not give back.

    Exact arithmetic has no error to maximise, and the derivative of the rounded arithmetic is
    noise. We maximise the error caused by simulated rounding instead: how far the float64 inverse
    carries a small random change of the representation, proportional to each of its values and
    drawn anew at every step. The result is judged by the real error: each search keeps the image
    whose :func:`errors` is largest.

    Args:
        model: with floating-point streams, in evaluation mode.
        images: ``(N, C, H, W)`` to start from.
        steps: number of ascent steps, each along the sign of the gradient.
        step_size: how far a step moves every value.
        limits: the smallest and the largest value of a pixel.

    Returns:
        The images found, ``(N, C, H, W)``, and their errors ``(N,)``, never smaller than those at
        the start.
    """
    generator = torch.Generator().manual_seed(0)
    exact = copy.deepcopy(model).double().requires_grad_(False)
    x, worst, largest = images, images, errors(model, images)
    for _ in range(steps):
        point = x.double().requires_grad_()
        z = exact.encode(point)
        change = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
        moved = exact.inverse(z + _ROUNDING * z * change) - point
        amplification = moved.flatten(1).norm(dim=1).log().sum()
        (ascent,) = torch.autograd.grad(amplification, point)
        x = (x + step_size * ascent.sign().to(x)).clamp(*limits)
        error = errors(model, x)
        better = error > largest
        worst = torch.where(better[:, None, None, None], x, worst)
        largest = torch.where(better, error, largest)
    return worst, largest


def scaled_errors(model: IRevNet, images: Tensor, factors: Sequence[float]) -> list[float]:
    """The largest relative error of the inverse of images times a factor, for each factor.

    Args:
        model: in evaluation mode.
        images: ``(N, C, H, W)``, none of them zero.
        factors: factors that multiply the images.

    Returns:
        One value per factor, infinite where :func:`errors` is.
    """
    scaled = (images * factor for factor in factors)
    return [_relative(errors(model, x), x).max().item() for x in scaled]


@torch.no_grad()
def fixed_point_outcome(model: IRevNet, images: Tensor) -> str:
    """How fixed-point streams handle a batch of images ``(N, C, H, W)``.

    Args:
        model: with fixed-point streams.
        images: the batch.

    Returns:
        ``"exact"`` if the inverse recovers every state to the bit, including the entry's, so that
        it returns the image rounded to the streams' fraction; ``"refused"`` if the streams detect
        an overflow; ``"wrong"`` otherwise.
    """
    with _refusal_allowed():
        states = list(model.states(images))
        recovered = model.inverse_states(states[-1])
        same = map(torch.equal, reversed(states), recovered)
        return "exact" if all(same) else "wrong"
    return "refused"


def _relative(error: Tensor, images: Tensor) -> Tensor:
    """Errors ``(N,)`` over the Euclidean norms of the images ``(N, ...)``."""
    return error / images.double().flatten(1).norm(dim=1)


def _normalised(vectors: Tensor) -> Tensor:
    """Each item of ``(N, ...)`` over its Euclidean norm; zero stays zero."""
    norms = vectors.flatten(1).norm(dim=1).view(-1, *[1] * (vectors.ndim - 1))
    return vectors / norms.clamp_min(torch.finfo(vectors.dtype).tiny)
