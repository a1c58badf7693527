import json
from ast import literal_eval

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from pipeline import run as runner
from pipeline.params import ROOT, ParamsError, load_bounds, load_params
from pipeline.questions import QUESTIONS
from pipeline.run import NOTEBOOKS, make_deterministic, notebook_parameters


def declared(question):
    return papermill.inspect_notebook(ROOT / "notebooks" / f"{question}.ipynb")


def defaults(question):
    # papermill returns the source of each default, which is always a literal.
    return {name: literal_eval(value["default"]) for name, value in declared(question).items()}


@pytest.mark.parametrize("experiment", ["digits", "cifar10_cpu"])
@pytest.mark.parametrize("question", NOTEBOOKS)
def test_a_notebook_declares_what_it_is_given(question, experiment):
    family, seed = ("irevnet_bijective", 0) if question in ("train", "convert") else (None, None)
    given = notebook_parameters(question, experiment, family, seed)
    by_hand = {"output", "images"} if question == "train" else {"output"}
    assert set(given) | by_hand == set(declared(question))


@pytest.mark.parametrize("question", sorted(set(NOTEBOOKS) - {"train", "convert"}))
def test_default_parameters_are_valid_and_use_natural_images(question):
    own = defaults(question)
    assert own.pop("experiment") == "cifar10_cpu"
    assert own.pop("output") == f"scratch/{question}"
    if question in ("data", "claims"):
        assert own == {}
    else:
        bounds = {name: own.pop(name) for name in QUESTIONS[question].bounds}
        QUESTIONS[question].schema.model_validate(own)
        for name, which in QUESTIONS[question].bounds.items():
            assert bounds[name] == load_bounds("cifar10_cpu")[which]


def test_default_parameters_of_training_are_those_of_digits():
    own = defaults("train")
    section = load_params().sections[own["experiment"]]
    assert own["experiment"] == "digits"
    assert own["family"] in section.models
    assert own["training"] == section.training


def test_default_parameters_of_converting_are_those_of_the_papers_network():
    own = defaults("convert")
    given = notebook_parameters("convert", own["experiment"], own["family"], own["seed"])
    assert own == given | {"output": "scratch/convert"}


def test_train_is_given_only_what_params_yaml_sets():
    given = notebook_parameters("train", "digits", "resnet", 3)
    assert given["family"] == "resnet"
    assert given["seed"] == 3
    assert "momentum" not in given["training"]


def test_an_unknown_experiment_is_named():
    with pytest.raises(ParamsError, match=r"experiment must be one of cifar10, .*got 'mnist'"):
        notebook_parameters("inversion", "mnist")


def test_a_family_or_seed_that_the_experiment_lacks_is_named():
    with pytest.raises(ParamsError, match=r"--family must be one of irevnet, .*, got densenet"):
        notebook_parameters("train", "digits", "densenet", 0)
    with pytest.raises(ParamsError, match=r"--seed must be one of \[0, 1, 2, 3, 4\], got 9"):
        notebook_parameters("train", "digits", "resnet", 9)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one notebook in it."""
    (tmp_path / "notebooks").mkdir()
    parameters = new_code_cell('number = 1\noutput = "scratch"', metadata={"tags": ["parameters"]})
    write = new_code_cell(
        "import pathlib\n"
        "import sys\n"
        'print("number", number, flush=True)\n'
        'print("a notice", file=sys.stderr, flush=True)\n'
        "print(1 / number)\n"
        'pathlib.Path("..", output, "metrics.json").write_text(str(number))'
    )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=[parameters, write], metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "notebooks" / "inversion.ipynb")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    return tmp_path


def test_two_runs_give_the_same_bytes_but_for_the_provenance(repository):
    folder = repository / "results" / "inversion"
    contents = []
    for _ in range(2):
        runner.run("inversion", {"number": 2}, folder)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    first, second = contents
    assert first.keys() == {"inversion.ipynb", "metrics.json", "provenance.json"}
    assert first["metrics.json"] == b"2"
    assert first["inversion.ipynb"] == second["inversion.ipynb"]
    outputs = nbformat.reads(first["inversion.ipynb"].decode(), 4).cells[-1].outputs
    streams = [(o.name, o.text) for o in outputs if o.output_type == "stream"]
    assert sorted(streams) == [("stderr", "a notice\n"), ("stdout", "number 2\n0.5\n")]
    provenance = json.loads(first["provenance.json"])
    assert provenance["parameters"] == {"number": 2, "output": "results/inversion"}
    assert {"command", "commit", "started", "seconds", "processor", "gpu", "versions"} <= set(
        provenance
    )


def test_a_parameter_that_the_notebook_does_not_declare_is_refused(repository):
    with pytest.raises(ParamsError, match="no parameter digit; it declares"):
        runner.run("inversion", {"digit": 2}, repository / "results" / "inversion")
    assert not (repository / "results").exists()


def test_a_failing_cell_stops_the_run_and_leaves_no_result(repository):
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        runner.run("inversion", {"number": 0}, repository / "results" / "inversion")
    assert list((repository / "results" / "inversion").iterdir()) == []
    assert len(list((repository / "scratch").glob("*.ipynb"))) == 1


def test_metadata_of_the_run_are_removed():
    metadata = {"execution": {"iopub.status.busy": "2026"}, "papermill": {}, "tags": []}
    cell = new_code_cell("", metadata=metadata)
    notebook = new_notebook(cells=[cell], metadata={"papermill": {"duration": 1}})
    make_deterministic(notebook)
    assert notebook.cells[0].metadata == {"tags": []}
    assert "papermill" not in notebook.metadata


def test_threads_and_hashes_are_fixed():
    environment = runner.notebook_environment("data", "digits")
    assert environment["OMP_NUM_THREADS"] == str(load_params().sections["digits"].threads)
    assert environment["PYTHONHASHSEED"] == "0"


def test_trainings_keep_the_memory_that_they_free(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert "GLIBC_TUNABLES" not in runner.notebook_environment("memory", "digits")
    assert "trim_threshold" in runner.notebook_environment("train", "digits")["GLIBC_TUNABLES"]
    own = "glibc.malloc.check=3"
    monkeypatch.setenv("GLIBC_TUNABLES", own)
    assert runner.notebook_environment("train", "digits")["GLIBC_TUNABLES"] == own
