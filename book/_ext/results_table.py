"""The directive ``{results-table}``: measured numbers, a row for each family of networks.

.. code-block:: text

    ```{results-table} cifar10_cpu separation
    SVM, entry: percent(svm_first)
    SVM, rank correlation: number(svm_rank_correlation, 2)
    ```

The arguments are an experiment and a question, or ``benchmarks`` and a device. The body is YAML. It
maps the heading of each column to a path in ``metrics.json``: formatted, as by ``percent``,
``points`` and ``number`` of :mod:`results`, or a path alone for the value as it is. A path starts
below the entry of the family; a star marks the place of the family if it is elsewhere
(``families.*.accuracy``). Differences of two families (``differences.*``) have rows, too. A column
for only some families names them, as in ``{irevnet_bijective: number(representation_error)}``; the
other cells stay empty, and a column for families that the results lack is left out. The interval of
an estimate is shown below its value.

Options: ``families`` names the only rows. ``keys`` defines other rows than families, such as
``training = train; test = test``: a label, and what replaces the star; such a row may lack values
that other rows have. ``transposed`` turns rows into columns. ``corner`` is the text above the row
labels.
"""

import functools
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import yaml
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx

from results import MissingResultError, Results, show_number, show_percent, show_points
from results_directives import NO_RESULTS, ResultsDirective

if TYPE_CHECKING:
    from pipeline.params import Params

__all__ = ["ResultsTable", "setup"]

_FORMATS = {"percent": show_percent, "points": show_points, "number": show_number}
_FORMAT = re.compile(r"(?:(percent|points|number)\(([^\s(),]+)(?:, *(\d+))?\)|([^\s(),]+))")


class Entry(NamedTuple):
    """The content of a column's cells, such as ``number(noise.error, 2)``."""

    text: str
    path: str
    format: str | None
    digits: int | None

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """Reads a format with a path, or a path alone.

        Raises:
            ValueError: if it is neither.
        """
        match = _FORMAT.fullmatch(text) if isinstance(text, str) else None
        if not match:
            raise ValueError(
                f"{text!r} is not percent(path), points(path), number(path, digits) or a path"
            )
        name, formatted, digits, alone = match.groups()
        path = formatted or alone
        path = path if "*" in path else f"*.{path}"
        return cls(text, path, name, int(digits) if digits else None)

    @property
    def place(self) -> str:
        """The path of the entry that contains the families; empty at the top level."""
        return self.path.partition("*")[0]

    def of(self, metrics: Results, family: str) -> tuple[str, str]:
        """The value for a family and the interval below it; both are empty if there is none."""
        value = _find(metrics, self.path.replace("*", family))
        if value is None:
            return "", ""
        if self.format is None:
            return str(value), ""
        if not isinstance(value, int | float | Results):
            raise MissingResultError(f"{self.text} of {family}: {value!r} is not a number")
        given = () if self.digits is None else (self.digits,)
        return _FORMATS[self.format](value, *given).apart()


# One entry for all families, or one for each family with a cell in the column.
Column = Entry | dict[str, Entry]


