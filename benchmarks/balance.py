"""Time against memory of the ways to make gradients: ``python -m benchmarks.balance``.

Processor seconds of this process, which others on the same machine disturb less than the clock's;
all ways take turns in every round.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch.nn import functional

from benchmarks.command import Run, make_parser
from benchmarks.measure import estimate, ratios
from benchmarks.variants import build
from irevnet.analysis.memory import saved_bytes
from pipeline.figures import use_style

__all__ = ["main", "measure"]

WAYS = {
    "stored": "stored",
    "balanced": "balanced",
    "reversible": "reversible",
    "checkpoint": "checkpoint, per block",
}
"""Ways of making gradients, and what the figure calls them."""


def measure(blocks: tuple[int, int, int], batch_size: int, rounds: int) -> dict[str, Any]:
    """Seconds of forward and backward pass, and saved bytes, of the released network."""
    images = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch_size) % 10
    models = {}
    for way in WAYS:
        torch.manual_seed(0)
        variant = "stored" if way == "balanced" else way
        models[way] = build(variant, "irevnet_cifar", blocks=blocks).train()
    models["balanced"].backward = "balanced"
    kept = {
        way: saved_bytes(lambda model=model: model(images), model) for way, model in models.items()
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):
        for way, model in models.items():
            started = time.process_time()
            functional.cross_entropy(model(images), labels).backward()
            if turn > 0:
                seconds[way].append(time.process_time() - started)
            model.zero_grad()
    against = {way: estimate(ratios(seconds[way], seconds["stored"])) for way in WAYS}
    share = {way: kept[way] / kept["stored"] for way in WAYS}
    return {
        "network": "irevnet_cifar",
        "blocks": list(blocks),
        "batch_size": batch_size,
        "saved_bytes": kept,
        "saved_share": share,
        "over_stored": against,
        "rounds": seconds,
        "targets": [
            {
                "what": "balanced: saved bytes over stored",
                "target": "at most 0.25",
                "measured": share["balanced"],
                "met": share["balanced"] <= 0.25,
            },
            {
                "what": "balanced: time of a step over stored",
                "target": "at most 1.20",
                "measured": against["balanced"],
                "met": against["balanced"]["value"] <= 1.2,
            },
        ],
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """The curve of time against memory."""
    use_style()
    figure, axis = plt.subplots(figsize=(5.6, 4))
    for marker, (way, label) in zip("Dso^", WAYS.items(), strict=True):
        time_ = results["over_stored"][way]
        bounds = [[time_["value"] - time_["low"]], [time_["high"] - time_["value"]]]
        share = 100 * results["saved_share"][way]
        axis.errorbar(share, time_["value"], bounds, fmt=marker, capsize=3, label=label)
    axis.set(xlabel="kept for the backward pass (% of stored)", ylabel="time of a step over stored")
    axis.set_xlim(left=0)
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Runs from the command line; returns the file of the results."""
    parser = make_parser("balance")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args(arguments)
    run = Run("balance", arguments, chosen)
    sizes = ((2, 1, 1), 2, 1) if chosen.quick else ((18, 18, 18), 32, chosen.rounds)
    results = measure(*sizes)
    path = run.save(results)
    draw(results, path.with_suffix(".png"))
    return path


if __name__ == "__main__":
    main()
