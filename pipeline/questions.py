"""The questions that notebooks answer, each declared once.

A question ``name`` is ``notebooks/<name>.ipynb``; its parameters are the section ``<name>`` of an
experiment in ``params.yaml``, its results ``results/<experiment>/<name>/``. Everything else that
the pipeline has to know of it is said here: the parameters' schema, what it needs, the claims that
its numbers decide, and the metrics on which their rules stand.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

__all__ = ["FAMILIES", "QUESTIONS", "WORD", "Question", "Section"]

# Names of experiments, families and bounds: they become folders, stages and arguments of commands.
WORD = r"[a-z][a-z0-9_]{0,39}"


def _rising(values: list[int]) -> list[int]:
    if values != sorted(set(values)):
        raise ValueError(f"must rise, without repetitions, got {values}")
    return values


def _different(values: list[float]) -> list[float]:
    if len(set(values)) < len(values):
        raise ValueError(f"must not repeat a value, got {values}")
    return values


Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
Penalties = Annotated[list[Positive], Field(min_length=1), AfterValidator(_different)]
Dimensions = Annotated[list[PositiveInt], Field(min_length=2), AfterValidator(_rising)]
Precision_ = Literal["float32", "float64"]


class Section(BaseModel):
    """Parameters of a notebook: no others are allowed, and none of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="after")
    def _parts_are_no_larger_than_the_whole(self) -> Self:
        for part, whole in (
            ("gallery", "images"),
            ("compared_images", "images"),
            ("shown", "pairs"),
        ):
            if (value := getattr(self, part, 0)) > (most := getattr(self, whole, value)):
                raise ValueError(f"{part} must be at most {whole}, {most}, got {value}")
        return self


class Inversion(Section):
    """Parameters of ``notebooks/inversion.ipynb``."""

    networks: PositiveInt
    images: Annotated[int, Field(ge=2)]
    gallery: PositiveInt
    random_representations: Annotated[int, Field(ge=2)]


class Accuracy(Section):
    """Parameters of ``notebooks/accuracy.ipynb``."""

    level: Annotated[float, Field(gt=0.5, lt=1)]
    baselines: Annotated[list[str], Field(min_length=1), AfterValidator(_different)]


class Jacobian(Section):
    """Parameters of ``notebooks/jacobian.ipynb``."""

    images: Annotated[int, Field(ge=2)]
    compared_images: Annotated[int, Field(ge=2)]
    energy: Share
    precision: Precision_ = "float64"
    memory: PositiveInt
    window: NonNegativeInt = 0
    leading: NonNegativeInt = 0
    trailing: NonNegativeInt = 0


class Interpolation(Section):
    """Parameters of ``notebooks/interpolation.ipynb``."""

    pairs: Annotated[int, Field(ge=4)]
    steps: Annotated[int, Field(ge=3)]
    shown: PositiveInt
    frames: Annotated[int, Field(ge=3)]
    networks: PositiveInt
    judges: NonNegativeInt
    judge_images: PositiveInt
    judge_epochs: PositiveInt
    fine_tuning_epochs: NonNegativeInt = 0
    training_images: NonNegativeInt = 0
    test_images: NonNegativeInt = 0

    @model_validator(mode="after")
    def _half_of_the_pairs_are_of_one_class(self) -> Self:
        if self.shown > self.pairs // 2:
            raise ValueError(
                f"shown must be at most half of pairs, {self.pairs // 2}, got {self.shown}"
            )
        return self


class Separation(Section):
    """Parameters of ``notebooks/separation.ipynb``."""

    networks: PositiveInt
    training_images: PositiveInt
    test_images: PositiveInt
    penalties: Penalties
    search_tolerance: Positive
    classes: NonNegativeInt = 0


class Dimensionality(Section):
    """Parameters of ``notebooks/dimensionality.ipynb``."""

    networks: PositiveInt
    training_images: PositiveInt
    test_images: PositiveInt
    penalties: Penalties
    search_tolerance: Positive
    dimensions: Dimensions
    tolerance: Share
    classes: NonNegativeInt = 0


class Memory(Section):
    """Parameters of ``notebooks/memory.ipynb``."""

    blocks_per_stage: Dimensions
    batch_size: PositiveInt
    networks: NonNegativeInt
    epochs: PositiveInt
    training_images: PositiveInt


class Precision(Section):
    """Parameters of ``notebooks/precision.ipynb``."""

    images: PositiveInt
    batches: Annotated[int, Field(ge=2)]
    epochs: PositiveInt
    training_images: PositiveInt


class Metamers(Section):
    """Parameters of ``notebooks/metamers.ipynb``."""

    training_images: PositiveInt
    test_images: PositiveInt
    pairs: Annotated[int, Field(ge=2)]
    shown: Annotated[int, Field(ge=2)]
    steps: Annotated[int, Field(ge=2)]


