"""Writes the results into README.md and results/README.md, so that nobody types a number there.

``python -m pipeline.readme`` puts the answer (a sentence and a picture) and the scorecard between
their markers in README.md, and writes results/README.md, with a table for each
``results/<experiment>/claims/claims.json``. With ``--check`` it changes nothing and exits with 1 if
one of the two files is out of date.
"""

import argparse
import sys
from collections.abc import Sequence
from os.path import normpath
from pathlib import Path
from typing import Any

from pipeline.answer import (
    SYMBOLS,
    Experiment,
    claims_of,
    clause,
    load_experiments,
    read_results,
    sentence,
    tested_on,
)
from pipeline.notation import show_bound, show_metric
from pipeline.questions import QUESTIONS

__all__ = ["main", "render_answer", "render_results", "render_scorecard", "replace"]

ROOT = Path(__file__).resolve().parent.parent
_HEADER = "| | Claim | Paper | Here | n | Verdict |\n|---|---|---|---|---|---|"
_TITLE = """# Results

Written by `python -m pipeline.readme` from the files here. Paper: what it claims and shows. Here:
what was measured, its interval in brackets, and the rule of [claims.yaml](../claims.yaml) behind
each number. n: trained networks, images, batches (C8b), depths (C8) or rounds of a benchmark (C10)
behind it. An id leads to the folder with the executed notebook, its numbers (`metrics.json`) and
their origin (`provenance.json`: command, commit, parameters, hardware, versions, time)."""


def render_answer(root: Path) -> str:
    """Markdown of one sentence with the verdicts, and the first experiment's reconstructions."""
    experiments = load_experiments(root)
    parts = [f"**{sentence(experiments)}**"]
    for experiment in experiments:
        picture = f"results/{experiment.name}/inversion/gallery.png"
        if (root / picture).is_file():
            alt = f"Test images, {experiment.title}, and what the inverses return for them"
            parts.append(f"![{alt}]({picture})")
            parts.append(
                f"*Test images ({experiment.title}), and what the inverses of trained networks "
                "return from their last representation.*"
            )
            break
    return "\n\n".join(parts)


def render_scorecard(root: Path) -> str:
    """Markdown of a table: a claim in each row, a column for each experiment."""
    experiments = load_experiments(root)
    claims = claims_of(experiments)
    if not claims:
        return "No experiment has been run yet."
    heads = ["", "Claim", *(f"{one.title}, `{one.name}`" for one in experiments)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for claim_id, row in claims.items():
        badges = (_badge(root, one, claim_id) for one in experiments)
        lines.append(f"| {' | '.join([claim_id, _cell(clause(row)), *badges])} |")
    return "\n".join([*lines, "", tested_on(experiments)])


def render_results(root: Path) -> str:
    """Markdown of all experiments' claims, with links relative to ``results/``.

    Args:
        root: the repository. The ``source`` of a row lists result files, relative to the
            experiment's folder, each with a ``provenance.json`` beside it; a benchmark's file
            contains its own provenance.

    Returns:
        For each experiment a heading, a table with a row per claim, and a line for each machine
        that the rows were measured on.

    Raises:
        ValueError: if a result file is damaged or incomplete; the message names it.
    """
    files = sorted(root.glob("results/*/claims/claims.json"))
    parts = [_render_experiment(root, file) for file in files]
    return "\n\n".join(parts) if parts else "No experiment has been run yet."


def replace(readme: str, name: str, content: str) -> str:
    """The text of README.md with ``content`` between the markers of ``name``.

    Raises:
        ValueError: if a marker is missing or repeated, or the two are in the wrong order.
    """
    start_marker, end_marker = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, start, following = readme.partition(start_marker)
    _, end, after = following.partition(end_marker)
    if not end or start_marker in following or end_marker in before + after:
        raise ValueError(f"README.md must hold {start_marker} and then {end_marker}, once each")
    return f"{before}{start}\n{content}\n{end}{after}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.readme")
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    try:
        readme = (root / "README.md").read_text(encoding="utf-8")
        readme = replace(readme, "answer", render_answer(root))
        readme = replace(readme, "scorecard", render_scorecard(root))
        texts = {"README.md": readme, "results/README.md": f"{_TITLE}\n\n{render_results(root)}\n"}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for name, text in texts.items():
        path = root / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if options.check:
            print(
                f"{name} is not up to date; run: python -m pipeline.readme",
                file=sys.stderr,
            )
            return 1
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}: results written")
    return 0


def _badge(root: Path, experiment: Experiment, claim_id: str) -> str:
    """The verdict, with a link to the executed notebook that it rests on."""
    verdict = experiment.verdict(claim_id)
    if verdict == "not tested here":
        return f"{SYMBOLS[verdict]} not tested"
    (row,) = [row for row in experiment.rows if row["id"] == claim_id]
    named = (condition["metric"].partition(".")[0] for condition in row["conditions"])
    question = next((name for name in named if name in QUESTIONS), "claims")
    notebook = f"results/{experiment.name}/{question}/{question}.ipynb"
    text = f"{SYMBOLS.get(verdict, '')} {verdict}".strip()
    return f"[{text}]({notebook})" if (root / notebook).is_file() else text


def _render_experiment(root: Path, file: Path) -> str:
    claims = read_results(file)
    results = file.parent.parent
    lines: list[str] = []
    machines: dict[str, list[str]] = {}  # ids of the claims measured on each
    try:
        for row in claims["rows"]:
            sources = [Path(normpath(results / source)) for source in row["source"]]
            claim_id = row["id"]
            if sources:
                folder = sources[0].parent.relative_to(results.parent)
                claim_id = f"[{claim_id}]({folder.as_posix()})"
            for source in sources:
                machines.setdefault(_machine(_provenance(source)), []).append(row["id"])
            ours = "<br>".join(map(_condition, row["conditions"])) or row.get("note", "")
            texts = (row["claim"], row["paper"], ours, row["n"], row["verdict"])
            lines.append(f"| {' | '.join([claim_id, *(_cell(text) for text in texts)])} |")
        heading = f"## Experiment `{claims['experiment']}`"
    except KeyError as error:
        raise ValueError(f"{file}, or a provenance.json of its rows, lacks {error}") from error
    if len(machines) == 1:
        measured = f"Measured on {next(iter(machines))}."
    else:
        measured = "\n".join(
            f"- {', '.join(dict.fromkeys(ids))}: measured on {machine}."
            for machine, ids in machines.items()
        )
    return "\n\n".join([heading, "\n".join([_HEADER, *lines]), measured]).rstrip()


def _provenance(source: Path) -> dict[str, Any]:
    """The provenance of a result: from the file beside it, or from a benchmark's own file."""
    if source.parent.parent.name == "benchmarks":
        return read_results(source)["provenance"]
    return read_results(source.parent / "provenance.json")


def _machine(provenance: dict[str, Any]) -> str:
    versions = provenance["versions"]
    hardware = provenance["gpu"] or provenance["processor"]
    return f"{hardware} (Python {versions['python']}, PyTorch {versions['torch']})"


def _condition(condition: dict[str, Any]) -> str:
    return f"{condition['what']}: {show_metric(condition)}; rule: {show_bound(condition)}"


def _cell(value: object) -> str:
    """One cell of a Markdown table: on one line, its bars escaped."""
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
