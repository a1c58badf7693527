"""Scripts and styles of directives, for the pages that use them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

__all__ = ["add_assets"]


def add_assets(app: Sphinx, folder: Path, used: Callable[[nodes.document], bool]) -> None:
    """Makes pages load the scripts and styles of a folder.

    Args:
        app: the application that is being set up.
        folder: of the ``.js`` and ``.css`` files.
        used: whether a page needs them.
    """

    def add_folder(app: Sphinx) -> None:
        app.config.html_static_path.append(str(folder))

    def add_files(
        app: Sphinx,
        page: str,
        template: str,
        context: dict[str, Any],
        doctree: nodes.document | None,
    ) -> None:
        if doctree is None or not used(doctree):
            return
        for path in sorted(folder.iterdir()):
            if path.suffix == ".js":
                app.add_js_file(path.name, loading_method="defer")
            elif path.suffix == ".css":
                app.add_css_file(path.name)

    app.connect("builder-inited", add_folder)
    app.connect("html-page-context", add_files)
