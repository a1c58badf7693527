"""Runs one notebook of the pipeline with papermill: what every stage of ``dvc.yaml`` calls.

``python -m pipeline.run inversion --experiment digits`` passes the section ``inversion`` of that
experiment to ``notebooks/inversion.ipynb`` and leaves in ``results/digits/inversion/`` what the
notebook wrote, the executed notebook and ``provenance.json``. Two runs on the same machine give
the same bytes but for ``provenance.json``, where everything stands that differs.
"""

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from pipeline.params import ROOT, ParamsError, load_params
from pipeline.provenance import describe_source, write_provenance

__all__ = ["QUESTIONS", "make_deterministic", "notebook_parameters", "run"]

QUESTIONS = (
    "data",
    "train",
    "inversion",
    "accuracy",
    "jacobian",
    "interpolation",
    "separation",
    "dimensionality",
    "memory",
    "precision",
    "metamers",
    "trivial",
    "stability",
    "claims",
)


def notebook_parameters(
    question: str, experiment: str, family: str | None = None, seed: int | None = None
) -> dict[str, Any]:
    """What a stage passes to its notebook: one section of ``params.yaml``, and what to run it on.

    Args:
        question: name of the notebook.
        experiment: a section of ``params.yaml``.
        family: of networks, for ``train`` alone.
        seed: of the run, for ``train`` alone.

    Raises:
        ParamsError: if ``params.yaml`` is not valid or has no such section.
    """
    sections = load_params().sections
    if experiment not in sections:
        raise ParamsError(f"--experiment must be one of {sorted(sections)}, got {experiment!r}")
    section = sections[experiment]
    if question == "train":
        return {
            "experiment": experiment,
            "family": family,
            "seed": seed,
            "training": section.training.model_dump(exclude_unset=True),
        }
    if question in ("data", "claims"):
        return {"experiment": experiment}
    own = getattr(section, question)
    if own is None:
        raise ParamsError(f"params.yaml has no section {experiment}.{question}")
    return {"experiment": experiment, **own.model_dump()}


def notebook_environment(experiment: str) -> dict[str, str]:
    """Environment variables on which the bytes of a result depend: hash order and threads."""
    threads = str(load_params().sections[experiment].threads)
    return {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def run(question: str, parameters: dict[str, Any], output: Path) -> None:
    """Executes ``notebooks/<question>.ipynb`` and writes the results into ``output``.

    Args:
        question: name of the notebook.
        parameters: values of its cell tagged ``parameters``; ``output`` is added.
        output: the folder of results, inside the repository.

    Raises:
        ParamsError: if the notebook does not declare one of the parameters.
        PapermillExecutionError: if a cell fails; the notebook as far as it came is in
            ``scratch/``.
    """
    source = ROOT / "notebooks" / f"{question}.ipynb"
    parameters = parameters | {"output": output.relative_to(ROOT).as_posix()}
    declared = papermill.inspect_notebook(source)
    unknown = sorted(set(parameters) - set(declared))
    if unknown:
        raise ParamsError(
            f"{source.name} has no parameter {', '.join(unknown)}; it declares {sorted(declared)}"
        )
    output.mkdir(parents=True, exist_ok=True)
    unfinished = ROOT / "scratch" / f"unfinished-{question}-{os.getpid()}.ipynb"
    unfinished.parent.mkdir(exist_ok=True)
    origin = describe_source(parameters.get("experiment"))
    started, clock = datetime.now(UTC), time.monotonic()
    notebook = papermill.execute_notebook(
        source,
        unfinished,
        parameters,
        kernel_name="python3",
        cwd=ROOT / "notebooks",
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
    )
    make_deterministic(notebook)
    nbformat.write(notebook, output / f"{question}.ipynb")
    unfinished.unlink()
    write_provenance(
        output / "provenance.json",
        parameters,
        origin,
        started,
        time.monotonic() - clock,
        _timing(output),
    )


def _timing(output: Path) -> dict[str, float]:
    """The times that a notebook has taken itself: they differ, so provenance is their place."""
    path = output / "timing.json"
    if not path.is_file():
        return {}
    timing = json.loads(path.read_text())
    path.unlink()
    return timing


def make_deterministic(notebook: nbformat.NotebookNode) -> None:
    """Removes from an executed notebook what differs between two runs of the same inputs."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("execution", "papermill"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
        # Lines reach the notebook in pieces whose borders depend on timing.
        merged: list[nbformat.NotebookNode] = []
        for output in cell.get("outputs", []):
            if (
                merged
                and output.output_type == "stream"
                and merged[-1].output_type == "stream"
                and merged[-1].name == output.name
            ):
                merged[-1].text += output.text
            else:
                merged.append(output)
        if "outputs" in cell:
            cell.outputs = merged


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--experiment", required=True, help="a section of params.yaml")
    parser.add_argument("--family", help="family of networks, for train")
    parser.add_argument("--seed", type=int, help="seed of the run, for train")
    arguments = parser.parse_args()
    for name in ("family", "seed"):
        if (getattr(arguments, name) is not None) != (arguments.question == "train"):
            parser.error(f"--{name} goes with train, and train needs it")
    folder = ROOT / "results" / arguments.experiment / arguments.question
    if arguments.question == "train":
        folder /= f"{arguments.family}-{arguments.seed}"
    try:
        parameters = notebook_parameters(
            arguments.question, arguments.experiment, arguments.family, arguments.seed
        )
        os.environ |= notebook_environment(arguments.experiment)
        run(arguments.question, parameters, folder)
    except (ParamsError, PapermillExecutionError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
