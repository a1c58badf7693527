"""Draws ``figures/curves-<experiment>.svg``: accuracy against training time, for each experiment.

The executed notebooks draw the same curves against epochs. They have no times, because two runs of
the same inputs must give the same bytes; these are in ``provenance.json`` beside ``history.csv``.
"""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from sphinx.application import Sphinx

from pipeline.files import read_json

__all__ = ["setup"]


def _runs(folder: Path) -> dict[str, list[tuple[np.ndarray, np.ndarray, float]]]:
    """Per family, each run's minutes, validation accuracies and test accuracy, in per cent.

    Only the time of the whole training is known; epochs have their share of it.
    """
    from irevnet.training import TrainingConfig
    from pipeline.status import share_of_training

    runs = defaultdict(list)
    for file in sorted(folder.glob("*/history.csv")):
        provenance = read_json(file.with_name("provenance.json"))
        metrics = read_json(file.with_name("metrics.json"))
        with file.open(newline="", encoding="utf-8") as lines:
            curve = [row.get("validation_accuracy") for row in csv.DictReader(lines)]
        seconds = provenance.get("timing", {}).get("training")
        if seconds is None or None in curve or "test_accuracy" not in metrics:
            continue
        # Of an old recipe, whose other options may have had other names.
        sides = provenance["parameters"]["training"].get("sides", [])
        config = TrainingConfig(epochs=len(curve), batch_size=1, learning_rate=1.0, sides=sides)
        ends = [share_of_training(config, epoch + 1) for epoch in range(len(curve))]
        minutes = seconds / 60 * np.array(ends)
        family = file.parent.name.rpartition("-")[0]
        accuracies = 100 * np.array(curve, dtype=float)
        runs[family].append((minutes, accuracies, 100 * metrics["test_accuracy"]))
    return runs


def _draw(runs: dict[str, list[tuple[np.ndarray, np.ndarray, float]]], path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from pipeline.figures import family_style, use_style

    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": path.stem}):
        use_style()
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axis = figure.subplots()
        for family, own in runs.items():
            style = family_style(family)
            minutes, accuracies, test = (np.mean(part, axis=0) for part in zip(*own, strict=True))
            axis.plot(minutes, accuracies, markevery=[], **style)
            axis.plot(minutes[-1], test, markersize=8, **style | {"label": None})
        axis.set(xlabel="training time (minutes)", ylabel="accuracy (%)")
        axis.legend(loc="lower right")
        figure.savefig(path, metadata={"Date": None})


def _draw_all(app: Sphinx) -> None:
    from pipeline.figures import STYLES

    results, here = Path(app.srcdir, "results"), Path(__file__)
    for folder in sorted(results.glob("*/train")):
        path = Path(app.srcdir, "figures", f"curves-{folder.parent.name}.svg")
        newest = max(file.stat().st_mtime for file in (here, *folder.rglob("*.*")))
        if path.is_file() and path.stat().st_mtime >= newest:
            continue
        if not (runs := _runs(folder)):
            continue
        known = sorted(runs, key=lambda family: ([*STYLES, family].index(family), family))
        path.parent.mkdir(exist_ok=True)
        _draw({family: runs[family] for family in known}, path)


def setup(app: Sphinx) -> dict[str, Any]:
    """Draws the figures that are older than the results they show."""
    app.connect("builder-inited", _draw_all)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
