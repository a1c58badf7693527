"""Runs the pipeline, stages side by side: ``python -m pipeline.repro [experiment]``.

``dvc repro`` runs one stage after the other. Stages that do not depend on each other can be run at
the same time by several ``dvc repro``
(https://dvc.org/doc/command-reference/repro#parallel-stage-execution): as many as the processor's
cores serve with the threads that ``params.yaml`` allows each, and one at a time on a GPU.

Without an experiment it runs those that ``params.yaml`` lists. With one, it lists that one for as
long as it runs.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.params import ROOT, Params, ParamsError, load_params
from pipeline.run import QUESTIONS

__all__ = ["main", "repro", "selected"]


def repro(jobs: int, force: bool = False) -> int:
    """Runs what has changed of the experiments that ``params.yaml`` lists.

    Args:
        jobs: stages at a time.
        force: whether to run what has not changed, too.

    Returns:
        The exit status: 0, or that of a ``dvc repro`` that failed.
    """
    options = ["--force"] if force else []
    # The last one runs what joins the others, and whatever they do not know of.
    for targets in (*_waves(load_params()), []):
        shares = [targets[start::jobs] for start in range(min(jobs, len(targets)) or 1)]
        single = ["--single-item", *options] if targets else []
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *single, *share], cwd=ROOT
            )
            for share in shares
        ]
        # Negative for one that was killed: no maximum tells.
        failures = [status for process in running if (status := process.wait()) != 0]
        if failures:
            return failures[0]
    return 0


def _waves(params: Params) -> Iterator[list[str]]:
    """Stages that can run side by side, in the order in which what they need is there."""
    names = params.experiments
    runs = [
        f"train@{name}-{family}-{seed}"
        for name in names
        for seed in params.seeds
        for family in params.families
    ]
    yield [f"data@{name}" for name in names] + runs
    yield [f"weights@{name}" for name in names]
    rest = ("data", "train", "claims", "trivial", "stability")
    analyses = [
        *(f"{question}@{name}" for name in names for question in QUESTIONS if question not in rest),
        *(f"stability@{name}" for name in params.beyond.stability),
    ]
    yield analyses


@contextlib.contextmanager
def selected(experiment: str, path: Path = ROOT / "params.yaml") -> Iterator[None]:
    """Has ``params.yaml`` list one experiment, with its seeds, and puts it back as it was.

    Raises:
        ParamsError: if the file has no such section.
    """
    before = path.read_text()
    sections = load_params(path).sections
    if experiment not in sections:
        raise ParamsError(f"experiment must be one of {sorted(sections)}, got {experiment!r}")
    section = sections[experiment]
    lines = {
        "experiments": [experiment],
        "  trivial": [experiment] if section.trivial else [],
        "  stability": [experiment] if section.stability else [],
        "seeds": section.seeds,
    }
    changed = before
    for key, value in lines.items():
        listed = re.compile(rf"^{key}: \[.*\]$", flags=re.MULTILINE)
        changed = listed.sub(f"{key}: {value}", changed, count=1)
    try:
        path.write_text(changed)
        yield
    finally:
        path.write_text(before)


def _default_jobs(params: Params) -> int:
    import torch  # only now: seconds that --help and errors need not cost

    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(params.sections[name].threads for name in params.experiments)
    # More would wait for DVC's lock, and take a gigabyte of memory each.
    return max(1, min(4, (cores or 1) // threads))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the module."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.repro", description="Runs the pipeline, stages side by side."
    )
    parser.add_argument("experiment", nargs="?", help="a section of params.yaml; default: its list")
    parser.add_argument("--force", action="store_true", help="run what has not changed, too")
    parser.add_argument("--jobs", type=int, help="stages at a time; default: what fits")
    chosen = parser.parse_args(arguments)
    if chosen.jobs is not None and chosen.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {chosen.jobs}")
    try:
        choice = selected(chosen.experiment) if chosen.experiment else contextlib.nullcontext()
        with choice:
            return repro(chosen.jobs or _default_jobs(load_params()), chosen.force)
    except ParamsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.exit(main())
