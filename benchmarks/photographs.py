"""Photographs through the paper's networks at full size: ``python -m benchmarks.photographs``.

Networks (a) and (b) of the paper's table 1 encode crops of 224 x 224 pixels of the two photographs
that come with scikit-learn. One process writes the representation to a file, and a fresh process,
which has only the file and the seed, inverts it. There are no trained weights: the networks are at
initialisation, with batch norm's statistics from the crops. The benchmark also counts the bytes
that a training step keeps per image for the backward pass.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.optim.swa_utils import update_bn

from benchmarks.command import Run, make_parser, positive
from benchmarks.provenance import ROOT
from benchmarks.variants import create_irevnet
from irevnet.analysis.inversion import Reconstruction
from irevnet.analysis.memory import saved_bytes
from irevnet.network.model import IRevNet
from pipeline.figures import image_grid, use_style

__all__ = ["crops", "main", "measure"]

_GPU_BYTES = 80e9
# Float32 weights, gradients and momentum.
_BYTES_PER_PARAMETER = 12


def crops(count: int, size: tuple[int, int] = (224, 224)) -> Tensor:
    """Crops of both photographs in turn, ``(count, 3, *size)``, float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    photographs = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
    taken = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        top, left = (
            int(torch.randint(whole - part + 1, (), generator=generator))
            for whole, part in zip(photograph.shape[1:], size, strict=True)
        )
        taken.append(photograph[:, top : top + size[0], left : left + size[1]])
    return torch.stack(taken).float() / 255


def _network(name: str, images: Tensor, options: dict[str, Any]) -> IRevNet:
    torch.manual_seed(0)
    model = create_irevnet(name, in_shape=tuple(images.shape[1:]), **options)
    update_bn([images], model)
    return model.eval()


def invert(source: Path, target: Path) -> None:
    """In the fresh process: builds the network again and inverts the content of a file."""
    content = load_file(source)
    settings = json.loads(source.with_suffix(".json").read_text())
    torch.set_num_threads(settings["threads"])
    count, side = settings["crops"]
    images = crops(count, (side, side))
    model = _network(settings["name"], images, settings["options"])
    started = time.perf_counter()
    with torch.no_grad():
        back = model.inverse(content["representation"])
    seconds = time.perf_counter() - started
    save_file({"images": back.contiguous()}, target)
    used = {"seconds": seconds, "peak_bytes": 1024 * _peak_kibibytes()}
    target.with_suffix(".json").write_text(json.dumps(used))


def _peak_kibibytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(names: Sequence[str], count: int, side: int, options: dict[str, Any]) -> dict[str, Any]:
    """Errors, seconds and bytes of each network, with float and fixed-point streams."""
    images = crops(count, (side, side))
    results: dict[str, Any] = {"images": count, "side": side, "networks": {}}
    for name in names:
        entry: dict[str, Any] = {}
        for streams in ("float", "fixed"):
            model = _network(name, images, {**options, "streams": streams})
            started = time.perf_counter()
            with torch.no_grad():
                z = model.encode(images)
            seconds = time.perf_counter() - started
            with tempfile.TemporaryDirectory() as folder:
                source, target = Path(folder, "z.safetensors"), Path(folder, "x.safetensors")
                save_file({"representation": z.contiguous()}, source)
                settings = {
                    "name": name,
                    "options": {**options, "streams": streams},
                    "crops": [count, side],
                    "threads": torch.get_num_threads(),
                }
                source.with_suffix(".json").write_text(json.dumps(settings))
                command = [sys.executable, "-m", "benchmarks.photographs", "--invert"]
                subprocess.run([*command, str(source), str(target)], cwd=ROOT, check=True)
                back = load_file(target)["images"]
                used = json.loads(target.with_suffix(".json").read_text())
            pair = Reconstruction(images, back)
            entry[streams] = {
                "largest_relative_error": pair.relative_error.max().item(),
                "equal_as_uint8": int(pair.equal_as_uint8.sum()),
                "equal_to_the_bit": bool(torch.equal(back, images)),
                "encode_seconds": seconds,
                "inverse_seconds": used["seconds"],
                "inverse_peak_bytes": used["peak_bytes"],
            }
            results.setdefault("reconstructed", {})[f"{name}, {streams}"] = back
        entry |= _training_bytes(name, side, options)
        results["networks"][name] = entry
    return results


def _training_bytes(name: str, side: int, options: dict[str, Any]) -> dict[str, Any]:
    x = torch.rand(3, 3, side, side)
    kept = {}
    for backward in ("stored", "balanced", "reversible"):
        model = create_irevnet(name, in_shape=(3, side, side), backward=backward, **options)
        # The bytes that a third image adds.
        three, two = (saved_bytes(partial(model, x[:n]), model) for n in (3, 2))
        kept[backward] = three - two
    parameters = sum(parameter.numel() for parameter in model.parameters())
    free = _GPU_BYTES - _BYTES_PER_PARAMETER * parameters
    return {
        "parameters": parameters,
        "saved_bytes_per_image": kept,
        "largest_batch_in_80_gb": {way: int(free // count) for way, count in kept.items()},
    }


def main(arguments: Sequence[str] | None = None) -> Path | None:
    """Runs from the command line; returns the file of the results."""
    parser = make_parser("photographs")
    parser.add_argument("--images", type=positive, default=6, help="number of crops; default: 6")
    parser.add_argument("--invert", type=Path, nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.invert:
        invert(*chosen.invert)
        return None
    run = Run("photographs", arguments, chosen)
    names = ("irevnet_b",) if chosen.quick else ("irevnet_a", "irevnet_b")
    options = {"blocks": (1, 1, 1, 1)} if chosen.quick else {}
    count, side = (2, 32) if chosen.quick else (chosen.images, 224)
    results = measure(names, count, side, options)
    reconstructed = results.pop("reconstructed")
    path = run.save(results)
    use_style()
    rows = {"photographs": crops(count, (side, side)), **reconstructed}
    figure = image_grid(list(rows.values()), list(rows))
    figure.savefig(path.with_suffix(".png"))
    plt.close(figure)
    return path


if __name__ == "__main__":
    main()
