"""Copies of the repository, which run the code of a commit beside the working tree."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.params import ROOT
from pipeline.provenance import git

__all__ = ["copy_repository", "environment_of", "link_data"]

# Without git, these are left out of a copy: at the top level, and at any level.
_LEFT_OUT = {".git", ".venv", ".venvs", "data", "checkpoints", "scratch"}
_LEFT_OUT_ANYWHERE = {"_build", "__pycache__"}


def copy_repository(root: Path, copy: Path, commit: str = "HEAD") -> None:
    """Clones a commit, or copies the files if there is no git repository.

    Args:
        root: the repository.
        copy: a folder that does not exist yet.
        commit: any revision that git understands.

    Raises:
        RuntimeError: if there is no such commit, or it cannot be cloned.
    """
    if git("rev-parse", "HEAD", root=root) is None:

        def left_out(folder: str, names: list[str]) -> set[str]:
            own = _LEFT_OUT if Path(folder) == root else set()
            return (own | _LEFT_OUT_ANYWHERE) & set(names)

        shutil.copytree(root, copy, ignore=left_out)
    else:
        revision = (git("rev-parse", f"{commit}^{{commit}}", root=root) or commit).strip()
        clone = ["git", "clone", "--quiet", "--local", "--no-checkout", str(root), str(copy)]
        checkout = ["git", "-C", str(copy), "checkout", "--quiet", "--detach", revision]
        for command in (clone, checkout):
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode != 0:
                raise RuntimeError(f"{commit} cannot be cloned: {answer.stderr.strip()}")


def link_data(root: Path, copy: Path) -> None:
    """Links the downloaded images of the repository into a copy, which does not contain them.

    Args:
        root: the repository.
        copy: a copy of it.
    """
    if (root / "data").is_dir() and not (copy / "data").exists():
        (copy / "data").symlink_to((root / "data").resolve())


def environment_of(copy: Path, root: Path = ROOT) -> dict[str, str]:
    """Environment variables of a process that runs a copy's code with this Python.

    Args:
        copy: a copy of the repository.
        root: the repository; a relative ``IREVNET_DATA`` is relative to it.
    """
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    variables = {
        **os.environ,
        "DVC_NO_ANALYTICS": "true",
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(copy),
    }
    if data := variables.get("IREVNET_DATA"):
        variables["IREVNET_DATA"] = str(root / data)
    return variables
