"""Where a measurement comes from, on machines too that have torch and little else."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "describe_run", "public_command"]

ROOT = Path(__file__).resolve().parent.parent

_PACKAGES = ("torch", "torchvision", "numpy", "memcnn")


def describe_run(command: str, started: datetime, seconds: float) -> dict[str, Any]:
    """The same facts as in the ``provenance.json`` files of the pipeline.

    Args:
        command: that made the results.
        started: when, in UTC.
        seconds: how long it took so far.
    """
    commit = _answer("git", "rev-parse", "HEAD")
    changes = _answer("git", "status", "--porcelain", "--", "irevnet", "benchmarks")
    return {
        "command": command,
        "commit": commit,
        "uncommitted_changes": None if commit is None else bool(changes),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "processor": _processor(),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "malloc": os.environ.get("GLIBC_TUNABLES", "as it comes"),
        "versions": {"python": platform.python_version(), **_versions()},
    }


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
    """What a command prints, or None where it fails."""
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [platform.processor() or platform.machine()]
    if cpuinfo.is_file():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        names = [value.strip() for key, _, value in lines if key.strip() == "model name"] or names
    return f"{len(names)} x {names[0]}"


def _gpu() -> str | None:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = _answer(*query)
    return "; ".join(answer.splitlines()) if answer else None
