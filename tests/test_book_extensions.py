"""The book's extensions, on small made-up results."""

import html
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from browser import CHROMIUM, dump_dom
from pipeline.notebook import Results

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def extension() -> Iterator[ModuleType]:
    folder = str(ROOT / "book" / "_ext")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("results")
    finally:
        sys.path.remove(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of two experiments, one of which has claims."""
    write(
        tmp_path / "results/toy/inversion/metrics.json",
        {"i-revnet": {"error": {"value": 2.5e-6, "low": 2e-6, "high": 3e-6, "n": 12}}, "n": 1797},
    )
    write(
        tmp_path / "results/toy/inversion/provenance.json",
        {
            "command": "python -m pipeline.run inversion --experiment toy",
            "commit": "0123456789abcdef",
            "uncommitted_changes": True,
            "started": "2025-01-02T03:04:05+00:00",
            "seconds": 12.3,
            "processor": "2 x A processor",
            "gpu": None,
            "system": "Linux x86_64",
            "versions": {"python": "3.11.9", "torch": "2.15.0"},
        },
    )
    write(tmp_path / "results/toy/train/resnet-0/metrics.json", {"accuracy": 0.5})
    write(tmp_path / "results/other/data/metrics.json", {"images": 3})
    condition = {
        "what": "mean error",
        "measured": "2.5e-06 [2e-06, 3e-06]",
        "metric": "inversion.i-revnet.error",
        "unit": "number",
        "value": 2.5e-6,
        "low": 2e-6,
        "high": 3e-6,
        "bound": "at most 5e-06",
        "source": "inversion/metrics.json",
        "state": "holds",
    }
    failed = condition | {"what": "largest <error>", "value": 1.0, "low": 1, "high": 1}
    failed["state"] = "open"
    row = {
        "id": "C1",
        "claim": "The input is recovered.",
        "paper": "about 5e-6",
        "n": 1797,
        "verdict": "inconclusive",
        "conditions": [condition, failed],
    }
    write(tmp_path / "results/toy/claims/claims.json", {"experiment": "toy", "rows": [row]})
    return tmp_path


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def view(extension: ModuleType, folder: Path) -> Any:
    tables, _ = extension.load(folder / "results")
    return extension.Results("results", tables["results"])


def estimate(extension: ModuleType, value: float, low: float, high: float) -> Any:
    return extension.Results("estimate", {"value": value, "low": low, "high": high})


def test_results_are_found_by_attribute(extension: ModuleType, folder: Path) -> None:
    results = view(extension, folder)
    assert results.toy.inversion.n == 1797
    assert results.toy.inversion.i_revnet.error.n == 12
    assert results.toy.inversion["i-revnet"].error.value == 2.5e-6
    assert results.toy.train.resnet_0.accuracy == 0.5


def test_a_missing_result_is_named(extension: ModuleType, folder: Path) -> None:
    results = view(extension, folder)
    with pytest.raises(extension.MissingResultError, match=r"results\.toy\.inversion\.wrong .*n$"):
        _ = results.toy.inversion.wrong
    with pytest.raises(extension.MissingResultError, match=r"results\.cifar10 .*other, toy"):
        _ = results.cifar10.inversion
    with pytest.raises(extension.MissingResultError, match=r"results\.toy is not a number"):
        str(results.toy)


def test_numbers_are_formatted(extension: ModuleType, folder: Path) -> None:
    error = view(extension, folder).toy.inversion.i_revnet.error
    assert extension.number(1797) == "1,797"
    assert extension.number(0.12345) == "0.123"
    assert extension.number(1234.5) == "1,234"
    assert extension.number(2.5e-6) == r"$2.50 \times 10^{-6}$"
    assert extension.percent(0.97777) == "97.8%"
    assert extension.number(error, 2) == r"$2.5\ (2.0 \text{ to } 3.0) \times 10^{-6}$"
    assert extension.percent(estimate(extension, 0.978, 0.971, 0.984)) == (
        "97.8% (97.1%\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}98.4%)"
    )
    assert extension.number(estimate(extension, 2.0, 2.0, 2.0)) == "2.00"


def test_a_metric_of_several_runs_has_a_mean(extension: ModuleType, folder: Path) -> None:
    write(folder / "results/toy/train/resnet-1/metrics.json", {"accuracy": 0.75})
    write(folder / "results/toy/train/resnet_wide-0/metrics.json", {"accuracy": 0.1})
    train = view(extension, folder).toy.train
    assert extension.mean_of_runs(train, "resnet", "accuracy") == 0.625
    with pytest.raises(extension.MissingResultError, match=r"no training runs of revnet"):
        extension.mean_of_runs(train, "revnet", "accuracy")
    with pytest.raises(extension.MissingResultError, match=r"toy\.train\.resnet-0\.loss is not"):
        extension.mean_of_runs(train, "resnet", "loss")


def test_finished_runs_are_counted_among_those_of_params_yaml(extension: ModuleType) -> None:
    results = {"digits": {"train": {"irevnet-0": {}, "resnet-4": {}, "of_old-0": {}}}}
    assert extension.finished(results, "digits") == "2 of 25"
    assert extension.finished(results, "cifar10_released") == "0 of 2"
    assert extension.finished(results, "ilsvrc2012") == ""  # its network was trained by others


def test_accuracies_are_listed_by_family(extension: ModuleType, folder: Path) -> None:
    for run, accuracy in (("irevnet-0", 0.75), ("irevnet-1", 0.25), ("zeros_4-0", 0.875)):
        write(folder / f"results/toy/train/{run}/metrics.json", {"accuracy": accuracy})
    assert extension.by_family(view(extension, folder).toy.train, "accuracy") == (
        "50.0% (i-RevNet, injective), 50.0% (ResNet) and 87.5% (zeros 4)"
    )


def test_verdicts_are_those_of_experiments_that_test_the_claim(extension: ModuleType) -> None:
    claims = {
        "b": {"C1": {"verdict": "consistent"}, "C2": {"verdict": "inconclusive"}},
        "a": {"C1": {"verdict": "inconsistent"}, "C2": {"verdict": "not tested here"}},
    }
    assert extension.verdicts(claims, "C1") == "`a`: inconsistent; `b`: consistent"
    assert extension.verdicts(claims, "C2", "C3") == "C2: `b`: inconclusive. C3: not tested here"


def test_values_and_intervals_can_be_shown_apart(extension: ModuleType, folder: Path) -> None:
    error = view(extension, folder).toy.inversion.i_revnet.error
    assert extension.show_number(error, 2).apart() == (
        r"$2.5 \times 10^{-6}$",
        r"$(2.0 \text{ to } 3.0) \times 10^{-6}$",
    )
    share = estimate(extension, 0.978, 0.971, 0.984)
    assert extension.show_percent(share).apart() == (
        "97.8%",
        "(97.1\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}98.4%)",
    )
    assert extension.show_number(1797).apart() == ("1,797", "")
    assert extension.show_number(2.5e-6).apart() == (r"$2.50 \times 10^{-6}$", "")


def test_the_digest_follows_contents(extension: ModuleType, folder: Path) -> None:
    before = extension.load(folder / "results")[1]
    (folder / "results/toy/inversion/metrics.json").touch()
    assert extension.load(folder / "results")[1] == before
    write(folder / "results/other/data/metrics.json", {"images": 4})
    assert extension.load(folder / "results")[1] != before


def build(folder: Path, page: str) -> tuple[str, str]:
    """The built page and the warnings, of a small Sphinx project in a process of its own."""
    (folder / "index.md").write_text(f"# Page\n\n{page}\n")
    (folder / "inversion.md").write_text("---\norphan: true\n---\n\n# Inversion\n")
    (folder / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
        "extensions = ['myst_parser', 'answer', 'experiments', 'results_table', 'recipe', "
        "'figures', 'notebooks', 'printed', 'results', 'results_directives', 'slider']\n"
        "myst_enable_extensions = ['colon_fence', 'substitution', 'dollarmath']\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "--color", "-b", "html", ".", "_build"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    built = (folder / "_build/index.html").read_text()
    body = built[built.index('<div class="body"') : built.index('<div class="sphinxsidebar"')]
    return re.sub(r"\s+", " ", body), outcome.stderr


def test_directives(folder: Path) -> None:
    write(folder / "results/toy/inversion/inversion.ipynb", {"cells": []})
    page, warnings = build(
        folder,
        "{{ number(results.toy.inversion.n) }} images.\n\n"
        "```{claims}\n```\n\n```{verdict} C1\n```\n\n```{provenance} inversion\n```\n\n"
        "```{provenance} cifar10 inversion\n```\n",
    )
    assert warnings == ""
    assert 'download="inversion-toy.ipynb"' in page
    assert "1,797 images" in page
    table = page[page.index("<table") : page.index("</table>")]
    for text in ("C1", "The input is recovered.", "about 5e-6", "inconclusive"):
        assert text in table
    table = re.sub("<[^>]*>", "", table)
    assert (
        r"mean error: \(2.50\ (2.00 \text{ to } 3.00) \times 10^{-6}\); "
        r"rule: at most \(5 \times 10^{-6}\); holds"
    ) in table
    assert r"largest &lt;error&gt;: 1; rule: at most \(5 \times 10^{-6}\); open" in table
    below_table = page[page.index("</table>") :]
    assert '<details class="verdict verdict-inconclusive"><summary>' in below_table
    assert "n = 1,797" in below_table
    below_table = re.sub("<[^>]*>", "", below_table)
    assert "python -m pipeline.run inversion --experiment toy" in below_table
    assert "0123456789" in below_table
    assert "with uncommitted changes" in below_table
    assert "started 2025-01-02 03:04 UTC, took 12 s" in below_table
    assert "2 x A processor, Linux x86_64; python 3.11.9, torch 2.15.0" in below_table
    assert "There are no results in this repository yet." in below_table


def test_the_answer_and_the_scorecard(folder: Path) -> None:
    write(folder / "results/toy/inversion/gallery.png", {})
    (folder / "inversion.md").write_text("")
    page, warnings = build(
        folder,
        "```{finding} C1\n```\n\n```{answer}\n```\n\n```{reconstructions}\n```\n\n"
        "```{scorecard}\n```\n\n```{tested-on}\n```\n\n```{verdict} C1\n```\n",
    )
    assert warnings == ""
    text = re.sub("<[^>]*>", "", page)
    assert (
        "Finding. C1 is inconclusive on toy: largest &lt;error&gt; 1 (rule: at most "
        r"\(5 \times 10^{-6}\))."
    ) in text
    assert "We tested 1 claim of the paper. On toy: 1 inconclusive." in text
    assert "_images/gallery.png" in page
    assert "The input is recovered" in text
    # The heading of the column is in its cells, too, for pages too narrow for columns.
    assert re.search(r"The input is recovered\s+toy: . inconclusive", text)
    assert "toy (toy). Nothing was tested on ILSVRC-2012 with its thousand classes" in text


def test_a_figure_unfolds_how_it_was_made(folder: Path) -> None:
    (folder / "results/toy/inversion/error.png").touch()
    cells = [{"source": ["x"]}, {"source": ["results.save_figure(figure, ", '"error.png")']}]
    write(folder / "results/toy/inversion/inversion.ipynb", {"cells": cells})
    page, warnings = build(
        folder, "```{figure} results/toy/inversion/error.png\n:alt: Errors\nA caption.\n```\n"
    )
    assert warnings == ""
    origin = page[page.index("How this figure was made") :]
    for text in (
        "python -m pipeline.run inversion --experiment toy",
        "Commit 0123456789, 2 x A processor, 12 s",
        "Cell 2 of the notebook",
    ):
        assert text in origin


def test_notebooks_are_appendices(folder: Path) -> None:
    notebook = "# What comes back?\n\n```{image} error.png\n:alt: 0a1b\n```\n"
    cells = "".join(
        f":::{{container}} cell tag_{tag}\n{tag} here\n:::\n\n"
        for tag in ("parameters", "injected-parameters")
    )
    section = "\n## A section\n\n```{image} error.png\n```\n"
    (folder / "results/toy/inversion/inversion.md").write_text(f"{notebook}\n{cells}{section}")
    (folder / "results/toy/inversion/error.png").touch()
    (folder / "last.md").write_text("# Last\n")
    build(folder, "```{toctree}\nresults/toy/inversion/inversion\nlast\n```\n")
    built = (folder / "_build/results/toy/inversion/inversion.html").read_text()
    assert "<title>Inversion, toy, notebook" in built
    assert "<strong>What comes back?</strong>" in built
    assert 'alt="Picture 1 of the notebook: What comes back?"' in built
    assert 'alt="Picture 2 of the notebook: A section"' in built
    assert "<p>injected-parameters here" in built
    assert "<p>parameters here" not in built
    assert 'title="Last"\n             accesskey="N"' not in built
    last = (folder / "_build/last.html").read_text()
    assert 'title="Inversion' not in last
    assert "results/" in (folder / "_build/_static/language_data.js").read_text()


def test_without_results_the_first_page_says_so(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    page, warnings = build(
        tmp_path,
        "```{answer}\n```\n\n```{reconstructions}\n```\n\n```{scorecard}\n```\n\n"
        "```{finding} C1\n```\n",
    )
    assert warnings == ""
    assert page.count("There are no results in this repository yet.") == 2
    assert "No experiment has been run yet." in page


def test_benchmarks_by_device(folder: Path) -> None:
    run = json.loads((folder / "results/toy/inversion/provenance.json").read_text())
    write(
        folder / "results/benchmarks/cpu-3-threads/memory_and_speed.json",
        {
            "provenance": run | {"command": "python -m benchmarks.memory_and_speed"},
            "device": {"type": "cpu", "threads": 3},
            "targets": [
                {
                    "what": "Step time",
                    "target": "at most 1.30",
                    "measured": {"value": 1.25, "low": 1.2, "high": 1.5, "n": 5},
                    "met": True,
                },
                {"what": "Error", "target": "at most 1e-5", "measured": 2e-4, "met": False},
                {"what": "Bytes", "target": "at least 10", "measured": None, "met": None},
            ],
        },
    )
    write(
        folder / "results/benchmarks/cpu-1-threads/jacobian.json",
        {
            "provenance": run | {"command": "python -m benchmarks.jacobian"},
            "times": {"value": 2.5, "low": 2, "high": 3},
            "targets": [{"what": "Bits", "target": "yes", "measured": True, "met": True}],
        },
    )
    page, warnings = build(
        folder,
        "{{ benchmarks.cpu_3_threads.targets[1].measured }}\n\n"
        "{{ number(benchmarks.cpu_1_threads.jacobian.times.value, 2) }} times\n\n"
        "```{targets}\n```\n",
    )
    assert warnings == ""
    assert "<p>0.0002</p>" in page
    assert "2.5 times" in page
    rows = [re.sub("<[^>]*>", " ", row) for row in page.split("<tr")]
    shown = [re.sub(r"\s+", " ", row) for row in rows]
    assert any("Step time at most 1.30 1.25 (1.20 to 1.50) ✓ reached" in row for row in shown)
    assert any("Error at most 1e-5" in row and "not reached" in row for row in shown)
    nothing = "Bytes at least 10 \N{EN DASH} \N{EN DASH} not measured here"
    assert any(nothing in row for row in shown)
    assert any("Bits yes yes ✓ reached" in row for row in shown)
    assert any("trained in 120 s or less at least 0.945" in row for row in shown)
    assert re.findall('<span class="caption-text">(.*?)</span>', page) == [
        "CPU, 1 thread",
        "CPU, 3 threads",
        "A GPU",
    ]
    text = re.sub("<[^>]*>", "", page)
    assert "python -m benchmarks.jacobian" in text
    assert "python -m benchmarks.memory_and_speed --device cuda" in text
    write(folder / "results/benchmarks/cuda-h200/jacobian.json", {})
    assert "A GPU" not in build(folder, "```{targets}\n```\n")[0]


def test_missing_results_are_named_in_a_warning(folder: Path) -> None:
    _, warnings = build(
        folder,
        "{{ results.toy.inversion.wrong }}\n\n```{verdict} C7\n```\n\n"
        "```{provenance} toy jacobian\n```\n",
    )
    assert "results.toy.inversion.wrong is not in any results file" in warnings
    assert "no claims.json has a row C7" in warnings
    assert "results/toy/jacobian/provenance.json is not there" in warnings


def test_pages_follow_the_results(folder: Path) -> None:
    page, _ = build(folder, "{{ results.other.data.images }} images")
    assert "3 images" in page
    write(folder / "results/other/data/metrics.json", {"images": 4})
    page, _ = build(folder, "{{ results.other.data.images }} images")
    assert "4 images" in page


# --- tables by family -----------------------------------------------------------------------------


@pytest.fixture
def families(folder: Path) -> Path:
    """Results of three families, not in the book's order, and of one at another place."""
    share = {"value": 0.978, "low": 0.971, "high": 0.984, "n": 540}
    write(
        folder / "results/toy/separation/metrics.json",
        {
            "resnet": {"svm": share | {"low": 0.9}, "rank": 0.12345, "noise": {"n": [7, 1797]}},
            "pixels": {"svm": 0.5},
            "irevnet": {"svm": share, "rank": 2.5e-6, "noise": {"n": [7, 64]}},
            "irevnet_bijective": {
                "svm": share | {"low": 0.978, "high": 0.978},
                "rank": 1,
                "noise": {"n": [7, 8]},
                "largest": 4.5,
            },
            "found": {"revnet": {"state": "exact"}, "irevnet_ignored": {"state": "lost"}},
            "images": 540,
        },
    )
    return folder


def table(page: str) -> list[list[str]]:
    """The text of the cells, by row; a star marks headings."""
    body = page[page.index('<table class="results-table') : page.index("</table>")]
    rows = [re.findall(r"<t([hd])[^>]*>(.*?)</t[hd]>", row) for row in body.split("<tr")[1:]]
    return [
        ["*" * (kind == "h") + html.unescape(re.sub("<[^>]*>", "", text)) for kind, text in row]
        for row in rows
    ]


def test_a_table_has_a_row_for_each_family(families: Path) -> None:
    page, warnings = build(
        families,
        "```{results-table} toy separation\n"
        ":corner: of {{ results.toy.inversion.n }}\n"
        "$L$, *SVM*: percent(svm)\n"
        "'rank: 2': number(rank, 2)\n"
        "n: number(noise.n[-1])\n"
        "as it is: noise.n[0]\n"
        "largest: {irevnet_bijective: number(largest)}\n```\n",
    )
    assert warnings == ""
    assert '97.8% <span class="interval">(97.1 to 98.4%)</span>' in page
    assert table(page) == [
        ["*of 1797", r"*\(L\), SVM", "*rank: 2", "*n", "*as it is", "*largest"],
        [
            "*i-RevNet, injective",
            "97.8% (97.1 to 98.4%)",
            r"\(2.5 \times 10^{-6}\)",
            "64",
            "7",
            "",
        ],
        ["*i-RevNet, bijective", "97.8%", "1", "8", "7", "4.50"],
        ["*ResNet", "97.8% (90.0 to 98.4%)", "0.12", "1,797", "7", ""],
    ]


def test_a_table_has_chosen_families_as_columns(families: Path) -> None:
    page, warnings = build(
        families,
        "```{results-table} toy separation\n:families: resnet irevnet\n:transposed:\n"
        "rank: number(rank, 2)\nSVM: percent(svm, 0)\n```\n",
    )
    assert warnings == ""
    assert table(page) == [
        ["*", "*i-RevNet, injective", "*ResNet"],
        ["*rank", r"\(2.5 \times 10^{-6}\)", "0.12"],
        ["*SVM", "98% (97 to 98%)", "98% (90 to 98%)"],
    ]


def test_a_star_stands_for_the_family(families: Path) -> None:
    page, warnings = build(
        families, "```{results-table} toy separation\nstate: found.*.state\n```\n"
    )
    assert warnings == ""
    assert table(page) == [["*", "*state"], ["*RevNet", "exact"]]


def test_a_table_has_differences_of_families(families: Path) -> None:
    difference = {"value": -0.015, "low": -0.02, "high": 0.01, "n": 6}
    write(
        families / "results/toy/accuracy/metrics.json",
        {"differences": {"irevnet_bijective_minus_resnet": difference}},
    )
    page, warnings = build(
        families, "```{results-table} toy accuracy\npoints: points(differences.*)\n```\n"
    )
    assert warnings == ""
    minus = "\N{MINUS SIGN}"
    assert table(page) == [
        ["*", "*points"],
        [f"*bijective {minus} ResNet", f"{minus}1.50 ({minus}2.00 to 1.00)"],
    ]


def test_a_table_has_other_rows_than_families(families: Path) -> None:
    text = (
        "```{results-table} toy separation\n:keys: first = irevnet; second = irevnet_bijective\n"
        "SVM: percent(svm)\nlargest: number(largest)\n```\n"
    )
    page, warnings = build(families, text)
    assert warnings == ""
    assert table(page) == [
        ["*", "*SVM", "*largest"],
        ["*first", "97.8% (97.1 to 98.4%)", ""],
        ["*second", "97.8%", "4.50"],
    ]
    wrong = text.replace("largest)", "wrong)")
    assert "none of irevnet, irevnet_bijective has a value in a column" in build(families, wrong)[1]
    unfinished = text.replace("= irevnet_bijective", "")
    assert "second is not followed by =" in build(families, unfinished)[1]


def test_a_table_of_a_benchmark(families: Path) -> None:
    write(
        families / "results/benchmarks/cpu-3-threads/photographs.json",
        {"sizes": [1, 1500], "batch": {"fits": [32, 64]}},
    )
    text = (
        "```{results-table} benchmarks cpu_3_threads\n:corner: size\n:transposed:\n"
        ":keys: {{ benchmarks.cpu_3_threads.photographs.sizes[0] }} GB = 0; "
        "{{ number(benchmarks.cpu_3_threads.photographs.sizes[1]) }} GB = -1\n"
        "batch: number(photographs.batch.fits[*])\n```\n"
    )
    page, warnings = build(families, text)
    assert warnings == ""
    assert table(page) == [["*size", "*1 GB", "*1,500 GB"], ["*batch", "32", "64"]]
    unknown = text.replace("benchmarks cpu_3_threads\n", "benchmarks cpu_4_threads\n")
    assert "benchmarks.cpu_4_threads is not in any" in build(families, unknown)[1]


# --- parts for each experiment --------------------------------------------------------------------


def test_a_part_of_a_page_is_there_for_each_experiment(folder: Path) -> None:
    write(folder / "results/other/inversion/metrics.json", {"n": 5, "error": 2.5e-6})
    (folder / "params.yaml").write_text(
        "other: {data: {name: cifar10}, title: photographs}\ntoy: {data: {name: digits}}\n"
    )
    (folder / "results/other/a.png").touch()
    (folder / "results/toy/a.png").touch()
    page, warnings = build(
        folder,
        "::::{experiments} inversion\n## <title> in <experiment>\n\n"
        "{{ number(results.<experiment>.inversion.n) }} images.\n\n"
        "<other|gone> Only other:\n<experiment>.\n\n"
        "```{image} results/<experiment>/a.png\n---\n"
        'alt: "{{ number(results.<experiment>.inversion.n) }} of {{ number(2.5e-6) }}"\n---\n```\n'
        "::::\n\n::::{experiments} inversion toy\nOnly toy: <experiment>.\n::::\n\n"
        "::::{experiments} inversion gone|toy|other\nFirst of three: <experiment>.\n::::\n\n"
        "::::{experiments} inversion,train other|toy\nBoth: <experiment>.\n::::\n\n"
        "::::{experiments} inversion gone\nNothing.\n::::\n\n"
        "::::{experiments} metamers\nNothing.\n::::\n",
    )
    assert warnings == ""
    assert re.findall("<h2>(.*?)<", page) == ["Photographs in other", "Handwritten digits in toy"]
    assert "5 images." in page
    assert re.findall("Only other: (.*?)<", page) == ["other."]
    assert "Only toy: toy." in page
    assert "First of three: toy." in page
    assert "Both: toy." in page
    assert "Nothing." not in page
    assert page.count("There are no results in this repository yet.") == 1
    times = "\N{MULTIPLICATION SIGN} 10\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT SIX}"
    assert f'alt="5 of 2.50 {times}"' in page
    assert f'alt="1,797 of 2.50 {times}"' in page


def test_a_number_that_an_alternative_text_lacks_is_named(folder: Path) -> None:
    (folder / "a.png").touch()
    _, warnings = build(
        folder, '```{image} a.png\n---\nalt: "of {{ number(results.toy.wrong) }}"\n---\n```\n'
    )
    assert "results.toy.wrong is not in any results file" in warnings


def test_what_a_table_lacks_is_named(families: Path) -> None:
    lacking = [
        ("toy separation", "a: percent(wrong)", "results.toy.separation.irevnet.wrong is not in"),
        ("toy separation", "a: percent(rank.low)", "irevnet.rank.low goes on below a value, 2.5e"),
        ("toy separation", "a: percent(noise)", "results.toy.separation.irevnet.noise.low is not"),
        ("toy separation", "a: noise", "results.toy.separation.irevnet.noise is not a number"),
        ("toy separation", "a: number(found.*.state)", "of revnet: 'exact' is not a number"),
        ("toy separation", "a: images.*.state", "images.*.state: 540 is a value and has no"),
        ("toy separation", "a: wrong.*.state", "results.toy.separation.wrong is not in"),
        ("toy separation", ":families: revnet\na: svm", "results.toy.separation.revnet is not in"),
        ("toy separation", "a: {revnet: rank}", "there are none of the families irevnet, "),
        ("toy separation", ":families: revnets\na: svm", "revnets is none of irevnet, "),
        ("toy separation", "a: {resnets: svm}", "resnets is none of irevnet, "),
        ("toy separation", "a: per cent(svm)", "'per cent(svm)' is not percent(path)"),
        ("toy separation", "a: svm\na: rank", "twice in one table: a"),
        ("toy separation", "a", "the body is not a mapping"),
        ("toy inversion", "a: svm", "toy inversion: there are none of the families irevnet, "),
        ("toy jacobian", "a: svm", "results.toy.jacobian is not in"),
        ("toys separation", "a: svm", "toys separation: params.yaml has no such experiment"),
    ]
    page, warnings = build(
        families,
        "\n".join(f"```{{results-table}} {name}\n{body}\n```\n" for name, body, _ in lacking),
    )
    assert [message for _, _, message in lacking if message not in warnings] == []
    assert warnings.count("results-table") == len(lacking)
    assert "<table" not in page


def test_a_table_of_an_experiment_without_results(families: Path) -> None:
    page, warnings = build(families, "```{results-table} cifar10 separation\na: svm\n```\n")
    assert warnings == ""
    assert "There are no results in this repository yet." in page


def test_a_table_follows_the_results(families: Path) -> None:
    page = "```{results-table} toy data\nimages: images\n```\n"
    for images in ("3", "4"):
        write(families / "results/toy/data/metrics.json", {"resnet": {"images": images}})
        assert table(build(families, page)[0])[1] == ["*ResNet", images]


# --- the slider -----------------------------------------------------------------------------------

SLIDER = "```{{slider}} walk.png\n---\nalt: {alt}\n---\nFrom *a* to b.\n```\n"


@pytest.fixture
def walk(folder: Path) -> Path:
    """A picture of two lines with a walk each, in three steps: red, green and blue; grey levels."""
    pixels = torch.zeros(2, 1, 3, 3, 4, 4)
    for step in range(3):
        pixels[0, 0, step, step] = 1
        pixels[1, 0, step] = step / 2
    notes = [[[f"{name} {step}\nof 3" for step in range(3)]] for name in ("<colour>", "grey")]
    Results(str(folder)).save_walk(
        "walk", pixels, ["a & b", "c"], ["path"], notes, label="position", ends=(0, 4)
    )
    return folder


def test_a_slider_has_names_values_and_the_whole_picture(walk: Path) -> None:
    page, warnings = build(walk, SLIDER.format(alt='"Three > two"') + "\n" + SLIDER.format(alt="b"))
    assert warnings == ""
    assert page.count('<div class="slider docutils container">') == 2
    assert '<img alt="Three &gt; two" src="_images/walk.png" />' in page
    assert "From <em>a</em> to b." in page
    assert '<div role="group" aria-label="Three &gt; two">' in page
    assert 'role="img" aria-label="a &amp; b, path"' in page
    for number in (0, 1):
        assert f'<label for="slider-{number}">position</label>' in page
        assert (
            f'<input type="range" id="slider-{number}" min="0" max="2" step="1" value="1"' in page
        )
    data = json.loads(html.unescape(re.search(r'data-walk="([^"]*)" hidden', page).group(1)))
    assert data["values"] == ["0", "2", "4"]
    assert data["notes"] == [
        [f"{name} {step}\nof 3" for step in range(3)] for name in ("<colour>", "grey")
    ]
    whole = (walk / "_build/index.html").read_text()
    for name in ("slider.js", "slider.css"):
        assert (walk / "_build/_static" / name).is_file()
        assert f"_static/{name}" in whole
        assert name not in (walk / "_build/inversion.html").read_text()


def test_what_a_slider_lacks_is_named(walk: Path) -> None:
    _, warnings = build(walk, "```{slider} walk.png\nA caption.\n```\n")
    assert "slider walk.png: the option alt is required" in warnings
    write(walk / "walk.json", {"steps": 3})
    assert "KeyError('lines')" in build(walk, SLIDER.format(alt="b"))[1]
    (walk / "walk.json").unlink()
    assert (
        "slider: walk.json cannot be used: FileNotFoundError"
        in build(walk, SLIDER.format(alt="b"))[1]
    )


MOVE = """
<script>
addEventListener("load", () => {
  const input = document.querySelector(".slider-view input");
  input.value = 2;
  input.dispatchEvent(new Event("input"));
});
</script>
"""


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
@pytest.mark.parametrize(("step", "script"), [(1, ""), (2, MOVE)])
def test_a_slider_moves(walk: Path, step: int, script: str) -> None:
    build(walk, SLIDER.format(alt="b"))
    index = walk / "_build/index.html"
    index.write_text(index.read_text().replace("</body>", f"{script}</body>"))
    page = dump_dom(index, walk / "profile")
    view = page[page.index('class="slider-view"') : page.index("<figure")]
    assert "hidden" not in view[: view.index(">")]
    assert 'class="slider docutils container slider-ready"' in page
    assert re.findall(r"background-position: ([^;]*);", view) == [
        f"{50 * step}% 0%",
        f"{50 * step}% 100%",
    ]
    assert re.findall(r'class="slider-note">([^<]*)<', view) == [
        f"&lt;colour&gt; {step}\nof 3",
        f"grey {step}\nof 3",
    ]
    assert f'aria-valuetext="{2 * step}"' in view
    assert f">{2 * step}</output>" in view


def cells(page: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    rows = [
        [re.sub("<[^>]*>", "", cell).strip() for cell in re.findall("<td.*?</td>", row, re.DOTALL)]
        for row in re.findall("<tr.*?</tr>", page, re.DOTALL)
    ]
    return {row[0]: row[1:] for row in rows if row}


def test_trials_are_listed_with_their_change_and_pending_ones_below(folder: Path) -> None:
    train = folder / "results/cifar10_recipe/train"
    write(train / "base-0/metrics.json", {"validation_accuracy": 0.8})
    write(train / "base-0/provenance.json", {"timing": {"training": 1234.5}})
    write(train / "sgd-0/metrics.json", {"validation_accuracy": 0.75})
    page, warnings = build(folder, "```{trials} cifar10_recipe base\n```\n")
    assert warnings == ""
    by_name = cells(page)
    assert by_name["base"] == ["the recipe", "80.0", "", "6", "1,234"]
    assert by_name["sgd"][1:] == ["75.0", "-5.0", "6", ""]
    assert "smoothing 02" not in by_name
    waiting = page[page.index("not run yet</summary>") : page.index("</details>")]
    assert "<p>smoothing 02 (label smoothing 0.2)</p>" in waiting


def test_finished_runs_are_listed_with_the_number_of_planned_ones(folder: Path) -> None:
    for seed, accuracy in ((0, 0.93), (3, 0.9312)):
        run = folder / f"results/cifar10/train/resnet-{seed}"
        write(run / "metrics.json", {"test_accuracy": accuracy, "train_accuracy": 0.991})
        write(run / "provenance.json", {"timing": {"training": 3600.0}})
    page, warnings = build(folder, "```{runs} cifar10\n```\n")
    assert warnings == ""
    rows = cells(page)
    assert rows["ResNet"] == ["2 of 5", "93.00, 93.12", "99.1, 99.1", "60, 60"]
    assert rows["RevNet"] == ["0 of 5", "", "", ""]
    assert "The recipe: epochs 20, " in page


def test_runs_say_in_what_families_differ_from_one_of_them(folder: Path) -> None:
    page, warnings = build(folder, "```{runs} cifar10_ablations irevnet\n```\n")
    assert warnings == ""
    rows = cells(page)
    assert rows["i-RevNet, injective"][:2] == ["", "0 of 2"]
    assert rows["zeros first"][:2] == ["zeros before", "0 of 2"]
    assert rows["zeros 4"][0] == "network irevnet_cifar_bijective, half channels [8, 32, 128]"
    _, warnings = build(folder, "```{runs} cifar10_ablations zeros_5\n```\n")
    assert "runs: cifar10_ablations.models has no zeros_5" in warnings


def test_runs_of_an_experiment_that_is_not_there_are_named(folder: Path) -> None:
    _, warnings = build(folder, "```{runs} mnist\n```\n")
    assert "experiment must be one of" in warnings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("mnist base", "experiment must be one of"), ("digits base", "digits.models has no base")],
)
def test_trials_that_are_not_there_are_named(folder: Path, arguments: str, message: str) -> None:
    _, warnings = build(folder, f"```{{trials}} {arguments}\n```\n")
    assert message in warnings


