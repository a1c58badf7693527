from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from benchmarks.figures import STYLES as benchmark_styles
from pipeline.figures import family_style, image_grid, mosaic


def test_a_grid_writes_notes_below_images():
    rows = [torch.rand(3, 1, 8, 8), torch.rand(3, 3, 8, 8)]
    notes = [["a", "b", "c"], ["d", "e", "f"]]
    figure = image_grid(rows, ["first", "second"], notes)
    assert [axis.get_xlabel() for axis in figure.axes] == list("abcdef")
    assert [axis.get_ylabel() for axis in figure.axes] == ["first", "", "", "second", "", ""]
    assert {axis.get_xlabel() for axis in image_grid(rows, ["first", "second"]).axes} == {""}
    with pytest.raises(ValueError, match="shorter"):
        image_grid(rows, ["first", "second"], notes[:1])
    plt.close("all")


def test_a_mosaic_has_every_image_in_its_cell():
    images = torch.rand(2, 3, 3, 4, 4) * 1.5 - 0.25
    picture = mosaic(images, cell=6)  # 4 pixels become 8
    assert picture.shape == (16, 24, 3)
    assert picture.dtype == np.uint8
    expected = (images[1, 2].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.array_equal(picture[8::2, 16::2], expected)
    assert np.array_equal(picture[9::2, 17::2], expected)


def test_a_mosaic_of_grey_images_is_grey():
    picture = mosaic(torch.rand(1, 2, 1, 8, 8), cell=8)
    assert picture.shape == (8, 16, 3)
    assert (picture == picture[..., :1]).all()


def test_a_family_without_a_style_is_grey_and_called_by_its_name():
    style = family_style("smoothing_02")
    assert (style["color"], style["marker"], style["label"]) == ("#56565A", ".", "smoothing 02")
    assert family_style("irevnet")["label"] == "i-RevNet, injective"


def test_ways_of_training_have_one_colour_each():
    notebook = (Path(__file__).parent.parent / "notebooks/memory.ipynb").read_text()
    for way in ("stored", "reversible"):
        colour, marker, _ = benchmark_styles[way]
        assert f'\\"{way}\\": (\\"{colour}\\", \\"{marker}\\"' in notebook
