"""The built book: what its pages load, and how they look in a browser."""

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from browser import CHROMIUM, Browser

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "book" / "_build" / "html"
needs_book = pytest.mark.skipif(
    not (HTML / "index.html").is_file(), reason="the book is not built (make book)"
)
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and shutil.which("chromedriver")),
    reason="chromium or chromedriver is not installed",
)


def pages() -> list[str]:
    names = (path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html"))
    return sorted(name for name in names if not name.startswith("_")) or ["index.html"]


class Resources(HTMLParser):
    """Collects what a page loads, without the links for readers."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "poster") and tag != "a" and value:
                self.urls.append(value)


@needs_book
@pytest.mark.parametrize("page", pages())
def test_a_page_loads_nothing_from_a_network(page: str) -> None:
    resources = Resources()
    resources.feed((HTML / page).read_text())
    assert [url for url in resources.urls if re.match(r"(\w+:)?//", url)] == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    browser = None
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        browser = Browser(f"127.0.0.1:{port}", tmp_path_factory.mktemp("profile"))
        yield browser
    finally:
        if browser is not None:
            browser.call("DELETE", "")
        driver.terminate()
        driver.wait()


# Waits for mathematics and lazy images, then looks at the page.
LOOK = r"""
(async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((i) => i.decode().catch(() => null)));
  await document.fonts.ready;
  const article = (document.querySelector("article") || document.body).cloneNode(true);
  article.querySelectorAll("mjx-container, pre, code, script, style").forEach((e) => e.remove());
  const text = article.textContent;
  done({
    raw: text.match(/\|\s*(?:—|-{3,})\s*\||\\[a-zA-Z]+[ {^_(]|\\[()[\]]|\$[^$\n]+\$|\{\{/g) || [],
    errors: [...document.querySelectorAll("mjx-merror, .problematic, .system-message")]
      .map((e) => e.textContent),
    formulas: document.querySelectorAll(".math").length,
    set: document.querySelectorAll("mjx-container").length,
    missing: [...document.images].filter((i) => !i.naturalWidth).map((i) => i.src),
    unnamed: [...document.querySelectorAll("article img")].filter((i) => !i.alt).map((i) => i.src),
    loaded: [...document.scripts, ...document.querySelectorAll("link[rel=stylesheet]")]
      .map((element) => element.src || element.href).filter(Boolean),
    remote: performance.getEntriesByType("resource").map((e) => e.name)
      .filter((name) => !/^(file|data|blob):/.test(name)),
  });
})();
"""
# Limit for the scripts and styles of a page, uncompressed.
MOST_BYTES = 1_500_000


def weight(loaded: list[str]) -> int:
    """Bytes of the scripts and styles that a page has loaded."""
    return sum(Path(unquote(urlsplit(url).path)).stat().st_size for url in set(loaded))


CONTENT_WIDTH = "done(document.documentElement.scrollWidth);"


@needs_book
@needs_browser
@pytest.mark.parametrize("page", pages())
def test_a_page_reads_well(page: str, browser: Browser) -> None:
    browser.width(1280)
    browser.open(HTML / page)
    seen = browser.run(LOOK)
    assert seen["raw"] == []
    assert seen["errors"] == []
    assert seen["set"] == seen["formulas"]
    assert seen["missing"] == []
    assert seen["unnamed"] == []
    assert seen["remote"] == []
    assert weight(seen["loaded"]) < MOST_BYTES
    assert [entry["message"] for entry in browser.log() if entry["level"] == "SEVERE"] == []
    for width in (1920, 1280, 768, 390):
        browser.width(width)
        assert browser.run(CONTENT_WIDTH) <= width, "the page scrolls sideways"


# Runs axe-core (https://dequeuniversity.com/rules/axe/4.4) without five rules: four object to the
# lists that Sphinx writes for signatures and references, one to the theme's sidebar.
AXE = """
const still = document.createElement("style");
still.textContent = "* { transition: none !important; animation: none !important; }";
document.head.append(still);
requestAnimationFrame(() => axe.run(document, {
  runOnly: ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"],
  rules: {
    "definition-list": { enabled: false },
    "aria-allowed-role": { enabled: false },
    "aria-required-children": { enabled: false },
    "aria-roles": { enabled: false },
    "region": { enabled: false },
  },
  resultTypes: ["violations"],
}).then((results) => done(results.violations.map((v) => v.id + ": " +
  v.nodes.slice(0, 3).map((n) => `${n.html.slice(0, 160)} ${n.failureSummary}`).join(" | ")))));
"""


@needs_book
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", pages())
def test_a_page_has_no_barriers_that_axe_finds(page: str, scheme: str, browser: Browser) -> None:
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    browser.width(1280)
    browser.scheme(scheme)
    browser.open(HTML / page)
    browser.run(f"{axe}; done(null);")
    assert browser.run(AXE) == []


@needs_book
@needs_browser
def test_the_scorecard_and_the_goals_fit_a_telephone(browser: Browser) -> None:
    """All columns fit on the screen, because rows become cards."""
    for page, table in (("index.html", "scorecard"), ("memory.html", "targets")):
        browser.width(390)
        browser.open(HTML / page)
        badges, outside = browser.run(f"""
          const badges = [...document.querySelectorAll("table.{table} .verdict-badge")];
          done([badges.length, badges.filter((e) => e.getBoundingClientRect().right > 390).length]);
        """)
        assert badges > 0
        assert outside == 0, page


# Pages of the claims and of what lies beyond the paper.
RESULTS_PAGES = (
    "inversion accuracy jacobian interpolation separation dimensionality memory precision "
    "photographs metamers trivial stability"
)


@needs_book
@needs_browser
@pytest.mark.parametrize("page", RESULTS_PAGES.split())
def test_the_first_figure_of_a_page_is_near_its_top(page: str, browser: Browser) -> None:
    browser.width(1280)
    browser.open(HTML / f"{page}.html")
    top = browser.run("""
      (async () => {
        if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
        done(document.querySelector("article figure, article .slider").getBoundingClientRect().top);
      })();
    """)
    assert top <= 900


@needs_book
@needs_browser
def test_a_figure_opens_larger_and_closes_again(browser: Browser) -> None:
    browser.width(1280)
    browser.open(HTML / "jacobian.html")
    opened = browser.run("""
      const link = document.querySelector("a.enlarge");
      link.focus();
      link.click();
      const image = document.querySelector("dialog[open] img");
      done([image.src === link.href, image.alt === link.querySelector("img").alt]);
    """)
    assert opened == [True, True]
    closed = browser.run("""
      document.querySelector("dialog[open] button").click();
      const focused = document.activeElement.classList;
      done([document.querySelector("dialog[open]"), focused.contains("enlarge")]);
    """)
    assert closed == [None, True]


@needs_book
@needs_browser
def test_the_search_field_of_a_page_finds_pages_before_notebooks(browser: Browser) -> None:
    browser.width(1280)
    browser.open(HTML / "jacobian.html")
    browser.run("""
      const field = document.querySelector("form.bd-search input[type=search]");
      field.value = "interpolation";
      done(null);
      setTimeout(() => field.form.submit());
    """)
    shown = browser.run("""
      const look = () => {
        const links = [...document.querySelectorAll("#search-results li a")];
        const summary = document.querySelector(".search-summary, #search-results > p");
        if (links.length && /found/.test(summary?.textContent))
          done(links.map((link) => new URL(link.href).pathname));
        else setTimeout(look, 100);
      };
      look();
    """)
    of_notebooks = ["/results/" in path for path in shown]
    assert any(path.endswith("/html/interpolation.html") for path in shown)
    assert any(of_notebooks)
    assert of_notebooks == sorted(of_notebooks)
