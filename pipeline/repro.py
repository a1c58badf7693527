"""Runs an experiment's pipeline, stages in parallel: ``python -m pipeline.repro [experiment]``.

``dvc repro`` runs one stage after the other. Several ``dvc repro`` can run stages that do not
depend on each other at the same time
(https://dvc.org/doc/command-reference/repro#parallel-stage-execution). By default there are as many
as the cores can serve with the threads that ``params.yaml`` allows each, at most four, and one on a
GPU.

Without an argument it runs the default experiment. The only tracked files that it changes are
results and DVC's locks.
"""

import argparse
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from pipeline.params import ROOT, Experiment, ParamsError, load_params
from pipeline.questions import QUESTIONS
from pipeline.stages import pipeline_file, pipeline_text
from pipeline.summary import begin

__all__ = ["allow_without_git", "main", "repro"]

# Written when the default experiment has run in this checkout.
_RAN = ROOT / ".dvc" / "tmp" / "default-experiment-ran"

# The waves up to training: images, rehearsals, training.
_TRAINING_WAVES = 3

_NO_GIT = (
    "# Written by pipeline.repro where there is no git repository\n[core]\n    no_scm = true\n"
)


def repro(experiment: str, jobs: int, force: bool = False, train_only: bool = False) -> int:
    """Runs the stages of an experiment that are out of date.

    Args:
        experiment: a section of ``params.yaml``.
        jobs: number of stages that run at a time.
        force: whether to run up-to-date stages, too.
        train_only: whether to stop when the networks are trained.

    Returns:
        The exit status: 0, or that of a ``dvc repro`` that failed.

    Raises:
        ParamsError: if the experiment's pipeline file does not match ``params.yaml``.
        RuntimeError: if the pipeline is already running.
    """
    params = load_params()
    file = pipeline_file(experiment, params.default)
    path = ROOT / file
    if not path.is_file() or path.read_text(encoding="utf-8") != pipeline_text(experiment, params):
        raise ParamsError(f"{file} does not match params.yaml; run: python -m pipeline.stages")
    options = ["--force"] if force else []
    waves = [[f"{file.as_posix()}:{stage}" for stage in wave] for wave in _waves(path)]
    # The last wave runs whatever the others did not, which should be nothing.
    waves = waves[:_TRAINING_WAVES] if train_only else [*waves, [file.as_posix()]]
    with _alone(experiment):
        for targets in waves:
            last = targets == [file.as_posix()]
            targets_per_job = [targets[start::jobs] for start in range(min(jobs, len(targets)))]
            single = [] if last else ["--single-item", *options]
            command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *single]
            # The status of a killed process is negative, so the largest would not show a failure.
            if failures := [
                status for status in _side_by_side(command, targets_per_job) if status != 0
            ]:
                return failures[0]
    return 0


def _side_by_side(command: list[str], targets_per_job: Sequence[list[str]]) -> list[int]:
    """Runs a command in parallel, once for each list of targets; returns the exit statuses.

    Whatever ends this process ends the commands, too; none continues in the background.
    """
    running = []
    try:
        # Each gets its own process group, so that its children receive the signal, too.
        for targets in targets_per_job:
            running.append(subprocess.Popen([*command, *targets], cwd=ROOT, start_new_session=True))
        return [process.wait() for process in running]
    except BaseException as error:
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, number)
        for process in running:
            process.wait()
        raise


@contextlib.contextmanager
def _alone(experiment: str) -> Iterator[None]:
    """Prevents a second run of the same experiment from starting."""
    path = ROOT / ".dvc" / "tmp" / f"repro-{experiment}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise RuntimeError(
                f"the pipeline of {experiment} is already running (process {file.read()}): wait "
                "for it, or stop it"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def allow_without_git(root: Path = ROOT) -> None:
    """Lets DVC run in a copy of the files without git, such as a downloaded archive."""
    config = root / ".dvc" / "config.local"
    if any((folder / ".git").exists() for folder in (root, *root.parents)):
        if config.is_file() and config.read_text(encoding="utf-8") == _NO_GIT:
            config.unlink()
    elif not config.exists():
        config.write_text(_NO_GIT, encoding="utf-8")


def _waves(file: Path) -> Iterator[list[str]]:
    """Stages that can run side by side, each batch after its dependencies."""
    stages = yaml.safe_load(file.read_text(encoding="utf-8"))["stages"]
    analyses = [name for name in ("question", *QUESTIONS) if name in stages]
    readers = [name for name in analyses if name in QUESTIONS and QUESTIONS[name].reads]
    independent = [name for name in analyses if name not in readers]
    networks = [["rehearsal"], ["train"]]
    if "train" not in stages:
        networks = [[], [name for name in stages if name.startswith("convert_")]]
    for names in (["data"], *networks, ["weights"], independent, readers, ["claims"]):
        yield [target for name in names for target in _targets(name, stages[name])]


def _targets(name: str, stage: dict) -> list[str]:
    matrix = stage.get("matrix")
    if not matrix:
        return [name]
    names = [name + "@"]
    for values in matrix.values():
        names = [f"{start}{value}-" for start in names for value in values]
    return [one.removesuffix("-") for one in names]


def _default_jobs(threads: int) -> int:
    import torch  # imported late: it takes seconds, which --help and errors need not cost

    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # More would wait for DVC's lock, and take a gigabyte of memory each.
    return max(1, min(4, (cores or 1) // threads))


def _warn_of_bfloat16(experiment: str, section: Experiment) -> None:
    """Warns before training begins if this processor is far too slow for a recipe."""
    recipes = [section.recipe(family) for family in section.models]
    if not any(recipe.get("precision") == "bfloat16" for recipe in recipes):
        return
    import torch

    from irevnet.training.evaluation import lacks_bfloat16

    if not torch.cuda.is_available() and lacks_bfloat16():
        print(
            f"The recipe of {experiment} computes in bfloat16, for which this processor has no "
            "instructions (AVX-512): training takes many times as long as on one that has them. "
            "Networks that are already trained are not trained again. For the others, use another "
            "machine, or an experiment of your own with `precision: float32`.",
            file=sys.stderr,
        )


def _stop(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the module."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.repro", description="Runs the pipeline, stages in parallel."
    )
    parser.add_argument(
        "experiment", nargs="?", help="a section of params.yaml; default: `default`"
    )
    parser.add_argument("--force", action="store_true", help="run up-to-date stages, too")
    parser.add_argument(
        "--first",
        action="store_true",
        help="like --force for the first run in a checkout, so that results are this machine's",
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="only train what is not trained yet, at low priority; see pipeline.status",
    )
    parser.add_argument("--jobs", type=int, help="stages at a time; default: as many as fit")
    chosen = parser.parse_args(arguments)
    if chosen.jobs is not None and chosen.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {chosen.jobs}")
    try:
        params = load_params()
        experiment = chosen.experiment or params.default
        section = params.section(experiment)
    except ParamsError as error:
        sys.exit(str(error))
    default = experiment == params.default
    force = chosen.force or (chosen.first and default and not _RAN.exists())
    allow_without_git()
    begin()
    _warn_of_bfloat16(experiment, section)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    if chosen.train:
        os.nice(19)
    try:
        jobs = chosen.jobs or _default_jobs(section.threads)
        status = repro(experiment, jobs, force, train_only=chosen.train)
    except (ParamsError, RuntimeError) as error:
        sys.exit(str(error))
    if status == 0 and default and not chosen.train:
        _RAN.parent.mkdir(parents=True, exist_ok=True)
        _RAN.touch()
    return status


if __name__ == "__main__":
    sys.exit(main())
