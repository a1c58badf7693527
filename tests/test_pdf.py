import pytest

from pipeline import pdf

CONTENTS = {
    "format": "jb-book",
    "root": "index",
    "parts": [
        {
            "caption": "Results",
            "chapters": [{"file": "accuracy", "sections": [{"glob": "results/*/accuracy"}]}],
        },
        {"caption": "Use it", "chapters": [{"file": "rerun"}, {"file": "api"}]},
    ],
}


def test_notebooks_and_the_api_are_not_printed():
    assert pdf.printed_pages(CONTENTS) == {
        "format": "jb-book",
        "root": "index",
        "parts": [
            {"caption": "Results", "chapters": [{"file": "accuracy"}]},
            {"caption": "Use it", "chapters": [{"file": "rerun"}]},
        ],
    }


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (None, "a notebook"),
        (
            "https://example.org/book/index.html",
            '<a href="https://example.org/book/_downloads/a.ipynb">a notebook</a>',
        ),
    ],
)
def test_links_to_files_beside_the_page_lead_to_the_published_book_or_nowhere(published, expected):
    head = f'<link href="{published}" rel="canonical"/>' if published else ""
    page = (
        f"{head}"
        '<p><a href="#document-idea">idea</a> <a href="https://arxiv.org/">paper</a> '
        '<a href="_downloads/a.ipynb">a notebook</a></p>'
    )
    assert pdf.with_links_that_lead_somewhere(page) == (
        f"{head}"
        '<p><a href="#document-idea">idea</a> <a href="https://arxiv.org/">paper</a> '
        f"{expected}</p>"
    )


def test_without_a_browser_it_says_what_is_needed(monkeypatch, capsys):
    monkeypatch.setattr(pdf.shutil, "which", lambda _: None)
    assert pdf.main() == 1
    assert "needs a browser: one of chromium," in capsys.readouterr().err
