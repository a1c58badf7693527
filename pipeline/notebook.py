"""What a notebook asks of the repository: an experiment's data and networks, a place for results.

Every notebook opens on its own: with its default parameters it reads the weights of ``cifar10_cpu``
that come with the repository (``train`` trains on the digits instead) and writes into ``scratch/``,
so that trying something never changes a result. CIFAR-10 is downloaded once if it is not there.
"""

import csv
import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown
from matplotlib.figure import Figure
from torch import Tensor, nn

from irevnet import create_model
from irevnet.checkpoint import load_weights, read_tensors
from irevnet.data import ImageData, load_data
from irevnet.zoo import model_arguments
from pipeline.figures import mosaic
from pipeline.params import ROOT, load_params

__all__ = [
    "Results",
    "Stopwatch",
    "checkpoint_path",
    "device",
    "load_experiment_data",
    "markdown_table",
    "new_model",
    "trained_model",
    "trained_models",
    "training_metrics",
    "weights_dtype",
    "weights_metadata",
]


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_experiment_data(experiment: str) -> ImageData:
    """The images of an experiment, as its section ``data`` of ``params.yaml`` says.

    Raises:
        ValueError: if they are missing or damaged and cannot be downloaded; a note says what needs
            no download.
    """
    settings = load_params().sections[experiment].data.model_dump()
    settings["root"] = ROOT / settings["root"]
    try:
        return load_data(**settings)
    except ValueError as error:
        if settings["name"] != "digits":
            error.add_note('Without these images: experiment = "digits" needs no download.')
        raise


def new_model(experiment: str, family: str, seed: int) -> nn.Module:
    """A network of the experiment with random weights, the same for the same seed."""
    settings = load_params().sections[experiment].models[family]
    torch.manual_seed(seed)
    return create_model(settings.name, **settings.overrides)


def trained_model(experiment: str, family: str, **overrides: Any) -> nn.Module:  # noqa: ANN401
    """The experiment's published network of a family, in evaluation mode on :func:`device`."""
    name = load_params().sections[experiment].models[family].name
    return create_model(name, pretrained=experiment, **overrides).to(device())


def trained_models(experiment: str, family: str, count: int) -> list[nn.Module]:
    """Networks of several training runs, or the published one where their weights are not there.

    The weights of all runs are outputs of the stage ``train`` in DVC's cache, not in git: a clone
    in which nothing has run has only the published ones.

    Args:
        experiment: a section of ``params.yaml``.
        family: of networks.
        count: how many, in the order of the experiment's seeds; all of them if there are fewer.

    Returns:
        In evaluation mode on :func:`device`; one network if weights of a run are missing.
    """
    seeds = load_params().sections[experiment].seeds[:count]
    runs = ROOT / "results" / experiment / "train"
    paths = [runs / f"{family}-{seed}" / "weights.safetensors" for seed in seeds]
    if not all(path.is_file() for path in paths):
        return [trained_model(experiment, family)]
    models = []
    for path in paths:
        tensors, _ = read_tensors(path)
        model = new_model(experiment, family, seed=0)
        load_weights(model, tensors, str(path))
        models.append(model.to(device()).eval())
    return models


def checkpoint_path(experiment: str, family: str, seed: int, training: dict[str, Any]) -> Path:
    """Where an interrupted run leaves its state: outside DVC's reach, one file per recipe."""
    recipe = hashlib.sha256(json.dumps(training, sort_keys=True).encode()).hexdigest()[:8]
    return ROOT / "checkpoints" / experiment / f"{family}-{seed}-{recipe}.safetensors"


def weights_dtype(experiment: str, family: str) -> torch.dtype:
    """The type in which a family's weights are stored."""
    return getattr(torch, load_params().sections[experiment].models[family].weights)


def weights_metadata(
    experiment: str, family: str, seed: int, metrics: dict[str, float]
) -> dict[str, Any]:
    """What stands in a file of weights beside them: which network, trained how, how good."""
    model = load_params().sections[experiment].models[family]
    return {
        "model": model.name,
        # All of them, not those that differ from the zoo of today.
        "overrides": model_arguments(model.name, **model.overrides),
        "experiment": experiment,
        "family": family,
        "seed": seed,
        "metrics": metrics,
    }


