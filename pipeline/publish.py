"""Copies the weights of one run of each family to where ``create_model`` finds them.

``python -m pipeline.publish --experiment digits``. Which run it is stands in ``params.yaml``: with
``published: best`` the one with the highest accuracy on the validation images, of several the
first; with ``published: first`` that of the first seed, whatever came out. Test images choose
nothing.
"""

import argparse
import json
import shutil
from pathlib import Path

from pipeline.params import ROOT, load_params

__all__ = ["publish"]


def publish(experiment: str) -> None:
    """Fills ``results/<experiment>/weights`` from the training runs of the experiment.

    Raises:
        FileNotFoundError: if a run that it needs is not there; what was published stays.
    """
    params = load_params()
    section = params.sections[experiment]
    runs = ROOT / "results" / experiment / "train"
    target = ROOT / "results" / experiment / "weights"
    chosen = {}
    for family in params.families:
        of_family = [runs / f"{family}-{seed}" for seed in section.seeds]
        run = of_family[0]
        if section.published == "best":
            run = max(of_family, key=_validation_accuracy)
        chosen[target / f"{section.models[family].name}.safetensors"] = run / "weights.safetensors"
    if missing := [str(source) for source in chosen.values() if not source.is_file()]:
        raise FileNotFoundError(f"nothing published, not there: {', '.join(missing)}")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path, source in chosen.items():
        shutil.copyfile(source, path)
        print(f"{path.name}: {source.parent.name}")


def _validation_accuracy(run: Path) -> float:
    return json.loads((run / "metrics.json").read_text())["validation_accuracy"]


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--experiment", required=True, help="a section of params.yaml")
    publish(parser.parse_args().experiment)


if __name__ == "__main__":
    main()
