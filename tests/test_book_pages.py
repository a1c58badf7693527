"""The book's pages, with results of every experiment: made up where there are none yet."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.answer import title
from pipeline.params import Experiment, load_params

ROOT = Path(__file__).resolve().parent.parent
OF_DIGITS = load_params().section("digits").models
# What the pages read beside numbers.
KEPT = ("*.json", "*.png", "*.csv")


def refit(value: Any, section: Experiment) -> Any:
    """Numbers of the digits with the families and the seeds of an experiment."""
    if not isinstance(value, dict):
        return value
    entries = {key: refit(item, section) for key, item in value.items()}
    if several := [key for key in entries if "_minus_" in key]:
        # One network has no spread, and is compared with none.
        named = ["irevnet_minus_resnet"] if "resnet" in section.models else []
        others = [f"{name}_minus_irevnet" for name in section.models if name not in OF_DIGITS]
        return {name: entries[several[0]] for name in (*named, *others) if len(section.seeds) > 1}
    if not set(OF_DIGITS) & set(entries):
        if len(section.seeds) == 1:
            entries.pop("standard_deviation", None)
        return entries
    families = {
        name: entries[name if name in OF_DIGITS else "irevnet"]
        for name in section.models
        if name in entries or (name not in OF_DIGITS and "irevnet" in entries)
    }
    return {key: item for key, item in entries.items() if key not in OF_DIGITS} | families


def make_up(folder: Path, name: str, section: Experiment) -> None:
    """Results of an experiment in a folder that lacks them."""
    runs = [f"{family}-{seed}" for family in section.models for seed in section.seeds]
    runs = runs if section.training else []
    sources = {question: ROOT / "results/digits" / question for question in section.questions}
    sources["data"] = ROOT / "results/digits/data"
    sources |= {f"train/{run}": ROOT / "results/digits/train/irevnet-0" for run in runs}
    if section.data.name == "cifar10" and "trivial" in sources:  # of as many features
        sources["trivial"] = ROOT / "results/cifar10_cpu/trivial"
    for place, source in sources.items():
        target = folder / name / place
        if (target / "metrics.json").is_file():
            continue
        target.mkdir(parents=True, exist_ok=True)
        for file in (path for pattern in KEPT for path in source.glob(pattern)):
            shutil.copy(file, target)
        metrics = json.loads((target / "metrics.json").read_text())
        (target / "metrics.json").write_text(json.dumps(refit(metrics, section)))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A copy of the book without executed notebooks, with results of every experiment."""
    ignored = shutil.ignore_patterns("_build", "results", "__pycache__")
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=ignored)
    shutil.copytree(
        ROOT / "results",
        tmp_path / "results",
        ignore=shutil.ignore_patterns("*.ipynb", "*.safetensors", "dvc.*"),
    )
    for name in ("params.yaml", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "book/results").symlink_to("../results")
    return tmp_path


def test_readers_see_different_titles_of_all_experiments() -> None:
    names = list(load_params().sections)
    assert len({title(name, ROOT) for name in names}) == len(names)


def test_pages_are_complete_whatever_experiments_have_results(book: Path) -> None:
    for name, section in load_params().sections.items():
        make_up(book / "results", name, section)
    program = Path(sys.executable).with_name("jupyter-book")
    options = ["--quiet", "--keep-going", "--builder", "custom", "--custom-builder", "dummy"]
    outcome = subprocess.run(
        [program, "build", *options, "book"],
        cwd=book,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    # Another test reads the docstrings that the page of the package shows.
    lines = [line for line in outcome.stderr.splitlines() if "WARNING" in line]
    assert [line for line in lines if "api.md" not in line] == []
    assert (book / "book/_build").is_dir(), outcome.stderr
