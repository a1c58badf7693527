"""Adding a model, a family, a question or an experiment changes few files, as CONTRIBUTING says.

Each walk changes a copy of the repository as CONTRIBUTING describes, and counts the files.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, writes
from PIL import Image

from benchmarks import ilsvrc2012
from pipeline.params import ROOT

COPIED = ("irevnet", "notebooks", "pipeline", "tests", ".dvc/config", ".dvcignore", "claims.yaml")
COPIED += ("dvc.yaml", "params.yaml", "pyproject.toml", "results/digits/weights")
COPIED += ("results/benchmarks",)


class Copy:
    """A copy of the repository, with few of its results: published weights and benchmarks."""

    def __init__(self, root):
        self.root = root
        for name in COPIED:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pyc*"))
            else:
                shutil.copy(ROOT / name, root / name)
        self.python("-m", "pipeline.stages")
        self.before = self.contents()

    def contents(self):
        paths = [path for path in self.root.rglob("*") if path.is_file()]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in paths}

    def changed(self):
        """Files that a person has changed or added: all but what was generated."""
        after = self.contents()
        names = {name for name in after if after[name] != self.before.get(name)}
        generated = (
            r"(.*/)?(dvc\.(yaml|lock)|__pycache__/.*)|(\.dvc|results|scratch|checkpoints)/.*"
        )
        return {name for name in names if not re.fullmatch(generated, name)}

    def python(self, *arguments):
        environment = os.environ | {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        answer = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-4000:]
        return answer.stdout

    def write(self, name, text):
        (self.root / name).write_text(text)

    def insert(self, name, before, text):
        """Puts text in front of the first line that starts with ``before``."""
        content = (self.root / name).read_text()
        place = re.search(rf"^{re.escape(before)}", content, re.MULTILINE).start()
        (self.root / name).write_text(content[:place] + text + content[place:])


@pytest.fixture
def copy(tmp_path):
    # With a space, as in many people's folders.
    return Copy(tmp_path / "a copy")


def test_a_model_is_one_entry_of_the_zoo_and_the_suites_pick_it_up(copy):
    entry = """\
    "irevnet_walk": (
        IRevNet,
        {
            **_DIGITS,
            "entry_factor": 2,
            "strides": (1, 2),
            "blocks": (2, 2),
            "half_channels": (2, 8),
            "bottleneck_channels": (8, 8),
        },
    ),
"""
    copy.insert("irevnet/zoo.py", "}\n\n\ndef list_models", entry)
    assert copy.changed() == {"irevnet/zoo.py"}
    suites = ["tests/network/test_model.py", "tests/test_zoo.py", "tests/test_weights.py"]
    output = copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "walk", *suites)
    passed = int(re.search(r"(\d+) passed", output)[1])
    assert passed >= 10, "round trips, Jacobians, gradients, save and load"
    assert "failed" not in output


FAMILY = """\
    irevnet_walk_bijective:
      name: irevnet_digits_bijective
      overrides: {bottleneck_channels: [8, 8, 8]}
"""


def test_a_family_is_two_places(copy):
    copy.insert("params.yaml", "  # The same for all families", FAMILY)
    style = '    "irevnet_walk_bijective": Style("i-RevNet, narrow", "#E69F00", "v"),\n'
    copy.insert("pipeline/figures.py", '    "revnet": Style', style)
    assert copy.changed() == {"params.yaml", "pipeline/figures.py"}
    assert "valid" in copy.python("-m", "pipeline.params")
    copy.python("-m", "pipeline.stages")
    assert "irevnet_walk_bijective" in (copy.root / "dvc.yaml").read_text()
    program = (
        "from pipeline.figures import family_style\n"
        "from pipeline.notebook import families, new_model\n"
        "print(families('digits'), family_style('irevnet_walk_bijective')['label'])\n"
        "new_model('digits', 'irevnet_walk_bijective', 0)"
    )
    output = copy.python("-c", program)
    assert "'irevnet_walk_bijective'" in output
    assert "i-RevNet, narrow" in output


ANALYSIS = '''\
"""How many parameters a network has, for a walk."""

from torch import nn

__all__ = ["count"]


def count(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())
'''

TEST = """\
from torch import nn

from irevnet.analysis.walk import count


def test_weights_and_biases_are_counted():
    assert count(nn.Linear(3, 2)) == 8
"""

DECLARATION = """\
    "walk": Question(Walk, published=True, metrics={"{family}.count": "number"}),
