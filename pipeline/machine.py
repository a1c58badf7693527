"""The machine behind a result: processor, GPU, system and versions of packages.

Only the standard library is imported, because benchmarks also run where little else is installed.
"""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["describe_machine"]


def describe_machine(packages: Iterable[str]) -> dict[str, Any]:
    """The machine on which this process runs.

    Args:
        packages: names of distributions; those that are not installed are left out.

    Returns:
        ``processor``: number and name; ``gpu``: name, memory and driver of the GPUs, None without
        one; ``system``; ``versions``: of Python and the packages.
    """
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [platform.processor() or platform.machine()]
    if cpuinfo.is_file():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        names = [value.strip() for key, _, value in lines if key.strip() == "model name"] or names
    return f"{len(names)} x {names[0]}"


def _gpu() -> str | None:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return "; ".join(answer.stdout.strip().splitlines()) or None
