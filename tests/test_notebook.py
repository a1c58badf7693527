import json

import matplotlib.image
import numpy as np
import pytest
import torch

from pipeline.figures import mosaic
from pipeline.notebook import Results


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
