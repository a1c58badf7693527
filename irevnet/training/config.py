"""How a network is trained: the settings of a recipe, checked at construction.

This module does not import PyTorch, so that a pipeline can check its parameters without waiting for
it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from irevnet.checks import check_interval, check_positive

__all__ = ["PRECISIONS", "TrainingConfig", "shortened"]

PRECISIONS = ("float32", "bfloat16")

_INTERVALS = {
    "learning_rate": "(0, inf)",
    "warmup": "(0, 1)",
    "decay": "(0, 1]",
    "momentum": "[0, 1)",
    "weight_decay": "[0, inf)",
    "muon_learning_rate": "(0, inf)",
    "muon_momentum": "[0, 1)",
    "muon_weight_decay": "[0, inf)",
    "norm_bias_factor": "(0, inf)",
    "residual_scale": "[0, inf)",
    "label_smoothing": "[0, 1)",
    "gradient_clip": "[0, inf)",
    "averaging": "[0, 1)",
}
_CHOICES = {
    "schedule": ("onecycle", "step"),
    "optimizer": ("sgd", "muon"),
    "flip": ("none", "random", "alternating"),
    "precision": PRECISIONS,
    "channels_last": (True, False),
    "compile": (True, False),
    "sync_batch_norm": (True, False),
}


# Settings that are chosen for a number of epochs and make no sense for another.
_OF_THE_LENGTH = ("averaging", "decay", "milestones", "schedule", "sides")


@dataclass(frozen=True)
class TrainingConfig:
    """A training recipe; the section ``training`` of an experiment in ``params.yaml``.

    Args:
        epochs: passes over the training images.
        batch_size: images in a step.
        learning_rate: learning rate of SGD, the peak (``"onecycle"``) or the first (``"step"``).
        schedule: ``"onecycle"`` (rises linearly for ``warmup`` of the steps, then falls linearly
            to zero) or ``"step"`` (multiplied by ``decay`` at each of ``milestones``).
        warmup: share of the steps in which a one-cycle schedule rises.
        milestones: epochs after which a step schedule decays, increasing, before the last epoch.
        decay: factor of a step schedule.
        momentum: Nesterov momentum of SGD.
        weight_decay: weight decay of SGD, on every parameter that it updates.
        optimizer: ``"sgd"`` for every parameter, or ``"muon"``: Muon for the filters of the
            convolutions, SGD for the rest, see :class:`~irevnet.training.optimizer.FilterMuon`.
        muon_learning_rate: peak learning rate of Muon, which follows the same schedule.
        muon_momentum: Nesterov momentum of Muon.
        muon_weight_decay: decoupled weight decay of Muon: a step shrinks filters by this times the
            learning rate.
        muon_steps: Newton-Schulz iterations, 1 to 20.
        norm_bias_factor: how many times larger SGD's learning rate is for the biases of batch
            norm; their weight decay is smaller by the same factor (Jordan, 2024, section 3.4,
            https://arxiv.org/abs/2404.00498).
        residual_scale: factor on the last convolution of every F at initialisation; 0 makes every
            block the identity at first (Goyal et al., 2017, section 5.1,
            https://arxiv.org/abs/1706.02677, for ResNets).
        label_smoothing: share of the target spread over all classes.
        gradient_clip: largest Euclidean norm of the gradient; 0 for no limit.
        padding: pixels of zero padding for random crops.
        flip: whether images are mirrored: ``"none"``, ``"random"``, or ``"alternating"``, at random
            in the first epoch and then in every other one (Jordan, 2024, section 3.6).
        cutout: side of a square of each image that is set to grey, in pixels; 0 for none
            (DeVries and Taylor, 2017, https://arxiv.org/abs/1708.04552).
        sides: height and width that training images are resized to, each for an equal share of
            the epochs; empty for the images' own size throughout (progressive resizing: Howard,
            2018, for DAWNBench).
        precision: precision of the convolutions (autocast) and of Muon's iterations,
            ``"float32"`` or ``"bfloat16"``.
        channels_last: whether activations are laid out with channels last.
        compile: whether to compile the network.
        accumulation: number of parts in which a batch passes through the network, one after the
            other, before a step; batch norm sees one part at a time. Several processes divide the
            parts among themselves, and take at least one each.
        sync_batch_norm: whether batch norm sees the shares of all processes together
            (:class:`torch.nn.SyncBatchNorm`, which needs GPUs).
        averaging: decay per step of the moving average of the weights that training ends with
            (Polyak and Juditsky, 1992, https://doi.org/10.1137/0330046); 0 for the last weights.

    Raises:
        ValueError: if a value is out of range or contradicts another; the message names it.

    Example:
        >>> from irevnet.training import TrainingConfig
        >>> TrainingConfig(epochs=10, batch_size=128, learning_rate=0.1).schedule
        'onecycle'
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str = "onecycle"
    warmup: float = 0.25
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.6
    muon_weight_decay: float = 0.0
    muon_steps: int = 5
    norm_bias_factor: float = 1.0
    residual_scale: float = 1.0
    label_smoothing: float = 0.0
    gradient_clip: float = 0.0
    padding: int = 0
    flip: str = "none"
    cutout: int = 0
    sides: tuple[int, ...] = ()
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    accumulation: int = 1
    sync_batch_norm: bool = False
    averaging: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation"):
            check_positive(name, getattr(self, name))
        for name, interval in _INTERVALS.items():
            check_interval(name, getattr(self, name), interval)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            # `in` alone is not enough: 1 is in (True, False).
            if not any(value is choice or value == choice != 1 for choice in allowed):
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        if type(self.muon_steps) is not int or not 1 <= self.muon_steps <= 20:
            raise ValueError(f"muon_steps must be an integer from 1 to 20, got {self.muon_steps!r}")
        for name in ("padding", "cutout"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} must be 0 or a positive integer, got {value!r}")
        for name in ("milestones", "sides"):
            values = getattr(self, name)
            rising = name == "milestones"
            if (
                isinstance(values, str)
                or not isinstance(values, Sequence)
                or any(type(value) is not int or value < 1 for value in values)
                or (rising and list(values) != sorted(set(values)))
            ):
                raise ValueError(
                    f"{name} must be positive integers{' in rising order' * rising}, got {values!r}"
                )
            object.__setattr__(self, name, tuple(values))
        self._check_combination()

    def _check_combination(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        if self.schedule == "step" and not self.milestones:
            raise ValueError("milestones must name at least one epoch with schedule 'step', got ()")
        if self.milestones and self.schedule != "step":
            raise ValueError(
                f"milestones must be empty with schedule {self.schedule!r}, got {self.milestones!r}"
            )
        if self.decay != defaults["decay"] and self.schedule != "step":
            raise ValueError(
                f"decay must be left out with schedule {self.schedule!r}, got {self.decay!r}"
            )
        if self.milestones and self.milestones[-1] >= self.epochs:
            raise ValueError(
                f"milestones must be before the last epoch, {self.epochs}, got {self.milestones!r}"
            )
        if len(self.sides) > self.epochs:
            raise ValueError(
                f"sides must be at most as many as epochs, {self.epochs}, got {self.sides!r}"
            )
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size must be a multiple of accumulation, {self.accumulation}, got "
                f"{self.batch_size}"
            )
        if self.optimizer == "sgd":
            for name in defaults:
                if name.startswith("muon_") and getattr(self, name) != defaults[name]:
                    raise ValueError(
                        f"{name} must be left out with optimizer 'sgd', got {getattr(self, name)!r}"
                    )

    def side(self, epoch: int) -> int | None:
        """Height and width of training images in an epoch, counted from 0; None for their own."""
        return self.sides[epoch * len(self.sides) // self.epochs] if self.sides else None


def shortened(recipe: Mapping[str, Any], epochs: int) -> TrainingConfig:
    """A recipe for another number of epochs, as analyses need it that train networks themselves.

    Settings that depend on the number of epochs are left out: ``schedule``, ``milestones`` and
    ``decay`` (the schedule is one cycle), ``sides`` (images keep their size) and ``averaging``.

    Args:
        recipe: arguments of :class:`TrainingConfig`.
        epochs: number of epochs, in place of the recipe's.

    Raises:
        ValueError: if a value is out of range; the message names it.

    Example:
        >>> recipe = {"epochs": 20, "batch_size": 128, "learning_rate": 0.1, "sides": [16, 24, 32]}
        >>> shortened(recipe, 2).sides
        ()
    """
    kept = {name: value for name, value in recipe.items() if name not in _OF_THE_LENGTH}
    return TrainingConfig(**kept | {"epochs": epochs})
