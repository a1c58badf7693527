"""Where a result comes from: command, commit, parameters, hardware, versions, time."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pipeline.machine import describe_machine
from pipeline.params import ROOT

__all__ = ["FILE", "describe_source", "git", "keep_committed", "write_provenance"]

FILE = "provenance.json"

_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "matplotlib", "papermill")

# The sources of a result; results themselves change while the pipeline runs.
_SOURCES = ("irevnet", "notebooks", "pipeline", "claims.yaml")


def describe_source(experiment: str | None) -> dict[str, Any]:
    """The checked-out commit, and whether the sources of a result differ from it.

    Call it when a run begins: another commit may be checked out during the run.

    Args:
        experiment: whose section of ``params.yaml`` is a source of the result, if any.

    Returns:
        ``commit`` and ``uncommitted_changes``, both None (unknown) outside a git repository.
    """
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "uncommitted_changes": None}
    return {
        "commit": commit.strip(),
        "uncommitted_changes": bool(git("status", "--porcelain", "--", *_SOURCES))
        or (experiment is not None and _experiment_changed(experiment)),
    }


def write_provenance(
    path: Path,
    parameters: dict[str, Any],
    source: dict[str, Any],
    started: datetime,
    seconds: float,
    timing: dict[str, float],
) -> None:
    """Writes ``provenance.json`` beside a result.

    Args:
        path: the file.
        parameters: of the notebook.
        source: as :func:`describe_source` returns.
        started: when the run began, in UTC.
        seconds: how long it took.
        timing: seconds of parts of the run by name, if the notebook has measured them.
    """
    record = {
        "command": " ".join(["python", "-m", "pipeline.run", *sys.argv[1:]]),
        **source,
        "parameters": parameters,
        **({"IREVNET_DATA": data} if (data := os.environ.get("IREVNET_DATA")) else {}),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        **({"timing": {name: round(value, 2) for name, value in timing.items()}} if timing else {}),
        **describe_machine(_PACKAGES),
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


def keep_committed(folder: Path, root: Path = ROOT) -> bool:
    """Restores the committed ``provenance.json`` of a result that equals the committed one.

    A rerun with equal results then leaves no change in git. The restored record describes the run
    that produced the committed results.

    Args:
        folder: the complete results of a stage.
        root: the repository.

    Returns:
        Whether it was restored: if every other file of the folder equals the commit's, byte for
        byte, and command and parameters equal those of the committed record.
    """
    record = folder / FILE
    name = record.relative_to(root).as_posix()
    listing = git("status", "--porcelain", "-z", "--ignored", "--", str(folder), root=root)
    committed = git("show", f"HEAD:{name}", root=root)
    if listing is None or committed is None:
        return False
    # An entry is two letters, a space and a path from the root.
    if {entry[3:] for entry in listing.split("\0") if entry} - {name}:
        return False
    try:
        old, new = json.loads(committed), json.loads(record.read_text(encoding="utf-8"))
        equal = all(old[key] == new[key] for key in ("command", "parameters"))
    except (KeyError, TypeError, ValueError):
        return False
    if equal:
        record.write_text(committed, encoding="utf-8", newline="")
    return equal


def _experiment_changed(experiment: str) -> bool:
    """Whether an experiment's section of ``params.yaml`` differs from the commit's.

    The sections of other experiments do not affect its results.
    """
    committed = git("show", "HEAD:params.yaml")
    if committed is None:
        return False
    current = (ROOT / "params.yaml").read_text()
    return yaml.safe_load(committed).get(experiment) != yaml.safe_load(current).get(experiment)


def git(*arguments: str, root: Path = ROOT) -> str | None:
    """The output of git, or None if it fails: outside a repository, or without git.

    It takes no lock, because parallel stages call it at the same time.
    """
    command = ["git", "--no-optional-locks", "-c", "status.relativePaths=false", *arguments]
    try:
        answer = subprocess.run(command, cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.decode("utf-8", errors="replace")
