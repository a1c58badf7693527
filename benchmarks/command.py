"""What the command lines of small benchmarks share: options, the clock, the file they write."""

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
    """A number of things on the command line, of which there must be one.

    Raises:
        argparse.ArgumentTypeError: if it is not a whole number from 1 on.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def as_trainings_run(module: str) -> None:
    """Starts this process again with the tunables of malloc that the pipeline's trainings have.

    They are read when a process starts. Tunables of one's own stay.

    Args:
        module: its name in this package.
    """
    if "GLIBC_TUNABLES" not in os.environ:
        command = [sys.executable, "-m", f"benchmarks.{module}", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {"GLIBC_TUNABLES": KEEP_MEMORY})


def make_parser(
    module: str, threads: int | None = 1, *, device: bool = False, data: bool = False
) -> argparse.ArgumentParser:
    """A parser of the options that all have, and of those that several have.

    Args:
        module: its name in this package.
        threads: of the CPU, by default; None leaves the choice to torch.
        device: whether it measures a GPU, too.
        data: whether it reads CIFAR-10.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}")
    default = "torch's choice" if threads is None else threads
    parser.add_argument("--threads", type=positive, default=threads, help=f"of the CPU; {default}")
    parser.add_argument("--output", type=Path, help="default: results/benchmarks/<device>")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
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
    """A run from the command line, which begins when this is made.

    Args:
        module: the benchmark, whose results are ``<module>.json``.
        arguments: of the command line, None for those of the process.
        chosen: what they say.
        in_part: whether its results are not those that the book is to show; tiny ones are not.

    Attributes:
        device: that is measured.
        output: the folder of results; made when they are saved.
        file: of results.
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
        """Where results that are there by now come from."""
        return self._origin.describe()

    def save(self, results: dict[str, Any]) -> Path:
        """Writes the results with their provenance, whole or not at all; returns the file."""
        self.output.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_name(f"{self.file.name}.unfinished")
        record = {"provenance": self.provenance()} | results
        unfinished.write_text(json.dumps(record, indent=1) + "\n")
        unfinished.replace(self.file)
        return self.file
