"""The block that readers compute by hand: Python's steps, and the browser's."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from browser import CHROMIUM, dump_dom

ROOT = Path(__file__).resolve().parent.parent
EXTENSION = ROOT / "book" / "_ext"


@pytest.fixture(scope="module")
def by_hand():
    sys.path.insert(0, str(EXTENSION))
    try:
        yield importlib.import_module("by_hand")
    finally:
        sys.path.remove(str(EXTENSION))


def test_pixels_go_to_channels_as_in_torch(by_hand):
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = torch.nn.functional.pixel_unshuffle(image, 2).flatten().tolist()
    assert by_hand.space_to_depth(range(16)) == expected


@pytest.mark.parametrize("function", ["relu", "sum", "largest"])
@pytest.mark.parametrize("weight", [-3, 0, 2])
def test_the_inverse_is_the_image(by_hand, function, weight):
    image = torch.randint(-9, 10, (16,)).tolist()
    steps = by_hand.forward(image, function, weight)
    assert by_hand.inverse(steps["copied"], steps["added"], function, weight) == image


MOVES = """
<script>addEventListener("load", () => {
  const root = document.querySelector(".by-hand");
  const change = (control, value, event) => {
    control.value = value; control.dispatchEvent(new Event(event));
  };
  change(root.querySelector("select"), "FUNCTION", "change");
  change(root.querySelector("input[type=range]"), -3, "input");
  change(root.querySelectorAll("[data-values=image] input")[5], 7, "input");
  if (ENTRY) change(root.querySelectorAll("[data-values=copied] input")[3], 6, "input");
  for (const input of root.querySelectorAll("input")) input.setAttribute("value", input.value);
});</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
@pytest.mark.parametrize("entry", [False, True])
@pytest.mark.parametrize("function", ["relu", "sum", "largest"])
def test_the_browser_computes_the_same(by_hand, tmp_path, function, entry):
    shutil.copy(EXTENSION / "by_hand_assets/by_hand.js", tmp_path)
    directive = by_hand.ByHand.__new__(by_hand.ByHand)
    body = directive.run()[0].astext()
    moves = MOVES.replace("FUNCTION", function).replace("ENTRY", str(entry).lower())
    page = tmp_path / "page.html"
    page.write_text(f"{body}<script src='by_hand.js'></script>{moves}")
    shown = dump_dom(page, tmp_path / "profile")

    def values(name):
        part = re.split(r"data-values=", shown.split(f'data-values="{name}"')[1])[0]
        cells = re.findall(r'<input[^>]*value="(-?\d+)"|<span>(-?\d+)</span>', part)
        return [int(one or other) for one, other in cells]

    image = list(by_hand.IMAGE)
    image[5] = 7
    steps = by_hand.forward(image, function, -3)
    if entry:
        copied = [*steps["copied"][:3], 6, *steps["copied"][4:]]
        image = by_hand.inverse(copied, steps["added"], function, -3)
        steps = by_hand.forward(image, function, -3)
    assert {name: values(name) for name in steps} == steps
    assert values("image") == values("returned") == image
    assert "disabled" not in shown.split("<noscript")[0]
