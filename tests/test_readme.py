import doctest
import json
from pathlib import Path

import pytest

from pipeline.answer import duration
from pipeline.readme import main, render_answer, render_results, render_scorecard, replace

ROOT = Path(__file__).parent.parent
CONDITION = {
    "what": "error, injective",
    "metric": "inversion.irevnet.relative_error",
    "unit": "number",
    "bound": "at most 5e-06",
    "measured": "1.5e-06 [1e-06, 2e-06]",
    "value": 1.5e-6,
    "low": 1e-6,
    "high": 2e-6,
}
ROW = {
    "id": "C1",
    "claim": "The input is recovered: always.",
    "paper": "about 5e-6",
    "n": 540,
    "verdict": "consistent",
    "source": ["inversion/metrics.json"],
    "conditions": [CONDITION],
}
UNTESTED = ROW | {"n": None, "verdict": "not tested here", "source": [], "conditions": []}
MARKERS = "".join(
    f"<!-- {name}:start -->\nold\n<!-- {name}:end -->\n" for name in ("answer", "scorecard")
)
START, END = "<!-- answer:start -->", "<!-- answer:end -->"
PROVENANCE = {
    "processor": "2 x A Processor",
    "gpu": None,
    "versions": {"python": "3.11.0", "torch": "2.15.0"},
}
TABLE = r"""## Experiment `toy`

| | Claim | Paper | Here | n | Verdict |
|---|---|---|---|---|---|
| [C1](toy/inversion) | The input is recovered: always. | about 5e-6 | error, injective: \
$1.50\ (1.00 \text{ to } 2.00) \times 10^{-6}$ (rule: at most $5 \times 10^{-6}$) | 540 | \
consistent |

Measured on 2 x A Processor (Python 3.11.0, PyTorch 2.15.0).""".replace("\\\n", "")


@pytest.fixture
def write(tmp_path):
    """Writes rows of claims, and the provenance of their sources, into a made-up repository."""

    def write(rows, provenance=None, experiment="toy"):
        claims = tmp_path / f"results/{experiment}/claims/claims.json"
        claims.parent.mkdir(parents=True, exist_ok=True)
        claims.write_text(json.dumps({"experiment": experiment, "rows": rows}))
        for source in [source for row in rows for source in row["source"]]:
            folder = (tmp_path / "results" / experiment / source).parent
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "provenance.json").write_text(json.dumps(provenance or PROVENANCE))

    (tmp_path / "README.md").write_text(f"before\n{MARKERS}after\n")
    return write


def test_a_row_for_each_claim_and_the_machine_below(tmp_path, write):
    write([ROW])
    assert render_results(tmp_path) == TABLE


def test_experiments_stand_one_below_the_other(tmp_path, write):
    write([ROW])
    write([ROW], experiment="another")
    headings = [line for line in render_results(tmp_path).splitlines() if line.startswith("#")]
    assert headings == ["## Experiment `another`", "## Experiment `toy`"]


def test_two_machines_are_told_apart(tmp_path, write):
    write([ROW, ROW | {"id": "C2", "source": ["accuracy/metrics.json"]}])
    gpu = tmp_path / "results/toy/accuracy/provenance.json"
    gpu.write_text(json.dumps(PROVENANCE | {"gpu": "A GPU"}))
    lines = render_results(tmp_path).splitlines()[-2:]
    assert lines == [
        "- C1: measured on 2 x A Processor (Python 3.11.0, PyTorch 2.15.0).",
        "- C2: measured on A GPU (Python 3.11.0, PyTorch 2.15.0).",
    ]


def test_what_was_not_tested_stands_in_the_table_like_the_others(tmp_path, write):
    write([UNTESTED | {"note": "It waits."}])
    text = render_results(tmp_path)
    assert "| about 5e-6 | It waits. |  | not tested here |" in text
    assert "easured" not in text


def test_bars_and_line_breaks_do_not_break_the_table(tmp_path, write):
    write([ROW | {"claim": "|x - y|\nis small"}])
    assert r"| \|x - y\| is small |" in render_results(tmp_path)


def test_without_results_it_says_so(tmp_path):
    assert render_results(tmp_path) == "No experiment has been run yet."


def train(root, experiment, epochs=8, seconds=3600.0):
    folder = root / f"results/{experiment}/train/irevnet-0"
    folder.mkdir(parents=True)
    provenance = PROVENANCE | {
        "parameters": {"training": {"epochs": epochs}},
        "seconds": 1.0,
        "timing": {"training": seconds},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "metrics.json").write_text(json.dumps({"test_images": 1000}))


