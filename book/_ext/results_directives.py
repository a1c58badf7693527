"""Directives for results: ``claims``, ``verdict``, ``finding``, ``provenance``, ``targets``.

They read what :mod:`results` has loaded, and say so if there are no results yet.
"""

import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from pipeline.answer import SYMBOLS, finding, load_experiments, title
from pipeline.notation import counted, show_bound, show_metric
from results import BENCHMARK, Results, number

__all__ = ["NO_RESULTS", "ResultsDirective", "badge", "claim_page", "root", "setup", "table"]

Cell = str | nodes.Node | Sequence[nodes.Node]
"""A cell of a table: a text, a paragraph or list, or the nodes of a paragraph."""

NO_RESULTS = "There are no results in this repository yet."
logger = logging.getLogger(__name__)


def root(srcdir: str | Path) -> Path:
    """The repository to which ``results`` beside the pages belongs."""
    return Path(srcdir, "results").resolve().parent


def claim_page(srcdir: str | Path, claim_id: str) -> str | None:
    """The name of the page with the claim's verdict, without suffix; None if there is none."""
    pattern = re.compile(rf"^```+\{{verdict\}}.*\b{claim_id}\b", re.MULTILINE)
    pages = sorted(Path(srcdir).glob("*.md"))
    return next((page.stem for page in pages if pattern.search(page.read_text())), None)


class ResultsDirective(SphinxDirective):
    """What the directives share."""

    @property
    def tables(self) -> dict[str, Any]:
        """What :func:`load` has read."""
        return self.env.results_tables

    def title(self, experiment: str) -> str:
        """The name of an experiment's images."""
        return title(experiment, root(self.env.srcdir))

    def conditions(self, claim: dict[str, Any]) -> nodes.Element:
        """What was measured, the bound that was fixed beforehand, and whether it holds."""
        if not claim["conditions"]:
            return nodes.paragraph("", claim["note"])
        items = nodes.bullet_list()
        for condition in claim["conditions"]:
            measured, rule = (
                self.parse_inline(show(condition))[0] for show in (show_metric, show_bound)
            )
            line = nodes.paragraph("", f"{condition['what']}: ")
            line += nodes.strong("", "", *measured)
            line += [nodes.Text("; rule: "), *rule, nodes.Text("; ")]
            line += nodes.emphasis("", condition["state"])
            items += nodes.list_item("", line)
        return items

    def missing(self, message: str) -> list[nodes.Node]:
        """Warns that a page asks for missing results, and shows nothing."""
        logger.warning(message, location=self.get_location(), type="results", subtype="missing")
        return []