"""

SCHEMA = '''\
class Walk(QuestionSection):
    """Parameters of ``notebooks/walk.ipynb``."""

    images: PositiveInt


'''

RULE = """\
      - what: parameters of the injective network
        metric: walk.irevnet.count
        at_least: 1.0
"""


def walk_notebook():
    parameters = 'experiment = "digits"\nimages = 2\noutput = "scratch/walk"\n'
    code = """\
from irevnet.analysis.walk import count
from pipeline.notebook import Results, families, load_experiment_data, trained_model

results = Results(output)
x, _ = load_experiment_data(experiment).test.first(images)
models = {family: trained_model(experiment, family) for family in families(experiment)}
results.save_metrics({family: {"count": count(model)} for family, model in models.items()})
"""
    cells = [
        new_markdown_cell("# How many parameters?", id="walk-00"),
        new_code_cell(parameters, id="walk-01", metadata={"tags": ["parameters"]}),
        new_code_cell(code, id="walk-02"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return writes(new_notebook(cells=cells, metadata={"kernelspec": kernel}))


def test_a_question_is_a_notebook_an_analysis_its_test_and_one_declaration(copy):
    copy.write("notebooks/walk.ipynb", walk_notebook())
    copy.write("irevnet/analysis/walk.py", ANALYSIS)
    copy.write("tests/analysis/test_walk.py", TEST)
    copy.insert("pipeline/questions.py", "@dataclass(frozen=True)\nclass Question", SCHEMA)
    copy.insert("pipeline/questions.py", '    "precision": Question(', DECLARATION)
    assert len(copy.changed()) == 4  # and its page in book/
    # An experiment's choices for the question, and a rule that uses it:
    copy.insert("params.yaml", "  memory: {blocks_per_stage", "  walk: {images: 3}\n")
    copy.insert("claims.yaml", "  C9:", RULE)
    copy.python("-m", "pipeline.params")
    copy.python("-m", "pipeline.stages")
    pipeline = (copy.root / "dvc.yaml").read_text()
    assert "walk" in re.search(r"question: \[([^]]*)\]", pipeline)[1]
    assert "results/digits/walk/metrics.json" in pipeline
    copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/analysis/test_walk.py")
    copy.python("-m", "dvc", "config", "--local", "core.no_scm", "true")
    target = "question@walk"
    copy.python("-m", "dvc", "repro", "--single-item", target)
    metrics = json.loads((copy.root / "results/digits/walk/metrics.json").read_text())
    assert metrics["irevnet"]["count"] == 267338
    copy.python("-m", "pipeline.run", "claims", "--experiment", "digits")
    claims = json.loads((copy.root / "results/digits/claims/claims.json").read_text())
    (row,) = [row for row in claims["rows"] if row["id"] == "C8c"]
    assert row["conditions"][-1]["state"] == "holds"


EXPERIMENT = """
walk:
  seeds: [0]
  published: first
  threads: 1
  data: {name: digits}
  models:
    irevnet: {name: irevnet_digits, overrides: {blocks: [1, 1, 1]}}
    resnet: {name: resnet_digits, overrides: {units: [1, 1, 1]}}
  training: {epochs: 1, batch_size: 256, learning_rate: 0.1}
  accuracy: {level: 0.95, baselines: [resnet]}