# --- a published book -----------------------------------------------------------------------------


@pytest.fixture
def published(extension: ModuleType) -> ModuleType:
    return importlib.import_module("published")


def test_a_published_book_knows_where_it_is(published: ModuleType) -> None:
    assert published.settings("", "") == {}
    chosen = published.settings("Some-One/the.book", "")
    assert (
        chosen["html_baseurl"] == chosen["ogp_site_url"] == "https://some-one.github.io/the.book/"
    )
    assert chosen["html_theme_options"]["repository_url"] == "https://github.com/Some-One/the.book"
    elsewhere = published.settings("a/b", "https://example.org/book")
    assert elsewhere["html_baseurl"] == "https://example.org/book/"
    assert "html_theme_options" not in published.settings("", "https://example.org/")


@pytest.mark.parametrize("repository", ["book", "https://github.com/a/b", "a/b/c", "a b/c"])
def test_a_repository_is_an_owner_and_a_name(published: ModuleType, repository: str) -> None:
    with pytest.raises(Exception, match="BOOK_REPOSITORY must be owner/name"):
        published.settings(repository, "")


def test_the_address_of_a_book_must_be_on_the_web(published: ModuleType) -> None:
    with pytest.raises(Exception, match="BOOK_URL must begin with"):
        published.settings("", "example.org")


