"""Checks of arguments and inputs, with messages that name what, where and what is allowed."""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["check_images", "check_per_stage", "check_positive"]


def check_positive(name: str, value: int) -> None:
    """Raises ``ValueError`` unless ``value`` is a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_per_stage(name: str, values: Sequence[int], stages: int) -> tuple[int, ...]:
    """Returns ``values`` as a tuple; ``ValueError`` unless there is a positive integer a stage."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"{name} must be a sequence of one integer per stage, got {values!r}")
    if len(values) != stages:
        raise ValueError(
            f"{name} must have one entry per stage ({stages}, as blocks has), "
            f"got {len(values)}: {tuple(values)}"
        )
    for stage, value in enumerate(values):
        check_positive(f"{name}[{stage}]", value)
    return tuple(values)


def check_images(x: Tensor, in_channels: int, total_stride: int) -> None:
    """Raises ``ValueError`` unless ``x`` is a batch of images that the network can take.

    Args:
        x: should be ``(B, in_channels, H, W)``, floating point, ``H`` and ``W`` positive
            multiples of ``total_stride``.
        in_channels: channels of an image.
        total_stride: by how much the network downsamples.
    """
    allowed = (
        f"(B, {in_channels}, H, W) with H and W positive multiples of {total_stride}, "
        "the network's total stride"
    )
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f"x must have shape {allowed}; got {tuple(x.shape)}")
    if any(size < 1 or size % total_stride for size in x.shape[2:]):
        raise ValueError(f"x must have shape {allowed}; got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(
            f"x must be floating point (images scaled to [0, 1]), got dtype {x.dtype}; "
            "divide uint8 images by 255"
        )
