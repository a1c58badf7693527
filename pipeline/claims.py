"""The paper's claims, and verdicts on them by the rules of ``claims.yaml``."""

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline.files import read_json
from pipeline.params import (
    ROOT,
    Bounds,
    Params,
    ParamsError,
    load_bounds,
    load_params,
    read_checked,
)
from pipeline.questions import QUESTIONS, Section, Unit

__all__ = ["Claim", "Condition", "judge", "judge_claims", "load_claims", "verdict"]

Bound = float | str
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class Condition(Section):
    """A measured number against its bounds.

    ``metric`` is ``QUESTION.KEY...`` in an experiment's results, or
    ``benchmarks.FOLDER.FILE.KEY...``, which is the same for all experiments.
    """

    what: Text
    metric: str
    at_most: Finite | str | None = None
    at_least: Finite | str | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError("needs at_most or at_least")
        name, _, key = self.metric.partition(".")
        if name == "benchmarks":
            if key.count(".") < 2:
                raise ValueError(
                    f"metric must be benchmarks.FOLDER.FILE.KEY..., got {self.metric!r}"
                )
            return self
        if name not in QUESTIONS:
            raise ValueError(
                f"metric must begin with benchmarks or a question, one of {', '.join(QUESTIONS)}, "
                f"got {self.metric!r}"
            )
        if QUESTIONS[name].families_in(key) is None:
            declared = ", ".join(f"{name}.{metric}" for metric in QUESTIONS[name].metrics)
            raise ValueError(
                f"metric must be one that its question declares, {declared or 'none'}, "
                f"got {self.metric!r}"
            )
        return self

    @property
    def families(self) -> set[str]:
        """The families of networks that the metric is about."""
        name, _, key = self.metric.partition(".")
        question = QUESTIONS.get(name)
        return (question and question.families_in(key)) or set()

    @property
    def unit(self) -> Unit:
        """What the metric is: a number, a share, or a difference of shares."""
        name, _, key = self.metric.partition(".")
        return QUESTIONS[name].unit(key) if name in QUESTIONS else "number"


class Claim(Section):
    """A claim in words, the paper's evidence, and the rule that judges ours."""

    claim: Text
    paper: Text
    written: date  # the date of the rule
    networks: Annotated[int, Field(ge=1)] = 1  # minimum for a condition
    note: str = ""
    conditions: list[Condition]


class _Claims(Section):
    bounds: Bounds
    claims: Annotated[
        dict[Annotated[str, Field(pattern="^C[1-9][0-9]*[a-z]?$")], Claim], Field(min_length=1)
    ]

    @model_validator(mode="after")
    def _every_bound_is_used(self) -> Self:
        conditions = [one for claim in self.claims.values() for one in claim.conditions]
        ends = [end for one in conditions for end in (one.at_most, one.at_least)]
        used = {end.removeprefix("-") for end in ends if isinstance(end, str)}
        used |= {name for question in QUESTIONS.values() for name in question.bounds.values()}
        if unused := sorted(set(self.bounds) - used):
            raise ValueError(f"bounds: no rule uses {', '.join(unused)}")
        return self


def load_claims(
    experiment: str, params: Params | None = None, path: Path = ROOT / "claims.yaml"
) -> dict[str, Claim]:
    """The claims by id, with bounds as numbers: the experiment's own, else those of the file.

    Args:
        experiment: a section of ``params.yaml``.
        params: the content of that file, if it was read already.
        path: the file with the claims.

    Raises:
        ParamsError: if the file is not valid or names an unknown bound, or if the bounds of a
            condition contradict each other; the message names the place.
    """
    content = read_checked(path, _Claims)
    bounds = load_bounds(experiment, params, path)
    for claim_id, claim in content.claims.items():
        for condition in claim.conditions:
            where = f"{path.name} is not valid:\n  claims.{claim_id}, {condition.metric}"
            condition.at_least = _number(condition.at_least, bounds, where)
            condition.at_most = _number(condition.at_most, bounds, where)
            low, high = condition.at_least, condition.at_most
            if low is not None and high is not None and low > high:
                raise ParamsError(f"{where}: at_least {low} is more than at_most {high}")
    return content.claims


def _number(value: Bound | None, bounds: dict[str, float], where: str) -> float | None:
    if not isinstance(value, str):
        return value
    name = value.removeprefix("-")
    if name not in bounds:
        raise ParamsError(f"{where}: no bound {name}; available: {', '.join(sorted(bounds))}")
    return -bounds[name] if value.startswith("-") else bounds[name]