def test_buttons_of_notebooks_lead_to_the_folder_of_results(published: ModuleType) -> None:
    page = "https://github.com/a/b/blob/main/book"
    buttons = [
        {"url": f"{page}/results/digits/data/data.ipynb"},
        {"buttons": [{"url": f"{page}/index.md"}, {"javascript": "print"}]},
    ]
    published.mend(buttons)
    assert buttons == [
        {"url": "https://github.com/a/b/blob/main/results/digits/data/data.ipynb"},
        {"buttons": [{"url": f"{page}/index.md"}, {"javascript": "print"}]},
    ]


def test_the_footer_names_commit_and_day(published: ModuleType) -> None:
    commit = "0123456789abcdef"
    assert published.footer("", commit, "2026-01-02") == "<p>Commit 0123456789, 2026-01-02</p>"
    assert f'href="https://github.com/a/b/commit/{commit}"' in published.footer("a/b", commit, "")
    assert published.footer("a/b", "", "") == ""


# --- pages that load what they use ----------------------------------------------------------------


def test_only_icons_that_are_used_are_left(extension: ModuleType) -> None:
    light = importlib.import_module("light")
    icons = (
        '{bars:[448,512,["navicon"],"f0c9","M0 96C0"],"file-pdf":[512,512,[],"f1c1",["M0","M1"]],'
        'x:[1,2,[],"58","M3"]}'
    )
    assert light.used(['<i class="fa-solid fa-navicon"></i>']) == {"solid", "navicon"}
    assert light.only(icons, {"navicon"}) == '{bars:[448,512,["navicon"],"f0c9","M0 96C0"],}'
    assert light.only(icons, {"file-pdf", "x"}) == icons.replace(
        icons[1 : icons.index('"file')], ""
    )
    assert light.only("var data = [1, 2];", set()) == "var data = [1, 2];"


