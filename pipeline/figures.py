"""One style for all figures: legible in print, at small widths and to colour-blind readers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

__all__ = [
    "FAMILY_LABELS",
    "STYLES",
    "Style",
    "band",
    "family_style",
    "image_grid",
    "mosaic",
    "use_style",
]


class Style(NamedTuple):
    """How a family of networks appears in figures and tables."""

    label: str
    colour: str
    marker: str  # for print in greyscale


# The families that the book shows. Colours: Okabe and Ito (2008), https://jfly.uni-koeln.de/color/.
STYLES = {
    "irevnet": Style("i-RevNet, injective", "#0072B2", "o"),
    "irevnet_bijective": Style("i-RevNet, bijective", "#D55E00", "s"),
    "revnet": Style("RevNet", "#009E73", "^"),
    "resnet": Style("ResNet", "#56565A", "D"),
    "projected": Style("i-RevNet, projections for S", "#CC79A7", "v"),
    "shuffled": Style("RevNet, S for projections", "#E69F00", "P"),
}


class _Labels(dict[str, str]):
    """Labels of families; the name stands for a missing one, as for the variations in trials."""

    def __missing__(self, family: str) -> str:
        return family.replace("_", " ")


FAMILY_LABELS = _Labels({family: style.label for family, style in STYLES.items()})


def use_style() -> None:
    """Sets matplotlib's defaults for a notebook."""
    plt.rcParams.update(
        {
            "axes.grid": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "figure.figsize": (6.4, 4.0),
            "font.size": 11,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "savefig.dpi": 160,
        }
    )


def family_style(family: str) -> dict[str, str]:
    """Colour, marker and label of a family, for any plotting call; grey if it has no style."""
    style = STYLES.get(family) or Style(FAMILY_LABELS[family], "#56565A", ".")
    return {"color": style.colour, "marker": style.marker, "label": style.label}


def band(axis: Axes, x: np.ndarray, rows: np.ndarray, middle: np.ndarray, **style: Any) -> None:  # noqa: ANN401
    """Draws a line, and a band over the range of the rows that it summarises.

    Args:
        axis: to draw on.
        x: ``(n,)``.
        rows: ``(rows, n)``, one per image or network.
        middle: ``(n,)``, their median or mean.
        **style: properties of the line; its ``color`` also fills the band.
    """
    axis.plot(x, middle, **style)
    ends = rows.min(axis=0), rows.max(axis=0)
    axis.fill_between(x, *ends, color=style["color"], alpha=0.2, linewidth=0)


def image_grid(
    rows: Sequence[Tensor],
    labels: Sequence[str],
    notes: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """A figure of images, one row per tensor.

    Args:
        rows: images ``(N, C, H, W)`` of 1 or 3 channels, clipped to [0, 1]; the same ``N``.
        labels: of the rows, written at the left.
        notes: texts to write below the images, ``N`` for each row.
    """
    columns = len(rows[0])
    width = min(9.0, 1.6 + 0.8 * columns)
    cell = (width - 1.6) / columns
    below = 0.0 if notes is None else 0.2
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(width, (cell + below) * len(rows) + 0.1), squeeze=False
    )
    for row, images, label in zip(axes, rows, labels, strict=True):
        for axis, image in zip(row, images, strict=True):
            _show_image(axis, image)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    for row, texts in zip(axes, notes or [], strict=notes is not None):
        for axis, text in zip(row, texts, strict=True):
            axis.set_xlabel(text, fontsize=9, labelpad=2)
    return figure


def mosaic(images: Tensor, cell: int = 32) -> np.ndarray:
    """One picture of images side by side without gaps, enlarged by a whole number.

    Args:
        images: ``(rows, columns, C, H, W)`` of 1 or 3 channels, clipped to [0, 1].
        cell: minimum height and width of an enlarged image, in pixels.

    Returns:
        ``(rows * height, columns * width, 3)`` uint8.
    """
    pixels = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    rows, columns, channels, height, width = pixels.shape
    scale = -(-cell // min(height, width))
    pixels = pixels.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
    pixels = pixels.expand(-1, -1, 3, -1, -1) if channels == 1 else pixels
    pixels = pixels.permute(0, 3, 1, 4, 2)
    return pixels.reshape(rows * height * scale, columns * width * scale, 3).numpy()


def _show_image(axis: Axes, image: Tensor) -> None:
    """Draws one image ``(C, H, W)`` without axes."""
    pixels = np.clip(image.detach().cpu().numpy().transpose(1, 2, 0), 0, 1)
    axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
