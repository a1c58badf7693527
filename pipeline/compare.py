"""Compares two folders of results: which files, numbers and verdicts differ, and by how much."""

import csv
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.notation import counted
from pipeline.params import ROOT
from pipeline.provenance import FILE, git

__all__ = ["NO_RESULTS", "Comparison", "Difference", "compare_results", "ignored", "markdown"]

NO_RESULTS = frozenset({FILE, "dvc.yaml", "dvc.lock", ".gitignore"})
"""Names of files in a result folder that are not results."""


@dataclass(frozen=True)
class Difference:
    """One value that differs.

    Attributes:
        file: relative to the result folder.
        name: of the value within the file; empty if the file differs as a whole.
        published: the published value; None if there is none.
        here: the value of the other folder; None if there is none.
        distance: between two tensors, if the values are their norms.
    """

    file: str
    name: str
    published: Any
    here: Any
    distance: float | None = None

    @property
    def relative(self) -> float | None:
        """``|here - published| / |published|`` of numbers or tensors; None for anything else."""
        pair = (self.published, self.here)
        if not all(isinstance(value, int | float) and type(value) is not bool for value in pair):
            return None
        distance = abs(self.here - self.published) if self.distance is None else self.distance
        return distance / abs(self.published) if self.published else math.inf

    @property
    def is_verdict(self) -> bool:
        """Whether the value is the verdict on a claim."""
        return self.file == "claims/claims.json" and self.name.endswith(".verdict")


@dataclass
class Comparison:
    """Two result folders compared: the numbers of files and of equal files, and what differs."""

    files: int = 0
    equal: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def verdicts(self) -> list[Difference]:
        """The differences that are verdicts on claims."""
        return [difference for difference in self.differences if difference.is_verdict]


def ignored(folder: Path, root: Path = ROOT) -> set[str]:
    """The files that git ignores in a folder, relative to it; they are not published.

    Args:
        folder: in the repository.
        root: the repository; without git, no file is ignored.
    """
    options = ("--others", "--ignored", "--exclude-standard", "-z")
    listing = git("ls-files", *options, "--", str(folder), root=root) or ""
    paths = (root / name for name in listing.split("\0") if name)
    return {path.relative_to(folder).as_posix() for path in paths}


def compare_results(
    published: Path, here: Path, left_out: Collection[str] = frozenset()
) -> Comparison:
    """Compares the files of two folders, and the values of those that differ.

    JSON and CSV files are compared value by value, weights by the relative distance of their
    tensors. Other files, such as figures, are only reported as different. Provenance is not
    compared, because it is not a result.

    Args:
        published: results of an experiment.
        here: the same results from another run.
        left_out: files to leave out, relative to the folders, such as those of :func:`ignored`.

    Returns:
        The comparison; verdicts come first, then the largest relative differences.
    """
    result = Comparison()
    names = {name for folder in (published, here) for name in _names(folder)}
    for name in sorted(names.difference(left_out)):
        result.files += 1
        paths = (published / name, here / name)
        if not all(path.is_file() for path in paths):
            old, new = ("a file" if path.is_file() else None for path in paths)
            result.differences.append(Difference(name, "", old, new))
        elif paths[0].read_bytes() == paths[1].read_bytes():
            result.equal += 1
        else:
            result.differences += _file_differences(name, *paths)
    result.differences.sort(key=_order)
    return result


def markdown(comparison: Comparison, limit: int = 40) -> str:
    """A table of what differs, or one line if nothing does.

    Args:
        comparison: as :func:`compare_results` returns.
        limit: maximum number of rows; a last line says how many are missing.
    """
    if not comparison.differences:
        return f"identical: all {counted(comparison.files, 'result file')}"
    numbers = sum(difference.relative is not None for difference in comparison.differences)
    lines = [
        f"{comparison.equal} of {comparison.files} result files are identical; "
        f"{counted(numbers, 'number')} and {counted(len(comparison.verdicts), 'verdict')} differ",
        "",
        "| file | value | published | here | relative difference |",
        "|---|---|---:|---:|---:|",
    ]
    for difference in comparison.differences[:limit]:
        relative = "" if difference.relative is None else f"{difference.relative:.1e}"
        cells = (difference.file, difference.name or "(the file)")
        values = (_shown(difference.published), _shown(difference.here), relative)
        lines.append(f"| {' | '.join((*cells, *values))} |")
    if omitted := len(comparison.differences) - limit:
        lines += ["", f"... and {omitted} more"] if omitted > 0 else []
    return "\n".join(lines)


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in NO_RESULTS and "__pycache__" not in path.parts:
            yield path.relative_to(folder).as_posix()


def _file_differences(name: str, *paths: Path) -> list[Difference]:
    """The values that differ, or the file as a whole if its format has no values to compare."""
    reader = {".json": _json_values, ".csv": _csv_values}.get(paths[0].suffix)
    differences: list[Difference] = []
    try:
        if reader is not None:
            old, new = (reader(path) for path in paths)
            names = dict.fromkeys([*old, *new])
            differences = [
                Difference(name, key, old.get(key), new.get(key))
                for key in names
                if not _same(old.get(key), new.get(key))
            ]
        elif paths[0].suffix == ".safetensors":
            differences = _tensor_differences(name, *paths)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        differences = [Difference(name, "", "", f"cannot be read: {error}")]
    # If all tensors are equal, the metadata in the file differs.
    whole = "metadata" if paths[0].suffix == ".safetensors" else ""
    return differences or [Difference(name, whole, "other bytes", "other bytes")]


def _json_values(path: Path) -> dict[str, Any]:
    return dict(_leaves(json.loads(path.read_text(encoding="utf-8")), ()))


def _leaves(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """The plain values within a JSON value; rows with an ``id`` are named by it."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _leaves(child, (*keys, str(key)))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            own = child.get("id", index) if isinstance(child, Mapping) else index
            yield from _leaves(child, (*keys, str(own)))
    else:
        yield ".".join(keys), value


def _csv_values(path: Path) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        f"{index}.{column}": _number(text)
        for index, row in enumerate(rows)
        for column, text in row.items()
    }


def _tensor_differences(name: str, *paths: Path) -> list[Difference]:
    old, new = (load_file(path) for path in paths)
    differences = []
    for key in dict.fromkeys([*old, *new]):
        pair = [tensors.get(key) for tensors in (old, new)]
        shapes = [None if tensor is None else str(tuple(tensor.shape)) for tensor in pair]
        if pair[0] is None or pair[1] is None or shapes[0] != shapes[1]:
            differences.append(Difference(name, key, shapes[0], shapes[1]))
        elif not pair[0].equal(pair[1]):
            norms = [tensor.double().norm().item() for tensor in (pair[0], pair[1])]
            distance = (pair[1].double() - pair[0].double()).norm().item()
            difference = Difference(name, f"norm of {key}", norms[0], norms[1], distance)
            differences.append(difference)
    return differences


def _number(text: str) -> float | str:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Whether two values are equal in value and type; NaN equals NaN."""
    both_nan = all(isinstance(value, float) and math.isnan(value) for value in (one, other))
    return both_nan or (one == other and type(one) is type(other))


def _order(difference: Difference) -> tuple[bool, float, str, str]:
    size = 0.0 if difference.relative is None else -difference.relative
    return not difference.is_verdict, size, difference.file, difference.name


def _shown(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "missing"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 60 else text[:57] + "..."