def test_pages_load_scripts_and_styles_that_something_in_them_needs(extension: ModuleType) -> None:
    light = importlib.import_module("light")
    always = '<script src="../_static/doctools.js?v=1"></script>'
    search = "".join(
        f'\n    <script src="../{name}.js"></script>'
        for name in ("_static/searchtools", "_static/language_data", "searchindex")
    )
    cells = '\n<link rel="stylesheet" type="text/css" href="../_static/mystnb.1b39.css" />'
    cards = (
        '\n<link rel="stylesheet" type="text/css" href="../_static/sphinx-design.min.css?v=6" />'
    )
    tabs = '\n<script data-sd-tabs="x" src="../_static/design-tabs.js?v=fc"></script>'
    head = always + search + cells + cards + tabs + always
    assert light.without_unused(head) == 2 * always
    results = '<div id="search-results"></div>'
    assert light.without_unused(head + results) == always + search + always + results
    cell = '<div class="cell docutils">'
    assert light.without_unused(head + cell) == always + cells + always + cell
    card = '<div class="docutils sd-card">'
    assert light.without_unused(head + card) == always + cards + tabs + always + card


def test_a_variation_shows_commands_and_what_they_printed(folder: Path) -> None:
    printed = {
        "metrics": "| metric | value |\n|---|---|\n| accuracy | 0.9 |",
        "stages": "",
        "log": "done",
    }
    commands = {name: f"dvc {name}" for name in printed}
    file = folder / "results/benchmarks/cpu-1-threads/variation.json"
    write(file, {"printed": printed, "commands": commands})
    directives = "\n\n".join(f"```{{printed}} {name}\n```" for name in printed)
    page, warnings = build(folder, directives + "\n")
    assert warnings == ""
    assert cells(page)["accuracy"] == ["0.9"]
    assert "It prints nothing." in page
    for name in printed:
        assert name in page[page.index("highlight-bash") :]
    assert "done" in page[page.index("highlight-text") :]


def test_a_command_that_no_variation_has_run_is_named(folder: Path) -> None:
    _, warnings = build(folder, "```{printed} plots\n```\n")
    assert "printed: needs exactly one variation.json, found 0" in warnings
