"""What the project promises of speed and memory, and whether a run keeps it."""

from collections.abc import Callable
from typing import Any

__all__ = ["targets"]

Results = dict[str, Any]


def targets(results: Results) -> list[dict[str, Any]]:
    """Rows ``{what, target, measured, met}`` from what the sections have found.

    ``measured`` is a number or an estimate (a median with quartiles, whose median decides). Both
    it and ``met`` are None where a run has not measured what the target speaks of.
    """
    rows = [
        (
            "Gradients, reversible against stored, float32, trained weights: relative difference",
            "at most 1e-5",
            lambda value: value <= 1e-5,
            _worst(results, "float32"),
        ),
        (
            "The same in float64",
            "at most 1e-12",
            lambda value: value <= 1e-12,
            _worst(results, "float64"),
        ),
        (
            "Step time, reversible over stored, released CIFAR-10 network, batch 32",
            "at most 1.30",
            lambda value: value <= 1.30,
            _released_step(results, "over_stored"),
        ),
        (
            "Step time, reversible over checkpointing every block, the same",
            "below 1",
            lambda value: value < 1,
            _released_step(results, "over_checkpoint"),
        ),
        *(
            (
                f"Saved bytes, reversible, {name}: largest over smallest, 8 to 64 blocks a stage",
                "at most 1.05",
                lambda value: value <= 1.05,
                _growth(results, name),
            )
            for name in ("irevnet_cifar", "irevnet_cifar_bijective")
        ),
        (
            "Saved bytes, stored over reversible, released CIFAR-10 network, batch 32",
            "at least 10",
            lambda value: value >= 10,
            _saving(results),
        ),
        (
            "Training throughput, best settings over the released code's way (stored, NCHW, "
            "float32)",
            "at least 2",
            lambda value: value >= 2,
            _throughput(results),
        ),
        *(
            (
                f"Throughput of inverse over encode, {name}, {mode}",
                "at least 0.9",
                lambda value: value >= 0.9,
                _inverse(results, name, mode),
            )
            for name in ("irevnet_cifar", "irevnet_cifar_bijective", "irevnet_b")
            for mode in ("float32, NCHW", "bfloat16 autocast, NCHW")
        ),
    ]
    return [_row(*row) for row in rows]


def _row(what: str, target: str, holds: Callable[[float], bool], measured: Any) -> dict[str, Any]:  # noqa: ANN401
    value = measured["value"] if isinstance(measured, dict) else measured
    met = None if value is None else holds(value)
    return {"what": what, "target": target, "measured": measured, "met": met}


def _worst(results: Results, dtype: str) -> float | None:
    return max(
        (row[dtype] for row in results.get("gradients", {}).get("networks", [])), default=None
    )


def _released_step(results: Results, against: str) -> dict[str, float] | None:
    wanted = ("irevnet_cifar", 0.1, 18, 32, "float32, NCHW")
    keys = ("network", "dropout", "blocks_per_stage", "batch_size", "mode")
    for case in results.get("step_time", {}).get("cases", []):
        measured = tuple(case[key] for key in keys)
        if measured == wanted:
            return case[against].get("reversible")
    return None


def _growth(results: Results, name: str) -> float | None:
    saved = results.get("memory", {}).get("saved", {}).get(name)
    if saved is None:
        return None
    counts = dict(
        zip(saved["blocks_per_stage"], saved["bytes"].get("reversible", []), strict=False)
    )
    if not {8, 64} <= set(counts):
        return None
    wanted = [count for blocks, count in counts.items() if 8 <= blocks <= 64]
    return max(wanted) / min(wanted)


def _saving(results: Results) -> float | None:
    saved = results.get("memory", {}).get("saved", {}).get("irevnet_cifar", {})
    if (saved.get("at_blocks_per_stage"), saved.get("batch_size")) != (18, 32):
        return None
    return saved["at_bytes"]["stored"] / saved["at_bytes"]["reversible"]


def _throughput(results: Results) -> dict[str, float] | None:
    throughput = results.get("throughput", {})
    if throughput.get("blocks_per_stage") != 18 or "over_released" not in throughput:
        return None
    return max(throughput["over_released"].values(), key=lambda gain: gain["value"])


def _inverse(results: Results, name: str, mode: str) -> dict[str, float] | None:
    for case in results.get("inverse", {}).get("cases", []):
        if (case["network"], case["mode"]) == (name, mode) and case["batch_size"] >= 8:
            return case["inverse_over_encode"]
    return None
