"""Gathers the results of training runs: ``python -m pipeline.publish --experiment digits``.

Writes ``results/<experiment>/weights/``: ``runs.json``, which lists every run with its metrics and
the fingerprint of its weights, and the weights of one run of each family, which
``create_model(..., pretrained=...)`` finds and a wheel can contain. The entry ``published`` of
``params.yaml`` chooses that run: ``best`` takes the one with the highest accuracy on the validation
images (the first, if several have it), ``first`` the one with the first seed, whatever its
accuracy, and ``none`` publishes no run. Never choose by test images.
"""

import argparse
import hashlib
import json
import shutil
import sys
from typing import Any

from pipeline.files import read_json
from pipeline.params import ROOT, ParamsError, load_params

__all__ = ["publish"]


def publish(experiment: str) -> None:
    """Fills ``results/<experiment>/weights`` from the training runs of the experiment.

    Raises:
        FileNotFoundError: if a run is missing. What was published before stays, also if the new
            files cannot be written.
    """
    section = load_params().section(experiment)
    results = ROOT / "results" / experiment
    target, new, old = (results / f"weights{suffix}" for suffix in ("", ".new", ".old"))
    if old.exists() and not target.exists():  # killed between the two renames below
        old.rename(target)
    runs: list[dict[str, Any]] = []
    missing = []
    for family, model in section.models.items():
        for seed in section.seeds:
            folder = results / "train" / f"{family}-{seed}"
            files = [folder / name for name in ("metrics.json", "weights.safetensors")]
            missing += [path for path in files if not path.is_file()]
            if not missing:
                run = {"family": family, "model": model.name, "seed": seed}
                digest = hashlib.sha256(files[1].read_bytes()).hexdigest()
                runs.append({**run, "weights": digest, "metrics": read_json(files[0])})
    if missing:
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in missing)
        raise FileNotFoundError(f"nothing published; missing: {names}")
    for family in section.models:
        family_runs = [run for run in runs if run["family"] == family]
        chosen = _choose(family_runs, section.published)
        for run in family_runs:
            run["published"] = run is chosen
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        for run in runs:
            if run["published"]:
                name = f"{run['family']}-{run['seed']}"
                source = results / "train" / name / "weights.safetensors"
                shutil.copyfile(source, new / f"{run['family']}.safetensors")
                print(f"{name} is published")
        (new / "runs.json").write_text(json.dumps(runs, indent=2) + "\n")
        if target.exists():
            target.rename(old)
        new.rename(target)
    except OSError:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _choose(runs: list[dict[str, Any]], which: str) -> dict[str, Any] | None:
    if which != "best":
        return runs[0] if which == "first" else None
    return max(runs, key=lambda run: run["metrics"]["validation_accuracy"])


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--experiment", required=True, help="a section of params.yaml")
    try:
        publish(parser.parse_args().experiment)
    except (ParamsError, OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
