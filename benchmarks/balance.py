"""Time against memory of several ways to compute gradients: ``python -m benchmarks.balance``.

Times are processor seconds of this process, which other processes on the machine disturb less than
wall-clock time. All ways take turns in every round. Memory is kept, as in the pipeline's trainings:
otherwise every ratio would include the time to get new memory, of which stored activations need
most.
"""

import contextlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import set_checkpoint_early_stop

from benchmarks.command import Run, as_trainings_run, make_parser, positive
from benchmarks.measure import estimate, interleave, ratios
from benchmarks.targets import goal
from benchmarks.variants import build, create_irevnet
from irevnet.analysis.memory import saved_bytes
from pipeline.figures import use_style

__all__ = ["main", "measure"]

WAYS = {
    "stored": "stored",
    "balanced": "balanced",
    "reversible": "reversible",
    "checkpoint": "checkpoint, per block",
    "checkpoint_all": "checkpoint, last convolution again, too",
}
"""Ways to compute gradients, and their labels in the figure.

A checkpoint stops evaluating a block again before its last convolution, whose result no gradient
needs. The reversible backward needs that result to recover the block's input, so it should be
compared with a checkpoint that does not stop.
"""


def measure(blocks: tuple[int, int, int], batch_size: int, rounds: int) -> dict[str, Any]:
    """Seconds of forward and backward pass, and saved bytes, of the released network."""
    images = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch_size) % 10
    models: dict[str, nn.Module] = {}
    for way in WAYS:
        torch.manual_seed(0)
        if way == "balanced":  # not one of the variants
            models[way] = create_irevnet("irevnet_cifar", blocks=blocks, backward=way)
        else:
            variant = "checkpoint" if way == "checkpoint_all" else way
            models[way] = build(variant, "irevnet_cifar", blocks=blocks)
    kept = {}
    for way, model in models.items():
        with _whole(way):
            kept[way] = saved_bytes(partial(model, images), model)

    def step(way: str) -> None:
        with _whole(way):
            functional.cross_entropy(models[way](images), labels).backward()
        models[way].zero_grad()

    steps = {way: partial(step, way) for way in WAYS}
    seconds = interleave(steps, rounds, torch.device("cpu"), time.process_time)
    against = {way: estimate(ratios(seconds[way], seconds["stored"])) for way in WAYS}
    over_checkpoint = estimate(ratios(seconds["reversible"], seconds["checkpoint"]))
    share = {way: kept[way] / kept["stored"] for way in WAYS}
    return {
        "network": "irevnet_cifar",
        "blocks": list(blocks),
        "batch_size": batch_size,
        "saved_bytes": kept,
        "saved_share": share,
        "over_stored": against,
        "reversible_over_checkpoint": over_checkpoint,
        "reversible_over_checkpoint_all": estimate(
            ratios(seconds["reversible"], seconds["checkpoint_all"])
        ),
        "rounds": seconds,
        "targets": [
            goal("balanced: saved bytes over stored", share["balanced"], at_most=0.25),
            goal("balanced: time of a step over stored", against["balanced"], at_most=1.2),
            goal(
                "reversible: time of a step over checkpointing every block",
                over_checkpoint,
                below=1,
            ),
        ],
    }


def _whole(way: str) -> contextlib.AbstractContextManager[object]:
    """Makes checkpoints inside evaluate the whole of a block again, if ``way`` asks for it."""
    if way == "checkpoint_all":
        return set_checkpoint_early_stop(False)
    return contextlib.nullcontext()


def draw(results: dict[str, Any], path: Path) -> None:
    """The curve of time against memory."""
    use_style()
    figure, axis = plt.subplots(figsize=(5.6, 4))
    for marker, (way, label) in zip("Dso^v", WAYS.items(), strict=True):
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
    parser.add_argument("--rounds", type=positive, default=7)
    chosen = parser.parse_args(arguments)
    run = Run("balance", arguments, chosen)
    sizes = ((2, 1, 1), 2, 1) if chosen.quick else ((18, 18, 18), 32, chosen.rounds)
    results = measure(*sizes)
    path = run.save(results)
    draw(results, path.with_suffix(".png"))
    return path


if __name__ == "__main__":
    as_trainings_run("balance")
    main()
