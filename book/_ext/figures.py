"""Shows how a figure was made, folded below it, and enlarges figures.

A figure from ``results/<experiment>/<question>/`` gets a line that unfolds into the stage's
command, its parameters, the commit, the hardware, the seconds, and the notebook's cell. The script
``_static/figures.js``, which Jupyter Book adds to every page, enlarges figures.
"""

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

__all__ = ["setup"]

_PICTURE = re.compile(r"results/([^/]+)/((?:[^/]+/)*?[^/]+)/([^/]+\.(?:png|svg))")


def _add_origins(app: Sphinx, document: nodes.document) -> None:
    for figure in document.findall(nodes.figure):
        image = next(iter(figure.findall(nodes.image)), None)
        match = image and _PICTURE.fullmatch(image["uri"].lstrip("/"))
        if not match:
            continue
        experiment, question, picture = match.groups()
        run = app.env.results_tables["provenance"].get(experiment, {})
        for part in question.split("/"):
            run = run.get(part, {})
        if run.get("command"):
            place = figure.parent.index(figure) + 1
            origin = _origin(app, experiment, question, picture, run)
            figure.parent.insert(place, origin)


def _origin(
    app: Sphinx, experiment: str, question: str, picture: str, run: dict[str, Any]
) -> nodes.container:
    """The folded lines below a figure."""
    page = f"results/{experiment}/{question}/{question.split('/')[0]}"
    parameters = run.get("parameters", {})
    shown = ", ".join(f"{name}: {json.dumps(value)}" for name, value in parameters.items())
    commit = (run.get("commit") or "none")[:10]
    hardware = run.get("gpu") or run.get("processor", "unknown hardware")
    lines = [
        f"<code>{escape(run['command'])}</code>",
        f"Parameters: {escape(shown)}",
        f"Commit {escape(commit)}, {escape(hardware)}, {run['seconds']:,.0f} s",
    ]
    if cell := _cell(Path(app.srcdir, f"{page}.ipynb"), picture):
        lines.append(f"Cell {cell} of the notebook")
    opened = "<details><summary>How this figure was made</summary>"
    container = nodes.container(classes=["origin"])
    container += nodes.raw("", opened + "<br>".join(lines), format="html")
    if page in app.env.found_docs:
        reference = addnodes.pending_xref(
            "",
            nodes.inline("", "The executed notebook"),
            refdomain="std",
            reftype="doc",
            reftarget=f"/{page}",
            refdoc=app.env.docname,
            refexplicit=True,
            refwarn=True,
        )
        container += nodes.paragraph("", "", reference)
    container += nodes.raw("", "</details>", format="html")
    return container


def _cell(notebook: Path, picture: str) -> int:
    """The number of the cell that names the picture's file; 0 if there is none."""
    if not notebook.is_file():
        return 0
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ("".join(cell["source"]) for cell in cells)
    return next((number for number, text in enumerate(sources, 1) if picture in text), 0)


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds origins to figures."""
    app.connect("doctree-read", _add_origins)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
