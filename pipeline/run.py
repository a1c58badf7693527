"""Runs one notebook of the pipeline with papermill, as most stages of ``dvc.yaml`` do.

``python -m pipeline.run inversion --experiment digits`` passes the section ``inversion`` of that
experiment to ``notebooks/inversion.ipynb`` and writes the notebook's results, the executed notebook
and ``provenance.json`` into ``results/digits/inversion/``. Two runs on the same machine give the
same bytes except for ``provenance.json``, which records everything that differs. If all other files
equal the committed ones, the committed ``provenance.json`` is kept, too.
"""

import argparse
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from pipeline.files import read_json
from pipeline.malloc import KEEP_MEMORY
from pipeline.params import ROOT, ParamsError, load_bounds, load_params
from pipeline.provenance import FILE, describe_source, keep_committed, write_provenance
from pipeline.questions import QUESTIONS

__all__ = ["NOTEBOOKS", "execute", "make_deterministic", "notebook_parameters", "run"]

NOTEBOOKS = ("data", "train", "convert", *QUESTIONS, "claims")
# Notebooks that produce a network, given a family and a seed.
_OF_NETWORKS = ("train", "convert")


def notebook_parameters(
    question: str, experiment: str, family: str | None = None, seed: int | None = None
) -> dict[str, Any]:
    """The parameters that a stage passes to its notebook, from a section of ``params.yaml``.

    Args:
        question: name of the notebook.
        experiment: a section of ``params.yaml``.
        family: of networks, only for ``train`` and ``convert``.
        seed: of the run, only for these two; by default the experiment's first.

    Raises:
        ParamsError: if ``params.yaml`` is not valid or has no such section.
    """
    section = load_params().section(experiment)
    given: dict[str, Any] = {"experiment": experiment}
    if question in _OF_NETWORKS:
        if family not in section.models:
            raise ParamsError(f"--family must be one of {', '.join(section.models)}, got {family}")
        seed = section.seeds[0] if seed is None else seed
        if seed not in section.seeds:
            raise ParamsError(f"--seed must be one of {section.seeds}, got {seed}")
        given |= {"family": family, "seed": seed}
        if question == "train":
            return given | {"training": section.recipe(family)}
        return given | {"released": section.models[family].released}
    if question in ("data", "claims"):
        return given
    own = getattr(section, question)
    if own is None:
        raise ParamsError(f"params.yaml has no section {experiment}.{question}")
    given |= own.model_dump()
    if needed := QUESTIONS[question].bounds:
        bounds = load_bounds(experiment)
        given |= {name: bounds[which] for name, which in needed.items()}
    return given


def notebook_environment(question: str, experiment: str) -> dict[str, str]:
    """Environment variables of a notebook's process: hash order, threads, folders and allocator.

    Matplotlib gets a cache folder, because it would print a random path if it could not write to
    the home directory. A relative ``IREVNET_DATA`` is made absolute, because notebooks run in
    ``notebooks/``. Training keeps the memory that it frees, which changes only its speed.
    """
    threads = str(load_params().section(experiment).threads)
    variables = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    cache = os.environ.get("MPLCONFIGDIR") or str(ROOT / "scratch" / "matplotlib")
    variables["MPLCONFIGDIR"] = cache
    if data := os.environ.get("IREVNET_DATA"):
        variables["IREVNET_DATA"] = str(ROOT / data)
    if question == "train":
        variables["GLIBC_TUNABLES"] = os.environ.get("GLIBC_TUNABLES") or KEEP_MEMORY
    return variables


def prepare_fonts(cache: Path) -> None:
    """Builds matplotlib's list of fonts, or the first notebook would print a notice about it."""
    if not any(cache.glob("fontlist-*.json")):
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True)


def run(question: str, parameters: dict[str, Any], output: Path) -> None:
    """Executes ``notebooks/<question>.ipynb`` and writes the results into ``output``.

    Args:
        question: name of the notebook.
        parameters: values of its cell tagged ``parameters``; ``output`` is added.
        output: the folder of results, inside the repository.

    Raises:
        ParamsError: if the notebook does not declare one of the parameters.
        PapermillExecutionError: if a cell fails; the partly executed notebook is in
            ``scratch/``.
    """
    origin = describe_source(parameters.get("experiment"))
    started, clock = datetime.now(UTC), time.monotonic()
    notebook = execute(question, parameters, output)
    make_deterministic(notebook)
    nbformat.write(notebook, output / f"{question}.ipynb")
    write_provenance(
        output / FILE,
        _with_output(parameters, output),
        origin,
        started,
        time.monotonic() - clock,
        _timing(output),
    )
    keep_committed(output, ROOT)


def execute(question: str, parameters: dict[str, Any], output: Path) -> nbformat.NotebookNode:
    """Executes ``notebooks/<question>.ipynb``, which writes its results into ``output``.

    Args:
        question: name of the notebook.
        parameters: values of its cell tagged ``parameters``; ``output`` is added.
        output: a folder inside the repository; created if it does not exist.

    Returns:
        The executed notebook.

    Raises:
        ParamsError: if the notebook does not declare one of the parameters.
        PapermillExecutionError: if a cell fails; the partly executed notebook is in
            ``scratch/``.
    """
    source = ROOT / "notebooks" / f"{question}.ipynb"
    parameters = _with_output(parameters, output)
    declared = papermill.inspect_notebook(source)
    unknown = sorted(set(parameters) - set(declared))
    if unknown:
        raise ParamsError(
            f"{source.name} has no parameter {', '.join(unknown)}; it declares {sorted(declared)}"
        )
    output.mkdir(parents=True, exist_ok=True)
    # One file for each output: the next run replaces what a killed run has left.
    unfinished = ROOT / "scratch" / f"unfinished-{parameters['output'].replace('/', '-')}.ipynb"
    unfinished.parent.mkdir(exist_ok=True)
    notebook = papermill.execute_notebook(
        source,
        unfinished,
        parameters,
        kernel_name="python3",
        cwd=ROOT / "notebooks",
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
        # Output reaches the notebook in pieces whose boundaries depend on timing.
        coalesce_streams=True,
    )
    unfinished.unlink(missing_ok=True)
    return notebook


def _with_output(parameters: dict[str, Any], output: Path) -> dict[str, Any]:
    return parameters | {"output": output.relative_to(ROOT).as_posix()}


def _timing(output: Path) -> dict[str, float]:
    """The times that a notebook measured; as they differ between runs, they go to provenance."""
    path = output / "timing.json"
    if not path.is_file():
        return {}
    timing = read_json(path)
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


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("question", choices=NOTEBOOKS)
    parser.add_argument("--experiment", required=True, help="a section of params.yaml")
    parser.add_argument("--family", help="family of networks, for train and convert")
    parser.add_argument("--seed", type=int, help="seed of the run, for train and convert")
    arguments = parser.parse_args()
    for name in ("family", "seed"):
        if (getattr(arguments, name) is not None) != (arguments.question in _OF_NETWORKS):
            parser.error(f"--{name} is required for train and convert, and allowed only there")
    folder = ROOT / "results" / arguments.experiment / arguments.question
    if arguments.question in _OF_NETWORKS:
        folder = folder.with_name("train") / f"{arguments.family}-{arguments.seed}"
    try:
        parameters = notebook_parameters(
            arguments.question, arguments.experiment, arguments.family, arguments.seed
        )
        os.environ |= notebook_environment(arguments.question, arguments.experiment)
        prepare_fonts(Path(os.environ["MPLCONFIGDIR"]))
        run(arguments.question, parameters, folder)
    except (ParamsError, PapermillExecutionError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
