"""The schema of ``params.yaml``: every choice of every experiment, checked before anything runs.

``python -m pipeline.params`` checks the file and names, by path, whatever is wrong with it.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    create_model,
    model_validator,
)

from irevnet.training.config import TrainingConfig
from pipeline.questions import QUESTIONS, WORD, Section, UpTo, different

__all__ = [
    "ROOT",
    "Bounds",
    "Experiment",
    "Params",
    "ParamsError",
    "check_models",
    "load_bounds",
    "load_params",
    "read_checked",
    "read_yaml",
]

ROOT = Path(__file__).resolve().parent.parent
_Checked = TypeVar("_Checked", bound=BaseModel)


@dataclasses.dataclass(frozen=True)
class _DataSet:
    """A data set of fixed size: numbers of images, their shape, and the number of classes."""

    training: int
    test: int
    shape: tuple[int, int, int]
    classes: int


_DATA_SETS = {
    "digits": _DataSet(1257, 540, (1, 8, 8), 10),
    "cifar10": _DataSet(50_000, 10_000, (3, 32, 32), 10),
}
# Folders of results/ that belong to no experiment.
_RESERVED = ("benchmarks",)


class ParamsError(ValueError):
    """``params.yaml`` does not fit the schema; the message names each problem by its path."""


def _plain_word(name: str) -> str:
    if not re.fullmatch(WORD, name):
        raise ValueError(f"must be a plain word, {WORD}, got {name!r:.80}")
    return name


def _recipe(value: dict[str, Any]) -> dict[str, Any]:
    _known_fields(value)
    try:
        TrainingConfig(**value)
    except TypeError as error:  # an argument is missing
        raise ValueError(str(error).removeprefix("TrainingConfig.__init__() ")) from error
    return value


def _known_fields(value: dict[str, Any]) -> dict[str, Any]:
    known = [item.name for item in dataclasses.fields(TrainingConfig)]
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"unknown: {', '.join(unknown)}; allowed are {', '.join(known)}")
    return value


def _check_at_most(name: str, value: int, things: str, numbers: dict[str, int]) -> None:
    if things in numbers and value > numbers[things]:
        raise ValueError(
            f"{name} must be at most {numbers[things]}, the number of {things}, got {value}"
        )


Word = Annotated[str, AfterValidator(_plain_word)]
# The arguments of irevnet.training.TrainingConfig, which checks them.
Training = Annotated[dict[str, Any], AfterValidator(_recipe)]
Bounds = dict[Word, Annotated[float, Field(allow_inf_nan=False)]]


class Data(Section):
    """The images of an experiment: arguments of :func:`irevnet.data.load_data`."""

    name: Literal["digits", "cifar10", "folders"]
    root: str = "data"
    validation: NonNegativeInt = 0
    size: PositiveInt = 224
    workers: NonNegativeInt = 2
    divided: bool = False

    @model_validator(mode="after")
    def _only_folders_are_divided(self) -> Self:
        if self.divided and (self.name != "folders" or self.validation):
            raise ValueError(
                "divided goes with name: folders and no validation images, got name: "
                f"{self.name} and validation: {self.validation}"
            )
        return self

    @model_validator(mode="after")
    def _every_class_is_on_both_sides(self) -> Self:
        known = _DATA_SETS.get(self.name)
        if known and self.validation:
            low, high = known.classes, known.training - known.classes
            if not low <= self.validation <= high:
                raise ValueError(
                    f"validation must be 0 or from {low} to {high}, which leaves an image of each "
                    f"class on either side, got {self.validation}"
                )
        return self


class Model(Section):
    """A family's network: a model of the zoo, changes to it and to the recipe, its weights' type.

    ``released`` is a file of weights trained by somebody else, which
    :func:`irevnet.released.convert_released` converts instead of training. ``variant_of`` names
    another family, from which this one differs in one respect: the accuracies of the two are
    compared, and no other question is asked about the variant.
    """

    name: str
    overrides: dict[str, Any] = Field(default_factory=dict)
    training: Annotated[dict[str, Any], AfterValidator(_known_fields)] = Field(default_factory=dict)
    weights: Literal["float32", "float16"] = "float32"
    released: str | None = None
    variant_of: Word | None = None


class _Experiment(Section):
    """One experiment: data, networks, training, and the parameters of the questions it asks.

    ``title`` is what readers see, within a sentence; without one they see the name of the images.
    ``judged_on: validation`` keeps the test images untouched, for experiments that choose a recipe.
    ``stored: dvc`` keeps trained networks in DVC's cache and remotes, for networks that are too
    large for git.
    """

    title: Annotated[str, Field(min_length=1)] | None = None
    seeds: Annotated[
        list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1), AfterValidator(different)
    ]
    published: Literal["best", "first", "none"]
    judged_on: Literal["test", "validation"] = "test"
    stored: Literal["git", "dvc"] = "git"
    threads: Annotated[int, Field(ge=1, le=1024)]
    data: Data
    models: Annotated[dict[Word, Model], Field(min_length=1)]
    training: Training | None = None
    bounds: Bounds = Field(default_factory=dict)

    @model_validator(mode="after")
    def _networks_are_trained_or_released(self) -> Self:
        released = [name for name, model in self.models.items() if model.released is not None]
        if self.training is None and len(released) < len(self.models):
            missing = ", ".join(sorted(set(self.models) - set(released)))
            raise ValueError(f"training is missing, and models have no released: {missing}")
        if self.training is not None and released:
            raise ValueError(f"training must be left out if models have released: {released}")
        if self.training is None and len(self.seeds) > 1:
            raise ValueError(f"seeds must be one seed where nothing is trained, got {self.seeds}")
        return self

    @model_validator(mode="after")
    def _choices_need_validation_images(self) -> Self:
        for name, value in (("published", "best"), ("judged_on", "validation")):
            if getattr(self, name) == value and not self.data.validation:
                raise ValueError(
                    f"{name}: {value} needs validation images, but data.validation is "
                    f"{self.data.validation}"
                )
        return self

    @model_validator(mode="after")
    def _there_are_enough_images_and_networks(self) -> Self:
        numbers = self._numbers()
        recipes = {f"models.{name}.training": m.training for name, m in self.models.items()}
        for section, recipe in ({"training": self.training or {}} | recipes).items():
            if isinstance(size := recipe.get("batch_size"), int):  # types are checked elsewhere
                _check_at_most(f"{section}.batch_size", size, "training images", numbers)
        for question in self.questions:
            parameters = getattr(self, question)
            for name, parameter in type(parameters).model_fields.items():
                for limit in (one for one in parameter.metadata if isinstance(one, UpTo)):
                    value = getattr(parameters, name)
                    _check_at_most(f"{question}.{name}", value, limit.things, numbers)
            for name, value, things in parameters.derived():
                _check_at_most(name, value, things, numbers)
        return self

    def _numbers(self) -> dict[str, int]:
        """The numbers of seeds and, if known, of images."""
        known = _DATA_SETS.get(self.data.name)
        images = {}
        if known:
            training = known.training - self.data.validation
            images = {"training images": training, "test images": known.test}
        return {"seeds": len(self.seeds)} | images

    @model_validator(mode="after")
    def _questions_have_the_networks_that_they_load(self) -> Self:
        loading = [name for name in self.questions if QUESTIONS[name].published]
        if self.published == "none" and loading:
            raise ValueError(
                f"published: none leaves {', '.join(loading)} without a network to load"
            )
        return self

    @model_validator(mode="after")
    def _parameters_suit_the_images(self) -> Self:
        if known := _DATA_SETS.get(self.data.name):
            for question in self.questions:
                getattr(self, question).check_image(math.prod(known.shape))
        return self

    @model_validator(mode="after")
    def _families_differ_and_are_those_that_questions_name(self) -> Self:
        for question in self.questions:
            for family in self._families_of(question):
                if family not in self.models:
                    raise ValueError(f"{question} needs models.{family}")
            if not set(self.models) - set(getattr(self, question).families()):
                raise ValueError(f"{question}.baselines must leave a family to compare")
        networks: dict[str, str] = {}
        for family, model in self.models.items():
            recipe = {**(self.training or {}), **model.training}
            content = repr((model.name, model.overrides, recipe, model.released))
            if (other := networks.setdefault(content, family)) != family:
                raise ValueError(f"models: {family} is the same as {other}")
        return self

    @model_validator(mode="after")
    def _variants_are_of_families(self) -> Self:
        bases = self.families
        for name, model in self.models.items():
            if model.variant_of is not None and model.variant_of not in bases:
                raise ValueError(
                    f"models.{name}.variant_of must be another family that is not a variant, one "
                    f"of {', '.join(bases)}, got {model.variant_of!r}"
                )
        for question in self.questions:
            for name in self._families_of(question):
                if name in self.models and name not in bases:
                    raise ValueError(
                        f"models.{name}.variant_of must be left out: {question} needs {name} as a "
                        "family of its own"
                    )
        return self

    @model_validator(mode="after")
    def _recipes_of_families_are_valid(self) -> Self:
        for family in self.models:
            try:
                self.recipe(family)
            except (TypeError, ValueError) as error:
                raise ValueError(f"models.{family}.training: {error}") from error
        return self

    @model_validator(mode="after")
    def _questions_have_what_they_read(self) -> Self:
        for question in self.questions:
            for other in QUESTIONS[question].reads:
                if other not in self.questions:
                    raise ValueError(f"{question} reads the results of {other}, which is missing")
        return self

    @property
    def families(self) -> list[str]:
        """The families of networks that are not variants of others."""
        return [name for name, model in self.models.items() if model.variant_of is None]

    @property
    def questions(self) -> list[str]:
        """The questions that the experiment asks."""
        return [name for name in QUESTIONS if getattr(self, name) is not None]

    def _families_of(self, question: str) -> tuple[str, ...]:
        """The families that a question needs, some of them only with these parameters."""
        return (*QUESTIONS[question].families, *getattr(self, question).families())

    def recipe(self, family: str) -> dict[str, Any]:
        """Arguments of :class:`TrainingConfig` for a family's networks; empty if not trained."""
        own = self.models[family].training
        if self.training is None:
            if own:
                raise ValueError("must be left out where nothing is trained")
            return {}
        return _recipe({**self.training, **own})


