"""The status of training runs that are done, running, interrupted or not begun."""

import json

import pytest

from irevnet.training import Checkpoint
from pipeline import status
from pipeline.status import Run, main, remaining_seconds, training_runs


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository in which one run of ``digits`` is done and two have checkpoints."""
    monkeypatch.setattr(status, "ROOT", tmp_path)
    monkeypatch.setenv("IREVNET_CHECKPOINTS", str(tmp_path / "checkpoints"))
    done = tmp_path / "results/digits/train/irevnet-0"
    done.mkdir(parents=True)
    (done / "metrics.json").write_text("{}")
    (done / "provenance.json").write_text(json.dumps({"timing": {"training": 60.0}}))
    return tmp_path


def checkpoint(root, name, epochs, seconds):
    file = Checkpoint(root / f"checkpoints/digits/{name}.safetensors", {})
    file.save({}, {"history": [{}] * epochs, "step": 0, "seconds": seconds})
    return file


def test_every_run_has_a_state(root, capsys):
    running = checkpoint(root, "irevnet-1", 15, 40.0)
    checkpoint(root, "irevnet-2", 6, 10.0).close()
    runs = {f"{run.family}-{run.seed}": run for run in training_runs("digits")}
    assert len(runs) == 25
    assert runs["irevnet-0"] == Run("irevnet", 0, "done", 1.0, 60.0)
    assert runs["irevnet-1"] == Run("irevnet", 1, "running", 0.5, 40.0)
    assert runs["irevnet-2"] == Run("irevnet", 2, "interrupted", 0.2, 10.0)
    assert runs["resnet-4"] == Run("resnet", 4, "not begun", 0.0, None)
    assert main(["digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "irevnet-1: running 50%, 1 min of training"
    assert lines[-1].startswith(
        "1 done, 0 out of date, 1 running, 1 interrupted, 22 not begun; remaining, one after"
    )
    running.close()


def test_a_run_by_another_recipe_is_out_of_date(root):
    record = {"parameters": {"training": {"epochs": 1}}, "timing": {"training": 60.0}}
    (root / "results/digits/train/irevnet-0/provenance.json").write_text(json.dumps(record))
    assert training_runs("digits")[0] == Run("irevnet", 0, "out of date", 0.0, None)


def test_the_estimate_uses_the_family_or_else_the_average_of_the_others():
    runs = [
        Run("a", 0, "done", 1.0, 100.0),
        Run("a", 1, "running", 0.25, 50.0),  # 200 in all: on average 150
        Run("b", 0, "done", 1.0, 50.0),
        Run("c", 0, "not begun", 0.0, None),
    ]
    assert remaining_seconds(runs) == pytest.approx(0.75 * 150 + 100)
    assert remaining_seconds(runs[3:]) is None


def test_small_images_are_a_small_share_of_the_time():
    from irevnet.training.config import TrainingConfig

    recipe = TrainingConfig(epochs=4, batch_size=1, learning_rate=1.0, sides=[16, 32])
    assert status.share_of_training(recipe, 2) == pytest.approx(2 * 256 / (2 * 256 + 2 * 1024))
    assert status.share_of_training(recipe, 4) == 1
    constant = TrainingConfig(epochs=4, batch_size=1, learning_rate=1.0)
    assert status.share_of_training(constant, 3) == 0.75


def test_an_unknown_experiment_is_named(root):
    with pytest.raises(SystemExit, match="experiment must be one of"):
        main(["mnist"])
