"""One variation of an experiment, as a reader would try it: ``python -m benchmarks.variation``.

It runs the commands of the book's page *One variation* in a shell, in a clone of this repository,
and keeps their output for that page. The repository itself does not change.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import Run, make_parser
from benchmarks.provenance import ROOT
from pipeline.copies import copy_repository, environment_of

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "run": (
        "dvc exp run --name more-energy -S digits.jacobian.energy=0.95 \\\n"
        "    --single-item question@jacobian claims"
    ),
    "changed_files": "git status --short",
    "parameters": "dvc params diff --md",
    "metrics": "dvc metrics diff --md --no-path | grep -E 'Metric|---|share.value'",
    "verdicts": "python -m pipeline.verify --against HEAD | grep '^digits' | tr ';' '\\n'",
    "away": "git checkout --quiet . && git status --short",
    "experiments": "dvc exp list",
    "back": "dvc exp apply more-energy && git status --short",
}
"""The commands, in order. Pages of the book quote them from here."""


def main(arguments: Sequence[str] | None = None) -> Path:
    """Runs from the command line; returns the file of the results.

    Raises:
        RuntimeError: if a command fails; the message contains its output.
    """
    chosen = make_parser("variation").parse_args(arguments)
    run = Run("variation", arguments, chosen)
    printed = {}
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name, "irevnet")
        copy_repository(ROOT, clone)
        # Use the same branch name wherever this runs, because DVC prints it.
        subprocess.run(["git", "checkout", "--quiet", "-B", "main"], cwd=clone, check=True)
        environment = environment_of(clone)
        # The first command takes a minute or two.
        commands = dict(list(COMMANDS.items())[1:3]) if chosen.quick else COMMANDS
        for key, command in commands.items():
            done = subprocess.run(
                ["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"{command}:\n{done.stdout}{done.stderr}")
            # Keep only the end of a run, without the output of the stages.
            lines = done.stdout.rstrip().splitlines()
            printed[key] = "\n".join(lines[-2:] if key == "run" else lines)
    return run.save({"commands": COMMANDS, "printed": printed})


if __name__ == "__main__":
    main()
