"""Copies of the repository, in which code of a commit runs beside the code that is here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.params import ROOT
from pipeline.provenance import git

__all__ = ["copy_repository", "environment_of", "link_data"]

# Not part of a copy where there is no git that says what is: at the top, and anywhere
_LEFT_OUT = {".git", ".venv", ".venvs", "data", "checkpoints", "scratch"}
_LEFT_OUT_ANYWHERE = {"_build", "__pycache__"}


def copy_repository(root: Path, copy: Path, commit: str = "HEAD") -> None:
    """Clones a commit; copies the files where there is no git repository.

    Args:
        root: the repository.
        copy: a folder that is not there yet.
        commit: as git understands it.

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
    """Links the images that the repository has downloaded, which are not part of a copy.

    Args:
        root: the repository.
        copy: of it.
    """
    if (root / "data").is_dir() and not (copy / "data").exists():
        (copy / "data").symlink_to((root / "data").resolve())


def environment_of(copy: Path, root: Path = ROOT) -> dict[str, str]:
    """Environment variables of a process in a copy, with this Python and the copy's code.

    Args:
        copy: of the repository.
        root: the repository, from which a relative ``IREVNET_DATA`` is.
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
