"""Measures training without stored activations: ``python -m benchmarks.memory_and_speed``.

Every result is written as soon as it is available, so that an interrupted run keeps its
measurements.
"""

import dataclasses
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import Run, make_parser
from benchmarks.gradients import gradient_agreement
from benchmarks.memory import capacity, memory
from benchmarks.settings import Settings
from benchmarks.speed import inverse_throughput, step_time, training_throughput
from benchmarks.targets import targets
from benchmarks.variants import unavailable

__all__ = ["SECTIONS", "main", "measure"]

SECTIONS: dict[str, Callable[..., None]] = {
    "memory": memory,
    "capacity": capacity,
    "gradients": gradient_agreement,
    "inverse": inverse_throughput,
    "step_time": step_time,
    "throughput": training_throughput,
}
"""In running order: each section after its dependencies, the longest last."""


def main(arguments: Sequence[str] | None = None) -> Path:
    """Runs from the command line; returns the file of the results."""
    parser = make_parser("memory_and_speed", threads=None, device=True, data=True)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(SECTIONS),
        help="sections to run, into scratch/; default: all",
    )
    parser.add_argument("--no-compile", action="store_true", help="do not try compiled F")
    chosen = parser.parse_args(arguments)
    if "capacity" in (chosen.only or ()) and "memory" not in chosen.only:
        parser.error("--only: capacity uses the results of memory, name both")
    # Partial results must not replace complete ones, which the book reads.
    run = Run("memory_and_speed", arguments, chosen, in_part=bool(chosen.only))
    settings = settings_for(
        run.device, chosen.data, quick=chosen.quick, compiling=not chosen.no_compile
    )
    measure(settings, run, chosen.only or list(SECTIONS))
    return run.file


def settings_for(device: torch.device, data: Path, *, quick: bool, compiling: bool) -> Settings:
    """Sizes that suit a device; ``quick`` ones take a minute."""
    settings = Settings(device, data, compile=compiling)
    if quick:
        return dataclasses.replace(
            settings,
            rounds=2,
            blocks=dict.fromkeys(settings.blocks, 2),
            depths=(1, 2),
            byte_depths=(1, 2, 4),
            batch_size=4,
            batches=(2, 4),
            training_steps=2,
            throughput_batch=4,
            inverse_batch=1,
            compile=False,
        )
    if device.type == "cuda":
        return dataclasses.replace(
            settings,
            rounds=21,
            depths=(2, 4, 8, 16, 32, 64),
            batches=(32, 128, 512),
            throughput_batch=512,
            inverse_batch=64,
            training_steps=120,
        )
    return settings


def measure(settings: Settings, run: Run, names: Sequence[str]) -> dict[str, Any]:
    """Runs sections; writes JSON again after every step, figures after every section.

    Args:
        settings: sizes of the run.
        run: where results go.
        names: keys of :data:`SECTIONS`.

    Returns:
        What the JSON file holds, without its provenance.
    """
    left_out = unavailable()
    if settings.compile and not _can_compile(settings.device):
        left_out["compiled F"] = "no C++ compiler"
        settings = dataclasses.replace(settings, compile=False)
    settings = dataclasses.replace(settings, skip=(*settings.skip, *left_out))
    results: dict[str, Any] = {}
    record: dict[str, Any] = {
        "settings": _plain(settings),
        "device": _device(settings.device),
        "left_out": left_out,
        "load_average": {"before": _load()},
        "section_seconds": {},
        "complete": False,
        "targets": [],
        "sections": results,
    }

    def save() -> None:
        record["load_average"]["after"] = _load()
        record["targets"] = targets(results)
        run.save(record)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="memcnn")
        for name in [name for name in SECTIONS if name in names]:
            begun = time.perf_counter()
            section = results[name] = {}
            if name == "capacity":
                capacity(settings, section, save, results.get("memory", {}).get("peak", {}))
            else:
                SECTIONS[name](settings, section, save)
            record["section_seconds"][name] = round(time.perf_counter() - begun, 1)
            print(f"{name}: {record['section_seconds'][name]} s", flush=True)
            save()
            _draw(results, run.output)
    record["complete"] = set(names) == set(SECTIONS)
    save()
    for row in record["targets"]:
        print(f"{_VERDICTS[row['met']]:12} {row['what']}: {row['target']}")
    return record


_VERDICTS = {True: "met", False: "missed", None: "not measured"}


def _draw(results: dict[str, Any], output: Path) -> None:
    try:
        from benchmarks.figures import draw
    except ImportError as error:  # a machine without Matplotlib measures without drawing
        print(f"no figures: {error}")
        return
    draw(results, output)


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings for JSON, without the paths of this machine."""
    plain = dataclasses.asdict(settings) | {"device": str(settings.device)}
    del plain["data"]
    return plain


def _device(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "type": "cuda",
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "tf32_in_matrix_products": torch.backends.cuda.matmul.allow_tf32,
            "tf32_in_convolutions": torch.backends.cudnn.allow_tf32,
        }
    return {
        "type": device.type,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _can_compile(device: torch.device) -> bool:
    if device.type == "cuda":
        return True
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def _load() -> float | None:
    """The load average of the last minute, on systems that report it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    main()
