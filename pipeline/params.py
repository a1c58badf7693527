"""The schema of ``params.yaml``: every choice of every experiment, checked before anything runs.

``python -m pipeline.params`` checks the file and names, by path, whatever is wrong with it.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

__all__ = ["ROOT", "Experiment", "Params", "ParamsError", "Rule", "load_params"]

ROOT = Path(__file__).resolve().parent.parent

Family = Literal["irevnet", "irevnet_bijective", "revnet", "resnet"]
ClaimId = Literal["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9"]
Share = Annotated[float, Field(gt=0, lt=1)]


class ParamsError(ValueError):
    """``params.yaml`` does not fit the schema; the message names each problem by its path."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Data(_Section):
    """Which images; the arguments of :func:`irevnet.data.load_data`."""

    name: Literal["digits", "cifar10", "folders"]
    root: str = "data"
    validation: NonNegativeInt = 0
    size: PositiveInt = 224
    workers: NonNegativeInt = 2


class Model(_Section):
    """Which network of the zoo, what to change about it, and how its weights are published."""

    name: str
    overrides: dict[str, Any] = {}
    weights: Literal["float32", "float16"] = "float32"


class Training(_Section):
    """The fields of :class:`irevnet.training.TrainingConfig`, which documents them.

    They stand here again, held together by a test, so that checking the file does not have to
    import torch: every stage does it.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    schedule: Literal["onecycle", "step"] = "onecycle"
    warmup: Share = 0.25
    milestones: list[PositiveInt] = []
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gradient_clip: NonNegativeFloat = 0.0
    padding: NonNegativeInt = 0
    flip: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.0
    checkpoint_epochs: PositiveInt = 1


class Inversion(_Section):
    """Parameters of ``notebooks/inversion.ipynb``."""

    images: PositiveInt
    gallery: PositiveInt
    random_representations: PositiveInt


class Accuracy(_Section):
    """Parameters of ``notebooks/accuracy.ipynb``."""

    margin: Share
    level: Share


class Jacobian(_Section):
    """Parameters of ``notebooks/jacobian.ipynb``."""

    images: PositiveInt
    compared_images: Annotated[int, Field(ge=2)]
    energy: Share
    precision: Literal["float32", "float64"] = "float64"
    memory: PositiveInt


class Interpolation(_Section):
    """Parameters of ``notebooks/interpolation.ipynb``."""

    pairs: Annotated[int, Field(ge=4)]
    steps: Annotated[int, Field(ge=3)]
    shown: PositiveInt
    frames: Annotated[int, Field(ge=3)]


class Separation(_Section):
    """Parameters of ``notebooks/separation.ipynb``."""

    networks: PositiveInt
    training_images: PositiveInt
    test_images: PositiveInt
    penalties: Annotated[list[PositiveFloat], Field(min_length=1)]
    search_tolerance: PositiveFloat


class Dimensionality(_Section):
    """Parameters of ``notebooks/dimensionality.ipynb``."""

    networks: PositiveInt
    training_images: PositiveInt
    test_images: PositiveInt
    penalties: Annotated[list[PositiveFloat], Field(min_length=1)]
    dimensions: Annotated[list[PositiveInt], Field(min_length=2)]
    tolerance: Share


class Memory(_Section):
    """Parameters of ``notebooks/memory.ipynb``."""

    blocks_per_stage: Annotated[list[PositiveInt], Field(min_length=2)]
    batch_size: PositiveInt


class Precision(_Section):
    """Parameters of ``notebooks/precision.ipynb``."""

    images: PositiveInt
    epochs: PositiveInt
    training_images: PositiveInt


class Metamers(_Section):
    """Parameters of ``notebooks/metamers.ipynb``."""

    training_images: PositiveInt
    test_images: PositiveInt
    pairs: Annotated[int, Field(ge=2)]
    shown: Annotated[int, Field(ge=2)]
    steps: Annotated[int, Field(ge=2)]


class Trivial(_Section):
    """Parameters of ``notebooks/trivial.ipynb``."""

    images: PositiveInt
    energy: Share
    precision: Literal["float32", "float64"] = "float64"
    pairs: Annotated[int, Field(ge=2)]
    steps: Annotated[int, Field(ge=3)]
    training_images: PositiveInt
    test_images: PositiveInt
    penalties: Annotated[list[PositiveFloat], Field(min_length=1)]
    search_tolerance: PositiveFloat
    dimensions: Annotated[list[PositiveInt], Field(min_length=2)]
    tolerance: Share
    features: list[NonNegativeInt]  # [] where there are fewer training images than pixels


class Stability(_Section):
    """Parameters of ``notebooks/stability.ipynb``."""

    images: PositiveInt
    epochs: PositiveInt
    training_images: PositiveInt
    power_steps: PositiveInt
    search_steps: PositiveInt
    step_size: PositiveInt
    limit: PositiveFloat


class Rule(_Section):
    """One condition of a verdict: a measured number against a bound chosen before the run.

    ``metric`` is ``QUESTION.KEY...`` in the results. Where it has an interval, all of the
    interval must satisfy the bound.
    """

    what: str
    metric: str
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError("needs at_most or at_least")
        return self


class Experiment(_Section):
    """One experiment: its data, networks, training and the parameters of every question.

    ``trivial`` and ``stability`` may be left out.
    """

    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    published: Literal["best", "first"]
    threads: PositiveInt
    data: Data
    models: dict[Family, Model]
    training: Training
    inversion: Inversion
    accuracy: Accuracy
    jacobian: Jacobian
    interpolation: Interpolation
    separation: Separation
    dimensionality: Dimensionality
    memory: Memory
    precision: Precision
    metamers: Metamers
    trivial: Trivial | None = None
    stability: Stability | None = None
    claims: dict[ClaimId, Annotated[list[Rule], Field(min_length=1)]]

    @model_validator(mode="after")
    def _best_is_chosen_on_validation_images(self) -> Self:
        if self.published == "best" and not self.data.validation:
            raise ValueError(
                "published: best needs validation images to choose by, data.validation is "
                f"{self.data.validation}; without them it must be first"
            )
        return self


class Beyond(_Section):
    """Which experiments have the sections that may be left out."""

    trivial: list[str]
    stability: list[str]


class Params(BaseModel):
    """The whole file: what to run, then a section per experiment."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Experiment]

    experiments: Annotated[list[str], Field(min_length=1)]
    beyond: Beyond
    families: Annotated[list[Family], Field(min_length=1)]
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]

    @model_validator(mode="after")
    def _sections_exist(self) -> Self:
        for name in self.experiments:
            if name not in self.sections:
                raise ValueError(
                    f"experiments names {name!r}, of which there is no section; "
                    f"there are {sorted(self.sections)}"
                )
            if self.sections[name].seeds != self.seeds:
                raise ValueError(
                    f"seeds must be those of the experiments to run: {name}.seeds is "
                    f"{self.sections[name].seeds}, got {self.seeds}"
                )
            for question in Beyond.model_fields:
                has_section = getattr(self.sections[name], question) is not None
                if has_section != (name in getattr(self.beyond, question)):
                    raise ValueError(
                        f"beyond.{question} must list those of the experiments to run that have "
                        f"the section {question}: {name} has {'one' if has_section else 'none'}"
                    )
            missing = sorted(set(self.families) - set(self.sections[name].models))
            if missing:
                raise ValueError(f"{name}.models has no {', '.join(missing)}, which families names")
        return self

    @property
    def sections(self) -> dict[str, Experiment]:
        """The experiments by name."""
        return self.__pydantic_extra__


