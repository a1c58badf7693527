"""Executed notebooks as appendices of the pages: with distinct titles, out of the reading order.

Their titles name question and experiment, their pictures have alternative texts, they show the
parameters they ran with and not the defaults, the links to the previous and next page skip them,
the search lists them below pages (``scorer.js``), and they are downloaded under names such as
``inversion-digits.ipynb``.
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

__all__ = ["setup"]

_NOTEBOOK = re.compile(r"results/([^/]+)/(?:[^/]+/)*([^/]+)/[^/]+")


def _name(app: Sphinx, document: nodes.document) -> None:
    """Gives a notebook a title that no other page has, and its pictures alternative texts."""
    match = _NOTEBOOK.fullmatch(app.env.docname)
    titles = list(document.findall(nodes.title))
    if not match or not titles:
        return
    experiment, run = match.groups()
    question = titles[0].astext()
    what = f"Training of {run}" if "/train/" in app.env.docname else run.capitalize()
    title = f"{what}, {experiment}, notebook"
    titles[0].replace_self(nodes.title(title, title))
    section = document.next_node(nodes.section)
    section.insert(1, nodes.paragraph("", "", nodes.strong("", question)))
    for number, image in enumerate(document.findall(nodes.image), start=1):
        image["alt"] = f"Picture {number} of the notebook: {_heading(image, question)}"
    cells = {name: _cells(document, name) for name in ("parameters", "injected-parameters")}
    if cells["injected-parameters"]:
        for cell in cells["parameters"]:
            cell.parent.remove(cell)


def _cells(document: nodes.document, tag: str) -> list[nodes.container]:
    """The cells of a notebook that have a tag, whose class is spelt ``tag_...`` or ``tag-...``."""
    name = nodes.make_id(f"tag_{tag}")
    return [
        cell
        for cell in document.findall(nodes.container)
        if name in map(nodes.make_id, cell["classes"])
    ]


def _heading(node: nodes.Node, question: str) -> str:
    """The heading above a node; the notebook's question below the title, which was replaced."""
    while not isinstance(node.parent, nodes.section):
        node = node.parent
    section = node.parent
    return question if section.parent == section.document else section[0].astext()


def _chain(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Makes the links to previous and next pages skip notebooks, which link only to their page."""
    relations = getattr(app.builder, "relations", {})
    if page not in relations:
        return
    if page.startswith("results/"):
        parent = relations[page][0]
        context.update(prev=_link(app, page, parent), next=None)
        return
    for place, name in ((1, "prev"), (2, "next")):
        other = relations[page][place]
        while other and other.startswith("results/"):
            other = relations[other][place]
        context[name] = _link(app, page, other)


def _link(app: Sphinx, page: str, other: str | None) -> dict[str, str] | None:
    if not other:
        return None
    title = app.builder.render_partial(app.env.titles[other])["title"]
    return {"link": app.builder.get_relative_uri(page, other), "title": title}


def _visit_download(self: HTML5Translator, node: addnodes.download_reference) -> None:
    """As Sphinx does, but with the name of the experiment in that of a notebook of its results."""
    HTML5Translator.visit_download_reference(self, node)
    path, _, suffix = node["reftarget"].rpartition(".")
    if suffix == "ipynb" and (match := _NOTEBOOK.fullmatch(path)):
        experiment, run = match.groups()
        self.body[-1] = self.body[-1].replace(
            'download=""', f'download="{run}-{experiment}.ipynb"', 1
        )


def _depart_download(self: HTML5Translator, node: addnodes.download_reference) -> None:
    HTML5Translator.depart_download_reference(self, node)


def _score(app: Sphinx) -> None:
    app.config.html_search_scorer = str(Path(__file__).with_name("scorer.js"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Renames notebooks before the titles are collected, and changes the order of pages."""
    # The table of contents and the titles are collected at 500.
    app.add_node(
        addnodes.download_reference, override=True, html=(_visit_download, _depart_download)
    )
    app.connect("builder-inited", _score)
    app.connect("doctree-read", _name, priority=400)
    app.connect("html-page-context", _chain)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
