"""Extras of a published book: its address, sitemap, link previews, buttons to the repository.

Only ``BOOK_REPOSITORY`` (``owner/name`` on GitHub) says where the repository is; ``BOOK_URL`` is
the address of the book, by default the repository's GitHub Pages. A build without them, such as
``make book``, has titles and descriptions for search engines, but no links that would lead nowhere.
"""

import os
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

__all__ = ["settings", "setup"]


def settings(repository: str, url: str) -> dict[str, Any]:
    """Settings of Sphinx for a book at ``url`` from a repository ``owner/name`` on GitHub.

    Args:
        repository: empty if there is none.
        url: of the book; empty for the repository's GitHub Pages.

    Raises:
        ConfigError: if the repository is not ``owner/name`` or the address is not on the web.
    """
    if repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"BOOK_REPOSITORY must be owner/name on GitHub, got {repository!r}")
    if url and not re.fullmatch(r"https?://\S+", url):
        raise ConfigError(f"BOOK_URL must begin with http:// or https://, got {url!r}")
    chosen: dict[str, Any] = {}
    if repository:
        owner, name = repository.split("/")
        url = url or f"https://{owner.lower()}.github.io/{name}/"
        chosen["html_theme_options"] = {
            "repository_url": f"https://github.com/{repository}",
            "repository_branch": "main",
            "path_to_docs": "book",
            "use_repository_button": True,
            "use_issues_button": True,
            "use_source_button": True,
            "launch_buttons": {
                "binderhub_url": "https://mybinder.org",
                "colab_url": "https://colab.research.google.com",
                "notebook_interface": "jupyterlab",
            },
        }
    if url:
        address = url.rstrip("/") + "/"
        chosen |= {"html_baseurl": address, "ogp_site_url": address}
        chosen["sitemap_url_scheme"] = "{link}"  # one language, one version
    return chosen


def _apply(app: Sphinx, config: Config) -> None:
    chosen = settings(os.environ.get("BOOK_REPOSITORY", ""), os.environ.get("BOOK_URL", ""))
    config.html_theme_options = config.html_theme_options | chosen.pop("html_theme_options", {})
    for name, value in chosen.items():
        config[name] = value


def setup(app: Sphinx) -> dict[str, Any]:
    """Loads the extensions for publishing, with settings from the environment."""
    app.setup_extension("sphinxext.opengraph")
    if os.environ.get("BOOK_REPOSITORY") or os.environ.get("BOOK_URL"):
        app.setup_extension("sphinx_sitemap")  # it needs the address
    # Before the theme reads its options.
    app.connect("config-inited", _apply, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
