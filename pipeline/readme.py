"""Writes the results table of README.md, so that nobody types a number there.

``python -m pipeline.readme`` puts a table for each ``results/<experiment>/claims/claims.json``
between the markers in README.md; with ``--check`` it changes nothing and exits with 1 if the table
there is another.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main", "render_results", "replace_results"]

START, END = "<!-- results:start -->", "<!-- results:end -->"
ROOT = Path(__file__).resolve().parent.parent
_HEADER = "| | Claim | Paper | Here | n | Verdict |\n|---|---|---|---|---|---|"


def render_results(root: Path) -> str:
    """Markdown of all experiments' claims.

    Args:
        root: the repository. The ``source`` of a row lists files of results, relative to the
            experiment's folder, each with a ``provenance.json`` beside it.

    Returns:
        For each experiment a heading, a table with a row per claim, and a line for each machine
        that the rows were measured on.

    Raises:
        ValueError: if a file of results is damaged or incomplete; the message names it.
    """
    files = sorted(root.glob("results/*/claims/claims.json"))
    parts = [_render_experiment(root, file) for file in files]
    return "\n\n".join(parts) if parts else "No experiment has been run yet."


def replace_results(readme: str, results: str) -> str:
    """The text of README.md with ``results`` between the markers.

    Raises:
        ValueError: if the markers are not there once each and in order.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not end or START in rest or END in before + after:
        raise ValueError(f"README.md must hold {START} and then {END}, once each")
    return f"{before}{start}\n{results}\n{end}{after}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.readme")
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    try:
        new_text = replace_results(text, render_results(root))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if new_text == text:
        return 0
    if options.check:
        print(
            "README.md does not show the results as they are; run: python -m pipeline.readme",
            file=sys.stderr,
        )
        return 1
    path.write_text(new_text, encoding="utf-8", newline="\n")
    print("README.md: results table written")
    return 0


def _render_experiment(root: Path, file: Path) -> str:
    claims = _load(file)
    results = file.parent.parent.relative_to(root).as_posix()
    lines: list[str] = []
    machines: dict[str, list[str]] = {}  # the claims measured on each
    try:
        for row in claims["rows"]:
            folders = [Path(source).parent.as_posix() for source in row["source"]]
            claim_id = f"[{row['id']}]({results}/{folders[0]})" if folders else row["id"]
            for folder in folders:
                machine = _machine(_load(root / results / folder / "provenance.json"))
                machines.setdefault(machine, []).append(row["id"])
            ours = row["ours"].replace("; ", "<br>")
            texts = (row["claim"], row["paper"], ours, row["n"], row["verdict"])
            lines.append(f"| {' | '.join([claim_id, *(_cell(text) for text in texts)])} |")
        heading = f"### Experiment `{claims['experiment']}`"
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


def _machine(provenance: dict[str, Any]) -> str:
    versions = provenance["versions"]
    hardware = provenance["gpu"] or provenance["processor"]
    return f"{hardware} (Python {versions['python']}, PyTorch {versions['torch']})"


def _cell(value: object) -> str:
    """One cell of a Markdown table: on one line, its bars escaped."""
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def _load(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