class ClaimsTable(ResultsDirective):
    """``{claims} [experiment]``: the table of its claims; without an argument, of every one."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        experiments = self.arguments or sorted(self.tables["claims"])
        shown = [name for name in experiments if name in self.tables["claims"]]
        if self.tables["claims"] and not shown:
            return self.missing(f"claims: there are none for {', '.join(experiments)}")
        return [self.table(name) for name in shown] or [nodes.paragraph("", NO_RESULTS)]

    def table(self, experiment: str) -> nodes.table:
        heads = ["Id", "The paper claims", "Verdict", "The paper's evidence", "Measured here", "n"]
        rows = [
            (
                self.link(claim),
                claim["claim"],
                [badge(claim["verdict"])],
                claim["paper"],
                self.conditions(claim),
                _count(claim["n"]),
            )
            for claim in self.tables["claims"][experiment].values()
        ]
        title = f"{self.title(experiment)} ({experiment})"
        return table(heads, rows, (5, 24, 12, 21, 33, 5), "claims", title)

    def link(self, claim: dict[str, Any]) -> nodes.paragraph:
        page = claim_page(self.env.srcdir, claim["id"])
        text = f"[{claim['id']}]({page}.md)" if page in self.env.found_docs else claim["id"]
        return nodes.paragraph("", "", *self.parse_inline(text)[0])


class Verdict(ResultsDirective):
    """``{verdict} C1 [C9]``: what every experiment says about these claims, a line each.

    The paper's evidence and the conditions are folded below the line.
    """

    required_arguments = 1
    optional_arguments = 8

    def run(self) -> list[nodes.Node]:
        claims = self.tables["claims"]
        lines: list[nodes.Node] = []
        for claim_id in self.arguments:
            shown = [name for name in sorted(claims) if claim_id in claims[name]]
            if claims and not shown:
                return self.missing(f"no claims.json has a row {claim_id}")
            lines += [node for name in shown for node in self.line(name, claims[name][claim_id])]
        if not lines:
            return [nodes.paragraph("", NO_RESULTS)]
        return [nodes.container("", *lines, classes=["verdicts"])]

    def line(self, experiment: str, claim: dict[str, Any]) -> list[nodes.Node]:
        head = nodes.inline("", "", classes=["verdict-head"])
        head += [nodes.strong("", claim["id"]), nodes.Text(f" on {self.title(experiment)} (")]
        head += [nodes.literal("", experiment), nodes.Text(") ")]
        head += badge(claim["verdict"])
        terms = nodes.definition_list()
        for term, content in [
            ("The paper's evidence", nodes.paragraph("", claim["paper"])),
            ("Measured here (n = " + _count(claim["n"]) + ")", self.conditions(claim)),
        ]:
            terms += nodes.definition_list_item(
                "", nodes.term("", term), nodes.definition("", content)
            )
        opened = f'<details class="verdict {_class(claim["verdict"])}"><summary>'
        return [
            nodes.raw("", opened, format="html"),
            head,
            nodes.raw("", "</summary>", format="html"),
            terms,
            nodes.raw("", "</details>", format="html"),
        ]


class Finding(ResultsDirective):
    """``{finding} [C1 C9]``: a sentence for each claim, with the number that decides it.

    The body is appended; without a claim, it is the whole finding.
    """

    optional_arguments = 4
    has_content = True

    def run(self) -> list[nodes.Node]:
        experiments = load_experiments(root(self.env.srcdir))
        findings = (finding(experiments, claim_id) for claim_id in self.arguments)
        text = " ".join(filter(None, [*findings, "\n".join(self.content)]))
        if not text:
            text = "Not tested here." if experiments else NO_RESULTS
        children = self.parse_inline(f"**Finding.** {text}")[0]
        return [nodes.container("", nodes.paragraph("", "", *children), classes=["finding"])]


class Provenance(ResultsDirective):
    """``{provenance} [experiment] question``: the origin of its results, and its notebooks.

    Each training run counts as a question, such as ``train/irevnet-0``.
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
        shown = [name for name in experiments or runs if runs.get(name)]
        boxes = [self.box(name, question, runs[name]) for name in shown]
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
    """``{targets}``: the goals of all benchmarks and what they reached, a table for each device.

    Without results from a GPU, a table lists what would be measured on one.
    """

    def run(self) -> list[nodes.Node]:
        devices = self.tables["benchmarks"]
        parts: list[nodes.Node] = []
        for name, device in devices.items():
            records = {file: record for file, record in self.records(device) if "targets" in record}
            if not records:
                continue
            rows = [target for record in records.values() for target in record["targets"]]
            parts.append(self.table(rows, _device(name, device)))
            parts += [self.origin(f"{name}/{file}", record) for file, record in records.items()]
        if parts and not any(name.startswith("cuda") for name in devices):
            parts += self.on_a_gpu()
        return parts or [nodes.paragraph("", NO_RESULTS)]

    @staticmethod
    def records(device: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """The files of a device; the contents of one are the entries of the device itself."""
        others = [
            (f"{stem}.json", content)
            for stem, content in device.items()
            if isinstance(content, dict) and "provenance" in content
        ]
        return [(BENCHMARK, device), *others]

    def on_a_gpu(self) -> list[nodes.Node]:
        """The goals that nobody has measured on a GPU, and the commands that would."""
        from benchmarks import targets, time_to_accuracy

        rows = [time_to_accuracy.target({}), *targets.targets({})]
        modules = ("time_to_accuracy", "memory_and_speed")
        commands = " and ".join(f"`python -m benchmarks.{name} --device cuda`" for name in modules)
        text = f"{commands} would measure these goals; no results from a GPU are here."
        return [self.table(rows, "A GPU"), nodes.paragraph("", "", *self.parse_inline(text)[0])]

    def table(self, targets: Sequence[dict[str, Any]], device: str) -> nodes.table:
        rows = []
        for target in targets:
            measured = target["measured"]
            shown = "\N{EN DASH}"
            if isinstance(measured, bool):
                shown = "yes" if measured else "no"
            elif measured is not None:
                wrapped = Results("measured", measured) if isinstance(measured, dict) else measured
                shown = number(wrapped)
            children, _ = self.parse_inline(shown)
            rows.append((target["what"], target["target"], children, [_met(target)]))
        return table(("", "Goal", "Measured", ""), rows, (42, 16, 20, 22), "targets", device)

    def origin(self, path: str, record: dict[str, Any]) -> nodes.container:
        provenance = record["provenance"]
        lines = [
            f"{{download}}`all numbers and rounds <results/benchmarks/{path}>`",
            f"`{provenance['command']}`",
            _summary(provenance),
        ]
        paragraphs = [nodes.paragraph("", "", *self.parse_inline(line)[0]) for line in lines]
        return nodes.container("", *paragraphs, classes=["provenance"])


def _device(name: str, device: dict[str, Any]) -> str:
    """The heading of a device's table; ``name`` is that of its folder."""
    if match := re.fullmatch(r"cpu-(\d+)-threads", name):
        return f"CPU, {counted(match[1], 'thread')}"
    return device.get("device", {}).get("name") or name


def _met(target: dict[str, Any]) -> nodes.inline:
    words = {True: "reached", False: "not reached", None: "not measured here"}
    verdicts = {True: "consistent", False: "inconsistent", None: "not tested here"}
    text = f"{SYMBOLS[verdicts[target['met']]]} {words[target['met']]}"
    return nodes.inline(text, text, classes=["verdict-badge", _class(verdicts[target["met"]])])


def table(
    heads: Sequence[Cell],
    rows: Sequence[Sequence[Cell]],
    widths: Sequence[int],
    name: str,
    title: str | None = None,
) -> nodes.table:
    """A table with a heading row.

    Args:
        heads: headings of the columns.
        rows: with one cell per column.
        widths: of the columns, relative to each other.
        name: CSS class of the table.
        title: shown above the table.
    """
    group = nodes.tgroup(cols=len(heads))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", _row(heads))
    group += nodes.tbody("", *map(_row, rows))
    titles = [] if title is None else [nodes.title("", title)]
    return nodes.table("", *titles, group, classes=[name])


def _row(cells: Sequence[Cell]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", _paragraph(cell)) for cell in cells))


def _paragraph(cell: Cell) -> nodes.Node:
    if isinstance(cell, nodes.Node):
        return cell
    return nodes.paragraph("", cell) if isinstance(cell, str) else nodes.paragraph("", "", *cell)


def _class(verdict: str) -> str:
    return "verdict-" + re.sub(r"\W+", "-", verdict)


def badge(verdict: str) -> nodes.inline:
    """A verdict as a word with a symbol, in its colour."""
    text = f"{SYMBOLS.get(verdict, '')} {verdict}".strip()
    return nodes.inline(text, text, classes=["verdict-badge", _class(verdict)])


def _count(n: int | None) -> str:
    return "\N{EN DASH}" if n is None else f"{n:,}"


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


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directives."""
    app.add_directive("claims", ClaimsTable)
    app.add_directive("finding", Finding)
    app.add_directive("verdict", Verdict)
    app.add_directive("provenance", Provenance)
    app.add_directive("targets", Targets)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
