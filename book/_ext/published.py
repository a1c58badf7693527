"""Extras of a published book: its address, sitemap, link previews, buttons to the repository.

A footer names the commit of the book and its day.

Only ``BOOK_REPOSITORY`` (``owner/name`` on GitHub) says where the repository is; ``BOOK_URL`` is
the address of the book, by default the repository's GitHub Pages. A build without them, such as
``make book``, has titles and descriptions for search engines, but no links that would lead nowhere.
"""

import os
import re
import subprocess
from html import escape
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

__all__ = ["footer", "mend", "settings", "setup"]


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
                "notebook_interface": "jupyterlab",
            },
        }
    if url:
        address = url.rstrip("/") + "/"
        chosen |= {"html_baseurl": address, "ogp_site_url": address}
        chosen["sitemap_url_scheme"] = "{link}"  # one language, one version
    return chosen


def footer(repository: str, commit: str, day: str) -> str:
    """HTML of the line below every page; empty without a commit."""
    if not commit:
        return ""
    shown = escape(commit[:10])
    if repository:
        shown = f'<a href="https://github.com/{repository}/commit/{escape(commit)}">{shown}</a>'
    return f"<p>Commit {shown}, {escape(day)}</p>"


def mend(buttons: list[dict[str, Any]]) -> None:
    """Changes the theme's buttons to addresses that exist on GitHub.

    ``book/results`` is a symbolic link, and leads nowhere there; the folder is ``results``.
    """
    for button in buttons:
        if "url" in button:
            button["url"] = button["url"].replace("/book/results/", "/results/")
        mend(button.get("buttons", []))


def _head() -> tuple[str, str]:
    """The commit at hand and its day; empty outside of a repository."""
    command = ["git", "log", "-1", "--format=%H %cs"]
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "", ""
    commit, day = outcome.stdout.split()
    return commit, day


def _mend(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    mend(context.get("header_buttons", []))


def _apply(app: Sphinx, config: Config) -> None:
    repository, url = (os.environ.get(f"BOOK_{name}", "") for name in ("REPOSITORY", "URL"))
    chosen = settings(repository, url)
    options = chosen.pop("html_theme_options", {})
    if chosen:  # a new commit would have a local build write every page again
        options["extra_footer"] = footer(repository, *_head())
    config.html_theme_options = config.html_theme_options | options
    for name, value in chosen.items():
        config[name] = value


def setup(app: Sphinx) -> dict[str, Any]:
    """Loads the extensions for publishing, with settings from the environment."""
    app.setup_extension("sphinxext.opengraph")
    if os.environ.get("BOOK_REPOSITORY") or os.environ.get("BOOK_URL"):
        app.setup_extension("sphinx_sitemap")  # it needs the address
    # Before the theme reads its options.
    app.connect("config-inited", _apply, priority=100)
    app.connect("html-page-context", _mend, priority=600)  # after the theme's own, at 501
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
