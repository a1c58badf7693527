"""The whole experiment ``ilsvrc2012`` at full size: ``python -m benchmarks.ilsvrc2012``.

It runs network (b) on photographs of 224 x 224 pixels, from a checkpoint of the released code to
the verdicts, in a copy of the repository. The checkpoint holds random weights and is named
accordingly. The benchmark measures how long each stage takes and the error of the inverse at this
size, and shows that the pipeline completes. It says nothing about how well the network classifies.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.optim.swa_utils import update_bn

from benchmarks.command import Run, make_parser, positive
from benchmarks.provenance import ROOT
from benchmarks.variants import create_irevnet
from irevnet.data.folders import FolderImages
from irevnet.released import ReleasedIRevNet
from pipeline.copies import copy_repository, environment_of

__all__ = ["EXPERIMENT", "FEWER", "SMALL_NETWORK", "TINY", "main", "measure", "prepare"]

EXPERIMENT = "ilsvrc2012"

Changes = Mapping[str, Mapping[str, Any]]
"""Changes of an experiment's questions, by question and key of ``params.yaml``."""

# Fewer images and directions than in params.yaml, whose sizes are for a GPU.
FEWER: Changes = {
    "inversion": {"images": 20, "gallery": 4, "random_representations": 4},
    "jacobian": {"leading": 2},
    "interpolation": {"pairs": 4, "steps": 3, "shown": 1, "frames": 5}
    | {"training_images": 60, "test_images": 60},
    "separation": {"training_images": 60, "test_images": 60, "classes": 10},
    "dimensionality": {"training_images": 60, "test_images": 60, "classes": 10}
    | {"dimensions": [1, 2, 5, 10, 20, 50]},
    "metamers": {"training_images": 60, "test_images": 40},
}
# For images of 32 x 32 pixels.
TINY: Changes = {
    "inversion": {"images": 6, "gallery": 3, "random_representations": 4},
    "jacobian": {"window": 8, "leading": 20, "precision": "float64"},
    "interpolation": {"pairs": 4, "steps": 3, "shown": 1, "frames": 3}
    | {"training_images": 12, "test_images": 12},
    "separation": {"training_images": 16, "test_images": 12, "classes": 2},
    "dimensionality": {"training_images": 16, "test_images": 12, "classes": 2}
    | {"dimensions": [1, 2, 4]},
    "metamers": {"training_images": 12, "test_images": 12, "pairs": 3, "shown": 2, "steps": 3},
}
SMALL_NETWORK = {"blocks": [2, 1], "strides": [2, 2], "half_channels": [24, 96]}


def prepare(
    root: Path,
    photographs: Path,
    per_class: int,
    size: int,
    questions: Changes,
    overrides: Mapping[str, Any],
) -> None:
    """Prepares a copy of the repository: photographs, random weights, ``params.yaml``.

    Batch norm's statistics come from some of the photographs, because the activations of a hundred
    blocks would grow out of all bounds without them.

    Args:
        root: the copy.
        photographs: class folders of images.
        per_class: number of images of each class.
        size: side of the squares that are cropped from them, in pixels.
        questions: changes of the experiment's questions.
        overrides: changes of the network's arguments.

    Raises:
        ValueError: if there are no class folders with images.
    """
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    section = params[EXPERIMENT]
    folder = root / section["data"]["root"]
    source = FolderImages(photographs, size, workers=0)
    for label, name in enumerate(source.classes):
        (folder / "val" / name).mkdir(parents=True)
        for image in [path for path, own in source.files if own == label][:per_class]:
            (folder / "val" / name / image.name).symlink_to(image.resolve())
    images = FolderImages(folder / "val", size, workers=0)

    model = section["models"]["irevnet_bijective"]
    model["overrides"] |= {"in_shape": [3, size, size], "num_classes": len(images.classes)}
    model["overrides"] |= overrides
    model["released"] = f"{section['data']['root']}/random_weights.pth"
    section["data"] |= {"size": size, "workers": 0}
    section["threads"] = torch.get_num_threads()
    for question, changes in questions.items():
        section[question] |= changes
    # Keep the default experiment, so that the paths of pipelines are those of the repository.
    first = params["default"]
    kept = {"default": first, first: params[first], EXPERIMENT: section}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))

    torch.manual_seed(0)
    network = create_irevnet(model["name"], **model["overrides"])
    update_bn([images.first(16)[0]], network)
    torch.save(ReleasedIRevNet(network).state_dict(), root / model["released"])


def measure(root: Path) -> dict[str, Any]:
    """Runs the experiment in a prepared copy.

    Returns:
        ``seconds`` of each stage, the number of ``parameters`` of the network, the results of
        ``inversion`` and the ``verdicts`` of the claims.

    Raises:
        subprocess.CalledProcessError: if a stage fails.
    """
    environment = environment_of(root)
    environment.pop("IREVNET_DATA", None)  # the photographs are in the copy
    for module in (["pipeline.stages"], ["pipeline.repro", EXPERIMENT]):
        subprocess.run([sys.executable, "-m", *module], cwd=root, env=environment, check=True)
    results = root / "results" / EXPERIMENT

    def content(name: str) -> Any:  # noqa: ANN401
        return json.loads((results / name).read_text())

    stages = sorted(results.glob("**/provenance.json"))
    converted = content("train/irevnet_bijective-0/metrics.json")
    return {
        "images": converted["test_images"],
        "parameters": converted["parameters"],
        "seconds": {
            path.parent.relative_to(results).as_posix(): json.loads(path.read_text())["seconds"]
            for path in stages
        },
        "inversion": content("inversion/metrics.json")["irevnet_bijective"],
        "verdicts": {row["id"]: row["verdict"] for row in content("claims/claims.json")["rows"]},
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Runs from the command line; returns the file of the results."""
    parser = make_parser("ilsvrc2012")
    parser.add_argument(
        "--photographs", type=Path, required=True, help="class folders of images: .../val"
    )
    parser.add_argument(
        "--per-class", type=positive, default=12, help="images of each; default: 12"
    )
    chosen = parser.parse_args(arguments)
    if not chosen.photographs.is_dir():
        parser.error(f"--photographs: there is no folder {chosen.photographs}")
    run = Run("ilsvrc2012", arguments, chosen)
    size, questions, overrides = (32, TINY, SMALL_NETWORK) if chosen.quick else (224, FEWER, {})
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        copy_repository(ROOT, copy)
        prepare(copy, chosen.photographs, chosen.per_class, size, questions, overrides)
        results = measure(copy)
    return run.save({"size": size, "per_class": chosen.per_class, **results})


if __name__ == "__main__":
    main()