"""


def test_an_experiment_is_one_section(copy):
    """Runs its whole pipeline: data, rehearsals, training, gathering, accuracy and claims."""
    with (copy.root / "params.yaml").open("a") as file:
        file.write(EXPERIMENT)
    assert copy.changed() == {"params.yaml"}
    copy.python("-m", "pipeline.params")
    copy.python("-m", "pipeline.stages")
    names = ("params.yaml", "claims.yaml", "dvc.yaml", "results/walk/dvc.yaml")
    before = [(copy.root / name).read_bytes() for name in names]
    copy.python("-m", "pipeline.repro", "walk", "--jobs", "2")
    assert before == [(copy.root / name).read_bytes() for name in names]
    results = copy.root / "results" / "walk"
    metrics = json.loads((results / "accuracy" / "metrics.json").read_text())
    assert set(metrics["families"]) == {"irevnet", "resnet"}
    assert {path.name for path in (results / "weights").iterdir()} == {
        "irevnet.safetensors",
        "resnet.safetensors",
        "runs.json",
    }
    claims = json.loads((results / "claims" / "claims.json").read_text())
    # A benchmark decides C10, the same for all experiments.
    verdicts = {row["verdict"] for row in claims["rows"] if row["id"] != "C10"}
    assert verdicts == {"not tested here"}
    assert copy.changed() == {"params.yaml"}
    # Nothing is left to do.
    status = copy.python("-m", "dvc", "status", "results/walk/dvc.yaml")
    assert "up to date" in status


def test_networks_too_large_for_git_go_to_a_remote_and_come_back(copy, tmp_path):
    section = EXPERIMENT.replace("published: first", "published: first\n  stored: dvc")
    with (copy.root / "params.yaml").open("a") as file:
        file.write(section[: section.index("  accuracy:")])
    git = ["git", "-c", "user.name=walker", "-c", "user.email=walker@example.org"]

    def run(*command, cwd=copy.root):
        subprocess.run(command, cwd=cwd, check=True, capture_output=True)

    run(*git, "init", "-q")
    copy.write(".gitignore", "__pycache__/\n/scratch/\n/checkpoints/\n/.dvc/cache/\n/.dvc/tmp/\n")
    copy.python("-m", "pipeline.stages")
    copy.python("-m", "pipeline.repro", "walk", "--jobs", "2")
    copy.python("-m", "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    copy.python("-m", "dvc", "push", "results/walk/dvc.yaml")
    run(*git, "add", "-A")
    run(*git, "commit", "-q", "-m", "walk")

    clone = tmp_path / "clone"
    run(*git, "clone", "-q", str(copy.root), str(clone))
    weights = ("train/irevnet-0/weights.safetensors", "weights/irevnet.safetensors")
    assert not any((clone / "results/walk" / name).exists() for name in weights)
    assert (clone / "results/walk/claims/claims.json").exists(), "all else is in git"
    run(sys.executable, "-m", "dvc", "pull", "results/walk/dvc.yaml", cwd=clone)
    for name in weights:
        written, pulled = ((root / "results/walk" / name) for root in (copy.root, clone))
        assert written.read_bytes() == pulled.read_bytes()
    copy.root = clone
    assert "up to date" in copy.python("-m", "dvc", "status", "results/walk/dvc.yaml")


def test_released_weights_and_validation_images_are_one_command_away_from_verdicts(copy, tmp_path):
    """The experiment ``ilsvrc2012`` on made-up photographs, with a made-up checkpoint."""
    generator = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "photographs" / f"n{label}"
        folder.mkdir(parents=True)
        for number in range(24):
            # A colour for each class, under noise.
            pixels = generator.integers(0, 128, (40, 48, 3)) + 127 * np.eye(3, dtype=int)[label]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    photographs = tmp_path / "photographs"
    ilsvrc2012.prepare(copy.root, photographs, 24, 32, ilsvrc2012.TINY, ilsvrc2012.SMALL_NETWORK)
    measured = ilsvrc2012.measure(copy.root)
    assert {"data", "inversion", "claims"} < set(measured["seconds"])
    assert measured["verdicts"]["C1"] == "consistent"

    results = copy.root / "results/ilsvrc2012"

    def metrics(name):
        return json.loads((results / name / "metrics.json").read_text())

    converted = metrics("train/irevnet_bijective-0")
    assert converted["test_images"] == 72, "both halves, because the network has seen neither"
    assert metrics("data")["train"]["images"] == metrics("data")["test"]["images"] == 36
    jacobian = metrics("jacobian")["irevnet_bijective"]
    assert (jacobian["leading"], jacobian["dimensions"]) == (20, 192)
    assert metrics("dimensionality")["pixels"]["svm_per_class"] in (0.5, 1, 2, 8)
    claims = json.loads((results / "claims" / "claims.json").read_text())
    rows = {row["id"]: row for row in claims["rows"]}
    # Claims on injective networks alone are not tested, the others on the bijective one.
    assert rows["C5"]["verdict"] == "not tested here"
    for claim in ("C1", "C4", "C6", "C7", "C9"):
        texts = [condition["what"] for condition in rows[claim]["conditions"]]
        assert not any("injective" in text for text in texts), claim
    assert rows["C1"]["verdict"] == "consistent"
    assert rows["C6"]["verdict"] in ("inconclusive", "inconsistent")
    assert "up to date" in copy.python("-m", "dvc", "status", "results/ilsvrc2012/dvc.yaml")
