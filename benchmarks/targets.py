"""The project's goals for speed and memory, and whether a run meets them."""

from typing import Any

from benchmarks.settings import BIJECTIVE, RELEASED
from irevnet.zoo import model_arguments

__all__ = ["goal", "targets"]

Results = dict[str, Any]


def goal(
    what: str,
    measured: Any,  # noqa: ANN401
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
) -> dict[str, Any]:
    """A row ``{what, target, measured, met}`` that compares a measurement with its target.

    Args:
        what: description of what is measured.
        measured: a number, an estimate (a median with quartiles, whose median decides), or None
            if it was not measured; ``met`` is then None, too.
        at_most: the bound, if ``met`` is decided by "at most"; exactly one bound is given.
        at_least: the bound, if ``met`` is decided by "at least".
        below: the bound, if ``met`` is decided by "below".
    """
    value = measured["value"] if isinstance(measured, dict) else measured
    (words, bound) = next(
        (words, bound)
        for words, bound in (("at most", at_most), ("at least", at_least), ("below", below))
        if bound is not None
    )
    met = None
    if value is not None:
        met = {"at most": value <= bound, "at least": value >= bound, "below": value < bound}[words]
    shown = f"{bound:g}".replace("e-0", "e-")
    return {"what": what, "target": f"{words} {shown}", "measured": measured, "met": met}


def targets(results: Results) -> list[dict[str, Any]]:
    """Goals of the sections of ``memory_and_speed``, compared with their results.

    A goal counts as not measured if the run lacks the results that it needs.
    """
    return [
        goal(
            "Gradients, reversible against stored, float32, trained weights: relative difference",
            _worst(results, "float32"),
            at_most=1e-5,
        ),
        goal("The same in float64", _worst(results, "float64"), at_most=1e-12),
        goal(
            "Step time, reversible over stored, released CIFAR-10 network, batch 32",
            _released_step(results, "over_stored"),
            at_most=1.3,
        ),
        goal(
            "Step time, reversible over checkpointing every block, the same",
            _released_step(results, "over_checkpoint"),
            below=1,
        ),
        *(
            goal(
                f"Saved bytes, reversible, {name}: largest over smallest, 8 to 64 blocks a stage",
                _growth(results, name),
                at_most=1.05,
            )
            for name in (RELEASED, BIJECTIVE)
        ),
        goal(
            "Saved bytes, stored over reversible, released CIFAR-10 network, batch 32",
            _saving(results),
            at_least=10,
        ),
        goal(
            "Training throughput, best settings over the released code's way (stored, NCHW, "
            "float32)",
            _throughput(results),
            at_least=2,
        ),
        *(
            goal(
                f"Throughput of inverse over encode, {name}, {mode}",
                _inverse(results, name, mode),
                at_least=0.9,
            )
            for name in (RELEASED, BIJECTIVE, "irevnet_b")
            for mode in ("float32, NCHW", "bfloat16 autocast, NCHW")
        ),
    ]


def _worst(results: Results, dtype: str) -> float | None:
    return max(
        (row[dtype] for row in results.get("gradients", {}).get("networks", [])), default=None
    )


def _released_step(results: Results, against: str) -> dict[str, float] | None:
    wanted = (RELEASED, model_arguments(RELEASED)["dropout"], 18, 32, "float32, NCHW")
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
    saved = results.get("memory", {}).get("saved", {}).get(RELEASED, {})
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
