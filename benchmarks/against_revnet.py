"""Time of a training step against RevNet of equal depth: ``python -m benchmarks.against_revnet``.

The paper's manuscript as submitted says that training an i-RevNet takes a third longer than
training a RevNet (claim C10). Times are processor seconds of this process, which other processes on
the machine disturb less than wall-clock time. Both networks take turns in every round.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import Run, make_parser, positive
from benchmarks.measure import estimate, interleave, ratios
from benchmarks.steps import Mode, trainer
from irevnet import create_model

__all__ = ["main", "measure"]

PAIRS = {
    # Table 1 of the paper: 56 layers each. In smaller batches the update of 181 million parameters
    # takes most of the time.
    "ilsvrc": (("irevnet_a", {}), ("revnet56", {}), 224, 16),
    # 38 layers each, as in the experiment cifar10.
    "cifar10": (
        ("irevnet_cifar", {"blocks": [4, 4, 4], "dropout": 0.0}),
        ("revnet_cifar", {"units": [2, 2, 2]}),
        32,
        32,
    ),
}
"""An i-RevNet and a RevNet, side of the images, images in a batch."""

_TINY = {
    "cifar10": (
        ("irevnet_cifar", {"blocks": [1, 1, 1]}),
        ("revnet_cifar", {"units": [1, 1, 1]}),
        32,
        2,
    )
}


def measure(pairs: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds of a training step, and their ratio, for each pair."""
    results = {}
    for name, (ours, theirs, side, batch_size) in pairs.items():
        images = torch.rand(batch_size, 3, side, side, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(batch_size) % 10
        mode = Mode(bfloat16=True, channels_last=True)
        models = {model: create_model(model, **options) for model, options in (ours, theirs)}
        steps = {model: trainer(built, images, labels, mode)[0] for model, built in models.items()}
        seconds = interleave(steps, rounds, torch.device("cpu"), time.process_time)
        results[name] = {
            "networks": [ours[0], theirs[0]],
            "parameters": [sum(p.numel() for p in model.parameters()) for model in models.values()],
            "image_side": side,
            "batch_size": batch_size,
            "mode": str(mode),
            "step_over_revnet": estimate(ratios(seconds[ours[0]], seconds[theirs[0]])),
            "rounds": seconds,
        }
    return results


def main(arguments: Sequence[str] | None = None) -> Path:
    """Runs from the command line; returns the file of the results."""
    parser = make_parser("against_revnet")
    parser.add_argument("--rounds", type=positive, default=7)
    chosen = parser.parse_args(arguments)
    run = Run("against_revnet", arguments, chosen)
    return run.save(measure(*((_TINY, 1) if chosen.quick else (PAIRS, chosen.rounds))))


if __name__ == "__main__":
    main()
