"""Brings results/ into the book: numbers as substitutions, tables as directives.

Pages write ``{{ percent(results.digits.accuracy.resnet.accuracy) }}``; the substitutions are
``results`` (every metrics.json by experiment, question, ...), ``provenance``, ``claims`` and
``benchmarks`` (by device), with :func:`percent` and :func:`number` to format what they hold.
Directives: ``{claims}``, ``{verdict}``, ``{provenance}`` and ``{targets}``, and ``{family-table}``
of :mod:`family_table`. A key that is not there is a warning that names it. Pages are read again
when the contents of a results file change.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

__all__ = [
    "NO_RESULTS",
    "MissingResultError",
    "Results",
    "ResultsDirective",
    "Shown",
    "load",
    "number",
    "percent",
    "setup",
    "show_number",
    "show_percent",
]

BENCHMARK = "memory_and_speed.json"
FILES = ("metrics.json", "provenance.json", "claims.json", BENCHMARK, "jacobian.json")
SYMBOLS = {
    "reproduced": "\N{CHECK MARK}",
    "partly": "\N{CIRCLE WITH LEFT HALF BLACK}",
    "not reproduced": "\N{MULTIPLICATION X}",
    "not tested here": "\N{EN DASH}",
}
NO_RESULTS = "There are no results in this repository yet."
logger = logging.getLogger(__name__)


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

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def __iter__(self) -> Any:  # noqa: ANN401
        return (self[index] for index, _ in enumerate(self._value))

    def __len__(self) -> int:
        return len(self._value)

    def __str__(self) -> str:
        raise MissingResultError(f"{self._name} is not a number; it has: {', '.join(self._value)}")


class Shown(NamedTuple):
    """A number in digits, the bounds of its interval, if any, and what belongs to all of them."""

    value: str
    bounds: Sequence[str] = ()
    sign: str = ""
    exponent: int = 0

    def on_one_line(self) -> str:
        """With the interval in brackets behind the number."""
        interval = self._interval(self.sign)
        if self.exponent:
            return self._mathematics(rf"{self.value}\ {interval}" if interval else self.value)
        return f"{self.value}{self.sign} {interval}".rstrip()

    def apart(self) -> tuple[str, str]:
        """The number, and its interval in brackets; that is empty if there is none."""
        interval = self._interval("")
        if self.exponent:
            return self._mathematics(self.value), interval and self._mathematics(interval)
        return f"{self.value}{self.sign}", interval.replace(")", f"{self.sign})")

    def _interval(self, sign: str) -> str:
        if not self.bounds:
            return ""
        low, high = self.bounds
        # No line may break inside of the brackets.
        to = r" \text{ to } " if self.exponent else "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"
        return f"({low}{sign}{to}{high}{sign})"

    def _mathematics(self, digits: str) -> str:
        return rf"${digits} \times 10^{{{self.exponent}}}$"


def show_percent(value: float | Results, digits: int = 1) -> Shown:
    """What :func:`percent` writes, in parts."""
    shown, *bounds = (f"{100 * x:.{digits}f}" for x in _value_and_bounds(value))
    return Shown(shown, bounds, sign="%")


def show_number(value: float | Results, digits: int = 3) -> Shown:
    """What :func:`number` writes, in parts."""
    numbers = _value_and_bounds(value)
    if all(isinstance(x, int) for x in numbers):
        shown, *bounds = (f"{x:,}" for x in numbers)
        return Shown(shown, bounds)
    exponent = int(f"{numbers[0]:.{digits - 1}e}".split("e")[1])
    if -4 <= exponent < 6:
        places = max(0, digits - 1 - exponent)
        shown, *bounds = (f"{x:,.{places}f}" for x in numbers)
        return Shown(shown, bounds)
    shown, *bounds = (f"{x / 10**exponent:.{digits - 1}f}" for x in numbers)
    return Shown(shown, bounds, exponent=exponent)


def percent(value: float | Results, digits: int = 1) -> str:
    """A share as ``97.8%``; an estimate as ``97.8% (97.1% to 98.4%)``."""
    return show_percent(value, digits).on_one_line()


def number(value: float | Results, digits: int = 3) -> str:
    """A number to ``digits`` significant ones, as mathematics where it is very small or large.

    An estimate is followed by its interval in brackets.
    """
    return show_number(value, digits).on_one_line()


def _value_and_bounds(value: float | Results) -> list[float]:
    """A number alone, or an estimate with the bounds that it is known to."""
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
    """
    tables: dict[str, Any] = {"results": {}, "provenance": {}, "claims": {}, "benchmarks": {}}
    digest = hashlib.sha256()
    for path in sorted(path for name in FILES for path in root.glob(f"*/**/{name}")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0".encode() + text)
        content = json.loads(text)
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


class ResultsDirective(SphinxDirective):
    """What the directives share."""

    @property
    def tables(self) -> dict[str, Any]:
        """What :func:`load` has read."""
        return self.env.results_tables

    def missing(self, message: str) -> list[nodes.Node]:
        """Warns that a page asks for what is not there, and shows nothing."""
        logger.warning(message, location=self.get_location(), type="results", subtype="missing")
        return []


class ClaimsTable(ResultsDirective):
    """``{claims} [experiment]``: the table of its claims; without an argument of every one."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        experiments = self.arguments or sorted(self.tables["claims"])
        found = [name for name in experiments if name in self.tables["claims"]]
        return [self.table(name) for name in found] or [nodes.paragraph("", NO_RESULTS)]

    def table(self, experiment: str) -> nodes.table:
        heads = ["", "The paper claims", "Verdict", "The paper's evidence", "Measured here", "n"]
        widths = [5, 24, 12, 21, 33, 5]
        group = nodes.tgroup(cols=len(heads))
        group += [nodes.colspec(colwidth=width) for width in widths]
        head, body = nodes.thead(), nodes.tbody()
        head += _row(nodes.paragraph("", text) for text in heads)
        for claim in self.tables["claims"][experiment].values():
            body += _row(
                [
                    self.link(claim),
                    nodes.paragraph("", claim["claim"]),
                    nodes.paragraph("", "", _badge(claim["verdict"])),
                    nodes.paragraph("", claim["paper"]),
                    _conditions(claim),
                    nodes.paragraph("", _count(claim["n"])),
                ]
            )
        group += [head, body]
        title = nodes.title("", f"Experiment {experiment}")
        return nodes.table("", title, group, classes=["claims"])

    def link(self, claim: dict[str, Any]) -> nodes.paragraph:
        pages = [Path(condition["source"]).parts[0] for condition in claim["conditions"]]
        page = next((page for page in pages if page in self.env.found_docs), None)
        if page is None:
            return nodes.paragraph("", claim["id"])
        children, _ = self.parse_inline(f"[{claim['id']}]({page}.md)")
        return nodes.paragraph("", "", *children)


class Verdict(ResultsDirective):
    """``{verdict} C1 [C9]``: what every experiment says about these claims."""

    required_arguments = 1
    optional_arguments = 8

    def run(self) -> list[nodes.Node]:
        claims = self.tables["claims"]
        boxes: list[nodes.Node] = []
        for claim_id in self.arguments:
            found = [name for name in sorted(claims) if claim_id in claims[name]]
            if claims and not found:
                return self.missing(f"no claims.json has a row {claim_id}")
            boxes += [self.box(name, claims[name][claim_id]) for name in found]
        return boxes or [nodes.paragraph("", NO_RESULTS)]

    def box(self, experiment: str, claim: dict[str, Any]) -> nodes.container:
        head = nodes.paragraph("", "", classes=["verdict-head"])
        head += [nodes.strong("", claim["id"]), nodes.Text(f" on {experiment}: ")]
        head += _badge(claim["verdict"])
        terms = nodes.definition_list()
        for term, content in [
            ("The paper's evidence", nodes.paragraph("", claim["paper"])),
            ("Measured here (n = " + _count(claim["n"]) + ")", _conditions(claim)),
        ]:
            terms += nodes.definition_list_item(
                "", nodes.term("", term), nodes.definition("", content)
            )
        return nodes.container("", head, terms, classes=["verdict", _class(claim["verdict"])])


class Provenance(ResultsDirective):
    """``{provenance} [experiment] question``: what made its results, and its notebooks.

    The runs of training have a question each, such as ``train/irevnet-0``.
    """

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        *experiments, question = self.arguments
        tables = self.tables["provenance"]
        runs = {name: self.find(tables[name], question) for name in sorted(tables)}
        for name in experiments:
            if name in runs and runs[name] is None:
                return self.missing(f"results/{name}/{question}/provenance.json is not there")
        found = [name for name in experiments or runs if runs.get(name)]
        boxes = [self.box(name, question, runs[name]) for name in found]
        return boxes or [nodes.paragraph("", NO_RESULTS)]

    @staticmethod
    def find(tree: dict[str, Any], question: str) -> dict[str, Any] | None:
        for part in question.split("/"):
            tree = tree.get(part, {})
        return tree or None

    def box(self, experiment: str, question: str, run: dict[str, Any]) -> nodes.container:
        folder = f"results/{experiment}/{question}"
        links = self.links(folder, question.split("/")[0])
        lines = [f"**{experiment}** {links}", f"`{run['command']}`", _summary(run)]
        paragraphs = [nodes.paragraph("", "", *self.parse_inline(line)[0]) for line in lines]
        return nodes.container("", *paragraphs, classes=["provenance"])

    def links(self, folder: str, question: str) -> str:
        links = []
        executed = f"{folder}/{question}"
        if executed in self.env.found_docs:
            links.append(f"[open the executed notebook]({executed}.ipynb)")
        for path, text in [
            (f"{executed}.ipynb", "download it"),
            (f"../notebooks/{question}.ipynb", "download its source"),
        ]:
            if Path(self.env.srcdir, path).exists():
                links.append(f"{{download}}`{text} <{path}>`")
        if (repository := os.environ.get("BOOK_REPOSITORY", "")) and links:
            binder = f"https://mybinder.org/v2/gh/{repository}/HEAD"
            links.append(f"[run it on Binder]({binder}?labpath=notebooks/{question}.ipynb)")
        return " \N{MIDDLE DOT} ".join(links)


class Targets(ResultsDirective):
    """``{targets}``: what the benchmarks were to reach on every device, and what they reached."""

    def run(self) -> list[nodes.Node]:
        devices = self.tables["benchmarks"]
        parts = [
            part
            for name, run in devices.items()
            if "targets" in run
            for part in (self.table(run), self.origin(name, run["provenance"]))
        ]
        return parts or [nodes.paragraph("", NO_RESULTS)]

    def table(self, run: dict[str, Any]) -> nodes.table:
        heads, widths = ["", "Goal", "Measured", ""], [42, 16, 20, 22]
        group = nodes.tgroup(cols=len(heads))
        group += [nodes.colspec(colwidth=width) for width in widths]
        head, body = nodes.thead(), nodes.tbody()
        head += _row(nodes.paragraph("", text) for text in heads)
        for target in run["targets"]:
            measured = target["measured"]
            shown = "\N{EN DASH}"
            if measured is not None:
                wrapped = Results("measured", measured) if isinstance(measured, dict) else measured
                shown = number(wrapped)
            children, _ = self.parse_inline(shown)
            cells = [nodes.paragraph("", text) for text in (target["what"], target["target"])]
            body += _row(
                [*cells, nodes.paragraph("", "", *children), nodes.paragraph("", "", _met(target))]
            )
        group += [head, body]
        device = run["device"].get("name") or f"CPU, {run['device'].get('threads')} threads"
        return nodes.table("", nodes.title("", device), group, classes=["targets"])

    def origin(self, name: str, provenance: dict[str, Any]) -> nodes.container:
        path = f"results/benchmarks/{name}/{BENCHMARK}"
        lines = [
            f"{{download}}`every number and round <{path}>`",
            f"`{provenance['command']}`",
            _summary(provenance),
        ]
        paragraphs = [nodes.paragraph("", "", *self.parse_inline(line)[0]) for line in lines]
        return nodes.container("", *paragraphs, classes=["provenance"])


def _met(target: dict[str, Any]) -> nodes.inline:
    words = {True: "reached", False: "not reached", None: "not measured here"}
    verdicts = {True: "reproduced", False: "not reproduced", None: "not tested here"}
    text = f"{SYMBOLS[verdicts[target['met']]]} {words[target['met']]}"
    return nodes.inline(text, text, classes=["verdict-badge", _class(verdicts[target["met"]])])


def _row(cells: Iterable[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", cell) for cell in cells))


def _class(verdict: str) -> str:
    return "verdict-" + re.sub(r"\W+", "-", verdict)


def _badge(verdict: str) -> nodes.inline:
    text = f"{SYMBOLS.get(verdict, '')} {verdict}".strip()
    return nodes.inline(text, text, classes=["verdict-badge", _class(verdict)])


def _count(n: int | None) -> str:
    return "\N{EN DASH}" if n is None else f"{n:,}"


def _conditions(claim: dict[str, Any]) -> nodes.bullet_list:
    """What was measured, the bound that was fixed before, and whether it holds."""
    answers = {True: "holds", False: "does not hold", None: "open"}
    items = nodes.bullet_list()
    for condition in claim["conditions"]:
        line = nodes.paragraph("", f"{condition['what']}: ")
        line += nodes.strong("", condition["measured"])
        line += nodes.Text(f"; rule: {condition['bound']}; ")
        line += nodes.emphasis("", answers[condition["holds"]])
        items += nodes.list_item("", line)
    return items


def _summary(run: dict[str, Any]) -> str:
    """Commit, time, hardware and versions of a run, as one line."""
    parts = []
    if run.get("commit"):
        changed = ", with uncommitted changes" if run.get("uncommitted_changes") else ""
        parts.append(f"commit `{run['commit'][:10]}`{changed}")
    started = datetime.fromisoformat(run["started"])
    parts.append(f"started {started:%Y-%m-%d %H:%M} UTC, took {run['seconds']:,.0f} s")
    parts.append(", ".join(run[key] for key in ("processor", "gpu", "system") if run.get(key)))
    parts.append(", ".join(f"{name} {version}" for name, version in run["versions"].items()))
    return "; ".join(parts)


def _load_results(app: Sphinx) -> None:
    tables, digest = load(Path(app.srcdir, "results"))
    app.env.results_tables = tables
    app.env.results_new_digest = digest
    config = copy.copy(app.env.myst_config)
    config.substitutions = {
        **config.substitutions,
        **{name: Results(name, table) for name, table in tables.items()},
        "number": number,
        "percent": percent,
    }
    app.env.myst_config = config


def _name_notebook(app: Sphinx, document: nodes.document) -> None:
    """Gives an executed notebook a title that tells it from its chapter in the contents."""
    match = re.fullmatch(r"results/([^/]+)/(?:[^/]+/)*([^/]+)/[^/]+", app.env.docname)
    titles = list(document.findall(nodes.title))
    if not match or not titles:
        return
    experiment, run = match.groups()
    question = titles[0].astext()
    what = f"run {run}" if "/train/" in app.env.docname else "executed notebook"
    title = f"{experiment}: {what}"
    titles[0].replace_self(nodes.title(title, title))
    section = document.next_node(nodes.section)
    section.insert(1, nodes.paragraph("", "", nodes.strong("", question)))


class _Outdated:
    """Names the pages to read again when a results file has changed."""

    uses_results: ClassVar = re.compile(
        r"\{\{|\{(claims|verdict|provenance|targets|family-table)\}"
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
    """Registers the directives and loads the results when a build starts."""
    app.add_directive("claims", ClaimsTable)
    app.add_directive("verdict", Verdict)
    app.add_directive("provenance", Provenance)
    app.add_directive("targets", Targets)
    app.connect("builder-inited", _load_results, priority=600)
    # Before the table of contents and the titles are collected, at 500.
    app.connect("doctree-read", _name_notebook, priority=400)
    app.connect("env-get-outdated", _Outdated())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
