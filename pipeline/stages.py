"""Writes the pipelines: ``python -m pipeline.stages``; ``--check`` only compares.

The pipeline of an experiment that no longer exists, or has become the default one, is removed.

Each experiment of ``params.yaml`` has its own pipeline, generated from the declarations there and
in :mod:`pipeline.questions`. The pipeline of the default experiment is ``dvc.yaml``, which
``dvc repro`` runs; that of any other is ``results/<experiment>/dvc.yaml``, to be given as an
argument. Running one pipeline does not change another, and choosing one needs no edit of a tracked
file.

A trained network depends on what the code does, not on its text: the stage ``rehearsal`` trains
every family in miniature and records the resulting bits. Training depends on that record, on the
images' fingerprint and on its recipe. A code change that leaves the bits alone therefore keeps a
training of many hours valid; one that changes them makes it out of date. The kind of processor does
not matter, because :mod:`pipeline.rehearsal` compares both versions of the code on the same one. If
an experiment's networks are converted instead of trained, each has a stage that converts it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.claims import load_claims
from pipeline.params import ROOT, Experiment, Params, ParamsError, load_params
from pipeline.questions import QUESTIONS

__all__ = ["RUNNER", "TRAINING_CODE", "main", "pipeline_file", "pipeline_text"]

# The modules that run a notebook, and the modules of the pipeline that notebooks import.
RUNNER = (
    "pipeline/__init__.py",
    "pipeline/claims.py",
    "pipeline/figures.py",
    "pipeline/files.py",
    "pipeline/malloc.py",
    "pipeline/notebook.py",
    "pipeline/params.py",
    "pipeline/provenance.py",
    "pipeline/questions.py",
    "pipeline/run.py",
)
# The code behind a training run: the package without its analyses, the notebook and its runner.
TRAINING_CODE = (
    "irevnet/__init__.py",
    "irevnet/checks.py",
    "irevnet/data",
    "irevnet/network",
    "irevnet/reversible",
    "irevnet/runs.py",
    "irevnet/training",
    "irevnet/weights.py",
    "irevnet/zoo.py",
    "notebooks/train.ipynb",
    *RUNNER,
    "pipeline/copies.py",
    "pipeline/rehearsal.py",
)
_HEADER = """\
# Written by `python -m pipeline.stages` from params.yaml and pipeline/questions.py: change those.
# `dvc repro{argument}` runs what is out of date, `dvc dag` draws it.
"""


def pipeline_file(experiment: str, default: str) -> Path:
    """Where an experiment's pipeline is, relative to the repository's root."""
    return Path("dvc.yaml") if experiment == default else Path("results", experiment, "dvc.yaml")


def pipeline_text(experiment: str, params: Params) -> str:
    """The text of an experiment's ``dvc.yaml``.

    Raises:
        ParamsError: if ``claims.yaml`` is not valid.
    """
    file = pipeline_file(experiment, params.default)
    section = params.section(experiment)
    up = "/".join([".."] * len(file.parent.parts))
    stages = _stages(experiment, section, _judged_by(experiment, params))
    if up:
        stages = {name: {"wdir": up, **stage} for name, stage in stages.items()}
    content: dict[str, Any] = {"stages": stages}
    root = f"{up}/" if up else ""
    content["metrics"] = [
        f"{root}results/{experiment}/{name}/metrics.json" for name in ("data", *section.questions)
    ]
    if section.training is not None:
        content["plots"] = [_plot(experiment, section, root)]
    argument = f" {file.as_posix()}" if up else ""
    # With None, lists of plain values stay on one line.
    text = yaml.safe_dump(content, sort_keys=False, width=100, default_flow_style=None)
    return _HEADER.format(argument=argument) + text


def _judged_by(experiment: str, params: Params) -> list[str]:
    """The result files of questions and benchmarks that decide the claims."""
    claims = load_claims(experiment, params).values()
    metrics = {condition.metric for claim in claims for condition in claim.conditions}
    decided_by = {tuple(metric.split(".")) for metric in metrics}
    asked = [
        f"results/{experiment}/{name}/metrics.json"
        for name in params.section(experiment).questions
        if any(parts[0] == name for parts in decided_by)
    ]
    benchmarks = {parts[1:3] for parts in decided_by if parts[0] == "benchmarks"}
    return asked + [f"results/benchmarks/{'/'.join(parts)}.json" for parts in sorted(benchmarks)]


def _stages(
    experiment: str, section: Experiment, judged_by: list[str]
) -> dict[str, dict[str, Any]]:
    results = f"results/{experiment}"
    run, to = "python -m pipeline.run", f"--experiment {experiment}"
    family, seed = "${item.family}", "${item.seed}"
    special = [name for name in section.questions if _own_dependencies(experiment, name)]
    plain = [name for name in section.questions if name not in special]
    cached = section.stored == "dvc"
    entries = ["data", f"models.{family}", "threads", "training"]
    if "judged_on" in section.model_fields_set:
        entries.append("judged_on")
    recipe = [f"{experiment}.{name}" for name in entries]
    networks: dict[str, dict[str, Any]] = {
        "rehearsal": {
            "matrix": {"family": list(section.models)},
            "cmd": f"python -m pipeline.rehearsal {to} --family {family}",
            # Copies, because YAML would write a shared list as an anchor and aliases.
            "params": list(recipe),
            "deps": [
                *TRAINING_CODE,
                f"{results}/data/images.json",
            ],
            "outs": [_uncached(f"{results}/rehearsal/{family}.json")],
        },
        "train": {
            "matrix": {"family": list(section.models), "seed": list(section.seeds)},
            "cmd": f"{run} train {to} --family {family} --seed {seed}",
            "params": list(recipe),
            "deps": [
                f"{results}/data/images.json",
                f"{results}/rehearsal/{family}.json",
            ],
            "outs": [{f"{results}/train/{family}-{seed}": {"cache": cached}}],
        },
    }
    if section.training is None:
        networks = {
            f"convert_{name}": {
                "cmd": f"{run} convert {to} --family {name} --seed {section.seeds[0]}",
                "params": [f"{experiment}.{entry}" for entry in ("data", f"models.{name}")],
                "deps": [
                    "notebooks/convert.ipynb",
                    "irevnet",
                    *RUNNER,
                    model.released,
                    f"{results}/data/images.json",
                ],
                "outs": [{f"{results}/train/{name}-{section.seeds[0]}": {"cache": cached}}],
            }
            for name, model in section.models.items()
        }
    stages: dict[str, dict[str, Any]] = {
        "data": {
            "cmd": f"{run} data {to}",
            "params": [f"{experiment}.data"],
            "deps": ["notebooks/data.ipynb", "irevnet", *RUNNER],
            "outs": [_uncached(f"{results}/data")],
        },
        **networks,
        "weights": {
            "cmd": f"python -m pipeline.publish {to}",
            "params": [f"{experiment}.{name}" for name in ("models", "published", "seeds")],
            "deps": ["irevnet", *RUNNER, "pipeline/publish.py", f"{results}/train"],
            # The old weights stay until the new ones are complete.
            "outs": [{f"{results}/weights": {"cache": cached, "persist": True}}],
        },
    }
    if plain:
        question = _question(experiment, section, "${item.question}")
        stages["question"] = {"matrix": {"question": plain}, **question}
    stages |= {name: _question(experiment, section, name) for name in special}
    stages["claims"] = {
        "cmd": f"{run} claims {to}",
        **({"params": [f"{experiment}.bounds"]} if section.bounds else {}),
        "deps": [
            "claims.yaml",
            "notebooks/claims.ipynb",
            *RUNNER,
            *judged_by,
        ],
        "outs": [_uncached(f"{results}/claims")],
    }
    return stages


def _question(experiment: str, section: Experiment, name: str) -> dict[str, Any]:
    # Notebooks read these entries of params.yaml in addition to their own section.
    entries = [name, "data", "models", "seeds", "threads"]
    if section.training is not None:
        entries.append("training")
    if name in QUESTIONS and QUESTIONS[name].bounds and section.bounds:
        entries.append("bounds")
    return {
        "cmd": f"python -m pipeline.run {name} --experiment {experiment}",
        "params": [f"{experiment}.{entry}" for entry in entries],
        "deps": [
            f"notebooks/{name}.ipynb",
            "irevnet",
            *RUNNER,
            f"results/{experiment}/weights",
            *_own_dependencies(experiment, name),
        ],
        "outs": [_uncached(f"results/{experiment}/{name}")],
    }


def _own_dependencies(experiment: str, name: str) -> list[str]:
    """The dependencies that only this question has."""
    question = QUESTIONS.get(name)
    if question is None:
        return []
    claims = ["claims.yaml"] if question.bounds else []
    curves = [f"results/{experiment}/train"] if question.curves else []
    reads = [f"results/{experiment}/{other}/metrics.json" for other in question.reads]
    return [*claims, *curves, *reads]


def _uncached(path: str) -> dict[str, dict[str, bool]]:
    return {path: {"cache": False}}


def _plot(experiment: str, section: Experiment, root: str) -> dict[str, Any]:
    curve = "validation_accuracy" if section.data.validation else "train_accuracy"
    files = [f"{root}results/{experiment}/train/{f}-{section.seeds[0]}" for f in section.models]
    return {
        "training": {
            "title": f"{experiment}: {curve.replace('_', ' ')} while training",
            "x": "epoch",
            "y": {f"{folder}/history.csv": curve for folder in files},
        }
    }


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.stages")
    parser.add_argument("--check", action="store_true", help="change nothing, name outdated files")
    options = parser.parse_args(arguments)
    try:
        params = load_params(root / "params.yaml")
        files = {
            root / pipeline_file(experiment, params.default): pipeline_text(experiment, params)
            for experiment in params.sections
        }
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 1
    status = 0
    # DVC refuses to read any pipeline while a leftover one has the outputs of another.
    for path in sorted(set(root.glob("results/*/dvc.yaml")) - set(files)):
        if options.check:
            print(
                f"{path.relative_to(root)} belongs to no experiment of params.yaml", file=sys.stderr
            )
            status = 1
        else:
            path.unlink()
            print(f"{path.relative_to(root)}: removed, because it is no experiment's pipeline")
    for path, text in files.items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if options.check:
            print(f"{path.relative_to(root)} is not up to date", file=sys.stderr)
            status = 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"{path.relative_to(root)}: written")
    if status:
        print("run: python -m pipeline.stages", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
