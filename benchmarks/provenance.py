"""Where a measurement comes from, also on machines that have torch and little else."""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipeline.machine import describe_machine

__all__ = ["ROOT", "Origin", "public_command", "slug"]

ROOT = Path(__file__).resolve().parent.parent

_PACKAGES = ("torch", "torchvision", "numpy", "memcnn")
# What benchmarks run or read.
_CODE = ("benchmarks", "irevnet", "notebooks", "pipeline", "claims.yaml", "params.yaml")


class Origin:
    """The provenance of a run's results, recorded when the run begins.

    A commit that is made during the run is not the code that runs.

    Args:
        command: the command that produces the results.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._commit = _answer("git", "rev-parse", "HEAD")
        changes = _answer("git", "status", "--porcelain", "--", *_CODE)
        self._changed = None if self._commit is None else bool(changes)
        self._started, self._clock = datetime.now(UTC), time.perf_counter()

    def describe(self) -> dict[str, Any]:
        """The facts of the pipeline's ``provenance.json`` files, with the seconds until now."""
        return {
            "command": self._command,
            "commit": self._commit,
            "uncommitted_changes": self._changed,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._clock, 1),
            **describe_machine(_PACKAGES),
            "malloc": os.environ.get("GLIBC_TUNABLES", "as it comes"),
        }


def slug(device: torch.device) -> str:
    """A folder's name for a device: ``cuda-`` and its model, or ``cpu-`` and its threads."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        return "cuda-" + re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return f"{device.type}-{torch.get_num_threads()}-threads"


def public_command(module: str, arguments: Sequence[str]) -> str:
    """The command line of a benchmark without folders, which differ from machine to machine."""
    shown, skip = [], False
    for argument in arguments:
        named = argument.split("=")[0] in ("--data", "--output", "--photographs", "--weights")
        if not named and not skip:
            shown.append(argument)
        skip = named and "=" not in argument
    return " ".join([f"python -m benchmarks.{module}", *shown])


def _answer(*command: str) -> str | None:
    """The output of a command, or None if it fails."""
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
