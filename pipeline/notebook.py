"""What a notebook needs from the repository: an experiment's data and networks, and its results.

Every notebook runs on its own. With its default parameters it reads the weights of ``cifar10_cpu``
that come with the repository (``train`` trains on the digits instead) and writes into ``scratch/``,
so that trying something never changes a result. CIFAR-10 is downloaded once if it is missing.
"""

import contextlib
import csv
import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from irevnet import create_model
from irevnet.data import ImageData, load_data
from irevnet.zoo import model_arguments
from pipeline.figures import mosaic
from pipeline.files import read_json
from pipeline.params import ROOT, load_params

__all__ = [
    "Results",
    "checkpoint_path",
    "device",
    "families",
    "initial_models",
    "invertible_families",
    "is_divided",
    "judged_on",
    "load_experiment_data",
    "markdown_table",
    "new_model",
    "read_metrics",
    "trained_model",
    "trained_models",
    "training_history",
    "variants",
    "weights_dtype",
    "weights_metadata",
]


def _keep_priority() -> None:
    """Applies the priority that ``nice`` gave a notebook's kernel to the kernel's session, too.

    A kernel has its own session, and sessions share the processor equally, whatever the priority of
    their processes (``sched(7)``, *The autogroup feature*). The session of a command line belongs
    to its user and is left alone.
    """
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if nice > 0 and "ipykernel" in sys.modules:
        with contextlib.suppress(OSError):  # not Linux, or a kernel without autogroups
            Path("/proc/self/autogroup").write_text(str(nice))


_keep_priority()


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_experiment_data(experiment: str, images: int = 0, classes: int = 0) -> ImageData:
    """The images of an experiment, as specified by its section ``data`` of ``params.yaml``.

    Args:
        experiment: a section of ``params.yaml``.
        images: size of a subset of each part; 0 for all images.
        classes: number of classes, drawn at random; 0 for all classes.

    Raises:
        ValueError: if images are missing or damaged and cannot be downloaded; a note names an
            experiment that needs no download.
    """
    settings = load_params().section(experiment).data.model_dump()
    settings["root"] = ROOT / settings["root"]
    # A relative path is relative to the repository's root, but notebooks run in notebooks/.
    if root := os.environ.get("IREVNET_DATA"):
        os.environ["IREVNET_DATA"] = str(ROOT / root)
    try:
        data = load_data(**settings)
    except ValueError as error:
        if settings["name"] != "digits":
            error.add_note('Without these images: experiment = "digits" needs no download.')
        raise
    if classes:
        data = data.of_classes(classes)
    if not images:
        return data
    return ImageData(
        data.train.subset(images),
        data.validation.subset(images),
        data.test.subset(images),
        data.classes,
    )


def new_model(experiment: str, family: str, seed: int) -> nn.Module:
    """A network of the experiment with random weights, the same for the same seed."""
    settings = load_params().section(experiment).models[family]
    torch.manual_seed(seed)
    return create_model(settings.name, **settings.overrides)


def trained_model(experiment: str, family: str, **overrides: Any) -> nn.Module:  # noqa: ANN401
    """The experiment's published network of a family, in evaluation mode on :func:`device`."""
    name = load_params().section(experiment).models[family].name
    model = create_model(name, pretrained=experiment, family=family, **overrides)
    return model.to(device())


def trained_models(experiment: str, family: str, count: int | None = None) -> list[nn.Module]:
    """The networks of an experiment's training runs of a family.

    Args:
        experiment: a section of ``params.yaml``.
        family: of networks.
        count: how many, in the order of the experiment's seeds; all of them if None.

    Returns:
        In evaluation mode on :func:`device`.

    Raises:
        ValueError: if there are fewer runs, or the weights of one are missing; the message names
            them.
    """
    section = load_params().section(experiment)
    name, seeds = section.models[family].name, section.seeds
    if count is not None and not 1 <= count <= len(seeds):
        raise ValueError(f"count must be from 1 to {len(seeds)}, the number of seeds, got {count}")
    options = {"pretrained": experiment, "family": family}
    try:
        return [create_model(name, seed=seed, **options).to(device()) for seed in seeds[:count]]
    except ValueError as error:
        error.add_note(f"To train it: python -m pipeline.repro {experiment}")
        raise


def initial_models(
    experiment: str, family: str, images: Tensor, count: int | None = None
) -> list[nn.Module]:
    """Untrained networks of a family, a control for :func:`trained_models`.

    Args:
        experiment: a section of ``params.yaml``.
        family: of networks.
        images: ``(N, C, H, W)``, from which batch norm takes its statistics.
        count: how many, in the order of the experiment's seeds; all of them if None.

    Returns:
        In evaluation mode on :func:`device`.
    """
    seeds = load_params().section(experiment).seeds
    models = [new_model(experiment, family, seed).to(device()) for seed in seeds[:count]]
    for model in models:
        update_bn(images.to(device()).split(256), model)
    return [model.eval() for model in models]


def families(experiment: str) -> list[str]:
    """The families of networks that an experiment trains, without variants of others."""
    return load_params().section(experiment).families


