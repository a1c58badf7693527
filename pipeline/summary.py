"""The last line of ``make book``: what was recomputed, and whether it equals what is published.

:func:`begin` marks the start of a pipeline run; ``python -m pipeline.summary`` compares the
results' times with that mark, and their contents with git.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.compare import NO_RESULTS, ignored
from pipeline.notation import counted
from pipeline.params import ROOT, ParamsError, load_params
from pipeline.provenance import git

__all__ = ["begin", "main", "summary"]

_MARK = Path(".dvc", "tmp", "run-began")


def begin(root: Path = ROOT) -> None:
    """Marks the beginning of a run of the pipeline."""
    mark = root / _MARK
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def summary(experiment: str, root: Path = ROOT) -> str:
    """One line: how many files were recomputed since :func:`begin`, how many equal the commit's.

    Args:
        experiment: a section of ``params.yaml``.
        root: the repository.
    """
    folder = root / "results" / experiment
    since = (root / _MARK).stat().st_mtime if (root / _MARK).is_file() else float("inf")
    unpublished = {folder / name for name in ignored(folder, root)}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in NO_RESULTS]
    files = [path for path in files if path not in unpublished]
    recomputed = {
        path.relative_to(root).as_posix() for path in files if path.stat().st_mtime >= since
    }
    done = f"{len(recomputed)} recomputed" if recomputed else "all up to date, nothing computed"
    start = f"Results of {experiment}: {counted(len(files), 'file')}, {done}"
    listing = git(
        "status", "--porcelain", "-z", "--untracked-files=all", "--", str(folder), root=root
    )
    if listing is None:
        return f"{start}. Without a git repository they cannot be compared with the published ones."
    changed = {entry[3:] for entry in listing.split("\0")}
    changed = {name for name in changed if name and Path(name).name not in NO_RESULTS}
    if not changed:
        return f"{start}. All equal the published ones, byte for byte."
    equal = len(files) - sum((root / name).is_file() for name in changed)
    return (
        f"{start}. Equal to the published ones, byte for byte: {equal}; different or missing: "
        f"{len(changed)}, see git diff --stat results/{experiment}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.summary")
    parser.add_argument("experiment", nargs="?", help="a section of params.yaml")
    options = parser.parse_args(arguments)
    try:
        params = load_params()
        experiment = options.experiment or params.default
        params.section(experiment)
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 1
    print(summary(experiment))
    return 0


if __name__ == "__main__":
    sys.exit(main())
