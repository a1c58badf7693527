"""Checks of arguments and inputs; the messages name the argument and the allowed values."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "check_evaluation_mode",
    "check_fraction_bits",
    "check_images",
    "check_in_shape",
    "check_interval",
    "check_per_stage",
    "check_positive",
    "check_stages",
    "choice",
]


def check_positive(name: str, value: int) -> None:
    """Raises ``ValueError`` unless ``value`` is a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_interval(name: str, value: float, interval: str) -> None:
    """Raises ``ValueError`` unless ``value`` is a number in ``interval``, such as ``"[0, 1)"``."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or not (low <= value if interval.startswith("[") else low < value)
        or not (value <= high if interval.endswith("]") else value < high)
    ):
        raise ValueError(f"{name} must be a number in {interval}, got {value!r}")


def check_fraction_bits(value: int) -> None:
    """Raises ``ValueError`` unless ``value`` is a number of binary digits that streams can have."""
    if type(value) is not int or not 8 <= value <= 24:
        raise ValueError(f"fraction_bits must be an integer from 8 to 24, got {value!r}")


def choice(name: str, allowed: str) -> property:
    """A property whose value is always one of several allowed ones.

    Args:
        name: name of the property; setting any other value raises a ``ValueError`` that names it.
        allowed: name of the class attribute that lists the values, which subclasses may restrict.
    """

    def get(self: object) -> str:
        value: str = self.__dict__[name]
        return value

    def set_(self: object, value: str) -> None:
        if value not in (values := getattr(self, allowed)):
            raise ValueError(f"{name} must be one of {values}, got {value!r}")
        self.__dict__[name] = value

    return property(get, set_)


def check_stages(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Returns ``values`` as a tuple; ``ValueError`` unless it is one or more positive integers."""
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) == 0:
        raise ValueError(
            f"{name} must be a sequence of one positive integer per stage, got {values!r}"
        )
    for stage, value in enumerate(values):
        check_positive(f"{name}[{stage}]", value)
    return tuple(int(value) for value in values)


def check_per_stage(name: str, values: Sequence[int], stages: int) -> tuple[int, ...]:
    """Returns ``values`` as a tuple; ``ValueError`` unless it has a positive integer per stage."""
    values = check_stages(name, values)
    if len(values) != stages:
        raise ValueError(
            f"{name} must have one entry per stage ({stages}), got {len(values)}: {values}"
        )
    return values


def check_in_shape(in_shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns the image shape as a tuple; ``ValueError`` unless it is three positive integers."""
    if isinstance(in_shape, str) or not isinstance(in_shape, Sequence) or len(in_shape) != 3:
        raise ValueError(f"in_shape must be (channels, height, width), got {in_shape!r}")
    for name, value in zip(("channels", "height", "width"), in_shape, strict=True):
        check_positive(f"in_shape {name}", value)
    channels, height, width = in_shape
    return channels, height, width


def check_images(x: "Tensor", in_channels: int, total_stride: int) -> None:
    """Raises ``ValueError`` unless ``x`` is a batch of images that the network can take.

    Args:
        x: should be ``(B, in_channels, H, W)``, floating point, not empty, ``H`` and ``W``
            multiples of ``total_stride``.
        in_channels: channels of an image.
        total_stride: by how much the network downsamples.
    """
    from torch import Tensor  # the other checks must not need PyTorch

    allowed = f"(B, {in_channels}, H, W), none of them 0"
    if total_stride > 1:
        allowed += f", H and W multiples of {total_stride}, the network's total stride"
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a tensor of shape {allowed}; got {type(x).__name__}")
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f"x must have shape {allowed}; got {tuple(x.shape)}")
    # torch's pixel_unshuffle would return an empty batch unchanged, so it is rejected here.
    if min(x.shape) < 1 or any(size % total_stride for size in x.shape[2:]):
        raise ValueError(f"x must have shape {allowed}; got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(
            f"x must be floating point (images scaled to [0, 1]), got dtype {x.dtype}; "
            "divide uint8 images by 255"
        )


def check_evaluation_mode(model: "nn.Module") -> None:
    """Raises ``ValueError`` if any layer is in training mode; batch norm then uses the batch."""
    if any(module.training for module in model.modules()):
        raise ValueError(
            "model must be in evaluation mode, got training mode, in which batch norm depends on "
            "the batch; call model.eval()"
        )