if TYPE_CHECKING:  # which cannot know the questions' sections: fields created at run time
    Experiment = _Experiment
else:
    Experiment = create_model(
        "Experiment",
        __base__=_Experiment,
        **{name: (question.schema | None, None) for name, question in QUESTIONS.items()},
    )


class Params(BaseModel):
    """The whole file: the default experiment, then a section per experiment."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[Word, Experiment]

    default: str

    @model_validator(mode="after")
    def _default_is_a_section(self) -> Self:
        if self.default not in self.sections:
            raise ValueError(
                f"default names {self.default!r}, which has no section; available: "
                f"{', '.join(sorted(self.sections))}"
            )
        return self

    @property
    def sections(self) -> dict[str, Experiment]:
        """The experiments by name."""
        return self.__pydantic_extra__

    def section(self, name: str) -> Experiment:
        """An experiment by name.

        Raises:
            ParamsError: if there is none; the message lists the available ones.
        """
        if name not in self.sections:
            raise ParamsError(
                f"experiment must be one of {', '.join(sorted(self.sections))}, got {name!r}"
            )
        return self.sections[name]


class _Bounds(BaseModel):
    """The part of ``claims.yaml`` that notebooks read."""

    model_config = ConfigDict(strict=True)

    bounds: Bounds


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a repeated key is an error, instead of a silent choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:  # noqa: ANN401
    """The content of a YAML file.

    Raises:
        ParamsError: if it cannot be read, is not UTF-8 or YAML, repeats a key, or is nested too
            deeply.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ParamsError(f"{path.name} cannot be read: {reason}") from error