def judge_claims(experiment: str) -> list[dict[str, Any]]:
    """One row per claim: the paper's evidence, the conditions with our numbers, and the verdict.

    Conditions on networks that an experiment does not have are left out, unless a claim has no
    other conditions.

    Args:
        experiment: a section of ``params.yaml`` whose other results exist.

    Returns:
        Rows with ``id``, ``claim``, ``paper``, ``n``, ``note``, ``verdict``, ``source`` and
        ``conditions``, as :func:`judge` returns them.
    """
    results = ROOT / "results" / experiment
    rows = []
    models = set(load_params().section(experiment).models)
    for claim_id, claim in load_claims(experiment).items():
        judged = [one for one in claim.conditions if one.families <= models] or claim.conditions
        conditions = [judge(condition, results, claim.networks) for condition in judged]
        sources = sorted({c["source"] for c in conditions if c["state"] != "not measured"})
        rows.append(
            {
                "id": claim_id,
                "claim": claim.claim,
                "paper": claim.paper,
                "n": max((c["n"] for c in conditions if c["n"] is not None), default=None),
                "note": claim.note,
                "verdict": verdict([c["state"] for c in conditions]),
                "source": sources,
                "conditions": conditions,
            }
        )
    return rows


def verdict(states: list[str]) -> str:
    """The verdict on a claim from the states of its conditions, see :func:`judge`."""
    if not states or "not measured" in states:
        return "not tested here"
    if "fails" in states:
        return "inconsistent"
    return "inconclusive" if "open" in states else "consistent"


def judge(condition: Condition, results: Path, networks: int = 1) -> dict[str, Any]:
    """Compares the measured number of one condition with its bounds.

    Args:
        condition: with bounds as numbers.
        results: folder of an experiment's results.
        networks: minimum number of networks behind the number, if it records one (``n``).

    Returns:
        ``what``, ``metric``, ``unit``, ``bound`` and ``measured`` as texts, ``value``, ``low`` and
        ``high``, ``n``, ``source`` (the file, relative to the experiment) and ``state``:
        ``"holds"`` or ``"fails"`` if the whole interval does, ``"open"`` if only part of it does or
        if there are too few networks, which ``bound`` then says, ``"not measured"`` without a
        number. The interval of a number marked as ``lower_bound`` has no upper end.

    Raises:
        ValueError: if a result file is damaged; the message names it.
    """
    question, *keys = condition.metric.split(".")
    source = f"{question}/metrics.json"
    path = results / source
    if question == "benchmarks":
        folder, name, *keys = keys
        source = f"../benchmarks/{folder}/{name}.json"
        path = results.parent / "benchmarks" / folder / f"{name}.json"
    measured: Any = read_json(path) if path.is_file() else None
    for key in keys:
        measured = measured.get(key) if isinstance(measured, dict) else None
    row = {"what": condition.what, "metric": condition.metric, "bound": _bound_text(condition)}
    row |= {"unit": condition.unit, "source": source}
    if measured is None:
        return row | {"measured": "not measured", "n": None, "state": "not measured"}
    if not isinstance(measured, dict):
        measured = {"value": measured, "low": measured, "high": measured, "n": None}
    high = float("inf") if measured.get("lower_bound") else measured["high"]
    row |= measured | {"measured": _text(measured)}
    if measured["n"] is not None and measured["n"] < networks:
        needed = f"{row['bound']} in {networks} networks or more, here {measured['n']}"
        return row | {"bound": needed, "state": "open"}
    return row | {"state": _state(condition, measured["low"], high)}


def _state(condition: Condition, low: float, high: float) -> str:
    least = -float("inf") if condition.at_least is None else float(condition.at_least)
    most = float("inf") if condition.at_most is None else float(condition.at_most)
    if least <= low and high <= most:
        return "holds"
    return "fails" if high < least or most < low else "open"


def _bound_text(condition: Condition) -> str:
    texts = {"at least": condition.at_least, "at most": condition.at_most}
    return " and ".join(f"{name} {value:g}" for name, value in texts.items() if value is not None)


def _text(measured: dict[str, Any]) -> str:
    value = f"{'at least ' * bool(measured.get('lower_bound'))}{measured['value']:.3g}"
    if measured["low"] == measured["high"]:
        return value
    return f"{value} [{measured['low']:.3g}, {measured['high']:.3g}]"
