import json

import matplotlib.image
import numpy as np
import pytest
import torch

from irevnet.checkpoint import save_weights
from pipeline import notebook
from pipeline.figures import mosaic
from pipeline.notebook import Results, load_experiment_data, new_model, trained_models


def test_a_walk_is_a_picture_and_what_it_shows(tmp_path):
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


def test_a_walk_that_does_not_fit_its_names_is_refused(tmp_path):
    results = Results(str(tmp_path))
    images, note = torch.rand(1, 2, 3, 1, 8, 8), ["", "", ""]
    with pytest.raises(ValueError, match=r"of 1 lines and 1 heads, got a shape of \(1, 2, 3"):
        results.save_walk("walk", images, ["a"], ["x"], [[note]], label="time")
    with pytest.raises(ValueError, match="images must be square"):
        results.save_walk("walk", images[..., :4], ["a"], ["x", "y"], [[note] * 2], label="time")
    with pytest.raises(ValueError, match=r"notes must be 2 times 3, got \[3, 2\]"):
        results.save_walk("walk", images, ["a"], ["x", "y"], [[note, note[:2]]], label="time")
    assert list(tmp_path.iterdir()) == []


def test_networks_of_several_runs_or_the_published_one_where_they_are_missing(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    first = [new_model("digits", "resnet", seed) for seed in (0, 1)]
    for seed, model in enumerate(first):
        folder = tmp_path / "results" / "digits" / "train" / f"resnet-{seed}"
        save_weights(model, folder / "weights.safetensors", {})
    found = trained_models("digits", "resnet", 2)
    assert len(found) == 2
    for model, expected in zip(found, first, strict=True):
        assert not model.training
        weight = model.classifier.linear.weight.cpu()
        assert torch.equal(weight, expected.classifier.linear.weight)
    (published,) = trained_models("digits", "resnet", 3)  # of seed 2 there are no weights
    expected = notebook.trained_model("digits", "resnet")
    assert torch.equal(published.classifier.linear.weight, expected.classifier.linear.weight)


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