class Stopwatch:
    """How long set-up and training take; on a GPU what it has been given to do counts, too."""

    def __init__(self) -> None:
        self._started = self._now()
        self._ready = self._started

    def ready(self) -> None:
        """Set-up is over: data and network are on the device, the network is compiled."""
        self._ready = self._now()

    def seconds(self) -> dict[str, float]:
        """``set_up`` and ``training`` until now."""
        return {"set_up": self._ready - self._started, "training": self._now() - self._ready}

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def training_metrics(experiment: str) -> list[dict[str, Any]]:
    """The metrics of every training run of an experiment: a row per family and seed.

    Raises:
        FileNotFoundError: if a run that ``params.yaml`` names has no results.
    """
    params = load_params()
    rows = []
    for family in params.families:
        for seed in params.sections[experiment].seeds:
            path = ROOT / "results" / experiment / "train" / f"{family}-{seed}" / "metrics.json"
            rows.append({"family": family, "seed": seed} | json.loads(path.read_text()))
    return rows


def markdown_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Markdown:
    """Rows as a table that a notebook shows; floats with four significant digits."""

    def text(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")

    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(text(row[name]) for name in columns) + " |" for row in rows]
    return Markdown("\n".join(lines))


class Results:
    """A folder for the numbers and figures of one notebook.

    Args:
        output: the folder, relative to the repository's root; made if it is not there.
    """

    def __init__(self, output: str) -> None:
        self.folder = ROOT / output
        self.folder.mkdir(parents=True, exist_ok=True)

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Writes ``metrics.json``: nested dictionaries of numbers.

        Raises:
            ValueError: if a number is not finite; the message names it.
        """
        self.save_json("metrics.json", metrics)

    def save_json(self, name: str, content: dict[str, Any]) -> Path:
        """Writes a JSON file of that name; numbers must be finite."""
        _check_finite(content, name)
        path = self.folder / name
        path.write_text(json.dumps(content, indent=2) + "\n")
        return path

    def save_table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Writes a CSV file of that name, a line per row, which ``dvc plots`` reads."""
        with (self.folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def save_figure(self, figure: Figure, name: str) -> None:
        """Writes ``name`` (a PNG) and shows the figure in the notebook."""
        figure.savefig(self.folder / name, metadata={"Software": None})
        plt.show()

    def save_walk(
        self,
        name: str,
        images: Tensor,
        lines: Sequence[str],
        heads: Sequence[str],
        notes: Sequence[Sequence[Sequence[str]]],
        *,
        label: str,
        ends: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """Writes what the book's directive ``{slider}`` lets a reader move through.

        ``<name>.png`` has a row for every walk and a column for every step; ``<name>.json`` says
        what they are.

        Args:
            name: of the two files.
            images: ``(lines, heads, steps, C, H, W)`` with equal ``H`` and ``W``; clipped.
            lines: what the walks that are shown beside each other have in common.
            heads: what tells them apart, in every line the same.
            notes: what to write below an image, for every line, head and step.
            label: what the slider moves.
            ends: its value at the first step and at the last.

        Raises:
            ValueError: if the numbers of lines, heads, steps and notes do not agree, or the images
                are not square.
        """
        walks, steps = len(lines) * len(heads), images.shape[2]
        rows = [row for line in notes for row in line]
        if images.shape[:2] != (len(lines), len(heads)) or images.shape[-1] != images.shape[-2]:
            raise ValueError(
                f"images must be square, of {len(lines)} lines and {len(heads)} heads, got a shape "
                f"of {tuple(images.shape)}"
            )
        if len(rows) != walks or any(len(row) != steps for row in rows):
            raise ValueError(
                f"notes must be {walks} times {steps}, got {[len(row) for row in rows]}"
            )
        picture = mosaic(images.flatten(0, 1))
        plt.imsave(self.folder / f"{name}.png", picture, metadata={"Software": None})
        content = {"label": label, "ends": list(ends), "steps": steps, "lines": list(lines)}
        self.save_json(f"{name}.json", content | {"heads": list(heads), "notes": rows})


def _check_finite(value: object, path: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_finite(item, f"{path}.{index}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} is {value}: results must be finite numbers")