def load_params(path: Path = ROOT / "params.yaml") -> Params:
    """Reads and checks the file.

    Raises:
        ParamsError: with one line per problem, each naming the path in the file, what was found
            there and what is allowed.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ParamsError(f"{path.name} cannot be read: {error}") from error
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']} (found {e['input']!r:.80})"
            for e in error.errors()
        ]
        raise ParamsError("\n".join([f"{path.name} is not valid:", *problems])) from error


def check_models(params: Params) -> None:
    """Builds every network that the file names, without memory for its weights.

    Raises:
        ParamsError: if one cannot be built.
    """
    import torch

    from irevnet import create_model

    for experiment, section in params.sections.items():
        for family, model in section.models.items():
            try:
                with torch.device("meta"):
                    create_model(model.name, **model.overrides)
            except (TypeError, ValueError) as error:
                path = f"{experiment}.models.{family}"
                raise ParamsError(f"params.yaml is not valid:\n  {path}: {error}") from error


def main() -> None:
    """Checks ``params.yaml``; exits with 1 and the problems if there are any."""
    try:
        params = load_params()
        check_models(params)
    except ParamsError as error:
        sys.exit(str(error))
    print(f"params.yaml is valid; experiments to run: {', '.join(params.experiments)}")


if __name__ == "__main__":
    main()
