"""Reruns an experiment from scratch, in a copy, and compares with the published results.

``python -m pipeline.verify`` copies the checked-out commit to a temporary folder, removes the
experiment's results there, runs its whole pipeline and prints "identical" or a table of the numbers
and verdicts that differ. The repository itself does not change.

``python -m pipeline.verify --against origin/main`` runs nothing. It compares the results in the
working tree with those of a commit, for every experiment.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.compare import Comparison, compare_results, ignored, markdown
from pipeline.copies import copy_repository, environment_of, link_data
from pipeline.params import ROOT, ParamsError, load_params
from pipeline.provenance import git

__all__ = [
    "IDENTICAL",
    "NOT_RUN",
    "NUMBERS",
    "VERDICTS",
    "against",
    "main",
]

# Exit statuses. Python itself exits with 1 after an error, argparse with 2 after a wrong option.
IDENTICAL, NOT_RUN, NUMBERS, VERDICTS = 0, 1, 3, 4


def verify(experiment: str, copy: Path, root: Path = ROOT) -> Comparison:
    """Runs an experiment from scratch in a copy of the repository and compares the results.

    Args:
        experiment: a section of ``params.yaml``.
        copy: a folder that does not exist yet.
        root: the repository.

    Raises:
        RuntimeError: if the copy cannot be made, or a stage fails.
    """
    copy_repository(root, copy)
    link_data(root, copy)
    results = copy / "results" / experiment
    published = copy.with_name(copy.name + "-published")
    shutil.copytree(results, published)
    for path in results.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    command = [sys.executable, "-m", "pipeline.repro", experiment]
    if subprocess.run(command, cwd=copy, env=environment_of(copy, root)).returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])} failed, see above")
    return compare_results(published, results, left_out=ignored(results, copy))


def against(revision: str, root: Path = ROOT) -> dict[str, Comparison]:
    """Compares the results in the working tree with those of a commit.

    Args:
        revision: a commit, in any form that git understands.
        root: the repository.

    Returns:
        The comparison by experiment.

    Raises:
        RuntimeError: if there is no such commit.
    """
    command = ["git", "archive", "--format=zip", revision, "results"]
    answer = subprocess.run(command, cwd=root, capture_output=True)
    if answer.returncode != 0:
        raise RuntimeError(f"git archive {revision}: {answer.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(io.BytesIO(answer.stdout)) as archive:
            archive.extractall(folder)
        old, new = Path(folder, "results"), root / "results"
        names = {path.name for tree in (old, new) for path in tree.iterdir() if path.is_dir()}
        compared = {
            name: compare_results(old / name, new / name, left_out=ignored(new / name, root))
            for name in sorted(names)
        }
        # An experiment that was never run has only its pipeline.
        return {name: comparison for name, comparison in compared.items() if comparison.files}


def _status(comparisons: Sequence[Comparison]) -> int:
    if any(comparison.verdicts for comparison in comparisons):
        return VERDICTS
    return NUMBERS if any(comparison.differences for comparison in comparisons) else IDENTICAL


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Command line of the module; returns the exit status.

    0 if all is identical, 3 if files or numbers differ, 4 if a verdict does, 1 if the comparison
    could not be made.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.verify")
    parser.add_argument("--experiment", help="a section of params.yaml; default: its `default`")
    parser.add_argument("--against", metavar="COMMIT", help="run nothing; compare with a commit")
    parser.add_argument("--keep", action="store_true", help="keep the copy and say where it is")
    parser.add_argument("--rows", type=int, default=40, help="maximum number of rows of a table")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="irevnet-verify-"))
    try:
        if options.against:
            comparisons = against(options.against, root)
        else:
            params = load_params()
            experiment = options.experiment or params.default
            params.section(experiment)
            if git("status", "--porcelain", root=root):
                print("Uncommitted changes are not verified.", flush=True)
            comparisons = {experiment: verify(experiment, folder / "copy", root)}
    except (ParamsError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return NOT_RUN
    finally:
        if options.keep:
            print(f"The copy: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for name, comparison in comparisons.items():
        print(f"{name}: {markdown(comparison, options.rows)}")
    return _status(list(comparisons.values()))


if __name__ == "__main__":
    sys.exit(main())
