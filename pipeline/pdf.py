"""Prints the book's pages into one PDF: ``python -m pipeline.pdf``.

Sphinx joins all pages into one, and Chromium prints it to ``book/_build/pdf/irevnet-book.pdf``.
Executed notebooks and the API reference are left out: they would add hundreds of pages that nobody
reads on paper. Links to files beside the HTML pages, such as notebooks to download, lead to the
published book (set by ``BOOK_REPOSITORY`` or ``BOOK_URL``, as for the HTML pages). Without a
published book, they become plain text.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import yaml
from bs4 import BeautifulSoup

from pipeline.params import ROOT

__all__ = ["main", "printed_pages", "with_links_that_lead_somewhere"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NOT_PRINTED = ("api",)
_SECONDS = 600


def printed_pages(contents: dict[str, Any]) -> dict[str, Any]:
    """The table of contents of the PDF, from the content of ``_toc.yml``."""
    parts = [
        {
            "caption": part["caption"],
            "chapters": [
                {"file": chapter["file"]}  # without the executed notebooks below it
                for chapter in part["chapters"]
                if chapter["file"] not in NOT_PRINTED
            ],
        }
        for part in contents["parts"]
    ]
    return {**contents, "parts": parts}


def with_links_that_lead_somewhere(page: str) -> str:
    """HTML whose links lead into itself, to the web, or to the published book.

    Args:
        page: HTML of one page. Its other links are relative to its canonical address, which the
            pages of a published book have; without one, they become plain text.
    """
    soup = BeautifulSoup(page, "html.parser")
    canonical = soup.select_one('link[rel="canonical"]')
    # This script turns pictures into links that enlarge them.
    for script in soup.select('script[src*="figures.js"]'):
        script.decompose()
    for link in soup.select("a[href]"):
        address = str(link["href"])
        if address.startswith(("#", "http://", "https://", "mailto:")):
            continue
        if canonical is not None:
            link["href"] = urljoin(str(canonical["href"]), address)
        else:
            link.unwrap()
    return str(soup)


def main() -> int:
    """Runs the command; returns the exit status."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"printing needs a browser: one of {', '.join(BROWSERS)}", file=sys.stderr)
        return 1
    book, target = ROOT / "book", ROOT / "book" / "_build" / "pdf" / "irevnet-book.pdf"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contents = folder / "toc.yml"
        text = (book / "_toc.yml").read_text(encoding="utf-8")
        contents.write_text(yaml.safe_dump(printed_pages(yaml.safe_load(text)), sort_keys=False))
        build: list[str | Path] = [
            Path(sys.executable).with_name("jupyter-book"),
            "build",
            "--quiet",
            book,
        ]
        build += ["--toc", contents, "--path-output", folder]
        build += ["--builder", "custom", "--custom-builder", "singlehtml"]
        page = folder / "_build" / "singlehtml" / "index.html"
        printed = folder / target.name
        # Some links have no target in the single page, and Sphinx warns about them.
        done = subprocess.run(build, capture_output=True, text=True, check=False)
        if done.returncode or not page.is_file():
            print(f"the book could not be built:\n{done.stdout}{done.stderr}", file=sys.stderr)
            return 1
        html = page.read_text(encoding="utf-8")
        page.write_text(with_links_that_lead_somewhere(html), encoding="utf-8")
        # Chromium's sandbox does not work as root, the usual user in containers.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        options += [
            "--headless",
            "--disable-gpu",
            "--no-pdf-header-footer",
            f"--user-data-dir={name}",
        ]
        options += ["--generate-pdf-document-outline", "--virtual-time-budget=60000"]
        try:
            done = subprocess.run(
                [browser, *options, f"--print-to-pdf={printed}", page.as_uri()],
                capture_output=True, text=True, check=False, timeout=_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"{browser} did not print the book in {_SECONDS} seconds", file=sys.stderr)
            return 1
        if done.returncode or not printed.is_file():
            print(f"{browser} could not print the book:\n{done.stderr}", file=sys.stderr)
            return 1
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(printed, target)
    print(f"The PDF: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
