"""The questions that notebooks answer, each declared once.

A question ``name`` is ``notebooks/<name>.ipynb``; its parameters are the section ``<name>`` of an
experiment in ``params.yaml``, and its results are in ``results/<experiment>/<name>/``. Everything
else that the pipeline must know about it is declared here: the schema of its parameters, the
networks that it needs, and the metrics that rules of ``claims.yaml`` may use.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple, Self, TypeVar

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

__all__ = ["QUESTIONS", "WORD", "Question", "Section", "UpTo", "different"]

# Names of experiments, families and bounds: they become folders, stages and arguments of commands.
WORD = r"[a-z][a-z0-9_]{0,39}"


T = TypeVar("T")


Things = Literal["training images", "test images", "seeds"]


class UpTo(NamedTuple):
    """Limits a parameter to the number of available images or seeds."""

    things: Things


def _rising(values: list[int]) -> list[int]:
    if values != sorted(set(values)):
        raise ValueError(f"must rise, without repetitions, got {values}")
    return values


def different(values: list[T]) -> list[T]:
    """The values, if none of them is repeated.

    Raises:
        ValueError: if one is.
    """
    if len(set(values)) < len(values):
        raise ValueError(f"must not repeat a value, got {values}")
    return values


Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
Penalties = Annotated[list[Positive], Field(min_length=1), AfterValidator(different)]
Dimensions = Annotated[list[PositiveInt], Field(min_length=2), AfterValidator(_rising)]
Precision_ = Literal["float32", "float64"]
Unit = Literal["number", "share", "difference"]  # a difference of shares
TrainingImages = Annotated[PositiveInt, UpTo("training images")]
TestImages = Annotated[PositiveInt, UpTo("test images")]
TwoTestImages = Annotated[int, Field(ge=2), UpTo("test images")]
Networks = Annotated[PositiveInt, UpTo("seeds")]


class Section(BaseModel):
    """A section of a YAML file: unknown keys and values of another type are refused."""

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


class QuestionSection(Section):
    """The parameters of a question, and what they ask of its experiment."""

    def families(self) -> tuple[str, ...]:
        """Families of networks that these parameters need, besides those of the question."""
        return ()

    def derived(self) -> list[tuple[str, int, Things]]:
        """Numbers that follow from several parameters, each with what it may not exceed."""
        return []

    def check_image(self, values: int) -> None:
        """Raises ``ValueError`` if parameters do not suit images of that many values."""


class Inversion(QuestionSection):
    """Parameters of ``notebooks/inversion.ipynb``."""

    networks: Networks
    images: TwoTestImages
    gallery: PositiveInt
    random_representations: Annotated[int, Field(ge=2)]


class Accuracy(QuestionSection):
    """Parameters of ``notebooks/accuracy.ipynb``."""

    level: Annotated[float, Field(gt=0.5, lt=1)]
    baselines: Annotated[list[str], Field(min_length=1), AfterValidator(different)]

    def families(self) -> tuple[str, ...]:
        """The baselines."""
        return tuple(self.baselines)


class Jacobian(QuestionSection):
    """Parameters of ``notebooks/jacobian.ipynb``."""

    networks: Networks
    images: TwoTestImages
    compared_images: Annotated[int, Field(ge=3)]  # two images have only one midpoint
    energy: Share
    precision: Precision_ = "float64"
    memory: PositiveInt
    window: NonNegativeInt = 0
    leading: NonNegativeInt = 0


class Interpolation(QuestionSection):
    """Parameters of ``notebooks/interpolation.ipynb``."""

    pairs: Annotated[int, Field(ge=4), UpTo("test images")]
    steps: Annotated[int, Field(ge=3)]
    shown: PositiveInt
    frames: Annotated[int, Field(ge=3)]
    networks: Networks
    judges: NonNegativeInt
    judge_images: TrainingImages
    judge_epochs: PositiveInt
    fine_tuning_epochs: NonNegativeInt = 0
    training_images: Annotated[NonNegativeInt, UpTo("training images")] = 0
    test_images: Annotated[NonNegativeInt, UpTo("test images")] = 0

    @model_validator(mode="after")
    def _half_of_the_pairs_are_of_one_class(self) -> Self:
        if self.shown > self.pairs // 2:
            raise ValueError(
                f"shown must be at most half of pairs, {self.pairs // 2}, got {self.shown}"
            )
        return self

    def families(self) -> tuple[str, ...]:
        """The ResNet, whose architecture judges have."""
        return ("resnet",) if self.judges else ()


class Separation(QuestionSection):
    """Parameters of ``notebooks/separation.ipynb``."""

    networks: Networks
    training_images: TrainingImages
    test_images: TestImages
    penalties: Penalties
    search_tolerance: Positive
    classes: NonNegativeInt = 0


class Dimensionality(QuestionSection):
    """Parameters of ``notebooks/dimensionality.ipynb``."""

    networks: Networks
    training_images: TrainingImages
    test_images: TestImages
    penalties: Penalties
    search_tolerance: Positive
    dimensions: Dimensions
    tolerance: Share
    classes: NonNegativeInt = 0


class Memory(QuestionSection):
    """Parameters of ``notebooks/memory.ipynb``."""

    blocks_per_stage: Dimensions
    batch_size: TrainingImages
    networks: NonNegativeInt
    epochs: PositiveInt
    training_images: TrainingImages


class Precision(QuestionSection):
    """Parameters of ``notebooks/precision.ipynb``."""

    images: TrainingImages
    batches: Annotated[int, Field(ge=2)]
    epochs: PositiveInt
    training_images: TrainingImages

    def derived(self) -> list[tuple[str, int, Things]]:
        """The images of all batches, which differ."""
        images = self.images * self.batches
        return [("precision.images times batches", images, "training images")]


class Metamers(QuestionSection):
    """Parameters of ``notebooks/metamers.ipynb``."""

    training_images: TrainingImages
    test_images: TestImages
    pairs: TwoTestImages
    shown: Annotated[int, Field(ge=2)]
    steps: Annotated[int, Field(ge=2)]


class Trivial(QuestionSection):
    """Parameters of ``notebooks/trivial.ipynb``."""

    images: TwoTestImages
    energy: Share
    precision: Precision_ = "float64"
    pairs: TwoTestImages
    steps: Annotated[int, Field(ge=3)]
    training_images: TrainingImages
    test_images: TestImages
    penalties: Penalties
    search_tolerance: Positive
    dimensions: Dimensions
    tolerance: Share
    # [] if there are fewer training images than pixels
    features: Annotated[list[NonNegativeInt], AfterValidator(_rising)]

    def derived(self) -> list[tuple[str, int, Things]]:
        """The images of all pairs, which differ."""
        return [("twice trivial.pairs", 2 * self.pairs, "test images")]

    def check_image(self, values: int) -> None:
        """Features are fitted to more images than an image has values."""
        if self.features and (self.training_images <= values or self.features[-1] > values):
            raise ValueError(
                f"trivial.features must be at most {values}, the values of an image, and "
                f"training_images more than that; got {self.features} and {self.training_images}"
            )


class Stability(QuestionSection):
    """Parameters of ``notebooks/stability.ipynb``."""

    images: TestImages
    epochs: PositiveInt
    training_images: TrainingImages
    power_steps: PositiveInt
    search_steps: PositiveInt
    step_size: PositiveInt
    limit: Positive


@dataclass(frozen=True)
class Question:
    """What the pipeline knows about a question.

    Args:
        schema: of its section in ``params.yaml``.
        published: whether it loads the published network of a family.
        families: of networks that the notebook names, and that an experiment must have.
        reads: other questions whose ``metrics.json`` it reads.
        curves: whether it reads the training curves, ``history.csv`` of all runs.
        metrics: those that rules may use, and their units; ``{family}`` stands for any family of
            networks.
        bounds: parameters of the notebook, each with the bound of ``claims.yaml`` that sets it.
    """

    schema: type[QuestionSection]
    published: bool = False
    families: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    curves: bool = False
    metrics: dict[str, Unit] = field(default_factory=dict)
    bounds: dict[str, str] = field(default_factory=dict)

    def families_in(self, metric: str) -> set[str] | None:
        """The families of networks that a metric is about, or None if no rule may use it.

        Args:
            metric: a dotted path in the question's ``metrics.json``.
        """
        declared = self._declared(metric)
        return None if declared is None else declared[1]

    def unit(self, metric: str) -> Unit:
        """The unit of a metric; ``"number"`` if no rule may use it."""
        declared = self._declared(metric)
        return "number" if declared is None else declared[0]

    def _declared(self, metric: str) -> tuple[Unit, set[str]] | None:
        for name, unit in self.metrics.items():
            pattern = re.escape(name).replace(r"\{family\}", f"({WORD})")
            if match := re.fullmatch(pattern, metric):
                return unit, set(match.groups())
        return None


QUESTIONS = {
    "inversion": Question(
        Inversion,
        published=True,
        metrics={
            "{family}.plain.relative_error": "number",
            "{family}.plain.equal_as_uint8": "share",
            "{family}.relative_error": "number",
            "{family}.equal_as_uint8": "share",
            "{family}.flops_ratio": "number",
            "{family}.representation_error": "number",
        },
    ),
    "accuracy": Question(
        Accuracy,
        curves=True,
        metrics={
            "families.{family}.accuracy": "share",
            "differences.{family}_minus_{family}": "difference",
        },
        bounds={"margin": "accuracy_margin", "margin_bijective": "accuracy_margin_bijective"},
    ),
    "jacobian": Question(
        Jacobian,
        families=("irevnet_bijective",),
        metrics={
            "{family}.condition_number": "number",
            "{family}.energy_share": "share",
        },
    ),
    "interpolation": Question(
        Interpolation,
        published=True,
        families=("irevnet_bijective",),
        metrics={
            "{family}.same_class.recognised_of_yardstick": "number",
            "{family}.different_classes.recognised_of_yardstick": "number",
        },
    ),
    "separation": Question(
        Separation,
        families=("irevnet_bijective",),
        metrics={
            "{family}.svm_gain_rank_correlation": "number",
            "{family}.knn_gain_rank_correlation": "number",
            "{family}.svm_errors_removed": "share",
            "{family}.knn_errors_removed": "share",
        },
    ),
    "dimensionality": Question(
        Dimensionality,
        families=("irevnet_bijective",),
        metrics={
            "{family}.svm_per_class": "number",
            "{family}.knn_per_class": "number",
            "{family}.svm_against_initial": "number",
            "{family}.knn_against_initial": "number",
            "{family}.readout_loss": "difference",
        },
    ),
    "memory": Question(
        Memory,
        families=("irevnet_bijective",),
        metrics={
            "reversible.growth": "number",
            "retrained.difference": "difference",
        },
    ),
    "precision": Question(
        Precision,
        published=True,
        families=("irevnet", "irevnet_bijective"),
        metrics={
            "gradients.{family}.ratio": "number",
        },
    ),
    "metamers": Question(Metamers, published=True, families=("irevnet_bijective",)),
    "trivial": Question(
        Trivial, published=True, families=("irevnet_bijective", "resnet"), reads=("separation",)
    ),
    "stability": Question(Stability, published=True, families=("irevnet", "irevnet_bijective")),
}