def test_the_answer_counts_verdicts_with_the_longest_training_first(tmp_path, write):
    ours = ROW | {"id": "C1b", "claim": "Not in the paper: another."}
    timed = ROW | {"id": "C10", "conditions": [CONDITION | {"metric": "benchmarks.a.b.c"}]}
    write([ROW, ours, UNTESTED | {"id": "C3"}, timed], experiment="toy")
    write([ROW | {"verdict": "inconclusive"}], experiment="small")
    write([UNTESTED], experiment="unfinished")
    (tmp_path / "params.yaml").write_text("toy: {data: {name: cifar10}}\n")
    train(tmp_path, "toy", seconds=7200)
    assert render_answer(tmp_path) == (
        "**We tested 1 claim of the paper. On CIFAR-10 (1 network of 8 epochs, 2 hours of "
        "training): 1 consistent with our measurements, 1 not tested. On small: 1 inconclusive. A "
        "benchmark, not an experiment, decides C10: consistent.**"
    )
    (tmp_path / "results/toy/inversion/gallery.png").touch()
    assert "](results/toy/inversion/gallery.png)" in render_answer(tmp_path)


def test_the_answer_has_the_errors_of_both_inverses(tmp_path, write):
    plain = CONDITION | {"metric": "inversion.irevnet.plain.relative_error", "value": 0.25}
    write([ROW | {"conditions": [plain]}, ROW | {"id": "C1b"}])
    assert render_answer(tmp_path).endswith(
        "with the paper's inverse and with channels that are the same for every image put back: "
        "0.25 and 1.5 \N{MULTIPLICATION SIGN} 10\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT SIX} on toy."
    )
    write([ROW])
    assert "put back" not in render_answer(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 seconds"), (1, "1 second"), (60, "1 minute"), (90, "1.5 minutes"),
     (598, "10 minutes"), (3600, "1 hour"), (7.32 * 3600, "7.3 hours"), (36000, "10 hours")],
)  # fmt: skip
def test_a_duration_has_a_unit_in_the_right_number(seconds, text):
    assert duration(seconds) == text


def test_the_scorecard_has_a_badge_for_each_experiment(tmp_path, write):
    write([ROW, UNTESTED | {"id": "C3"}])
    write([ROW | {"verdict": "inconsistent"}], experiment="other")
    train(tmp_path, "other")
    (tmp_path / "results/toy/inversion/inversion.ipynb").touch()
    assert render_scorecard(tmp_path).splitlines() == [
        "|  | Claim | other, `other` | toy, `toy` |",
        "|---|---|---|---|",
        "| C1 | The input is recovered | \N{MULTIPLICATION X} inconsistent | "
        "[\N{CHECK MARK} consistent](results/toy/inversion/inversion.ipynb) |",
        "| C3 | The input is recovered | \N{EN DASH} not tested | \N{EN DASH} not tested |",
        "",
        "`other` (other): 1 network of 8 epochs, 1 hour of training, 1,000 test images, trained "
        "on 2 x A Processor. `toy` (toy). Nothing was tested on ILSVRC-2012 with its thousand "
        "classes, the source of the paper's evidence.",
    ]


def test_main_writes_between_the_markers_once(tmp_path, write, capsys):
    write([ROW])
    assert main(["--check"], tmp_path) == 1
    assert "python -m pipeline.readme" in capsys.readouterr().err
    assert main([], tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"before\n{START}\n**We tested 1 claim of the paper. On toy: 1 ")
    assert text.endswith("<!-- scorecard:end -->\nafter\n")
    assert "old" not in text
    assert TABLE in (tmp_path / "results/README.md").read_text()
    assert main(["--check"], tmp_path) == 0
    assert main([], tmp_path) == 0
    assert (tmp_path / "README.md").read_text() == text
    (tmp_path / "results/README.md").write_text("another")
    assert main(["--check"], tmp_path) == 1
    assert "results/README.md is not up to date" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", START, END, f"{END} {START}", f"{START} {START} {END}"])
def test_missing_markers_are_named(text):
    with pytest.raises(ValueError, match="must hold"):
        replace(text, "answer", "table")


def test_damaged_results_are_named(tmp_path, write, capsys):
    incomplete = {key: value for key, value in ROW.items() if key != "verdict"}
    write([incomplete])
    assert main([], tmp_path) == 1
    assert "lacks 'verdict'" in capsys.readouterr().err
    write([ROW])
    (tmp_path / "results/toy/inversion/provenance.json").write_text("{")
    assert main([], tmp_path) == 1
    assert "provenance.json is damaged" in capsys.readouterr().err
    (tmp_path / "results/toy/inversion/provenance.json").unlink()
    assert main([], tmp_path) == 1
    assert "provenance.json cannot be read" in capsys.readouterr().err


def test_the_code_in_the_readme_runs(monkeypatch):
    if not (ROOT / "results/digits/weights/irevnet.safetensors").exists():
        pytest.skip("the pipeline has not made the weights that the README's example loads")
    monkeypatch.chdir(ROOT)
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0


def test_local_links_of_the_readme_lead_to_files():
    text = (ROOT / "README.md").read_text()
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    local = {link.split("#")[0] for link in links if "://" not in link} - {""}
    missing = [link for link in sorted(local) if not (ROOT / link).exists()]
    assert missing == []
