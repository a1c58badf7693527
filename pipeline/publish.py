"""Copies the weights of each family's best run to where ``create_model`` finds them.

``python -m pipeline.publish --experiment digits``. The best run is the one with the highest
accuracy on the validation images, of several the first; without validation images it is the
first run: test images choose nothing.
"""

import argparse
import json
import shutil

from pipeline.params import ROOT, load_params

__all__ = ["publish"]


def publish(experiment: str) -> None:
    """Fills ``results/<experiment>/weights`` from the training runs of the experiment.

    Raises:
        FileNotFoundError: if a run that ``params.yaml`` names is not there.
    """
    params = load_params()
    section = params.sections[experiment]
    runs = ROOT / "results" / experiment / "train"
    target = ROOT / "results" / experiment / "weights"
    chosen = {}
    for family in params.families:
        accuracies = {
            seed: json.loads((runs / f"{family}-{seed}" / "metrics.json").read_text()).get(
                "validation_accuracy", 0.0
            )
            for seed in section.seeds
        }
        best = max(section.seeds, key=lambda seed: accuracies[seed])
        name = section.models[family].name
        chosen[target / f"{name}.safetensors"] = runs / f"{family}-{best}" / "weights.safetensors"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path, source in chosen.items():
        shutil.copyfile(source, path)
        print(f"{path.name}: {source.parent.name}")


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--experiment", required=True, help="a section of params.yaml")
    publish(parser.parse_args().experiment)


if __name__ == "__main__":
    main()
