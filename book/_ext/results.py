"""Brings results/ into the book: its contents as substitutions, its numbers as text.

Pages write ``{{ percent(results.digits.accuracy.resnet.accuracy) }}``; the substitutions are
``results`` (every metrics.json by experiment, question, ...), ``provenance``, ``claims`` and
``benchmarks`` (by device), with :func:`percent` and :func:`number` to format their values,
:func:`mean_of_runs` and :func:`by_family` to average a metric of training runs, :func:`finished`
and :func:`verdicts`. A missing key is a warning that names it. Pages are read again when the
contents of a results file change. The directives that show results are in
:mod:`results_directives` and :mod:`results_table`.
"""

import copy
import functools
import hashlib
import re
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from pipeline import notation
from pipeline.files import read_json
from pipeline.notation import Shown

__all__ = [
    "BENCHMARK",
    "MissingResultError",
    "Results",
    "by_family",
    "finished",
    "load",
    "mean_of_runs",
    "number",
    "percent",
    "points",
    "setup",
    "show_number",
    "show_percent",
    "show_points",
    "verdicts",
]

BENCHMARK = "memory_and_speed.json"
# Result files of experiments and benchmarks, relative to results/.
FILES = ("*/**/metrics.json", "*/**/provenance.json", "*/**/claims.json", "benchmarks/*/*.json")


class MissingResultError(Exception):
    """A page asks for a result that no file holds; the message names it."""


class Results:
    """Nested results by attribute or index; a missing key is an error that names the whole path.

    Args:
        name: what the page calls ``value``, for error messages.
        value: dicts, lists and numbers.
    """

    def __init__(self, name: str, value: dict[str, Any] | list[Any]) -> None:
        self._name = name
        self._value = value

    def __getattr__(self, key: str) -> Any:  # noqa: ANN401
        if key.startswith("_"):
            raise AttributeError(key)
        return self[key]

    def __getitem__(self, key: str | int) -> Any:  # noqa: ANN401
        """The value of ``key``; ``irevnet_0`` also finds ``irevnet-0``, -1 the last of a list."""
        if isinstance(self._value, list):
            key = key + len(self._value) if isinstance(key, int) and key < 0 else key
            keys = {str(index): item for index, item in enumerate(self._value)}
        else:
            keys = {re.sub(r"\W", "_", name): item for name, item in self._value.items()}
            keys |= self._value
        if str(key) not in keys:
            there = ", ".join(map(str, self._value)) if isinstance(self._value, dict) else ""
            raise MissingResultError(
                f"{self._name}.{key} is not in any results file; {self._name} has: {there or '-'}"
            )
        value = keys[str(key)]
        return Results(f"{self._name}.{key}", value) if isinstance(value, dict | list) else value

    def names(self) -> Iterable[str]:
        """The keys, as spelled in the files."""
        return iter(self._value)

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def __iter__(self) -> Any:  # noqa: ANN401
        return (self[index] for index, _ in enumerate(self._value))

    def __len__(self) -> int:
        return len(self._value)

    def __str__(self) -> str:
        there = ", ".join(map(str, self._value))
        raise MissingResultError(f"{self._name} is not a number; it has: {there}")


def show_percent(value: float | Results, digits: int = 1) -> Shown:
    """The parts of what :func:`percent` writes."""
    return notation.show_percent(_value_and_bounds(value), digits)


def show_points(value: float | Results, digits: int = 2) -> Shown:
    """The parts of what :func:`points` writes."""
    return notation.show_points(_value_and_bounds(value), digits)


def show_number(value: float | Results, digits: int = 3) -> Shown:
    """The parts of what :func:`number` writes."""
    return notation.show_number(_value_and_bounds(value), digits)


def percent(value: float | Results, digits: int = 1) -> str:
    """A share as ``97.8%``; an estimate as ``97.8% (97.1% to 98.4%)``."""
    return show_percent(value, digits).on_one_line()


def points(value: float | Results, digits: int = 2) -> str:
    """A difference of shares in points; an estimate is followed by its interval in brackets."""
    return show_points(value, digits).on_one_line()


def number(value: float | Results, digits: int = 3) -> str:
    """A number to ``digits`` significant digits, typeset if it is very small or large.

    An estimate is followed by its interval in brackets.
    """
    return show_number(value, digits).on_one_line()


def mean_of_runs(train: Results, family: str, metric: str) -> float:
    """The mean of a metric over a family's runs in ``train``, such as ``results.digits.train``."""
    runs = [run for run in train.names() if re.fullmatch(rf"{family}-\d+", run)]
    if not runs:
        raise MissingResultError(f"there are no training runs of {family}")
    return statistics.fmean(train[run][metric] for run in runs)


