"""Other images with the same logits: what the read-out of a representation does not see.

The read-out is batch norm, ReLU, spatial average and a linear layer
(:class:`~irevnet.network.classifier.Classifier`). In evaluation mode batch norm is a fixed scale
and shift of each channel, ``y = scale * z + shift``; an entry of ``z`` is *active* if its ``y`` is
positive. In exact arithmetic the logits do not change as long as

1. inactive entries stay inactive (each may move freely within that limit), and
2. active entries stay active, and their changes, each times ``weight[k, channel] * scale``, sum to
   zero for every class ``k``.

These conditions define a convex polytope around ``z``, its *region*, with at least
``n - num_classes`` dimensions. Other regions, in which other entries are active, have the same
logits, too. The conditions are not necessary: the change of an entry that crosses zero may cancel
other changes.

Everything here is computed in float64 and returned in the dtype of ``z``. The logits of the
inverted images then differ by the rounding of ``z``, of the inverse and of the forward pass, which
:func:`irevnet.analysis.pixel_metamers.logit_difference` measures.

After Jacobsen et al. (2019), https://arxiv.org/abs/1811.00401, whose network uses entries of the
representation itself as logits, so that all other entries are free.
"""

import torch
from torch import Tensor
from torch.nn import functional

from irevnet.checks import check_evaluation_mode
from irevnet.network.model import IRevNet

__all__ = [
    "active",
    "invisible",
    "invisible_dimensions",
    "largest_step",
    "same_logits",
    "towards",
    "unseen",
    "walk",
]

_NEWTON_STEPS = 200
_HALVINGS = 60
_TOLERANCE = 1e-12  # how much of a displacement the read-out may see


@torch.no_grad()
def active(model: IRevNet, z: Tensor) -> Tensor:
    """Which entries of representations pass the read-out's ReLU.

    Args:
        model: in evaluation mode.
        z: representations ``(B, channels, h, w)``, floating point.

    Returns:
        ``(B, channels, h, w)`` bool.

    Raises:
        ValueError: if the model is in training mode, or if ``z`` has another shape, an integer
            dtype (that of fixed-point streams) or values that are not finite.
    """
    _check(model, z)
    return _normalised(model, z) > 0


@torch.no_grad()
def invisible(model: IRevNet, z: Tensor, direction: Tensor) -> Tensor:
    """The part of a direction that the logits do not see, as long as no entry crosses its kink.

    Inactive entries keep their part of the direction. The part of the active entries is projected
    onto the null space of the read-out.

    Args:
        model: in evaluation mode.
        z: representations ``(B, channels, h, w)``, floating point.
        direction: ``(B, channels, h, w)``.

    Returns:
        ``(B, channels, h, w)``.

    Raises:
        ValueError: as :func:`active` does, also for ``direction``.
    """
    _check(model, z, direction=direction)
    mask = _normalised(model, z) > 0
    basis = _row_space(model, mask)
    direction = direction.double()
    return (direction - _spread(basis, mask, _seen(basis, mask, direction))).to(z.dtype)


@torch.no_grad()
def invisible_dimensions(model: IRevNet, z: Tensor) -> Tensor:
    """Dimensions of a representation's region: ``(B, channels, h, w)`` to ``(B,)`` int64.

    Their number is that of all entries minus the rank of the read-out on the active ones, which is
    at most ``num_classes``.

    Raises:
        ValueError: as :func:`active` does.
    """
    _check(model, z)
    basis = _row_space(model, _normalised(model, z) > 0)
    return z[0].numel() - basis.any(dim=2).sum(dim=1)


@torch.no_grad()
def unseen(model: IRevNet, z: Tensor) -> Tensor:
    """The ``y`` of a representation minus the part that the logits determine.

    They determine the part of its averaged ReLU in the span of the rows of ``weight``. The result
    and the logits together determine ``y``, and with it ``z`` (where ``scale`` is not zero).

    Args:
        model: in evaluation mode.
        z: representations ``(B, channels, h, w)``, floating point.

    Returns:
        ``(B, channels, h, w)``.

    Raises:
        ValueError: as :func:`active` does.
    """
    _check(model, z)
    weight = model.classifier.linear.weight.double()
    normalised = _normalised(model, z)
    averaged = functional.relu(normalised).mean(dim=(2, 3))
    determined = averaged @ (torch.linalg.pinv(weight) @ weight)
    return (normalised - determined[:, :, None, None]).to(z.dtype)


@torch.no_grad()
def largest_step(model: IRevNet, z: Tensor, direction: Tensor) -> Tensor:
    """How far a representation can move before an entry crosses its ReLU's kink.

    Args:
        model: in evaluation mode.
        z: representations ``(B, channels, h, w)``, floating point.
        direction: ``(B, channels, h, w)``.

    Returns:
        ``(B,)`` float64: the largest ``t`` for which, at ``z + t * direction``, the ``y`` of active
        entries of ``z`` is not below zero and that of the others not above; infinite if no ``t`` is
        too large.

    Raises:
        ValueError: as :func:`active` does, also for ``direction``.
    """
    _check(model, z, direction=direction)
    low, high = _room(model, z, _normalised(model, z) > 0)
    direction = direction.double()
    steps = torch.where(direction < 0, low, high) / direction
    return steps.masked_fill(direction == 0, torch.inf).flatten(1).amin(dim=1)


