"""The progress of an experiment's training: ``python -m pipeline.status cifar10``.

Prints one line per run: done, out of date (trained with another recipe than that of
``params.yaml``), running, interrupted (it will resume from its checkpoint) or not begun; then an
estimate of the remaining time. ``python -m pipeline.repro cifar10 --train`` trains the missing
networks, and can be stopped and restarted at any time.
"""

import argparse
import fcntl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irevnet.training.config import TrainingConfig
from pipeline.files import read_json
from pipeline.params import ROOT, ParamsError, load_params

__all__ = ["STATES", "Run", "main", "remaining_seconds", "share_of_training", "training_runs"]


STATES = ("done", "out of date", "running", "interrupted", "not begun")


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        family: of networks.
        seed: of the run.
        state: one of :data:`STATES`.
        share: of its computation that is done, 0 to 1.
        seconds: of training so far, over all sessions; None if not recorded.
    """

    family: str
    seed: int
    state: str
    share: float
    seconds: float | None


def training_runs(experiment: str) -> list[Run]:
    """The runs of an experiment in the order of training; empty if nothing is trained.

    Raises:
        ParamsError: if there is no such experiment.
    """
    section = load_params().section(experiment)
    if section.training is None:
        return []
    return [
        _run(experiment, family, seed, section.recipe(family))
        for family in section.models
        for seed in section.seeds
    ]


def remaining_seconds(runs: Sequence[Run]) -> float | None:
    """Remaining seconds of training, one run after the other; None if no run has begun.

    The estimate for a run is the average of its family, extrapolated from the runs so far. For a
    family without a run that has begun, it is the average of the other families.
    """
    whole: dict[str, list[float]] = {}
    for run in runs:
        if run.seconds is not None and run.share > 0:
            whole.setdefault(run.family, []).append(run.seconds / run.share)
    if not whole:
        return None
    by_family = {family: sum(times) / len(times) for family, times in whole.items()}
    average = sum(by_family.values()) / len(by_family)
    return sum((1 - run.share) * by_family.get(run.family, average) for run in runs)


def _run(experiment: str, family: str, seed: int, recipe: dict[str, Any]) -> Run:
    from pipeline.notebook import checkpoint_path  # imports PyTorch, which takes a second

    output = f"results/{experiment}/train/{family}-{seed}"
    if (ROOT / output / "metrics.json").is_file():
        provenance = ROOT / output / "provenance.json"
        record = read_json(provenance) if provenance.is_file() else {}
        if record.get("parameters", {}).get("training", recipe) != recipe:
            return Run(family, seed, "out of date", 0.0, None)
        return Run(family, seed, "done", 1.0, record.get("timing", {}).get("training"))
    path = checkpoint_path(experiment, family, seed, output)
    state = "running" if _is_locked(path.with_name(f"{path.name}.lock")) else "interrupted"
    metadata = _metadata(path)
    if metadata is None:
        return Run(family, seed, state if state == "running" else "not begun", 0.0, None)
    share = share_of_training(TrainingConfig(**recipe), len(metadata["history"]))
    return Run(family, seed, state, share, metadata["seconds"])


def share_of_training(config: TrainingConfig, epochs: int) -> float:
    """The share of the computation in the first epochs, if a step costs as much as its pixels."""
    full = max(config.sides, default=1)
    costs = [float((config.side(epoch) or full) ** 2) for epoch in range(config.epochs)]
    return sum(costs[:epochs]) / sum(costs)


def _metadata(path: Path) -> dict[str, Any] | None:
    """The metadata of a checkpoint, or of the previous one; None if neither can be read."""
    from irevnet.weights import read_tensors

    for candidate in (path, path.with_name(f"{path.name}.previous")):
        try:
            return read_tensors(candidate)[1]
        except (OSError, ValueError):
            continue
    return None


def _is_locked(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _describe(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        progress = f" {run.share:.0%}" if run.state in ("running", "interrupted") else ""
        took = "" if run.seconds is None else f", {_duration(run.seconds)} of training"
        lines.append(f"{run.family}-{run.seed}: {run.state}{progress}{took}")
    counts = [f"{sum(run.state == state for run in runs)} {state}" for state in STATES]
    left = remaining_seconds(runs)
    about = "unknown until a run has begun" if left is None else f"about {_duration(left)}"
    return "\n".join([*lines, f"{', '.join(counts)}; remaining, one after the other: {about}"])


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.status")
    parser.add_argument("experiment", nargs="?", help="a section of params.yaml")
    chosen = parser.parse_args(arguments)
    try:
        experiment = chosen.experiment or load_params().default
        runs = training_runs(experiment)
        print(_describe(runs) if runs else f"nothing is trained in {experiment}")
    except ParamsError as error:
        sys.exit(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
