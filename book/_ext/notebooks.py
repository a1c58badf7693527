"""Executed notebooks as appendices of the pages: with distinct titles, out of the reading order.

Their titles name question and experiment, their pictures have alternative texts, the links to the
previous and next page skip them, and the search lists them below pages (``scorer.js``).
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

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
        image["alt"] = f"Picture {number} of the notebook: {question}"


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


def _score(app: Sphinx) -> None:
    app.config.html_search_scorer = str(Path(__file__).with_name("scorer.js"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Renames notebooks before the titles are collected, and changes the order of pages."""
    # The table of contents and the titles are collected at 500.
    app.connect("builder-inited", _score)
    app.connect("doctree-read", _name, priority=400)
    app.connect("html-page-context", _chain)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
