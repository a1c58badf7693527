"""The figures of a run."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.settings import RELEASED
from benchmarks.variants import LABELS
from pipeline.figures import use_style

__all__ = ["STYLES", "draw"]

# The palette of Okabe and Ito, as in pipeline.figures; markers tell lines apart in grey print.
STYLES = {
    "stored": ("#56565A", "D", "-"),
    "checkpoint": ("#009E73", "^", "-"),
    "reversible": ("#0072B2", "o", "-"),
    "fixed": ("#D55E00", "s", "--"),
    "memcnn": ("#CC79A7", "v", "-"),
}


def draw(results: dict[str, Any], folder: Path) -> None:
    """Writes ``memory.png`` and ``time.png`` from the results that the sections have so far.

    Args:
        results: results by section.
        folder: where to write the figures.
    """
    use_style()
    if saved := results.get("memory", {}).get("saved", {}).get(RELEASED):
        figure, axis = plt.subplots(figsize=(6.4, 4.2))
        mebibytes = {v: [count / 2**20 for count in c] for v, c in saved["bytes"].items()}
        _lines(axis, saved["blocks_per_stage"], mebibytes)
        axis.set(yscale="log", ylabel=f"saved for the backward pass\n(MiB, {_images(saved)})")
        figure.savefig(folder / "memory.png")
        plt.close(figure)
    cases = [
        case
        for case in results.get("step_time", {}).get("cases", [])
        if case["network"] == RELEASED and case["dropout"] and "float32" in case["mode"]
    ]
    if cases:
        # Depth was varied at the batch size that most cases have.
        sizes = [case["batch_size"] for case in cases]
        size = max(sizes, key=sizes.count)
        chosen = {case["blocks_per_stage"]: case for case in cases if case["batch_size"] == size}
        depths = sorted(chosen)
        figure, axis = plt.subplots(figsize=(6.4, 4.2))
        axis.axhline(1, color=STYLES["stored"][0], linewidth=1.2)
        variants = [v for v in LABELS if v in chosen[depths[0]]["over_stored"]]
        ratios = {v: [chosen[depth]["over_stored"][v] for depth in depths] for v in variants}
        _lines(
            axis,
            depths,
            {v: [ratio["value"] for ratio in row] for v, row in ratios.items()},
            {
                v: [[r[bound] for r in row] for bound in ("low", "high")]
                for v, row in ratios.items()
            },
        )
        axis.set(ylabel=f"time of a step over stored\n({_images(chosen[depths[0]])})")
        axis.set_ylim(bottom=0.8)
        figure.savefig(folder / "time.png")
        plt.close(figure)


def _lines(
    axis: Axes,
    depths: list[int],
    values: dict[str, list[float]],
    bounds: dict[str, list[list[float]]] | None = None,
) -> None:
    """A line for each variant against depth, with a band between its quartiles."""
    for variant, heights in values.items():
        colour, marker, line = STYLES[variant]
        known = depths[: len(heights)]  # an interrupted run has fewer
        axis.plot(known, heights, line, color=colour, marker=marker, label=LABELS[variant])
        if bounds:
            low, high = bounds[variant]
            axis.fill_between(known, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(depths, [str(depth) for depth in depths])
    axis.set_xlabel("blocks in each of three stages")
    axis.figure.legend(loc="outside upper center", ncols=2)


def _images(counts: dict[str, Any]) -> str:
    return f"{counts['batch_size']} images"
