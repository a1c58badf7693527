"""Keeps pages light: a page loads only the icons, mathematics and search that it uses.

The theme's icon file has two thousand icons, 1.4 MB on every page; the book shows a dozen of them.
A third of MathJax's single file is a menu; instead, only pages with mathematics load MathJax, in
parts. Only the page of search results needs the search index: the theme loads it everywhere for
search-as-you-type, which is off. Only pages with notebook cells, tabs or cards load their styles.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

__all__ = ["only", "setup", "used", "without_unused"]

# Font Awesome's data: a name, width, height, other names, code point and path or paths.
_ICON = re.compile(
    r'"?(?P<name>[a-z0-9-]+)"?:\[\d+,\d+,\[(?P<aliases>[^\]]*)\],"[0-9a-f]+",'
    r'(?:"[^"]*"|\[[^\]]*\])\],?'
)
# Scripts and styles, and the HTML that needs them.
_NEEDED_BY = {
    r"searchtools|language_data|searchindex": r'id="search-results"',
    r"mystnb": r'class="[^"]*\bcell',
    r"sphinx-design|design-tabs": r'class="[^"]*\bsd-',
}
_LOADS = r"\s*<(?:script|link rel=\"stylesheet\")[^>]*\b(?:{})\b[^>]*>(?:</script>)?"
_CLASS = re.compile(r"\bfa-([a-z0-9-]+)")


def used(texts: Iterable[str]) -> set[str]:
    """The names after ``fa-`` in pages, scripts and styles; some are sizes and styles."""
    return {name for text in texts for name in _CLASS.findall(text)}


def only(script: str, names: set[str]) -> str:
    """The theme's ``fontawesome.js`` with these icons alone.

    Args:
        script: its content.
        names: of icons, or their aliases.
    """

    def keep(icon: re.Match[str]) -> str:
        own = {icon["name"], *re.findall(r'"([a-z0-9-]+)"', icon["aliases"])}
        return icon[0] if own & names else ""

    return _ICON.sub(keep, script)


def without_unused(page: str) -> str:
    """A page's HTML without the scripts and styles that nothing in it needs."""
    for files, need in _NEEDED_BY.items():
        if not re.search(need, page):
            page = re.sub(_LOADS.format(files), "", page)
    return page


def _leave_out(app: Sphinx, error: Exception | None) -> None:
    out = Path(app.outdir)
    script = out / "_static" / "scripts" / "fontawesome.js"
    if error is not None or app.builder.format != "html" or not script.is_file():
        return
    for page in out.rglob("*.html"):
        page.write_text(without_unused(page.read_text(encoding="utf-8")), encoding="utf-8")
    files = [*out.rglob("*.html"), *(path for path in out.rglob("*.js") if path != script)]
    names = used(path.read_text(encoding="utf-8", errors="ignore") for path in files)
    script.write_text(only(script.read_text(encoding="utf-8"), names), encoding="utf-8")


def _load_parts(app: Sphinx, config: Config) -> None:
    config.mathjax_path = "mathjax/startup.js"
    loader = {"load": ["input/tex", "output/chtml", "a11y/assistive-mml"]}
    config.mathjax3_config = {**(config.mathjax3_config or {}), "loader": loader}


def _only_with_mathematics(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    has_any = doctree is not None and any(
        next(iter(doctree.findall(kind)), None) is not None
        for kind in (nodes.math, nodes.math_block, nodes.raw)
    )
    if not has_any:
        scripts = context["script_files"]
        context["script_files"] = [one for one in scripts if "mathjax" not in str(one).lower()]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sets what MathJax loads and where; removes unused files once the book is built."""
    app.connect("config-inited", _load_parts, priority=900)
    app.connect("html-page-context", _only_with_mathematics, priority=900)
    app.connect("build-finished", _leave_out)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
