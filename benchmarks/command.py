"""Shared parts of the benchmarks' command lines: options, provenance, the results file."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import ROOT, Origin, public_command, slug
from pipeline.malloc import KEEP_MEMORY

__all__ = ["Run", "as_trainings_run", "make_parser", "positive"]


def positive(text: str) -> int:
    """Parses a positive integer of the command line.

    Raises:
        argparse.ArgumentTypeError: if it is not one.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def as_trainings_run(module: str) -> None:
    """Restarts this process with the malloc tunables of the pipeline's trainings.

    A process reads them when it starts. Tunables that are already set stay.

    Args:
        module: name of the benchmark in this package.
    """
    if "GLIBC_TUNABLES" not in os.environ:
        command = [sys.executable, "-m", f"benchmarks.{module}", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {"GLIBC_TUNABLES": KEEP_MEMORY})


def make_parser(
    module: str, threads: int | None = 1, *, device: bool = False, data: bool = False
) -> argparse.ArgumentParser:
    """A parser of the options that all benchmarks have, and of those that several have.

    Args:
        module: name of the benchmark in this package.
        threads: default number of CPU threads; None leaves the choice to torch.
        device: whether the benchmark can measure a GPU, too.
        data: whether the benchmark reads CIFAR-10.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}")
    default = "torch's choice" if threads is None else threads
    parser.add_argument(
        "--threads", type=positive, default=threads, help=f"of the CPU; default: {default}"
    )
    parser.add_argument("--output", type=Path, help="default: results/benchmarks/<device>")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that it works")
    if device:
        parser.add_argument(
            "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
        )
    if data:
        parser.add_argument(
            "--data",
            type=Path,
            default=ROOT / os.environ.get("IREVNET_DATA", "data"),
            help="folder with cifar-10-batches-py; default: data",
        )
    return parser


class Run:
    """A run from the command line, which begins when the object is created.

    Args:
        module: the benchmark, whose results are ``<module>.json``.
        arguments: arguments of the command line, or None for those of the process.
        chosen: the parsed arguments.
        in_part: whether the results are partial: they go to ``scratch/``, as those of ``--quick``
            do, and the book does not show them.

    Attributes:
        device: the device that is measured.
        output: the folder of results; created when they are saved.
        file: the file of results.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] | None,
        chosen: argparse.Namespace,
        *,
        in_part: bool = False,
    ) -> None:
        if chosen.threads:
            torch.set_num_threads(chosen.threads)
        self.device = torch.device(getattr(chosen, "device", "cpu"))
        root = ROOT / ("scratch" if chosen.quick or in_part else "results")
        self.output: Path = chosen.output or root / "benchmarks" / slug(self.device)
        self.file = self.output / f"{module}.json"
        given = sys.argv[1:] if arguments is None else arguments
        self._origin = Origin(public_command(module, given))

    def provenance(self) -> dict[str, Any]:
        """The provenance of the results up to now."""
        return self._origin.describe()

    def save(self, results: dict[str, Any]) -> Path:
        """Writes the results with their provenance, atomically; returns the file."""
        self.output.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_name(f"{self.file.name}.unfinished")
        record = {"provenance": self.provenance()} | results
        unfinished.write_text(json.dumps(record, indent=1) + "\n")
        unfinished.replace(self.file)
        return self.file
