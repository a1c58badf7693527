import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch

from irevnet import runs
from irevnet.weights import save_weights
from pipeline import notebook
from pipeline.figures import mosaic
from pipeline.notebook import (
    Results,
    checkpoint_path,
    families,
    invertible_families,
    load_experiment_data,
    new_model,
    trained_models,
    variants,
)
from pipeline.params import ROOT, load_params


def test_a_walk_is_a_picture_and_its_description(tmp_path):
    images = torch.rand(2, 3, 5, 3, 8, 8)
    notes = [[[f"{row}{head}{step}" for step in range(5)] for head in range(3)] for row in range(2)]
    results = Results(str(tmp_path))
    results.save_walk("walk", images, ["a", "b"], ["x", "y", "z"], notes, label="time", ends=(1, 3))
    picture = matplotlib.image.imread(tmp_path / "walk.png")[..., :3] * 255
    assert np.array_equal(picture.round(), mosaic(images.flatten(0, 1)))
    walk = json.loads((tmp_path / "walk.json").read_text())
    assert (walk["lines"], walk["heads"]) == (["a", "b"], ["x", "y", "z"])
    assert (walk["label"], walk["ends"], walk["steps"]) == ("time", [1, 3], 5)
    assert walk["notes"][4] == ["110", "111", "112", "113", "114"]
    assert "values" not in walk
    values = [1, 2, 4, 8, 16]
    results.save_walk("w", images, ["a", "b"], ["x", "y", "z"], notes, label="k", values=values)
    walk = json.loads((tmp_path / "w.json").read_text())
    assert (walk["values"], walk["ends"]) == (values, [1, 16])


def test_a_walk_that_does_not_fit_its_names_is_refused(tmp_path):
    results = Results(str(tmp_path))
    images, note = torch.rand(1, 2, 3, 1, 8, 8), ["", "", ""]
    with pytest.raises(ValueError, match=r"of 1 lines and 1 heads, got a shape of \(1, 2, 3"):
        results.save_walk("walk", images, ["a"], ["x"], [[note]], label="time")
    with pytest.raises(ValueError, match="images must be square"):
        results.save_walk("walk", images[..., :4], ["a"], ["x", "y"], [[note] * 2], label="time")
    with pytest.raises(ValueError, match=r"notes must be 2 times 3, got \[3, 2\]"):
        results.save_walk("walk", images, ["a"], ["x", "y"], [[note, note[:2]]], label="time")
    with pytest.raises(ValueError, match="values must be 3, one for each step, got 2"):
        results.save_walk(
            "walk", images, ["a"], ["x", "y"], [[note] * 2], label="time", values=[1, 2]
        )
    assert list(tmp_path.iterdir()) == []


DESCRIPTION = {"model": "resnet_digits", "overrides": {}}


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    """The weights of two of three training runs, the first of them published."""
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "irevnet" / "runs.py"))
    models = [new_model("digits", "resnet", seed) for seed in (0, 1)]
    results = tmp_path / "results" / "digits"
    save_weights(models[0], results / "weights" / "resnet.safetensors", DESCRIPTION)
    save_weights(models[1], results / "train" / "resnet-1" / "weights.safetensors", DESCRIPTION)
    listed = [
        {"family": "resnet", "model": "resnet_digits", "seed": seed, "published": seed == 0}
        for seed in range(3)
    ]
    (results / "weights" / "runs.json").write_text(json.dumps(listed))
    return models


def test_networks_of_several_runs(two_runs):
    models = trained_models("digits", "resnet", 2)
    assert len(models) == 2
    for model, expected in zip(models, two_runs, strict=True):
        assert not model.training
        weight = model.classifier.linear.weight.cpu()
        assert torch.equal(weight, expected.classifier.linear.weight)


@pytest.mark.parametrize("count", [None, 3])
def test_missing_weights_are_named_and_not_replaced(two_runs, count):
    message = (
        r"the weights of resnet with seed 2 of 'digits' are missing: there is no .*"
        r"results/digits/train/resnet-2/weights\.safetensors"
    )
    with pytest.raises(ValueError, match=message) as caught:
        trained_models("digits", "resnet", count)
    assert caught.value.__notes__ == ["To train it: python -m pipeline.repro digits"]


