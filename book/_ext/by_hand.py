"""The directive ``{by-hand}``: one block and its inverse on a 4 x 4 image, with whole numbers.

Readers change pixels, entries of the representation, or F, and see every step. The first state is
computed here, so that the page shows it even without scripts; ``by_hand.js`` computes the others.
"""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from assets import add_assets

__all__ = ["FUNCTIONS", "forward", "inverse", "setup"]

ASSETS = Path(__file__).with_name("by_hand_assets")
IMAGE = (1, 2, 3, 4, 2, 9, 8, 3, 3, 8, 9, 2, 4, 3, 2, 1)
WEIGHT = 2
# Functions of two channels with four places each, one after the other. None is invertible.
FUNCTIONS: dict[str, tuple[str, Callable[[Sequence[int], int], list[int]]]] = {
    "relu": (
        "w times the excess over 4, or 0",
        lambda x, w: [w * max(0, value - 4) for value in x],
    ),
    "sum": (
        "w times the sum of the two channels",
        lambda x, w: [w * (x[place] + x[place + 4]) for place in range(4)] * 2,
    ),
    "largest": ("w times the largest entry, everywhere", lambda x, w: [w * max(x)] * 8),
}


def space_to_depth(image: Sequence[int]) -> list[int]:
    """Four channels of 2 x 2 places from 4 x 4 pixels; channel 2a + b starts at row a, column b."""
    return [
        image[4 * (2 * row + a) + 2 * column + b]
        for a in range(2)
        for b in range(2)
        for row in range(2)
        for column in range(2)
    ]


def forward(image: Sequence[int], function: str, weight: int) -> dict[str, list[int]]:
    """All steps from the image to the representation."""
    channels = space_to_depth(image)
    other, x = channels[:8], channels[8:]
    residual = FUNCTIONS[function][1](x, weight)
    added = [a + b for a, b in zip(other, residual, strict=True)]
    return {"other": other, "x": x, "residual": residual, "copied": x, "added": added}


def inverse(copied: Sequence[int], added: Sequence[int], function: str, weight: int) -> list[int]:
    """The image of a representation."""
    residual = FUNCTIONS[function][1](copied, weight)
    channels = [*(a - b for a, b in zip(added, residual, strict=True)), *copied]
    image = [0] * 16
    for index, place in enumerate(space_to_depth(range(16))):
        image[place] = channels[index]
    return image


class ByHand(SphinxDirective):
    """``{by-hand}``."""

    def run(self) -> list[nodes.Node]:
        """The steps, as HTML."""
        steps = forward(IMAGE, "relu", WEIGHT)
        options = "".join(
            f'<option value="{name}">{html.escape(label)}</option>'
            for name, (label, _) in FUNCTIONS.items()
        )
        parts = [
            '<div class="by-hand">',
            '<p class="by-hand-controls"><label>F <select disabled>',
            options,
            '</select></label> <label>w <input type="range" min="-3" max="3" step="1" ',
            f'value="{WEIGHT}" disabled> <output>{WEIGHT}</output></label> ',
            '<button type="button" disabled>Start again</button></p>',
            '<div class="by-hand-steps">',
            _step("Image", "Change a pixel.", [_grid("image", IMAGE, 4, "pixel")]),
            _step(
                "Pixels to channels, in two halves",
                "Top: rows 1 and 3. Bottom: rows 2 and 4, which F reads.",
                [*_halves("other", steps["other"]), *_halves("x", steps["x"])],
            ),
            _step("F of the second half", "", _halves("residual", steps["residual"])),
            _step(
                "Representation",
                "Top: the second half as it is. Bottom: the first half plus F. Change an entry.",
                [
                    *_halves("copied", steps["copied"], "entry of the copy"),
                    *_halves("added", steps["added"], "entry of the sum"),
                ],
            ),
            _step(
                "Inverse",
                "The sum minus F of the copy, and the channels moved back to pixels.",
                [_grid("returned", inverse(steps["copied"], steps["added"], "relu", WEIGHT), 4)],
            ),
            "</div>",
            '<p class="by-hand-verdict" role="status">',
            "The inverse equals the image, entry by entry.</p>",
            "<noscript><p>Without scripts, this is a fixed example.</p></noscript></div>",
        ]
        return [nodes.container("", nodes.raw("", "".join(parts), format="html"))]


def _step(title: str, text: str, grids: Sequence[str]) -> str:
    note = f"<p>{html.escape(text)}</p>" if text else ""
    shown = "".join(grids)
    return (
        f'<div class="by-hand-step"><p><strong>{html.escape(title)}</strong></p>{shown}{note}</div>'
    )


def _halves(name: str, values: Sequence[int], label: str = "") -> list[str]:
    return ['<div class="by-hand-half">', _grid(name, values, 2, label), "</div>"]


def _grid(name: str, values: Sequence[int], columns: int, label: str = "") -> str:
    """Values in squares of ``columns`` columns each, side by side; inputs if there is a label."""
    size = columns * columns
    squares = []
    for start in range(0, len(values), size):
        cells = [
            f'<input type="number" value="{value}" step="1" disabled '
            f'aria-label="{label} {start + place + 1}">'
            if label
            else f"<span>{value}</span>"
            for place, value in enumerate(values[start : start + size])
        ]
        squares.append(f'<div class="by-hand-grid by-hand-{columns}">{"".join(cells)}</div>')
    return f'<div data-values="{name}" class="by-hand-row">{"".join(squares)}</div>'


def _used(doctree: nodes.document) -> bool:
    return any('class="by-hand"' in raw.astext() for raw in doctree.findall(nodes.raw))


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive and what its page loads."""
    app.add_directive("by-hand", ByHand)
    add_assets(app, ASSETS, _used)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
