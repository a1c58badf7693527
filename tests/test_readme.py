import doctest
import json
from pathlib import Path

import pytest

from pipeline.readme import END, START, main, render_results, replace_results

ROOT = Path(__file__).parent.parent
ROW = {
    "id": "C1",
    "claim": "The input is recovered",
    "paper": "about 5e-6",
    "ours": "injective: 1.5e-6; bijective: 1e-7 [1e-8, 2e-7]",
    "n": 540,
    "rule": "below 1e-5",
    "verdict": "reproduced",
    "source": ["inversion/metrics.json"],
}
PROVENANCE = {
    "processor": "2 x A Processor",
    "gpu": None,
    "versions": {"python": "3.11.0", "torch": "2.15.0"},
}
TABLE = """### Experiment `toy`

| | Claim | Paper | Here | n | Verdict |
|---|---|---|---|---|---|
| [C1](results/toy/inversion) | The input is recovered | about 5e-6 | injective: 1.5e-6<br>\
bijective: 1e-7 [1e-8, 2e-7] | 540 | reproduced |

Measured on 2 x A Processor (Python 3.11.0, PyTorch 2.15.0)."""


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

    (tmp_path / "README.md").write_text(f"before\n{START}\nold\n{END}\nafter\n")
    return write


def test_a_row_for_each_claim_and_the_machine_below(tmp_path, write):
    write([ROW])
    assert render_results(tmp_path) == TABLE


def test_experiments_stand_one_below_the_other(tmp_path, write):
    write([ROW])
    write([ROW], experiment="another")
    headings = [line for line in render_results(tmp_path).splitlines() if line.startswith("#")]
    assert headings == ["### Experiment `another`", "### Experiment `toy`"]


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
    write([ROW | {"ours": "", "n": None, "verdict": "not tested here", "source": []}])
    text = render_results(tmp_path)
    assert "| C1 | The input is recovered | about 5e-6 |  |  | not tested here |" in text
    assert "easured" not in text


def test_bars_and_line_breaks_do_not_break_the_table(tmp_path, write):
    write([ROW | {"claim": "|x - y|\nis small"}])
    assert r"| \|x - y\| is small |" in render_results(tmp_path)


def test_without_results_it_says_so(tmp_path):
    assert render_results(tmp_path) == "No experiment has been run yet."


def test_main_writes_between_the_markers_once(tmp_path, write, capsys):
    write([ROW])
    assert main(["--check"], tmp_path) == 1
    assert "python -m pipeline.readme" in capsys.readouterr().err
    assert main([], tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert text == f"before\n{START}\n{TABLE}\n{END}\nafter\n"
    assert main(["--check"], tmp_path) == 0
    assert main([], tmp_path) == 0
    assert (tmp_path / "README.md").read_text() == text


@pytest.mark.parametrize("text", ["", START, END, f"{END} {START}", f"{START} {START} {END}"])
def test_missing_markers_are_named(text):
    with pytest.raises(ValueError, match="must hold"):
        replace_results(text, "table")


def test_damaged_results_are_named(tmp_path, write, capsys):
    incomplete = {key: value for key, value in ROW.items() if key != "verdict"}
    write([incomplete])
    assert main([], tmp_path) == 1
    assert "lacks 'verdict'" in capsys.readouterr().err
    write([ROW])
    (tmp_path / "results/toy/inversion/provenance.json").write_text("{")
    assert main([], tmp_path) == 1
    assert "provenance.json cannot be read" in capsys.readouterr().err
    (tmp_path / "results/toy/inversion/provenance.json").unlink()
    assert main([], tmp_path) == 1
    assert "provenance.json cannot be read" in capsys.readouterr().err


def test_the_code_in_the_readme_runs(monkeypatch):
    if not (ROOT / "results/digits/weights/irevnet_digits.safetensors").exists():
        pytest.skip("the pipeline has not made the weights that the README's example loads")
    monkeypatch.chdir(ROOT)
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0


def test_what_the_readme_points_to_is_there():
    text = (ROOT / "README.md").read_text()
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    local = {link.split("#")[0] for link in links if "://" not in link} - {""}
    missing = [link for link in sorted(local) if not (ROOT / link).exists()]
    assert missing == []
