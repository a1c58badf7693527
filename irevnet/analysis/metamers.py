"""Other images with the same logits: what the read-out of a representation does not see.

The read-out is batch norm, ReLU, spatial average and a linear layer
(:class:`~irevnet.network.classifier.Classifier`). In evaluation mode batch norm is a fixed scale
and shift of each channel, ``y = scale * z + shift``; an entry of ``z`` is *active* if its ``y`` is
positive.
In exact arithmetic the logits stay what they are as long as

1. inactive entries stay inactive: each may move freely until then, and
2. active entries stay active, and their changes, each times ``weight[k, channel] * scale``, sum to
   zero for every class ``k``.

These conditions make a convex polytope around ``z``, its *region*, of at least ``n - num_classes``
dimensions. There are other regions with the same logits, in which other entries are active. The
conditions are not necessary: the changes of an entry that crosses zero and of others may cancel.

Everything here is computed in float64 and returned in the dtype of ``z``. The logits of the
inverted images then differ by the rounding of ``z``, of the inverse and of the forward pass, which
:func:`irevnet.analysis.pixel_metamers.logit_difference` measures.

After Jacobsen et al. (2019), https://arxiv.org/abs/1811.00401, whose network has entries of the
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

    Inactive entries keep theirs; that of the active ones is projected on the null space.

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

    They are all its entries but for the rank of the read-out of the active ones, at most
    ``num_classes``.

    Raises:
        ValueError: as :func:`active` does.
    """
    _check(model, z)
    basis = _row_space(model, _normalised(model, z) > 0)
    return z[0].numel() - basis.any(dim=2).sum(dim=1)


@torch.no_grad()
def unseen(model: IRevNet, z: Tensor) -> Tensor:
    """What the logits leave open of a representation: ``y`` less what they determine of it.

    That is the part of its averaged ReLU that is in the span of the rows of ``weight``. Together,
    this and the logits determine ``y``, and with it ``z`` (where ``scale`` is not zero).

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
    """How far one can go before an entry crosses its ReLU's kink.

    Args:
        model: in evaluation mode.
        z: representations ``(B, channels, h, w)``, floating point.
        direction: ``(B, channels, h, w)``.

    Returns:
        ``(B,)`` float64: the largest ``t`` for which active entries of ``z`` are not below zero in
        ``z + t * direction`` and the others not above; infinite if that is so for every ``t``.

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
    """The point of a representation's region, with its logits, that is nearest to a target.

    The region is convex: all points between ``z`` and the one found have the same logits, too.

    Args:
        model: in evaluation mode.
        z: representations ``(B, channels, h, w)``, floating point.
        target: ``(B, channels, h, w)``.

    Returns:
        ``(B, channels, h, w)``; entries that have met their kink are left there.

    Raises:
        ValueError: as :func:`active` does, also for ``target``.
        RuntimeError: if that point was not found, as can happen where there are about as many
            classes as active channels.
    """
    _check(model, z, target=target)
    mask = _normalised(model, z) > 0
    low, high = _room(model, z, mask)
    return (z + _nearest(model, mask, low, high, target.double() - z)).to(z.dtype)


@torch.no_grad()
def walk(model: IRevNet, z: Tensor, direction: Tensor, steps: int) -> Tensor:
    """Points on the way from ``z`` towards ``z + direction``, all of the same logits.

    The way begins along :func:`invisible`. Where an entry meets its kink after
    :func:`largest_step`, it is left there and the others go on in what is then invisible.

    Args:
        model: in evaluation mode.
        z: representations ``(B, channels, h, w)``, floating point.
        direction: ``(B, channels, h, w)``.
        steps: points on each way, both ends included; the last is ``towards(z + direction)``.

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
    """A representation with the logits of ``z`` near to a target, in whichever region.

    The nearest point with all entries active or at their kink is found, and those at their kink
    that are inactive in ``target`` are then put back to where they are there. This is the nearest
    point of its region, but not always of all regions: which entries to activate is a choice of
    one out of ``2**n``. It is never farther than what :func:`towards` finds.

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
    # With inactive entries moved to their kink, z has the same logits and no entry is below it.
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
    """What the read-out's batch norm does to a channel, ``(channels, 1, 1)`` each, float64."""
    norm = model.classifier.norm
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    return scale[:, None, None], shift[:, None, None]


