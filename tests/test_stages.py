"""The generated pipelines: every stage depends on everything that its notebook imports."""

import ast
import json

import pytest
import yaml

from pipeline.claims import load_claims
from pipeline.params import ROOT, load_params
from pipeline.questions import QUESTIONS
from pipeline.stages import main, pipeline_file, pipeline_text

PARAMS = load_params()


def stages(experiment):
    return yaml.safe_load(pipeline_text(experiment, PARAMS))["stages"]


def imported(source):
    """Files of the repository that a piece of code imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            # With a module, its packages are imported.
            for end in range(1, len(parts) + 1):
                base = ROOT.joinpath(*parts[:end])
                for path in (base.with_suffix(".py"), base / "__init__.py"):
                    if path.is_file():
                        yield path


def closure(source):
    """All files of the repository that code needs, relative to its root."""
    files, waiting = set(), list(imported(source))
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += imported(path.read_text())
    return {path.relative_to(ROOT).as_posix() for path in files}


def notebook_source(name):
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def missing(needed, dependencies):
    return {
        path
        for path in needed
        if not any(path == dep or path.startswith(f"{dep}/") for dep in dependencies)
    }


def test_the_closure_follows_imports_of_imports():
    needed = closure("from pipeline.notebook import device")
    assert {"pipeline/notebook.py", "pipeline/params.py", "irevnet/zoo.py"} <= needed
    assert "irevnet/reversible/streams.py" in needed


@pytest.mark.parametrize("experiment", PARAMS.sections)
def test_every_analysis_depends_on_all_that_its_notebook_imports(experiment):
    for name, stage in stages(experiment).items():
        if name in ("rehearsal", "train", "weights"):
            continue
        # Each converted network has its own stage.
        own = "convert" if name.startswith("convert_") else name
        for notebook in stage.get("matrix", {}).get("question", [own]):
            needed = closure(notebook_source(notebook)) | {f"notebooks/{notebook}.ipynb"}
            dependencies = [dep.replace("${item.question}", notebook) for dep in stage["deps"]]
            if name == "claims":  # it computes nothing with the package
                needed = {path for path in needed if not path.startswith("irevnet/")}
            assert missing(needed, dependencies) == set(), notebook


@pytest.mark.parametrize(
    "experiment", [name for name, own in PARAMS.sections.items() if own.training]
)
def test_training_depends_through_its_rehearsal_on_all_that_computes(experiment):
    own = stages(experiment)
    needed = closure(notebook_source("train")) | closure("import pipeline.rehearsal, pipeline.run")
    needed.add("notebooks/train.ipynb")
    assert missing(needed, own["rehearsal"]["deps"]) == set()
    assert own["train"]["deps"] == [
        f"results/{experiment}/data/images.json",
        f"results/{experiment}/rehearsal/${{item.family}}.json",
    ]


def test_what_gathers_weights_depends_on_all_that_it_imports():
    assert missing(closure("import pipeline.publish"), stages("digits")["weights"]["deps"]) == set()


def calls(source, name):
    """The second argument of every call of a function in a notebook's code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == name:
            yield ast.literal_eval(node.args[1])


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_notebook_reads_the_metrics_that_its_question_declares(name):
    source = notebook_source(name)
    assert set(calls(source, "read_metrics")) == set(QUESTIONS[name].reads)
    assert ("trained_model(" in source) == QUESTIONS[name].published
    assert ("training_history(" in source) == QUESTIONS[name].curves
    assert "load_experiment_data(" in source


def test_a_missing_dependency_is_found():
    needed = closure(notebook_source("separation"))
    assert "irevnet/analysis/separation.py" in missing(needed, ["irevnet/network", "pipeline"])


@pytest.mark.parametrize("experiment", PARAMS.sections)
def test_questions_depend_on_the_metrics_that_they_read(experiment):
    own = stages(experiment)
    for name, question in QUESTIONS.items():
        for other in question.reads if name in own else ():
            assert f"results/{experiment}/{other}/metrics.json" in own[name]["deps"]
    asked = PARAMS.section(experiment).questions
    conditions = [c for one in load_claims(experiment, PARAMS).values() for c in one.conditions]
    for name in {c.metric.split(".")[0] for c in conditions} & set(asked):
        assert f"results/{experiment}/{name}/metrics.json" in own["claims"]["deps"]


def test_questions_depend_on_the_parameters_that_their_notebooks_read():
    own = stages("cifar10_cpu")
    for entry in ("${item.question}", "data", "models", "seeds", "training", "threads"):
        assert f"cifar10_cpu.{entry}" in own["question"]["params"]
    # Its margins are bounds of claims.yaml, one of which this experiment overrides.
    assert "cifar10_cpu.bounds" in own["accuracy"]["params"]
    assert "digits.bounds" not in stages("digits")["accuracy"]["params"]


def test_the_files_are_up_to_date_and_the_default_one_is_short(tmp_path, capsys):
    assert main(["--check"]) == 0
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 150
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    assert main(["--check"], tmp_path) == 1
    assert "dvc.yaml is not up to date" in capsys.readouterr().err
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    for experiment in PARAMS.sections:
        file = pipeline_file(experiment, PARAMS.default)
        assert (tmp_path / file).read_text() == (ROOT / file).read_text()


def test_a_pipeline_that_is_left_over_is_removed(tmp_path, capsys):
    """After a change of ``default`` DVC would find every output in two pipelines, and stop."""
    params = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(params)
    main([], tmp_path)
    left_over = tmp_path / "results" / "cifar10" / "dvc.yaml"
    (tmp_path / "params.yaml").write_text(params.replace("default: digits", "default: cifar10"))
    assert left_over.is_file()
    assert main(["--check"], tmp_path) == 1
    assert "results/cifar10/dvc.yaml belongs to no experiment" in capsys.readouterr().err
    assert main([], tmp_path) == 0
    assert not left_over.exists()
    assert main(["--check"], tmp_path) == 0


def test_claims_depend_on_the_benchmarks_that_they_are_judged_by_and_no_others():
    (file,) = [dep for dep in stages("digits")["claims"]["deps"] if "benchmarks" in dep]
    assert file == "results/benchmarks/cpu-1-threads/against_revnet.json"


def test_dvc_reads_the_pipelines():
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        names = {stage.addressing for stage in repo.index.stages}
        artifacts = repo.artifacts.read()
    assert {
        "train@irevnet-0",
        "question@jacobian",
        "results/cifar10/dvc.yaml:train@resnet-4",
    } <= names
    for file, folder in (
        ("dvc.yaml", "results/digits/weights"),
        ("results/imagenette/dvc.yaml", "weights"),
    ):
        path = artifacts[file]["irevnet-bijective"].path
        assert path == f"{folder}/irevnet_bijective.safetensors"
        assert ((ROOT / file).parent / path).is_file()