class Trivial(Section):
    """Parameters of ``notebooks/trivial.ipynb``."""

    images: PositiveInt
    energy: Share
    precision: Precision_ = "float64"
    pairs: Annotated[int, Field(ge=2)]
    steps: Annotated[int, Field(ge=3)]
    training_images: PositiveInt
    test_images: PositiveInt
    penalties: Penalties
    search_tolerance: Positive
    dimensions: Dimensions
    tolerance: Share
    # [] where there are fewer training images than pixels
    features: Annotated[list[NonNegativeInt], AfterValidator(_rising)]


class Stability(Section):
    """Parameters of ``notebooks/stability.ipynb``."""

    images: PositiveInt
    epochs: PositiveInt
    training_images: PositiveInt
    power_steps: PositiveInt
    search_steps: PositiveInt
    step_size: PositiveInt
    limit: Positive


@dataclass(frozen=True)
class Question:
    """What the pipeline knows of a question.

    Args:
        schema: of its section of ``params.yaml``.
        needs: the images, or with them the published network of each family, or the networks of
            all runs.
        families: the families of networks that the notebook names, and an experiment must have.
        reads: other questions whose ``metrics.json`` it reads.
        curves: whether it reads how training went, ``history.csv`` of all runs.
        claims: ids of the claims, in ``claims.yaml``, that its numbers help to decide.
        metrics: the metrics on which rules may stand; ``{family}`` is any family of networks.
        bounds: parameters of the notebook that are a bound of ``claims.yaml``, by its name.
    """

    schema: type[Section]
    needs: Literal["images", "published", "runs"] = "published"
    families: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    curves: bool = False
    claims: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    bounds: dict[str, str] = field(default_factory=dict)

    def writes(self, metric: str) -> bool:
        """Whether a rule may stand on a metric, a dotted path in its ``metrics.json``."""
        patterns = (re.escape(name).replace(r"\{family\}", WORD) for name in self.metrics)
        return any(re.fullmatch(pattern, metric) for pattern in patterns)


FAMILIES = ("irevnet", "irevnet_bijective", "revnet", "resnet", "projected", "shuffled")
"""Families of networks by which claims name what they are about."""

_IREVNETS = FAMILIES[:2]

QUESTIONS = {
    "inversion": Question(
        Inversion,
        needs="runs",
        claims=("C1", "C1b", "C9"),
        metrics=(
            "{family}.plain.relative_error",
            "{family}.plain.equal_as_uint8",
            "{family}.relative_error",
            "{family}.equal_as_uint8",
            "{family}.flops_ratio",
            "{family}.representation_error",
        ),
    ),
    "accuracy": Question(
        Accuracy,
        needs="runs",
        curves=True,
        claims=("C2", "C3"),
        metrics=("families.{family}.accuracy", "differences.{family}_minus_{family}"),
        bounds={"margin": "accuracy_margin", "margin_bijective": "accuracy_margin_bijective"},
    ),
    "jacobian": Question(
        Jacobian,
        families=("irevnet_bijective",),
        claims=("C4",),
        metrics=("{family}.condition_number", "{family}.energy_share"),
    ),
    "interpolation": Question(
        Interpolation,
        needs="runs",
        families=("irevnet_bijective",),
        claims=("C5",),
        metrics=(
            "{family}.same_class.recognised_of_yardstick",
            "{family}.different_classes.recognised_of_yardstick",
        ),
    ),
    "separation": Question(
        Separation,
        needs="runs",
        families=("irevnet_bijective",),
        claims=("C6",),
        metrics=(
            "{family}.svm_gain_rank_correlation",
            "{family}.knn_gain_rank_correlation",
            "{family}.svm_errors_removed",
            "{family}.knn_errors_removed",
        ),
    ),
    "dimensionality": Question(
        Dimensionality,
        needs="runs",
        families=("irevnet_bijective",),
        claims=("C7",),
        metrics=(
            "{family}.svm_per_class",
            "{family}.knn_per_class",
            "{family}.svm_against_initial",
            "{family}.knn_against_initial",
            "{family}.readout_loss",
        ),
    ),
    "memory": Question(
        Memory,
        families=("irevnet_bijective",),
        claims=("C8", "C8c"),
        metrics=("reversible.growth", "retrained.difference"),
    ),
    "precision": Question(
        Precision,
        families=_IREVNETS,
        claims=("C8b",),
        metrics=("gradients.{family}.ratio",),
    ),
    "metamers": Question(Metamers, families=("irevnet_bijective",)),
    "trivial": Question(Trivial, families=("irevnet_bijective", "resnet"), reads=("separation",)),
    "stability": Question(Stability, families=_IREVNETS),
}
