"""The directive ``{family-table}``: an experiment's results, a row for each family of networks.

.. code-block:: text

    ```{family-table} cifar10_cpu separation
    SVM, entry: percent(svm_first)
    SVM, rank correlation: number(svm_rank_correlation, 2)
    ```

The arguments are an experiment and a question. The body is YAML: headings of columns, and what
stands below them, a path in ``metrics.json`` formatted as by ``percent`` and ``number`` of
:mod:`results`, or a path alone for a value as it is. A path starts below the entry of the family; a
star shows where the family is elsewhere (``families.*.accuracy``). For a column that some families
do not have there is ``{irevnet_bijective: number(representation_error)}``; the other cells stay
empty. The interval of an estimate stands below its value.

Options: ``families``, names of the only rows; ``transposed``, for a column for each family;
``corner``, what stands above the labels at the left.
"""

import functools
import re
from collections.abc import Collection
from typing import Any, ClassVar, NamedTuple

import yaml
from docutils import nodes
from docutils.parsers.rst import directives
from results_directives import NO_RESULTS, ResultsDirective
from sphinx.application import Sphinx

from results import MissingResultError, Results, show_number, show_percent

__all__ = ["FamilyTable", "setup"]

_FORMATS = {"percent": show_percent, "number": show_number}
_FORMAT = re.compile(r"(?:(percent|number)\(([^\s(),]+)(?:, *(\d+))?\)|([^\s(),]+))")


class Entry(NamedTuple):
    """What stands in the cells of a column: ``number(noise.error, 2)``."""

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
            raise ValueError(f"{text!r} is not percent(path), number(path, digits) or a path")
        name, formatted, digits, alone = match.groups()
        path = formatted or alone
        path = path if "*" in path else f"*.{path}"
        return cls(text, path, name, int(digits) if digits else None)

    @property
    def place(self) -> str:
        """The path of what holds the families; empty if they stand at the top."""
        return self.path.partition("*")[0]

    def of(self, metrics: Results, family: str) -> tuple[str, str]:
        """The value for a family and the interval below it, which may be empty."""
        value = _find(metrics, self.path.replace("*", family))
        if self.format is None:
            return str(value), ""
        if not isinstance(value, int | float | Results):
            raise MissingResultError(f"{self.text} of {family}: {value!r} is not a number")
        given = () if self.digits is None else (self.digits,)
        return _FORMATS[self.format](value, *given).apart()


# For all families, or for those that have a cell in the column.
Column = Entry | dict[str, Entry]


class FamilyTable(ResultsDirective):
    """``{family-table} experiment question``."""

    required_arguments = 2
    has_content = True
    option_spec: ClassVar = {
        "families": directives.unchanged_required,
        "transposed": directives.flag,
        "corner": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """The table, or that there are no results.

        Raises:
            DirectiveError: if the body is not a mapping of headings to formats, or a family is
                none of the book's.
        """
        experiment, question = self.arguments
        name = f"family-table {experiment} {question}"
        try:
            columns = _columns("\n".join(self.content))
            chosen = _known(self.options.get("families", "").split())
        except (ValueError, yaml.YAMLError) as error:
            raise self.error(f"{name}: {error}") from error
        if experiment not in self.tables["results"]:
            from pipeline.params import ROOT, load_params

            self.env.note_dependency(str(ROOT / "params.yaml"))
            if experiment not in load_params().sections:
                return self.missing(f"{name}: params.yaml has no such experiment")
            return [nodes.paragraph("", NO_RESULTS)]
        try:
            metrics = Results("results", self.tables["results"])[experiment][question]
            return [self._table(columns, metrics, chosen or _families(columns, metrics))]
        except MissingResultError as error:
            return self.missing(f"{name}: {error}")

    def _table(
        self, columns: dict[str, Column], metrics: Results, families: list[str]
    ) -> nodes.table:
        grid = [[self._text(self.options.get("corner", "")), *map(self._text, columns)]]
        for family in families:
            cells = [self._cell(column, metrics, family) for column in columns.values()]
            grid.append([self._text(_labels()[family]), *cells])
        if "transposed" in self.options:
            grid = [list(row) for row in zip(*grid, strict=True)]
        rows = [nodes.row("", *map(_entry, range(len(row)), row)) for row in grid]
        group = nodes.tgroup(cols=len(grid[0]))
        group += [nodes.colspec(colwidth=1, stub=int(not place)) for place in range(len(grid[0]))]
        group += [nodes.thead("", rows[0]), nodes.tbody("", *rows[1:])]
        table = nodes.table("", group, classes=["family-table"])
        self.set_source_info(table)
        return table

    def _text(self, text: str) -> list[nodes.Node]:
        return self.parse_inline(text)[0] if text else []

    def _cell(self, column: Column, metrics: Results, family: str) -> list[nodes.Node]:
        entry = column.get(family) if isinstance(column, dict) else column
        if entry is None:
            return []
        value, interval = entry.of(metrics, family)
        shown = self._text(value)
        if interval:
            below = nodes.inline("", "", *self._text(interval), classes=["interval"])
            shown += [nodes.Text(" "), below]
        return shown


def _entry(place: int, content: list[nodes.Node]) -> nodes.entry:
    paragraphs = [nodes.paragraph("", "", *content)] if content else []
    return nodes.entry("", *paragraphs, classes=["text-right"] if place else [])


def _columns(text: str) -> dict[str, Column]:
    body = yaml.load(text, Loader=_Loader)
    if not isinstance(body, dict):
        raise ValueError("the body is not a mapping of headings to formats")
    return {
        heading: (
            {family: Entry.parse(what[family]) for family in _known(what)}
            if isinstance(what, dict)
            else Entry.parse(what)
        )
        for heading, what in body.items()
    }


class _Loader(yaml.BaseLoader):
    """Everything is text, and nothing is said twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"twice in one table: {', '.join(sorted(twice))}")
        return super().construct_mapping(node, deep)


@functools.cache
def _labels() -> dict[str, str]:
    # Imports torch, which pages without tables do not wait for.
    from pipeline.figures import FAMILY_LABELS

    return FAMILY_LABELS


def _known(names: Collection[str]) -> list[str]:
    """The names in the order of the book, if it has them."""
    if unknown := [name for name in names if name not in _labels()]:
        raise ValueError(f"{', '.join(unknown)} is none of {', '.join(_labels())}")
    return [family for family in _labels() if family in names]


def _families(columns: dict[str, Column], metrics: Results) -> list[str]:
    """The families that the file has where the columns look for them."""
    found: set[str] = set()
    for column in columns.values():
        there = column if isinstance(column, dict) else _find(metrics, column.place)
        if not isinstance(there, dict | Results):
            raise MissingResultError(f"{column.text}: {there!r} is a value and has no families")
        found |= {family for family in _labels() if family in there}
    if not found:
        raise MissingResultError(f"there are none of the families {', '.join(_labels())}")
    return _known(found)


def _find(value: Any, path: str) -> Any:  # noqa: ANN401
    """What a path such as ``noise.error[-1]`` leads to."""
    for key in re.findall(r"[^.\[\]]+", path):
        if not isinstance(value, Results):
            raise MissingResultError(f"{path} goes on below a value, {value!r}")
        value = value[int(key) if re.fullmatch(r"-?\d+", key) else key]
    return value


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("family-table", FamilyTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