class ResultsTable(ResultsDirective):
    """``{results-table} experiment question`` or ``{results-table} benchmarks device``."""

    required_arguments = 2
    has_content = True
    option_spec: ClassVar = {
        "families": directives.unchanged_required,
        "keys": directives.unchanged_required,
        "transposed": directives.flag,
        "corner": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """The table, or a note that there are no results.

        Raises:
            DirectiveError: if the body is not a mapping of headings to formats, or a family is
                unknown.
        """
        experiment, question = self.arguments
        name = f"results-table {experiment} {question}"
        try:
            labels = self._labels(experiment)
            columns = _columns("\n".join(self.content), labels)
            chosen = _known(self.options.get("families", "").split(), labels)
            keys = _keys(self.options.get("keys", ""))
        except (ValueError, yaml.YAMLError) as error:
            raise self.error(f"{name}: {error}") from error
        measured = self.tables["results"] | {"benchmarks": self.tables["benchmarks"]}
        if experiment not in measured:
            if experiment not in _params().sections:
                return self.missing(f"{name}: params.yaml has no such experiment")
            return [nodes.paragraph("", NO_RESULTS)]
        try:
            metrics = Results("results", measured)[experiment][question]
            if not keys:
                columns = {head: _there(column, metrics) for head, column in columns.items()}
                columns = {head: column for head, column in columns.items() if column}
                families = chosen or _families(columns, metrics, labels)
                keys = {labels[family]: family for family in families}
            return [self._table(columns, metrics, keys)]
        except MissingResultError as error:
            return self.missing(f"{name}: {error}")

    def _labels(self, experiment: str) -> dict[str, str]:
        """Labels of families and their differences: the book's, then others of the experiment."""
        # Imported late: they import torch, which pages without tables do not need.
        from pipeline.figures import FAMILY_LABELS
        from pipeline.params import ROOT

        self.env.note_dependency(str(ROOT / "params.yaml"))
        section = _params().sections.get(experiment)
        names = dict.fromkeys([*FAMILY_LABELS, *(section.models if section else ())])
        labels = {name: FAMILY_LABELS[name] for name in names}
        short = {name: label.removeprefix("i-RevNet, ") for name, label in labels.items()}
        differences = {
            f"{one}_minus_{other}": f"{short[one]} \N{MINUS SIGN} {short[other]}"
            for one in short
            for other in short
            if one != other
        }
        return labels | differences

    def _table(
        self, columns: dict[str, Column], metrics: Results, keys: dict[str, str]
    ) -> nodes.table:
        grid = [[self._text(self.options.get("corner", "")), *map(self._text, columns)]]
        gaps = "keys" in self.options
        for label, key in keys.items():
            cells = [self._cell(column, metrics, key, gaps) for column in columns.values()]
            grid.append([self._text(label), *cells])
        if gaps and not all(
            any(column) for column in zip(*(row[1:] for row in grid[1:]), strict=True)
        ):
            raise MissingResultError(f"none of {', '.join(keys.values())} has a value in a column")
        if "transposed" in self.options:
            grid = [list(row) for row in zip(*grid, strict=True)]
        rows = [nodes.row("", *map(_entry, range(len(row)), row)) for row in grid]
        group = nodes.tgroup(cols=len(grid[0]))
        group += [nodes.colspec(colwidth=1, stub=int(not place)) for place in range(len(grid[0]))]
        group += [nodes.thead("", rows[0]), nodes.tbody("", *rows[1:])]
        table = nodes.table("", group, classes=["results-table"])
        self.set_source_info(table)
        return table

    def _text(self, text: str) -> list[nodes.Node]:
        return self.parse_inline(text)[0] if text else []

    def _cell(
        self, column: Column, metrics: Results, family: str, gaps: bool = False
    ) -> list[nodes.Node]:
        entry = column.get(family) if isinstance(column, dict) else column
        if entry is None:
            return []
        try:
            value, interval = entry.of(metrics, family)
        except MissingResultError:
            if gaps:
                return []
            raise
        shown = self._text(value)
        if interval:
            below = nodes.inline("", "", *self._text(interval), classes=["interval"])
            shown += [nodes.Text(" "), below]
        return shown


@functools.cache
def _params() -> "Params":
    from pipeline.params import load_params

    return load_params()


def _entry(place: int, content: list[nodes.Node]) -> nodes.entry:
    paragraphs = [nodes.paragraph("", "", *content)] if content else []
    return nodes.entry("", *paragraphs, classes=["text-right"] if place else [])


def _columns(text: str, labels: dict[str, str]) -> dict[str, Column]:
    body = yaml.load(text, Loader=_Loader)
    if not isinstance(body, dict):
        raise ValueError("the body is not a mapping of headings to formats")
    return {
        heading: (
            {family: Entry.parse(what[family]) for family in _known(what, labels)}
            if isinstance(what, dict)
            else Entry.parse(what)
        )
        for heading, what in body.items()
    }


class _Loader(yaml.BaseLoader):
    """Reads every value as text; a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"twice in one table: {', '.join(sorted(twice))}")
        return super().construct_mapping(node, deep)


def _shown(labels: dict[str, str]) -> str:
    return ", ".join(name for name in labels if "_minus_" not in name)


def _known(names: Collection[str], labels: dict[str, str]) -> list[str]:
    """The names in the order of the labels, if all of them have one."""
    if unknown := [name for name in names if name not in labels]:
        raise ValueError(f"{', '.join(unknown)} is none of {_shown(labels)}")
    return [family for family in labels if family in names]


def _keys(text: str) -> dict[str, str]:
    """``label = key; label = key``."""
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    keys = {label.strip(): key.strip() for label, _, key in pairs}
    if empty := [label for label, key in keys.items() if not key]:
        raise ValueError(f"keys: {', '.join(empty)} is not followed by = and a key")
    return keys


def _there(column: Column, metrics: Results) -> Column:
    """The column without the families that the results lack."""
    if isinstance(column, Entry):
        return column
    return {
        family: entry for family, entry in column.items() if family in _find(metrics, entry.place)
    }


def _families(columns: dict[str, Column], metrics: Results, labels: dict[str, str]) -> list[str]:
    """The families that the file contains where the columns look for them."""
    trained: set[str] = set()
    for column in columns.values():
        there = column if isinstance(column, dict) else _find(metrics, column.place)
        if not isinstance(there, dict | Results):
            raise MissingResultError(f"{column.text}: {there!r} is a value and has no families")
        trained |= {family for family in labels if family in there}
    if not trained:
        raise MissingResultError(f"there are none of the families {_shown(labels)}")
    return _known(trained, labels)


def _find(value: Any, path: str) -> Any:  # noqa: ANN401
    """The value at a path such as ``noise.error[-1]``."""
    for key in re.findall(r"[^.\[\]]+", path):
        if not isinstance(value, Results):
            raise MissingResultError(f"{path} goes on below a value, {value!r}")
        value = value[int(key) if re.fullmatch(r"-?\d+", key) else key]
    return value


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("results-table", ResultsTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
