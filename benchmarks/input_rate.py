"""Reading photographs against training on them: ``python -m benchmarks.input_rate``.

It measures how many photographs per second one core of a processor decodes and augments, and how
many it trains on. For a GPU, which was not available, it computes from an assumed speed how many
photographs the GPU would consume, how many cores would feed it, and what training on ILSVRC-2012
would take. Times are processor seconds of this process, which other processes on the machine
disturb less than wall-clock time.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.command import Run, make_parser, positive
from benchmarks.measure import estimate, interleave
from benchmarks.photographs import crops
from benchmarks.steps import Mode, trainer
from irevnet import create_model
from irevnet.data import FolderImages
from irevnet.data.augmentation import Augmentation, TrainingPass

__all__ = ["decoding", "estimated", "flops_per_image", "main"]

NETWORKS: tuple[str, ...] = ("irevnet_a", "irevnet_b", "resnet50")
IMAGES = 1_281_167  # training images of ILSVRC-2012
EPOCHS = 600_000 * 256 / IMAGES  # iterations and batch size of the paper, section 4.1
_MODE = Mode()  # with channels last, or bfloat16, PyTorch 2.15 crashed here for network (b)
_HEIGHT, _WIDTH = 375, 500  # of most photographs of ILSVRC-2012


def decoding(files: int, rounds: int, side: int) -> dict[str, float | int]:
    """Photographs per second that one core reads, crops at random and distorts.

    Args:
        files: number of photographs of 500 x 375 pixels, JPEG of quality 90.
        rounds: how often all of them are read.
        side: side of the cropped squares, in pixels.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "photographs")
        place.mkdir()
        for index, photograph in enumerate(crops(files, (_HEIGHT, _WIDTH))):
            pixels = (255 * photograph).byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(place / f"{index}.jpg", quality=90)
        images = FolderImages(Path(folder), side, workers=0)

        def read() -> None:
            for _ in images.training_batches(files, Augmentation(), TrainingPass(seed=0, epoch=0)):
                pass

        seconds = interleave({"read": read}, rounds, torch.device("cpu"), time.process_time)
    return estimate(files / second for second in seconds["read"])


def flops_per_image(model: nn.Module, images: torch.Tensor) -> float:
    """Floating-point operations of a training step per image; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        labels = torch.zeros(len(images), dtype=torch.int64)
        functional.cross_entropy(model.train()(images), labels).backward()
    model.zero_grad()
    return counter.get_total_flops() / len(images)


def estimated(
    flops: float, decoded: float, gpu_tflops: float, gpus: int, price: float
) -> dict[str, float]:
    """What training on ILSVRC-2012 would take; arithmetic, not a measurement.

    Args:
        flops: operations of a training step per image.
        decoded: photographs per second that a core decodes and augments.
        gpu_tflops: assumed speed of one GPU, in 10^12 operations per second.
        gpus: number of GPUs that share the work.
        price: price of one GPU for an hour.

    Returns:
        ``images_per_second`` of one GPU, ``cores_to_feed`` it, ``hours`` of training on all GPUs
        and their ``price``.
    """
    rate = gpu_tflops * 1e12 / flops
    hours = EPOCHS * IMAGES / rate / gpus / 3600
    return {
        "images_per_second": rate,
        "cores_to_feed": math.ceil(rate / decoded),
        "hours": hours,
        "price": hours * gpus * price,
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Runs from the command line; returns the file of the results."""
    parser = make_parser("input_rate")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument(
        "--gpu-tflops", type=positive, default=60, help="assumed speed of a GPU; default: 60"
    )
    parser.add_argument("--gpus", type=positive, default=8, help="that train together; default: 8")
    parser.add_argument(
        "--price", type=positive, default=2, help="of a GPU for an hour; default: 2"
    )
    chosen = parser.parse_args(arguments)
    run = Run("input_rate", arguments, chosen)
    names, files, side, batch_size = NETWORKS, 100, 224, 8
    overrides: dict[str, Any] = {}
    if chosen.quick:
        names, files, side, batch_size = ("irevnet_b",), 4, 64, 2
        overrides = {"in_shape": (3, side, side)}
        chosen.rounds = 1
    decoded = decoding(files, chosen.rounds, side)
    networks: dict[str, Any] = {}
    images = crops(batch_size, (side, side))
    labels = torch.arange(batch_size)
    for name in names:
        torch.manual_seed(0)
        model = create_model(name, **overrides)
        flops = flops_per_image(model, images[:2])
        step, _ = trainer(model, images, labels, _MODE)
        seconds = interleave({name: step}, chosen.rounds, run.device, time.process_time)[name]
        networks[name] = {
            "training_flops_per_image": flops,
            "images_per_second": estimate(batch_size / second for second in seconds),
            "tflops": flops * batch_size / statistics.median(seconds) / 1e12,
            "estimated": estimated(
                flops, decoded["value"], chosen.gpu_tflops, chosen.gpus, chosen.price
            ),
        }
        del model, step
    assumed = {"gpu_tflops": chosen.gpu_tflops, "gpus": chosen.gpus, "price": chosen.price}
    return run.save(
        {
            "side": side,
            "mode": str(_MODE),
            "decoded_images_per_second": decoded,
            "assumed": assumed | {"epochs": EPOCHS, "images": IMAGES},
            "networks": networks,
        }
    )


if __name__ == "__main__":
    main()