def _invalid(path: Path, error: ValidationError) -> ParamsError:
    """An error with one line per problem of a file.

    Each line names the path in the file, what was found there and what is allowed.
    """
    problems = [
        f"  {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']} (found {e['input']!r:.80})"
        for e in error.errors()
    ]
    return ParamsError("\n".join([f"{path.name} is not valid:", *problems]))


def read_checked(path: Path, schema: type[_Checked]) -> _Checked:
    """Reads a YAML file and checks it by a schema.

    Raises:
        ParamsError: with one line per problem, each naming the path in the file, what was found
            there and what is allowed.
    """
    try:
        return schema.model_validate(read_yaml(path))
    except ValidationError as error:
        raise _invalid(path, error) from error


def load_params(path: Path = ROOT / "params.yaml") -> Params:
    """Reads and checks the file.

    Raises:
        ParamsError: with one line per problem, each naming the path in the file, what was found
            there and what is allowed.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ParamsError(f"{path.name} must be a mapping from names to sections")
    try:
        for name in content:
            if name != "default":
                _plain_word(name)
            if name in _RESERVED:
                raise ValueError(f"must not be {name!r}: results/{name} is reserved")
        return Params.model_validate(content)
    except ValidationError as error:
        raise _invalid(path, error) from error
    except ValueError as error:
        raise ParamsError(
            f"{path.name} is not valid:\n  the name of an experiment {error}"
        ) from error


def load_bounds(
    experiment: str, params: Params | None = None, path: Path = ROOT / "claims.yaml"
) -> dict[str, float]:
    """The bounds of rules by name: the experiment's own, else those of the file.

    Args:
        experiment: a section of ``params.yaml``.
        params: the content of that file, if it was read already.
        path: the file with the claims, whose other sections :mod:`pipeline.claims` checks.

    Raises:
        ParamsError: if the bounds of the file are not valid, or if it lacks one of the
            experiment's; the message names the place.
    """
    own = (params or load_params()).section(experiment).bounds
    bounds = read_checked(path, _Bounds).bounds
    if unknown := sorted(set(own) - set(bounds)):
        raise ParamsError(
            f"params.yaml is not valid:\n  {experiment}.bounds: {path.name} has no bound "
            f"{', '.join(unknown)}; available: {', '.join(sorted(bounds))}"
        )
    return {**bounds, **own}


def check_models(params: Params) -> None:
    """Builds every network that the file names, without memory for its weights.

    Raises:
        ParamsError: if one cannot be built, is of another kind than its family's name says, or
            does not fit the images or classes of the data.
    """
    for experiment, section in params.sections.items():
        for family, model in section.models.items():
            try:
                _check_model(family, model, section.data)
            except (TypeError, ValueError) as error:
                path = f"{experiment}.models.{family}"
                raise ParamsError(f"params.yaml is not valid:\n  {path}: {error}") from error


def _check_model(family: str, model: Model, data: Data) -> None:
    import torch

    from irevnet import create_model as create_network

    with torch.device("meta"):
        network: Any = create_network(model.name, **model.overrides)
    kind, own = (name.split("_")[0].rstrip("0123456789") for name in (family, model.name))
    if kind in ("irevnet", "revnet", "resnet") and own != kind:
        raise ValueError(f"the family {family} needs kind {kind}, but {model.name} is no {kind}")
    bijective = "bijective" in family.split("_")
    if kind == "irevnet" and network.is_bijective != bijective:
        raise ValueError(
            f"by its name the family {family} is {'bijective' if bijective else 'injective'}, "
            f"but {model.name} is not"
        )
    known = _DATA_SETS.get(data.name)
    shape = known.shape if known else (3, data.size, data.size)
    if tuple(getattr(network, "in_shape", shape)) != shape:
        raise ValueError(
            f"{model.name} takes images {tuple(network.in_shape)}, but {data.name} has {shape}"
        )
    if known and getattr(network, "num_classes", known.classes) != known.classes:
        raise ValueError(
            f"{model.name} has {network.num_classes} classes, but {data.name} has {known.classes}"
        )


def main() -> None:
    """Checks ``params.yaml`` and its bounds; exits with 1 and the problems, if any."""
    try:
        params = load_params()
        check_models(params)
        for name in params.sections:
            load_bounds(name, params)
    except ParamsError as error:
        sys.exit(str(error))
    print(f"params.yaml is valid; the default experiment is {params.default}")


if __name__ == "__main__":
    main()