@torch.no_grad()
def towards(model: IRevNet, z: Tensor, target: Tensor) -> Tensor:
    """The point with the same logits in a representation's region that is nearest to a target.

    The region is convex: all points between ``z`` and the result have the same logits, too.

    Args:
        model: in evaluation mode.
        z: representations ``(B, channels, h, w)``, floating point.
        target: ``(B, channels, h, w)``.

    Returns:
        ``(B, channels, h, w)``; entries that reach their kink stay there.

    Raises:
        ValueError: as :func:`active` does, also for ``target``.
        RuntimeError: if that point is not found, which can happen if there are about as many
            classes as active channels.
    """
    _check(model, z, target=target)
    mask = _normalised(model, z) > 0
    low, high = _room(model, z, mask)
    return (z + _nearest(model, mask, low, high, target.double() - z)).to(z.dtype)


@torch.no_grad()
def walk(model: IRevNet, z: Tensor, direction: Tensor, steps: int) -> Tensor:
    """Points on a path from ``z`` towards ``z + direction``, all with the same logits.

    The path begins along :func:`invisible`. When an entry reaches its kink, after
    :func:`largest_step`, it stays there and the others continue in the direction that is then
    invisible.

    Args:
        model: in evaluation mode.
        z: representations ``(B, channels, h, w)``, floating point.
        direction: ``(B, channels, h, w)``.
        steps: points on each path, both ends included; the last is ``towards(z + direction)``.

    Returns:
        ``(B, steps, channels, h, w)``.

    Raises:
        ValueError: as :func:`active` does, also for ``direction``.
        RuntimeError: as :func:`towards` does.
    """
    _check(model, z, direction=direction)
    lengths = torch.linspace(0, 1, steps, dtype=torch.float64).tolist()
    points = [towards(model, z.double(), z + length * direction.double()) for length in lengths]
    return torch.stack(points, dim=1).to(z.dtype)


@torch.no_grad()
def same_logits(model: IRevNet, z: Tensor, target: Tensor) -> Tensor:
    """A representation with the logits of ``z`` near a target, in any region.

    The method finds the nearest point with all entries active or at their kink, then sets those
    entries at their kink that are inactive in ``target`` to their values in ``target``. The result
    is the nearest point of its region, but not always of all regions, because there are ``2**n``
    choices of active entries. It is never farther from the target than the result of
    :func:`towards`.

    Args:
        model: in evaluation mode.
        z: representations ``(B, channels, h, w)``, floating point.
        target: ``(B, channels, h, w)``.

    Returns:
        ``(B, channels, h, w)``.

    Raises:
        ValueError: as :func:`active` does, also for ``target``.
        RuntimeError: as :func:`towards` does.
    """
    _check(model, z, target=target)
    exact, goal = z.double(), target.double()
    scale, _ = _scale_and_shift(model)
    # With inactive entries moved to their kink, z keeps its logits and no entry is below its kink.
    lift = functional.relu(-_normalised(model, z)) / scale
    raised = exact + torch.where(scale == 0, 0, lift)
    mask = torch.ones_like(z, dtype=torch.bool)
    low, high = _room(model, raised, mask)
    shift = _nearest(model, mask, low, high, goal - raised)
    back = ((shift == low) | (shift == high)) & (_normalised(model, target) <= 0)
    moved = torch.where(back, goal, raised + shift)
    near = towards(model, exact, goal)
    farther = (moved - goal).flatten(1).norm(dim=1) > (near - goal).flatten(1).norm(dim=1)
    return torch.where(farther[:, None, None, None], near, moved).to(z.dtype)


def _scale_and_shift(model: IRevNet) -> tuple[Tensor, Tensor]:
    """Scale and shift of the read-out's batch norm, ``(channels, 1, 1)`` each, float64."""
    norm = model.classifier.norm
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    return scale[:, None, None], shift[:, None, None]


def _normalised(model: IRevNet, z: Tensor) -> Tensor:
    """The input of the read-out's ReLU, ``(B, channels, h, w)`` float64."""
    scale, shift = _scale_and_shift(model)
    return scale * z.double() + shift


