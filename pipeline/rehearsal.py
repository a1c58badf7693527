"""A training in miniature, whose bits stand for the code that trains.

``python -m pipeline.rehearsal --experiment digits --family resnet`` runs ``notebooks/train.ipynb``
with the family's network and recipe, all epochs of it, on two small batches of images, and writes
a fingerprint of what came out to ``results/digits/rehearsal/resnet.json``. Trained networks depend
on that file, not on the sources: see :mod:`pipeline.stages`.

It runs on the CPU, so that a machine with a GPU finds the same bits as one without; another kind of
processor may round differently.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from papermill.exceptions import PapermillExecutionError

from irevnet.weights import read_tensors
from pipeline.files import read_json
from pipeline.params import ROOT, ParamsError
from pipeline.run import execute, notebook_environment, notebook_parameters

__all__ = ["main", "rehearse"]

_BATCH_SIZE = 32
_STEPS_PER_EPOCH = 2


def rehearse(experiment: str, family: str) -> dict[str, Any]:
    """Trains a network in miniature and says what came out.

    Args:
        experiment: a section of ``params.yaml``.
        family: one of its models.

    Returns:
        ``weights``: a fingerprint of all parameters and buffers; ``metrics``: what the notebook
        measured, on as many images.

    Raises:
        ParamsError: if there is no such experiment or family.
        PapermillExecutionError: if the notebook fails.
    """
    parameters = notebook_parameters("train", experiment, family)
    recipe = parameters["training"]
    size = min(_BATCH_SIZE, recipe["batch_size"])
    # Compiling takes longer than the rehearsal and changes rounding on a GPU alone.
    parameters["training"] = recipe | {"batch_size": size, "compile": False}
    parameters["images"] = size * _STEPS_PER_EPOCH
    output = ROOT / "scratch" / f"rehearsal-{experiment}-{family}"
    shutil.rmtree(output, ignore_errors=True)
    execute("train", parameters, output)
    result = {
        "weights": _fingerprint(output / "weights.safetensors"),
        "metrics": read_json(output / "metrics.json"),
    }
    shutil.rmtree(output)
    return result


def _fingerprint(path: Path) -> str:
    tensors, _ = read_tensors(path)
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--experiment", required=True, help="a section of params.yaml")
    parser.add_argument("--family", required=True, help="one of its models")
    arguments = parser.parse_args()
    try:
        os.environ |= notebook_environment("train", arguments.experiment)
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        result = rehearse(arguments.experiment, arguments.family)
    except (ParamsError, PapermillExecutionError) as error:
        sys.exit(str(error))
    folder = ROOT / "results" / arguments.experiment / "rehearsal"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{arguments.family}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