def by_family(train: Results, metric: str) -> str:
    """The mean of a share over the runs of each family, ``"92.9% (RevNet) and 92.8% (ResNet)"``."""
    from pipeline.figures import FAMILY_LABELS, STYLES

    families = dict.fromkeys(run.rpartition("-")[0] for run in train.names())
    listed = [
        f"{percent(mean_of_runs(train, family, metric))} ({FAMILY_LABELS[family]})"
        for family in sorted(families, key=lambda family: [*STYLES, family].index(family))
    ]
    return " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))


def verdicts(claims: Mapping[str, Any], *ids: str) -> str:
    """The verdicts on claims now, ``"`digits`: consistent"``, of the experiments that test them.

    Args:
        claims: rows of every ``claims.json`` by experiment and claim.
        ids: of claims; several are named in the text.
    """
    parts = []
    for claim_id in ids:
        rows = {name: claims[name][claim_id] for name in sorted(claims) if claim_id in claims[name]}
        tested = [
            f"`{name}`: {row['verdict']}"
            for name, row in rows.items()
            if row["verdict"] != "not tested here"
        ]
        said = "; ".join(tested) or "not tested here"
        parts.append(f"{claim_id}: {said}" if len(ids) > 1 else said)
    return ". ".join(parts)


def finished(results: Mapping[str, Any], experiment: str) -> str:
    """How many training runs are finished, ``"4 of 20"``; empty if the experiment trains nothing.

    Args:
        results: every ``metrics.json`` by experiment, question or ``train``, ...
        experiment: a section of ``params.yaml``.
    """
    from pipeline.params import load_params

    section = load_params().section(experiment)
    if section.training is None:
        return ""
    runs = [f"{family}-{seed}" for family in section.models for seed in section.seeds]
    done = set(results.get(experiment, {}).get("train", {})).intersection(runs)
    return f"{len(done)} of {len(runs)}"


def _value_and_bounds(value: float | Results) -> list[float]:
    """A number alone, or an estimate with the bounds of its interval."""
    if not isinstance(value, Results):
        return [value]
    if value.low == value.high:
        return [value.value]
    return [value.value, value.low, value.high]


def load(root: Path) -> tuple[dict[str, Any], str]:
    """Reads every results file under ``root``.

    Returns:
        Nested dicts ``results``, ``provenance``, ``claims`` and ``benchmarks``, and a digest of the
        files read.

    Raises:
        ValueError: if a file is damaged; the message names it.
    """
    tables: dict[str, Any] = {"results": {}, "provenance": {}, "claims": {}, "benchmarks": {}}
    digest = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in root.glob(pattern)}):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
        content = read_json(path)
        parts = path.relative_to(root).parts[:-1]
        if parts[0] == "benchmarks":
            device = tables["benchmarks"].setdefault(parts[1], {})
            device.update(content if path.name == BENCHMARK else {path.stem: content})
            continue
        if path.name == "claims.json":
            tables["claims"][parts[0]] = {row["id"]: row for row in content["rows"]}
            continue
        place = tables["results" if path.name == "metrics.json" else "provenance"]
        for part in parts:
            place = place.setdefault(part, {})
        place.update(content)
    return tables, digest.hexdigest()


def _load_results(app: Sphinx) -> None:
    tables, digest = load(Path(app.srcdir, "results"))
    app.env.results_tables = tables
    app.env.results_new_digest = digest
    config = copy.copy(app.env.myst_config)
    config.substitutions = {
        **config.substitutions,
        **{name: Results(name, table) for name, table in tables.items()},
        "by_family": by_family,
        "finished": functools.partial(finished, tables["results"]),
        "mean_of_runs": mean_of_runs,
        "number": number,
        "percent": percent,
        "points": points,
        "verdicts": functools.partial(verdicts, tables["claims"]),
    }
    app.env.myst_config = config


class _Outdated:
    """Names the pages to read again when a results file has changed."""

    uses_results: ClassVar = re.compile(
        r"results/|\{\{|\{(answer|scorecard|finding|reconstructions|tested-on|experiments|claims"
        r"|verdict|provenance|targets|results-table|trials|runs|printed)\}"
    )

    def __call__(self, app: Sphinx, env: BuildEnvironment, *_: object) -> list[str]:
        if getattr(env, "results_digest", None) == env.results_new_digest:
            return []
        env.results_digest = env.results_new_digest
        pages = ((name, Path(env.doc2path(name))) for name in env.found_docs)
        return [
            name
            for name, path in pages
            if path.suffix == ".md" and self.uses_results.search(path.read_text())
        ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Loads the results when a build starts."""
    app.connect("builder-inited", _load_results, priority=600)
    app.connect("env-get-outdated", _Outdated())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