def _room(model: IRevNet, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How far each entry may move down and up before it reaches its kink.

    Args:
        model: in evaluation mode.
        z: ``(B, channels, h, w)``.
        mask: the entries that must not fall below their kink; the others must not rise above it.

    Returns:
        ``(B, channels, h, w)`` each: at most and at least zero, infinite on the side where there is
        no kink.
    """
    scale, _ = _scale_and_shift(model)
    kink = -_normalised(model, z) / scale
    is_below = mask == (scale > 0)
    # A channel that batch norm multiplies by zero has no kink.
    low = torch.where(is_below & (scale != 0), kink.clamp(max=0), -torch.inf)
    high = torch.where(is_below | (scale == 0), torch.inf, kink.clamp(min=0))
    return low, high


def _row_space(model: IRevNet, mask: Tensor) -> Tensor:
    """An orthonormal basis of the changes of active entries that the read-out sees.

    Row ``k`` of the read-out is ``weight[k, channel] * scale[channel]`` at every active entry. Each
    vector of the basis therefore also has one value for all active entries of a channel, and only
    this value is stored.

    Args:
        model: in evaluation mode.
        mask: the active entries, ``(B, channels, h, w)``.

    Returns:
        These values, ``(B, min(num_classes, channels), channels)``; vectors beyond the rank are
        zero.
    """
    scale, _ = _scale_and_shift(model)
    lengths = mask.sum(dim=(2, 3)).double().sqrt()
    rows = model.classifier.linear.weight.double() * scale.flatten() * lengths[:, None]
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    negligible = values <= values[:, :1] * max(rows.shape[1:]) * torch.finfo(torch.float64).eps
    vectors = vectors.masked_fill(negligible[:, :, None], 0)
    return vectors / lengths.clamp(min=1)[:, None]


def _seen(basis: Tensor, mask: Tensor, change: Tensor) -> Tensor:
    """Coordinates, in the basis, of the part of a change that the read-out sees, ``(B, k)``."""
    return torch.einsum("bkc,bc->bk", basis, (mask * change).sum(dim=(2, 3)))


def _spread(basis: Tensor, mask: Tensor, coordinates: Tensor) -> Tensor:
    """The change of the active entries with these coordinates, ``(B, channels, h, w)``."""
    return mask * torch.einsum("bkc,bk->bc", basis, coordinates)[:, :, None, None]


def _nearest(model: IRevNet, mask: Tensor, low: Tensor, high: Tensor, target: Tensor) -> Tensor:
    """The change nearest to a target that the read-out does not see, within bounds.

    The nearest point is the target plus a combination of the basis, clipped to the bounds. By
    convex duality the coefficients minimise a convex function, whose gradient is the part of the
    point that the read-out sees. Newton's method finds the zero of this gradient (after Qi and Sun,
    2006, https://doi.org/10.1137/050624509, who do so for another convex set).

    Args:
        model: in evaluation mode.
        mask: the entries that the read-out sees, ``(B, channels, h, w)``.
        low: at most zero.
        high: at least zero.
        target: ``(B, channels, h, w)`` float64.

    Returns:
        ``(B, channels, h, w)`` float64.

    Raises:
        RuntimeError: if the iteration does not converge.
    """
    basis = _row_space(model, mask)
    identity = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    size = target.flatten(1).norm(dim=1)

    def evaluate(coefficients: Tensor) -> tuple[Tensor, Tensor]:
        change = (target + _spread(basis, mask, coefficients)).clamp(low, high)
        return change, _seen(basis, mask, change)

    coefficients = basis.new_zeros(basis.shape[:2])
    change, seen = evaluate(coefficients)
    for _ in range(_NEWTON_STEPS):
        norm = seen.norm(dim=1)
        done = norm <= _TOLERANCE * size
        if done.all():
            return change
        moving = (mask & (change > low) & (change < high)).sum(dim=(2, 3)).double()
        # If all entries that a class depends on are at their kinks, there is no curvature and the
        # step is long.
        curvature = (basis * moving[:, None]) @ basis.mT + 1e-14 * identity
        newton = -torch.linalg.solve(curvature, seen).masked_fill(done[:, None], 0)
        slope = (seen * newton).sum(dim=1)
        # Along the step the slope only rises: bisect between a point too near and one too far.
        length = torch.ones_like(size)
        near, far = torch.zeros_like(size), torch.full_like(size, torch.inf)
        for _ in range(_HALVINGS):
            change, seen = evaluate(coefficients + length[:, None] * newton)
            new_slope = (seen * newton).sum(dim=1)
            overshoots = new_slope > -0.9 * slope
            short = (new_slope < 0.9 * slope) & far.isfinite()
            if not (overshoots | short).any():
                break
            far = torch.where(overshoots, length, far)
            near = torch.where(short, length, near)
            length = torch.where(overshoots | short, (near + far) / 2, length)
        coefficients = coefficients + length[:, None] * newton
    raise RuntimeError(
        f"no nearest point after {_NEWTON_STEPS} steps: the read-out sees "
        f"{(norm / size).nan_to_num().max().item():.1e} of the displacement, more than {_TOLERANCE}"
    )


def _check(model: IRevNet, z: Tensor, **others: Tensor) -> None:
    """Raises ``ValueError`` unless all tensors are finite representations of one shape."""
    check_evaluation_mode(model)
    channels = model.classifier.norm.num_features
    if z.ndim != 4 or z.shape[1] != channels or min(z.shape) < 1:
        raise ValueError(
            f"z must be a representation of shape (B, {channels}, h, w), none of them 0, got "
            f"{tuple(z.shape)}"
        )
    for name, tensor in {"z": z, **others}.items():
        if tensor.shape != z.shape:
            raise ValueError(
                f"{name} must have the shape of z, {tuple(z.shape)}, got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got dtype {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} must be finite")
