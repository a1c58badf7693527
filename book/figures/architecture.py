"""Draws the coupling block (block.svg) and the two networks of the paper (network.svg).

Run by the book's build; the same code gives the same bytes. Shapes and block counts are read
from the models of the zoo, built without storage on PyTorch's meta device.
"""

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

import irevnet

HERE = Path(__file__).parent
TIMES = "\N{MULTIPLICATION SIGN}"
# Okabe and Ito's colours, which remain distinct in every common kind of colour blindness; shape,
# hatching and labels say the same without colour.
INVERTIBLE = {"facecolor": "#d6e8f5", "edgecolor": "#0072B2"}
ANY = {"facecolor": "#fbe6bf", "edgecolor": "#9a6a00"}
LOSSY = {"facecolor": "white", "edgecolor": "#D55E00", "hatch": "////"}
PLAIN = {"facecolor": "white", "edgecolor": "#444444"}


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, style: dict) -> None:
    """A labelled box around the point (x, y)."""
    patch = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.06",
        linewidth=1.4,
        **style,
    )
    ax.add_patch(patch)
    background = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    ax.text(x, y, text, ha="center", va="center", bbox=background if "hatch" in style else None)


def arrow(ax: Axes, *points: tuple[float, float]) -> None:
    """An arrow through ``points``."""
    xs, ys = zip(*points[:-1], strict=True)
    ax.plot(xs, ys, color="black", linewidth=1.4, solid_capstyle="butt", zorder=0)
    ax.add_patch(
        FancyArrowPatch(
            points[-2], points[-1], arrowstyle="-|>", mutation_scale=12, linewidth=1.4,
            color="black", shrinkA=0, shrinkB=0, zorder=0,
        )
    )  # fmt: skip


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose data units are inches."""
    figure = Figure(figsize=(width, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def block() -> Figure:
    """The coupling, forward and inverse side by side."""
    figure, ax = canvas(5.2, 3.5)
    for left, forward in ((0.0, True), (2.65, False)):
        lane, other, middle = left + 0.5, left + 2.05, left + 1.28
        top, bottom, s, add, branch = 2.8, 0.3, 1.85, 1.15, 2.28
        ax.text(left + 1.28, 3.25, "forward" if forward else "inverse", ha="center", weight="bold")
        s_text = r"$S_{j+1}$" if forward else r"$S_{j+1}^{-1}$"
        ax.text(lane, top, r"$\tilde{x}_j$", ha="center", va="center", size=14)
        ax.text(other, top, "$x_j$", ha="center", va="center", size=14)
        ax.text(lane, bottom, "$x_{j+1}$", ha="center", va="center", size=14)
        ax.text(other, bottom, r"$\tilde{x}_{j+1}$", ha="center", va="center", size=14)
        up, down = top - 0.2, bottom + 0.2
        columns = [
            [(lane, up), (lane, s + 0.2)],
            [(lane, s - 0.2), (lane, add + 0.14)],
            [(lane, add - 0.14), (lane, down)],
            [(other, up), (other, s + 0.2)],
            [(other, s - 0.2), (other, down)],
        ]
        for start, end in columns:
            arrow(ax, *((start, end) if forward else (end, start)))
        # F reads x_j in both directions: that is why it need not be inverted.
        arrow(ax, (other, branch), (middle, branch), (middle, s + 0.2))
        arrow(ax, (middle, s - 0.2), (middle, add), (lane + 0.14, add))
        ax.add_patch(Circle((other, branch), 0.045, color="black"))
        box(ax, lane, s, 0.7, 0.4, s_text, INVERTIBLE)
        box(ax, other, s, 0.7, 0.4, s_text, INVERTIBLE)
        box(ax, middle, s, 0.62, 0.4, "$F_{j+1}$", ANY)
        ax.add_patch(Circle((lane, add), 0.14, linewidth=1.4, **PLAIN))
        ax.text(lane, add - 0.01, "+" if forward else "$-$", ha="center", va="center", size=13)
    ax.plot([2.6, 2.6], [0.15, 3.35], color="#999999", linewidth=1, linestyle=(0, (4, 3)))
    return figure


def shapes(name: str) -> tuple[list[str], str, str]:
    """The number of blocks and the shape of a half per stage; the entry; the final shape."""
    with torch.device("meta"):
        model = irevnet.create_model(name)
    size = model.in_shape[1] // model.entry.factor
    channels = model.in_channels * model.entry.factor**2
    zeros = model.zero_channels.channels
    entry = f"{channels} + {zeros} zeros" if zeros else f"{channels} channels"
    stages: list[list[int]] = []
    for coupling in model.blocks:
        if coupling.downsample.factor > 1 or not stages:
            size //= coupling.downsample.factor
            stages.append([0, coupling.residual[-1].out_channels, size])
        stages[-1][0] += 1
    text = [f"{count} blocks\n2 {TIMES} {half} {TIMES} {side}²" for count, half, side in stages]
    return text, entry, f"{model.channels} {TIMES} {size}²"


def network() -> Figure:
    """Models (a) and (b) from image to logits."""
    figure, ax = canvas(5.2, 6.9)
    models = {"(a) injective": shapes("irevnet_a"), "(b) bijective": shapes("irevnet_b")}
    ax.text(2.6, 6.72, f"image 3 {TIMES} 224²", ha="center", va="center")
    for centre, (title, (stages, entry, final)) in zip((1.12, 4.08), models.items(), strict=True):
        ax.text(centre, 6.37, title, ha="center", va="center", weight="bold")
        rows = [(r"$\tilde{S}$: " + entry, INVERTIBLE, 0.42)]
        rows += [(text, INVERTIBLE, 0.62) for text in stages]
        rows += [("$z$: " + final, PLAIN, 0.42), ("classifier", LOSSY, 0.42)]
        y = 6.2
        for index, (text, style, height) in enumerate(rows):
            top = y - 0.26
            arrow(ax, (centre, y), (centre, top))
            box(ax, centre, top - height / 2, 2.06, height, text, style)
            y = top - height
            if index == len(rows) - 3:
                invertible_end = y
        arrow(ax, (centre, y), (centre, y - 0.26))
        ax.text(centre, y - 0.4, "1000 logits", ha="center", va="center")
    for start, end, text in ((6.15, invertible_end, "encode"), (invertible_end, 6.15, "inverse")):
        x = 2.46 if text == "encode" else 2.74
        arrow(ax, (x, start), (x, end))
        ax.text(
            x, (start + end) / 2, text, rotation=90, ha="center", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    return figure


def main() -> None:
    """Writes both figures beside this file."""
    settings = {"svg.hashsalt": "irevnet", "svg.fonttype": "path", "font.size": 11}
    with mpl.rc_context(settings | {"font.family": "DejaVu Sans", "hatch.linewidth": 0.6}):
        for draw in (block, network):
            draw().savefig(HERE / f"{draw.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
