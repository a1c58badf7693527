"""Removes the traces of a run from the notebooks' sources.

``python -m pipeline.strip_notebooks`` rewrites ``notebooks/*.ipynb`` (or the files named) without
outputs, execution counts and volatile metadata; with ``--check`` it changes nothing, names the
files that are not stripped and exits with 1. DVC hashes the working tree, so a notebook that was
run in place would otherwise make its stage look changed.

nbstripout removes the same things, but it renumbers the ids of all cells below an inserted one, and
it can remove the kernel's name but not set it (Jupyter then asks for a kernel).
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nbformat

__all__ = ["main", "strip_notebook", "stripped_text"]

# All that is kept: tags ("parameters", "remove-input"), and what myst-nb reads to place a figure.
_CELL_METADATA = ("mystnb", "tags")
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_CELL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # the notebook format's rule


def strip_notebook(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """A notebook in the form to commit.

    Args:
        notebook: the notebook's JSON, format 4; not changed.
        name: the notebook's name, for the ids of cells that have none.

    Returns:
        A notebook of format 4.5 with the sources, attachments, tags, figure settings and cell ids
        of ``notebook``. An id that is missing, malformed or used by a cell above is replaced by one
        made from ``name`` and the cell's position.
    """
    cells = notebook["cells"]
    taken = {cell.get("id") for cell in cells}
    seen: set[str] = set()
    stripped = []
    for index, cell in enumerate(cells):
        cell_id = cell.get("id")
        if not isinstance(cell_id, str) or not _CELL_ID.fullmatch(cell_id) or cell_id in seen:
            cell_id = _new_id(name, index, taken | seen)
        seen.add(cell_id)
        metadata = cell.get("metadata", {})
        clean = {
            "id": cell_id,
            "cell_type": cell["cell_type"],
            "metadata": {key: metadata[key] for key in _CELL_METADATA if metadata.get(key)},
            "source": cell["source"],
        }
        if cell.get("attachments"):
            clean["attachments"] = cell["attachments"]
        if cell["cell_type"] == "code":
            clean |= {"execution_count": None, "outputs": []}
        stripped.append(clean)
    return {"cells": stripped, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}


def stripped_text(path: Path) -> str:
    """The text of a notebook's file after stripping.

    Raises:
        ValueError: if the file is not a notebook of format 4.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if notebook["nbformat"] != 4:
            raise ValueError(f"nbformat must be 4, got {notebook['nbformat']}")
        stripped = nbformat.from_dict(strip_notebook(notebook, path.stem))
        nbformat.validate(stripped)
    except (KeyError, TypeError, ValueError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is not a notebook of format 4: {error!r}") from error
    return nbformat.writes(stripped) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.strip_notebooks")
    parser.add_argument("--check", action="store_true", help="change nothing, name the files")
    parser.add_argument("files", nargs="*", type=Path, help="default: all of notebooks/")
    options = parser.parse_args(arguments)
    notebooks = Path(__file__).resolve().parent.parent / "notebooks"
    try:
        changed = _changed(options.files or sorted(notebooks.glob("*.ipynb")))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in changed.items():
        if options.check:
            print(f"{path} is not stripped", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"stripped {path}")
    if changed and options.check:
        print("run: python -m pipeline.strip_notebooks", file=sys.stderr)
        return 1
    return 0


def _changed(paths: Iterable[Path]) -> dict[Path, str]:
    texts = {path: stripped_text(path) for path in paths}
    return {path: text for path, text in texts.items() if path.read_bytes() != text.encode()}


def _new_id(name: str, index: int, taken: set[Any]) -> str:
    stem = re.sub(r"[^a-zA-Z0-9_-]", "-", name)[:48]
    cell_id = f"{stem}-{index}"
    while cell_id in taken:
        cell_id += "x"
    return cell_id


if __name__ == "__main__":
    sys.exit(main())
