"""Measures training without stored activations: ``python -m benchmarks.memory_and_speed``.

Every section's results are written as soon as they are there, so that a run that is interrupted
leaves what it has measured.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import positive
from benchmarks.memory import capacity
from benchmarks.provenance import ROOT, Origin, public_command, slug
from benchmarks.sections import SECTIONS
from benchmarks.settings import Settings
from benchmarks.targets import targets
from benchmarks.variants import unavailable

__all__ = ["FILE", "main", "measure"]

FILE = "memory_and_speed.json"


def main(arguments: Sequence[str] | None = None) -> Path:
    """Runs from the command line; returns the folder of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_and_speed")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    parser.add_argument("--threads", type=positive, help="of the CPU; default: torch's choice")
    parser.add_argument("--data", type=Path, help="folder with cifar-10-batches-py; default: data")
    parser.add_argument("--output", type=Path, help="default: results/benchmarks/<device>")
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), help="sections, into scratch/; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--no-compile", action="store_true", help="try no compiled F")
    chosen = parser.parse_args(arguments)
    if "capacity" in (chosen.only or ()) and "memory" not in chosen.only:
        parser.error("--only: capacity is made from what memory measures, name both")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    data = chosen.data or Path(os.environ.get("IREVNET_DATA", "data"))
    settings = settings_for(device, data, quick=chosen.quick, compiling=not chosen.no_compile)
    quick = "-quick" if chosen.quick else ""
    # Results in part would take the place of whole ones, which the book reads.
    root = ROOT / ("scratch" if chosen.quick or chosen.only else "results")
    output = chosen.output or root / "benchmarks" / (slug(device) + quick)
    given = sys.argv[1:] if arguments is None else arguments
    measure(settings, output, chosen.only or list(SECTIONS), given)
    return output


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


def measure(
    settings: Settings, output: Path, names: Sequence[str], arguments: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs sections and writes JSON and figures, anew after every step.

    Args:
        settings: sizes of the run.
        output: folder to write to.
        names: keys of :data:`benchmarks.sections.SECTIONS`.
        arguments: of the command line, for the record.

    Returns:
        What the JSON file holds.
    """
    origin = Origin(public_command("memory_and_speed", arguments))
    output.mkdir(parents=True, exist_ok=True)
    left_out = unavailable()
    if settings.compile and not _can_compile(settings.device):
        left_out["compiled F"] = "no C++ compiler"
        settings = dataclasses.replace(settings, compile=False)
    settings = dataclasses.replace(settings, skip=(*settings.skip, *left_out))
    results: dict[str, Any] = {}
    record: dict[str, Any] = {
        "provenance": {},
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
        record["provenance"] = origin.describe()
        record["load_average"]["after"] = _load()
        record["targets"] = targets(results)
        partial = output / f".{FILE}"
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(output / FILE)

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
            _draw(results, output)
    record["complete"] = set(names) == set(SECTIONS)
    save()
    for row in record["targets"]:
        print(f"{_VERDICTS[row['met']]:12} {row['what']}: {row['target']}")
    return record


_VERDICTS = {True: "met", False: "missed", None: "not measured"}


def _draw(results: dict[str, Any], output: Path) -> None:
    try:
        from benchmarks.figures import draw
    except ImportError as error:  # a bare machine measures without drawing
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
    """How many processes wanted to run in the last minute, on systems that tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    main()
