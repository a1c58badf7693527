"""Trains networks of an experiment against the clock: ``python -m benchmarks.time_to_accuracy``.

The pipeline trains the same networks by the same recipe in notebooks. This benchmark needs little
more than torch and scikit-learn, so that it runs on a machine with a GPU and little else. Images
are on the device when the clock starts. Set-up, in which the network is compiled, is timed
separately. Test images are used once, after training; test accuracy is that of the weights as they
would be stored. Every network's result is written as soon as it is available, and an interrupted
run resumes after the last one.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.command import Run, make_parser, positive
from benchmarks.provenance import ROOT
from irevnet import create_model
from irevnet.data import ImageData, load_data
from irevnet.training import Trainer, TrainingConfig, evaluate
from irevnet.training.trainer import describe_row
from irevnet.weights import round_weights, save_weights
from irevnet.zoo import model_arguments

__all__ = ["main", "measure", "summary", "target"]

# The accuracy is that of the released code's CIFAR-10 network, which trains for about five hours.
ACCURACY, SECONDS = 0.945, 120


def measure(
    experiment: dict[str, Any],
    data: ImageData,
    family: str,
    seed: int,
    device: torch.device,
    weights: Path | None,
) -> dict[str, Any]:
    """Trains one network, and measures its training time and accuracy.

    Args:
        experiment: a section of ``params.yaml``.
        data: its images.
        family: a key of the section's ``models``.
        seed: seed of weights, order and augmentation.
        device: where to train.
        weights: a folder for the trained network's weights, or None to keep none.
    """
    settings = experiment["models"][family]
    arguments = model_arguments(settings["name"], **settings.get("overrides", {}))
    config = TrainingConfig(**{**experiment["training"], **settings.get("training", {})})
    data = data.to(device)
    torch.manual_seed(seed)
    model = create_model(settings["name"], **arguments)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    clocks = [_clock(device)]
    trainer = Trainer(model, data, config, seed=seed, device=device)
    clocks.append(_clock(device))
    history = trainer.run(
        lambda row: print(describe_row(row, config.epochs), file=sys.stderr, flush=True)
    )
    clocks.append(_clock(device))
    dtype = getattr(torch, settings.get("weights", "float32"))
    round_weights(model, dtype)
    test = [
        evaluate(model, data.test, precision=config.precision, views=views)
        for views in ("one", "mirrored")
    ]
    results = {
        "family": family,
        "model": settings["name"],
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": {"set_up": clocks[1] - clocks[0], "training": clocks[2] - clocks[1]},
        "test_accuracy": test[0].accuracy,
        "test_accuracy_mirrored": test[1].accuracy if config.flip != "none" else None,
        "test_images": test[0].n,
        "train_accuracy": [row["train_accuracy"] for row in history],
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }
    if weights is not None:
        metadata = {"model": settings["name"], "overrides": arguments, "seed": seed}
        metrics = {"test_accuracy": test[0].accuracy}
        path = weights / f"{family}-{seed}.safetensors"
        save_weights(model, path, metadata | {"family": family, "metrics": metrics}, dtype)
    return results


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For every family, accuracy over seeds (mean, standard deviation, range) and seconds."""
    families = {}
    for family in dict.fromkeys(run["family"] for run in runs):
        own = [run for run in runs if run["family"] == family]
        accuracies = [run["test_accuracy"] for run in own]
        families[family] = {
            "networks": len(own),
            "test_accuracy": statistics.fmean(accuracies),
            "standard_deviation": statistics.stdev(accuracies) if len(own) > 1 else None,
            "lowest": min(accuracies),
            "highest": max(accuracies),
            # The first network of a process includes one-time costs, which later ones do not have.
            "training_seconds": [run["seconds"]["training"] for run in own],
            "set_up_seconds": [run["seconds"]["set_up"] for run in own],
        }
    return families


def target(families: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The target, and the best result of a family of i-RevNets within its time."""
    own = [results for family, results in families.items() if family.startswith("irevnet")]
    fast = [results for results in own if max(results["training_seconds"]) <= SECONDS]
    best = max((results["test_accuracy"] for results in fast), default=None)
    return {
        "what": f"mean test accuracy of an i-RevNet, trained in {SECONDS} s or less",
        "target": f"at least {ACCURACY}",
        "measured": best,
        # False if all of them took longer; None, not measured, if there are none.
        "met": any(results["test_accuracy"] >= ACCURACY for results in fast) if own else None,
    }


def _clock(device: torch.device) -> float:
    """Seconds, read once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> Path:
    """Runs from the command line; returns the file of the results."""
    parser = make_parser("time_to_accuracy", threads=None, device=True, data=True)
    parser.add_argument("--experiment", default="cifar10_released", help="a section of params.yaml")
    parser.add_argument(
        "--families", nargs="+", default=["irevnet"], help="keys of its models; default: irevnet"
    )
    parser.add_argument("--seeds", type=positive, default=5, help="number of seeds; default: 5")
    parser.add_argument("--epochs", type=positive, help="epochs, in place of the experiment's")
    parser.add_argument("--weights", type=Path, help="folder to keep the trained weights in")
    chosen = parser.parse_args(arguments)
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    experiment = sections.get(chosen.experiment)
    if not isinstance(experiment, dict) or "models" not in experiment:
        parser.error(f"--experiment must be a section of params.yaml, got {chosen.experiment!r}")
    if "training" not in experiment:
        parser.error(f"--experiment: nothing is trained in {chosen.experiment}")
    if "judged_on" in experiment:
        parser.error(f"--experiment: {chosen.experiment} is not judged on test images")
    unknown = sorted(set(chosen.families) - set(experiment["models"]))
    if unknown:
        parser.error(
            f"--families must be among {', '.join(experiment['models'])}, got {', '.join(unknown)}"
        )
    if chosen.quick:
        chosen.epochs, chosen.seeds = 1, 1
    if chosen.epochs:
        for settings in (experiment, *experiment["models"].values()):
            settings["training"] = {**settings.get("training", {}), "epochs": chosen.epochs}
    run = Run("time_to_accuracy", arguments, chosen)
    data = load_data(**{**experiment["data"], "root": chosen.data})
    settings = {
        "experiment": chosen.experiment,
        "models": experiment["models"],
        "training": experiment["training"],
        "training_images": len(data.train),
        "device": str(run.device),
        "threads": torch.get_num_threads(),
    }
    networks = _finished(run.file, settings)
    done = {(network["family"], network["seed"]) for network in networks}
    # Seed by seed, so that all families have as many networks whenever the run ends.
    for seed in range(chosen.seeds):
        for family in chosen.families:
            if (family, seed) in done:
                continue
            network = measure(experiment, data, family, seed, run.device, chosen.weights)
            network["provenance"] = run.provenance()
            networks.append(network)
            families = summary(networks)
            run.save(
                {
                    "settings": settings,
                    "families": families,
                    "targets": [target(families)],
                    "runs": networks,
                }
            )
            print(
                f"{family}, seed {seed}: {network['test_accuracy']:.2%} in "
                f"{network['seconds']['training']:.1f} s, "
                f"after {network['seconds']['set_up']:.1f} s",
                file=sys.stderr,
                flush=True,
            )
    return run.file


def _finished(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks of an earlier run with the same settings.

    Raises:
        SystemExit: if the file holds another run, which must not be overwritten.
    """
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    if record["settings"] != json.loads(json.dumps(settings)):
        sys.exit(f"{path} holds results with other settings; move it, or name another --output")
    return record["runs"]


if __name__ == "__main__":
    main()
