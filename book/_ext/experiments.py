"""Parts of pages that repeat for each experiment, and numbers in alternative texts.

.. code-block:: text

    ::::{experiments} accuracy
    ## <title>

    {{ percent(results.<experiment>.accuracy.families.resnet.accuracy) }}
    ::::

appears once for each experiment that has results for the question, longest training first; without
results, the page says so. ``accuracy,train`` asks for results of both questions. ``<experiment>``
is the name of the section in ``params.yaml``, ``<title>`` the name that readers see, ``<epochs>``
the epochs of its networks. Further arguments limit the block to these experiments; of ``one|other``
it shows only the first that has results, so that a page changes over to an experiment as soon as it
is complete. A paragraph that begins with ``<one>`` or ``<one|other>`` appears only for these: it
says what their results show.

In the options of directives, where MyST does not substitute, ``{{ ... }}`` becomes plain text, so
that an ``alt`` can contain numbers.
"""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError
from sphinx.application import Sphinx
from sphinx.util import logging

from pipeline.answer import budget_of, title
from pipeline.notation import plain
from results import MissingResultError
from results_directives import NO_RESULTS, root

__all__ = ["expand", "setup"]

_BLOCK = re.compile(
    r"^(:{4,})\{experiments\} +(\S+)([^\n]*)\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL
)
# A paragraph for some experiments: the lines up to the next blank one.
_OWN = re.compile(r"^<(?!(?:experiment|title|epochs)>)([\w|]+)>[ \n]?((?:.+\n)+)", re.MULTILINE)
_OPTIONS = re.compile(
    r"^(`{3,}|:{3,})(\{[\w-]+\}[^\n]*)\n---\n(.*?)^---$", re.MULTILINE | re.DOTALL
)
logger = logging.getLogger(__name__)


def expand(source: str, results: dict[str, Any], repository: Path) -> str:
    """The source of a page with its blocks repeated for each experiment.

    Args:
        source: of the page.
        results: by experiment and question.
        repository: folder with ``params.yaml`` and ``results``.
    """

    def repeat(block: re.Match[str]) -> str:
        questions, only, body = block[2].split(","), block[3].split(), block[4]
        names = [name for name in results if set(questions) <= set(results[name])]
        if only:
            choices = (choice.split("|") for choice in only)
            names = [next(filter(names.__contains__, choice), "") for choice in choices]
        budgets = {name: budget_of(name, repository) for name in filter(None, names)}
        parts = []
        for name in sorted(budgets, key=lambda name: (-budgets[name].seconds, name)):
            words = {
                "experiment": name,
                "title": upper(title(name, repository)),
                "epochs": budgets[name].epochs_text(),
            }

            def choose(own: re.Match[str], name: str = name) -> str:
                return own[2] if name in own[1].split("|") else ""

            own = _OWN.sub(choose, body)
            for word, meaning in words.items():
                own = own.replace(f"<{word}>", meaning)
            parts.append(own)
        return "\n".join(parts) if parts or only else f"{NO_RESULTS}\n"

    return _BLOCK.sub(repeat, source)


def upper(text: str) -> str:
    """The text with a capital at the beginning."""
    return text[:1].upper() + text[1:]


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    if Path(app.env.doc2path(page)).suffix != ".md":
        return
    text = expand(source[0], app.env.results_tables["results"], root(app.srcdir))
    substitutions = app.env.myst_config.substitutions
    environment = Environment(undefined=StrictUndefined, autoescape=False)

    def render(options: re.Match[str]) -> str:
        try:
            shown = environment.from_string(options[3]).render(substitutions)
        except (MissingResultError, TemplateError) as error:
            logger.warning(str(error), location=page, type="results", subtype="missing")
            shown = re.sub(r"\{\{.*?\}\}", "", options[3])
        return f"{options[1]}{options[2]}\n---\n{plain(shown)}\n---"

    source[0] = _OPTIONS.sub(lambda match: render(match) if "{{" in match[3] else match[0], text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Rewrites pages as they are read."""
    app.connect("source-read", _read)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
