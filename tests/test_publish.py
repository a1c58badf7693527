"""Gathering training runs, and the choice of the run of a family that is published."""

import errno
import json
import shutil

import pytest

from pipeline import publish
from pipeline.params import load_params


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of ``digits`` by family and seed; the best on validation images are seeds 2 and 3."""
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    folders = {}
    section = load_params().section("digits")
    for family in section.models:
        for seed in section.seeds:
            folder = tmp_path / f"results/digits/train/{family}-{seed}"
            folder.mkdir(parents=True)
            metrics = {"validation_accuracy": 0.9 if seed in (2, 3) else 0.5, "test_accuracy": seed}
            (folder / "metrics.json").write_text(json.dumps(metrics))
            (folder / "weights.safetensors").write_text(f"{family} {seed}")
            folders[family, seed] = folder
    return folders


def published(tmp_path):
    folder = tmp_path / "results/digits/weights"
    return {path.stem: path.read_text() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize(("which", "seed"), [("best", 2), ("first", 0), ("none", None)])
def test_one_run_of_each_family_is_published(tmp_path, monkeypatch, runs, which, seed):
    params = load_params()
    params.section("digits").published = which
    monkeypatch.setattr(publish, "load_params", lambda: params)
    publish.publish("digits")
    names = {
        "irevnet": f"irevnet {seed}",
        "irevnet_bijective": f"irevnet_bijective {seed}",
        "revnet": f"revnet {seed}",
        "resnet": f"resnet {seed}",
        "projected": f"projected {seed}",
    }
    assert published(tmp_path) == ({} if seed is None else names)
    listed = json.loads((tmp_path / "results/digits/weights/runs.json").read_text())
    assert len(listed) == len(runs) == 25
    assert {run["seed"] for run in listed if run["published"]} == ({seed} - {None})
    first = listed[0]
    assert (first["family"], first["model"], first["seed"]) == ("irevnet", "irevnet_digits", 0)
    assert first["metrics"] == {"validation_accuracy": 0.5, "test_accuracy": 0}
    assert len({run["weights"] for run in listed}) == 25


def test_what_was_published_stays_if_a_run_is_missing(tmp_path, runs):
    publish.publish("digits")
    before = published(tmp_path)
    (runs["resnet", 2] / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"nothing published; missing: .*resnet-2"):
        publish.publish("digits")
    assert published(tmp_path) == before


def test_what_was_published_stays_if_the_disk_is_full(tmp_path, runs, monkeypatch):
    publish.publish("digits")
    before = published(tmp_path)
    copied = []

    def copy(source, target):
        copied.append(source)
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(OSError, match="No space left"):
        publish.publish("digits")
    assert published(tmp_path) == before
    assert {path.name for path in (tmp_path / "results/digits").iterdir()} == {"train", "weights"}


def test_what_was_published_comes_back_if_the_last_run_was_killed(tmp_path, runs):
    publish.publish("digits")
    before = published(tmp_path)
    folder = tmp_path / "results/digits"
    (folder / "weights").rename(folder / "weights.old")  # between the two renames
    (runs["resnet", 2] / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="resnet-2"):
        publish.publish("digits")
    assert published(tmp_path) == before


def test_damaged_metrics_are_named(runs):
    (runs["revnet", 1] / "metrics.json").write_text('{"test_acc')
    with pytest.raises(ValueError, match=r"revnet-1/metrics\.json is damaged: .*; run its stage"):
        publish.publish("digits")
