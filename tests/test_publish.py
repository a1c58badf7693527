"""Which run of a family is published."""

import json

import pytest

from pipeline import publish
from pipeline.params import load_params


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of ``digits`` of which seed 2 is the best on validation images, by family."""
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    folders = {}
    for family in load_params().families:
        for seed in load_params().sections["digits"].seeds:
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


@pytest.mark.parametrize(("which", "seed"), [("best", 2), ("first", 0)])
def test_one_run_of_each_family_is_published(tmp_path, monkeypatch, runs, which, seed):
    params = load_params()
    params.sections["digits"].published = which
    monkeypatch.setattr(publish, "load_params", lambda: params)
    publish.publish("digits")
    assert published(tmp_path) == {
        "irevnet_digits": f"irevnet {seed}",
        "irevnet_digits_bijective": f"irevnet_bijective {seed}",
        "revnet_digits": f"revnet {seed}",
        "resnet_digits": f"resnet {seed}",
    }


def test_what_was_published_stays_if_a_run_is_missing(tmp_path, runs):
    publish.publish("digits")
    before = published(tmp_path)
    (runs["resnet", 2] / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"nothing published, not there: .*resnet-2"):
        publish.publish("digits")
    assert published(tmp_path) == before
