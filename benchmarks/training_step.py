"""A training step as the pipeline runs it, and with malloc as it comes.

``python -m benchmarks.training_step`` compares two processes that take turns: one has the tunables
of malloc that trainings get (``pipeline.run.KEEP_MEMORY``), the other has not. The arithmetic is
the same, and what the steps make of the weights is compared to the bit.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import Run, make_parser
from benchmarks.measure import estimate, interleave, ratios
from benchmarks.provenance import ROOT
from benchmarks.steps import Mode, trainer
from irevnet import create_model
from pipeline.run import KEEP_MEMORY

__all__ = ["main", "measure", "work"]

_TARGET = 1.15  # of the released network's throughput, on two threads

# The networks of cifar10_released, then those of cifar10.
_NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "irevnet": ("irevnet_cifar", {"dropout": 0.0}),
    "resnet": ("resnet_cifar", {}),
    "small_irevnet": ("irevnet_cifar", {"dropout": 0.0, "blocks": [4, 4, 4]}),
    "small_resnet": ("resnet_cifar", {"units": [4, 4, 4]}),
}


def work(network: str, batch_size: int, threads: int) -> None:
    """Takes a training step for every line that comes in; prints the bits of the weights' sum."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    name, overrides = _NETWORKS[network]
    model = create_model(name, **overrides)
    images, labels = torch.rand(batch_size, 3, 32, 32), torch.randint(0, 10, (batch_size,))
    step, _ = trainer(model, images, labels, Mode(channels_last=True))
    for _ in sys.stdin:
        step()
        total = sum(float(p.detach().double().sum()) for p in model.parameters())
        print(total.hex(), flush=True)


class _Worker:
    """A process that takes steps when it is asked to."""

    def __init__(self, network: str, batch_size: int, threads: int, tunables: str | None) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        if tunables:
            environment["GLIBC_TUNABLES"] = tunables
        module = [sys.executable, "-m", "benchmarks.training_step", "--worker", network]
        options = ["--batch-size", str(batch_size), "--threads", str(threads)]
        self._process = subprocess.Popen(
            module + options,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.sums: list[str] = []

    def step(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a training step failed; its error is above")
        self.sums.append(line)

    def stop(self) -> None:
        self._process.communicate()


def measure(network: str, batch_size: int, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step of both processes, in turn.

    Raises:
        RuntimeError: if a step fails.
    """
    settings = {"plain": None, "kept": KEEP_MEMORY}
    workers = {
        name: _Worker(network, batch_size, threads, tunables) for name, tunables in settings.items()
    }
    try:
        steps = {name: partial(_steps, worker) for name, worker in workers.items()}
        seconds = interleave(steps, rounds, torch.device("cpu"))
    finally:
        for worker in workers.values():
            worker.stop()
    return {
        "network": network,
        "batch_size": batch_size,
        "seconds": {name: estimate(values) for name, values in seconds.items()},
        "speedup": estimate(ratios(seconds["plain"], seconds["kept"])),
        "equal_bits": workers["plain"].sums == workers["kept"].sums,
        "rounds": seconds,
    }


def _steps(worker: _Worker) -> None:
    """Two: the first gives back, or takes again, what others have used meanwhile."""
    worker.step()
    worker.step()


def main(arguments: Sequence[str] | None = None) -> Path | None:
    """Runs from the command line; returns the file of the results."""
    parser = make_parser("training_step", threads=2)
    parser.add_argument("--rounds", type=int, default=9, help="of two steps each; 9")
    parser.add_argument("--batch-size", type=int, default=128, help="128")
    parser.add_argument("--worker", choices=_NETWORKS, help="take steps on demand, and no more")
    chosen = parser.parse_args(arguments)
    if chosen.worker is not None:
        work(chosen.worker, chosen.batch_size, chosen.threads)
        return None
    run = Run("training_step", arguments, chosen)
    names = ["small_irevnet"] if chosen.quick else list(_NETWORKS)
    size, rounds = (2, 1) if chosen.quick else (chosen.batch_size, chosen.rounds)
    cases = []
    for name in names:
        cases.append(measure(name, size, chosen.threads, rounds))
        print(json.dumps({key: cases[-1][key] for key in ("network", "speedup", "equal_bits")}))
    speedup = cases[0]["speedup"]["value"]
    target = {
        "what": f"throughput of a training step, {cases[0]['network']}, {chosen.threads} threads",
        "target": f"at least {_TARGET}x",
        "measured": speedup,
        "met": speedup >= _TARGET,
    }
    return run.save({"cases": cases, "targets": [target]})


if __name__ == "__main__":
    main()