def variants(experiment: str) -> dict[str, str]:
    """The variants that an experiment trains, each with the family that it varies."""
    models = load_params().section(experiment).models
    return {name: model.variant_of for name, model in models.items() if model.variant_of}


def invertible_families(experiment: str) -> list[str]:
    """The :func:`families` of an experiment that are i-RevNets.

    Raises:
        ValueError: if there are none; the message names the families that there are.
    """
    section = load_params().section(experiment)
    names = [name for name in section.families if section.models[name].name.startswith("irevnet")]
    if not names:
        raise ValueError(
            f"{experiment}.models must have an i-RevNet, got {', '.join(section.families)}"
        )
    return names


def checkpoint_path(experiment: str, family: str, seed: int, output: str) -> Path:
    """The checkpoint of a run, in a folder that DVC does not remove.

    Args:
        experiment: a section of ``params.yaml``.
        family: of networks.
        seed: of the run.
        output: the folder of its results. A run by hand, whose results are not the pipeline's,
            gets its own folder for checkpoints.
    """
    root = Path(os.environ.get("IREVNET_CHECKPOINTS") or ROOT / "checkpoints")
    if not (ROOT / output).resolve().is_relative_to(ROOT / "results"):
        root = root / "by-hand" / hashlib.sha256(output.encode()).hexdigest()[:8]
    return root / experiment / f"{family}-{seed}.safetensors"


def is_divided(experiment: str) -> bool:
    """Whether the experiment's networks have not seen its training images in training either."""
    return load_params().section(experiment).data.divided


def judged_on(experiment: str) -> str:
    """The part of the images that trained networks are judged on: ``test`` or ``validation``."""
    return load_params().section(experiment).judged_on


def weights_dtype(experiment: str, family: str) -> torch.dtype:
    """The type in which a family's weights are stored."""
    return getattr(torch, load_params().section(experiment).models[family].weights)


def weights_metadata(
    experiment: str, family: str, seed: int, metrics: dict[str, float]
) -> dict[str, Any]:
    """Metadata of a file of weights: network, training and metrics."""
    model = load_params().section(experiment).models[family]
    return {
        "model": model.name,
        # All arguments, not only those that differ from the zoo, whose defaults may change.
        "overrides": model_arguments(model.name, **model.overrides),
        "experiment": experiment,
        "family": family,
        "seed": seed,
        "metrics": metrics,
    }


def training_history(experiment: str, family: str) -> list[list[dict[str, float]]]:
    """The history of a family's training runs, in the order of the seeds: a row per epoch.

    Raises:
        FileNotFoundError: if a run is missing.
    """
    folder = ROOT / "results" / experiment / "train"
    histories = []
    for seed in load_params().section(experiment).seeds:
        with (folder / f"{family}-{seed}" / "history.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        histories.append([{name: float(value) for name, value in row.items()} for row in rows])
    return histories


def read_metrics(experiment: str, question: str) -> dict[str, Any]:
    """The metrics of another question, which :mod:`pipeline.questions` must declare as read.

    Raises:
        FileNotFoundError: if it has not been run.
        ValueError: if the file is damaged; the message names it.
    """
    return read_json(ROOT / "results" / experiment / question / "metrics.json")


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
        output: the folder, relative to the repository's root; created if it does not exist.
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

    def save_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes a JSON file of that name; numbers must be finite.

        It returns nothing: a notebook would show a path returned by the last line of a cell, and
        the executed notebook would depend on the place of the repository.
        """
        _check_finite(content, name)
        (self.folder / name).write_text(json.dumps(content, indent=2) + "\n")

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
        values: Sequence[float] | None = None,
    ) -> None:
        """Writes the walks that a reader moves through with the book's directive ``{slider}``.

        ``<name>.png`` has a row for every walk and a column for every step; ``<name>.json``
        describes them.

        Args:
            name: of the two files.
            images: ``(lines, heads, steps, C, H, W)`` with equal ``H`` and ``W``; clipped.
            lines: titles of the lines; the walks of a line are shown side by side.
            heads: titles of the walks within a line, the same for every line.
            notes: texts to write below the images, for every line, head and step.
            label: name of the quantity that the slider changes.
            ends: its values at the first and the last step, if steps are equal.
            values: its value at every step, if they are not.

        Raises:
            ValueError: if the numbers of lines, heads, steps, values and notes do not agree, or
                the images are not square.
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
        if values is not None and len(values) != steps:
            raise ValueError(f"values must be {steps}, one for each step, got {len(values)}")
        picture = mosaic(images.flatten(0, 1))
        plt.imsave(self.folder / f"{name}.png", picture, metadata={"Software": None})
        content = {"label": label, "ends": list(ends), "steps": steps, "lines": list(lines)}
        if values is not None:
            content |= {"ends": [values[0], values[-1]], "values": list(values)}
        self.save_json(f"{name}.json", content | {"heads": list(heads), "notes": rows})


def _check_finite(value: object, path: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_finite(item, f"{path}.{index}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} is {value}: results must be finite numbers")