def _normalised(model: IRevNet, z: Tensor) -> Tensor:
    """What the read-out's ReLU is given, ``(B, channels, h, w)`` float64."""
    scale, shift = _scale_and_shift(model)
    return scale * z.double() + shift


def _room(model: IRevNet, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How far each entry may go down and up until its kink.

    Args:
        model: in evaluation mode.
        z: ``(B, channels, h, w)``.
        mask: of the entries that must not fall below their kink; the others must not rise above.

    Returns:
        ``(B, channels, h, w)`` each: at most and at least zero, infinite on the side where there is
        no kink.
    """
    scale, _ = _scale_and_shift(model)
    kink = -_normalised(model, z) / scale
    is_below = mask == (scale > 0)
    # A channel that batch norm multiplies by zero has none.
    low = torch.where(is_below & (scale != 0), kink.clamp(max=0), -torch.inf)
    high = torch.where(is_below | (scale == 0), torch.inf, kink.clamp(min=0))
    return low, high


def _row_space(model: IRevNet, mask: Tensor) -> Tensor:
    """An orthonormal basis of what the read-out sees of active entries.

    Row ``k`` of the read-out is ``weight[k, channel] * scale[channel]`` at every active entry. So
    each vector of the basis, too, has one value in all active entries of a channel, and no more
    than that is stored.

    Args:
        model: in evaluation mode.
        mask: of the active entries, ``(B, channels, h, w)``.

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
    """Coordinates in the basis of what the read-out sees of a change, ``(B, k)``."""
    return torch.einsum("bkc,bc->bk", basis, (mask * change).sum(dim=(2, 3)))


def _spread(basis: Tensor, mask: Tensor, coordinates: Tensor) -> Tensor:
    """The change of the active entries with these coordinates, ``(B, channels, h, w)``."""
    return mask * torch.einsum("bkc,bk->bc", basis, coordinates)[:, :, None, None]


def _nearest(model: IRevNet, mask: Tensor, low: Tensor, high: Tensor, target: Tensor) -> Tensor:
    """The nearest change to a target that the read-out does not see, between bounds.

    The nearest point is the target plus a combination of the basis, clipped to the bounds. By
    convex duality the coefficients are where a convex function is smallest, and what the read-out
    sees of the point is that function's gradient: Newton's method finds its zero (after Qi and
    Sun, 2006, https://doi.org/10.1137/050624509, who do so for another convex set).

    Args:
        model: in evaluation mode.
        mask: of the entries that the read-out sees, ``(B, channels, h, w)``.
        low: at most zero.
        high: at least zero.
        target: ``(B, channels, h, w)`` float64.

    Returns:
        ``(B, channels, h, w)`` float64.

    Raises:
        RuntimeError: if it was not found.
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
        left = seen.norm(dim=1)
        done = left <= _TOLERANCE * size
        if done.all():
            return change
        moving = (mask & (change > low) & (change < high)).sum(dim=(2, 3)).double()
        # Where all that a class depends on is at its kink there is no curvature: a long step, then.
        curvature = (basis * moving[:, None]) @ basis.mT + 1e-14 * identity
        newton = -torch.linalg.solve(curvature, seen).masked_fill(done[:, None], 0)
        slope = (seen * newton).sum(dim=1)
        # Along the step the slope only rises: halve between where it still falls and rises again.
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
        f"{(left / size).nan_to_num().max().item():.1e} of the displacement, more than {_TOLERANCE}"
    )


def _check(model: IRevNet, z: Tensor, **others: Tensor) -> None:
    """Raises ``ValueError`` unless these are representations of one shape that can be moved."""
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