@pytest.mark.parametrize("count", [0, 6])
def test_more_networks_than_there_are_seeds_are_refused(count):
    with pytest.raises(ValueError, match=rf"count must be from 1 to 5, .*, got {count}"):
        trained_models("digits", "resnet", count)


def test_a_run_by_hand_has_a_checkpoint_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("IREVNET_CHECKPOINTS", str(tmp_path))
    pipeline = checkpoint_path("digits", "resnet", 0, "results/digits/train/resnet-0")
    assert pipeline == tmp_path / "digits" / "resnet-0.safetensors"
    by_hand = [checkpoint_path("digits", "resnet", 0, name) for name in ("scratch/a", "scratch/b")]
    assert len({pipeline, *by_hand}) == 3
    assert all(path.is_relative_to(tmp_path / "by-hand") for path in by_hand)


def test_images_that_cannot_be_downloaded_are_named_with_what_needs_no_download(
    tmp_path, monkeypatch
):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("IREVNET_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(ValueError, match=r"not be downloaded \(no route") as caught:
        load_experiment_data("cifar10_cpu")
    assert 'experiment = "digits" needs no download' in "".join(caught.value.__notes__)
    assert len(load_experiment_data("digits").test) == 540


def test_saving_as_the_last_line_of_a_cell_shows_no_path(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.notebook.ROOT", tmp_path)
    assert Results("results").save_json("numbers.json", {"n": 1}) is None
    assert json.loads((tmp_path / "results" / "numbers.json").read_text()) == {"n": 1}


@pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(), reason="this kernel has no session priorities"
)
@pytest.mark.parametrize("kernel", [True, False])
def test_the_session_of_a_kernel_gets_the_kernels_low_priority(kernel):
    """The session of a command line belongs to its user and keeps its priority."""
    program = (
        f"{'import ipykernel' if kernel else ''}\n"
        "import os; os.nice(7); import pipeline.notebook\n"
        "print(open('/proc/self/autogroup').read())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
    )
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + 7, 19) if kernel else 0
    assert answer.stdout.split()[1:] == ["nice", str(nice)]


def test_variants_are_not_among_the_families():
    assert families("digits") == ["irevnet", "irevnet_bijective", "revnet", "resnet"]
    assert variants("digits") == {"projected": "irevnet"}
    assert invertible_families("digits") == ["irevnet", "irevnet_bijective"]


@pytest.fixture
def run_cells(monkeypatch):
    """A function that runs the code of a notebook with other parameters."""
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))

    def run(question, **given):
        namespace = {}
        for cell in nbformat.read(ROOT / "notebooks" / f"{question}.ipynb", 4).cells:
            if cell.cell_type == "code":
                exec(cell.source, namespace)
            if "parameters" in cell.metadata.get("tags", []):
                namespace.update(given)

    with plt.rc_context():
        yield run


@pytest.fixture
def two_families(monkeypatch):
    """The digits with an injective i-RevNet and a ResNet alone, as cifar10_released has them."""
    params = load_params()
    models = params.section("digits").models
    for family in set(models) - {"irevnet", "resnet"}:
        del models[family]
    monkeypatch.setattr(notebook, "load_params", lambda: params)


def test_inversion_without_a_bijective_network(two_families, run_cells, tmp_path):
    few = {"images": 8, "gallery": 2, "random_representations": 4}
    run_cells("inversion", experiment="digits", output=str(tmp_path), **few)
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"irevnet"}
    # The states of the injective network have more values than the image: no walk through them.
    assert {path.stem for path in tmp_path.glob("*.json")} == {"metrics", "bits"}


def test_accuracy_without_a_bijective_network(two_families, run_cells, tmp_path):
    run_cells("accuracy", experiment="digits", output=str(tmp_path), baselines=["resnet"])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["families"]) == {"irevnet", "resnet"}
    assert set(metrics["differences"]) == {"irevnet_minus_resnet"}


def test_a_question_about_i_revnets_needs_one(two_families):
    del notebook.load_params().section("digits").models["irevnet"]
    with pytest.raises(ValueError, match=r"digits\.models must have an i-RevNet, got resnet"):
        invertible_families("digits")
