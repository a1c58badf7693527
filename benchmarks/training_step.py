"""What makes a training step faster on a CPU.

``python -m benchmarks.training_step`` compares processes that take turns, each with one measure
more than the one before: none; the read-out's gradient in the layout of its input
(:class:`~irevnet.network.classifier.Classifier`); the malloc tunables of trainings
(:mod:`pipeline.malloc`); a compiled network (``compile`` in
:class:`~irevnet.training.config.TrainingConfig`). All do the same arithmetic, but a compiled
network rounds elsewhere; the benchmark says which end with the same weights to the bit.
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
from torch import nn

import irevnet.network.classifier
from benchmarks.command import Run, make_parser, positive
from benchmarks.measure import estimate, interleave, ratios
from benchmarks.provenance import ROOT
from benchmarks.steps import Mode, trainer
from benchmarks.targets import goal
from irevnet import create_model
from pipeline.malloc import KEEP_MEMORY

__all__ = ["main", "measure", "work"]

_TARGET = 1.15  # for the speedup of the released network, on two threads

# Each has its own measure and those before it.
_WAYS = ("plain", "layout", "kept", "compiled")

# The networks of cifar10_released and those of cifar10, as their recipes compute them.
_NETWORKS: dict[str, tuple[str, dict[str, Any], Mode]] = {
    "irevnet": ("irevnet_cifar", {"dropout": 0.0}, Mode(bfloat16=True, channels_last=True)),
    "resnet": ("resnet_cifar", {}, Mode(bfloat16=True, channels_last=True)),
    "small_irevnet": (
        "irevnet_cifar",
        {"dropout": 0.0, "blocks": [4, 4, 4]},
        Mode(channels_last=True),
    ),
    "small_resnet": ("resnet_cifar", {"units": [4, 4, 4]}, Mode(channels_last=True)),
}


def work(network: str, batch_size: int, threads: int, way: str) -> None:
    """Takes a training step for every line of input; prints the bits of the weights' sum."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    name, overrides, mode = _NETWORKS[network]
    model = create_model(name, **overrides)
    images, labels = torch.rand(batch_size, 3, 32, 32), torch.randint(0, 10, (batch_size,))
    if way == "plain":
        irevnet.network.classifier._keep_layout = lambda x: None
    stepped = torch.compile(model) if way == "compiled" else model
    assert isinstance(stepped, nn.Module), "torch.compile wraps a module in a module"
    step, _ = trainer(stepped, images, labels, mode)
    for _ in sys.stdin:
        step()
        total = sum((float(p.detach().double().sum()) for p in model.parameters()), start=0.0)
        print(total.hex(), flush=True)


class _Worker:
    """A process that takes steps when it is asked to."""

    def __init__(self, network: str, batch_size: int, threads: int, way: str) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        if way in ("kept", "compiled"):
            environment["GLIBC_TUNABLES"] = KEEP_MEMORY
        module = [sys.executable, "-m", "benchmarks.training_step", "--worker", network]
        options = ["--batch-size", str(batch_size), "--threads", str(threads), "--way", way]
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


def measure(
    network: str, batch_size: int, threads: int, rounds: int, ways: Sequence[str] = _WAYS
) -> dict[str, Any]:
    """Seconds of a step in processes that take turns, one for each way.

    Raises:
        RuntimeError: if a step fails.
    """
    workers = {way: _Worker(network, batch_size, threads, way) for way in ways}
    try:
        steps = {name: partial(_steps, worker) for name, worker in workers.items()}
        seconds = interleave(steps, rounds, torch.device("cpu"))
    finally:
        for worker in workers.values():
            worker.stop()
    return {
        "network": network,
        "mode": str(_NETWORKS[network][2]),
        "batch_size": batch_size,
        "seconds": {name: estimate(values) for name, values in seconds.items()},
        "speedup": {
            way: estimate(ratios(seconds["plain"], seconds[way])) for way in ways if way != "plain"
        },
        "equal_bits": {
            way: workers[way].sums == workers["plain"].sums for way in ways if way != "plain"
        },
        "rounds": seconds,
    }


def _steps(worker: _Worker) -> None:
    """Takes two steps: the first returns or reclaims memory that others used meanwhile."""
    worker.step()
    worker.step()


def main(arguments: Sequence[str] | None = None) -> Path | None:
    """Runs from the command line; returns the file of the results."""
    parser = make_parser("training_step", threads=2)
    parser.add_argument("--rounds", type=positive, default=9, help="of two steps each; default: 9")
    parser.add_argument("--batch-size", type=positive, default=128, help="default: 128")
    parser.add_argument("--worker", choices=_NETWORKS, help="only take steps on demand")
    parser.add_argument("--way", choices=_WAYS, help="of the worker")
    chosen = parser.parse_args(arguments)
    if chosen.worker is not None:
        work(chosen.worker, chosen.batch_size, chosen.threads, chosen.way)
        return None
    run = Run("training_step", arguments, chosen)
    names = ["small_irevnet"] if chosen.quick else list(_NETWORKS)
    size, rounds = (2, 1) if chosen.quick else (chosen.batch_size, chosen.rounds)
    ways = _WAYS[:-1] if chosen.quick else _WAYS
    cases: list[dict[str, Any]] = []
    path = None
    for name in names:
        cases.append(measure(name, size, chosen.threads, rounds, ways))
        print(json.dumps({key: cases[-1][key] for key in ("network", "speedup", "equal_bits")}))
        path = run.save({"cases": cases, "targets": [_target(cases[0], chosen.threads)]})
    return path


def _target(case: dict[str, Any], threads: int) -> dict[str, Any]:
    best = max(case["speedup"].values(), key=lambda ratio: ratio["value"])
    what = f"throughput of a training step, {case['network']}, {threads} threads"
    return goal(what, best, at_least=_TARGET)


if __name__ == "__main__":
    main()
