"""How much memory training takes, and what fits into a given memory."""

from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.measure import fit_line, largest, peak_bytes, resident_bytes
from benchmarks.settings import RELEASED, Save, Settings, built
from benchmarks.steps import trainer
from irevnet.analysis.memory import saved_bytes

__all__ = ["capacity", "memory"]

GIB = 2**30


def memory(settings: Settings, results: dict[str, Any], save: Save) -> None:
    """Saved bytes against depth; the peak of a whole step against depth and batch size."""
    results["saved"] = {}
    for name in settings.blocks:
        # memcnn keeps tensors where autograd cannot see them.
        saved: dict[str, list[int]] = {v: [] for v in settings.variants if v != "memcnn"}
        counts = results["saved"][name] = {
            "batch_size": settings.batch_size,
            "blocks_per_stage": list(settings.byte_depths),
            "bytes": saved,
        }
        for blocks, variant in product(settings.byte_depths, saved):
            model = built(settings, variant, name, blocks)
            images, _, _ = settings.batch(model, settings.batch_size)
            saved[variant].append(saved_bytes(partial(model, images), model))
            save()
        native = _saved_at(settings, name, settings.blocks[name])
        counts["at_blocks_per_stage"] = settings.blocks[name]
        counts["at_bytes"] = native
    results["peak"] = {}
    name = RELEASED
    for what, sizes in (("batch_size", settings.batches), ("blocks_per_stage", settings.depths)):
        peaks: dict[str, list[int]] = {variant: [] for variant in settings.variants}
        residents: dict[str, list[int]] = {variant: [] for variant in settings.variants}
        results["peak"][what] = {
            "network": name,
            "sizes": list(sizes),
            **(
                {"blocks_per_stage": settings.blocks[name]}
                if what == "batch_size"
                else {"batch_size": settings.batch_size}
            ),
            "peak": peaks,
            "resident": residents,
        }
        for size, variant in product(sizes, settings.variants):
            blocks = size if what == "blocks_per_stage" else settings.blocks[name]
            batch_size = size if what == "batch_size" else settings.batch_size
            peak, resident = _step_bytes(settings, variant, name, blocks, batch_size)
            peaks[variant].append(peak)
            residents[variant].append(resident)
            save()


def capacity(settings: Settings, results: dict[str, Any], save: Save, peak: dict[str, Any]) -> None:
    """The largest batch and the deepest network that fit into a given memory.

    Parameters, buffers and the optimiser's momentum are in memory between two steps; a step adds
    its peak to them. On the CPU, a straight line is fitted to the sum at the measured sizes and
    extrapolated; on CUDA, sizes are tried until memory runs out.

    Args:
        settings: sizes of the run.
        results: dictionary to fill.
        save: called as it fills.
        peak: the peaks that :func:`memory` has measured.
    """
    results["budgets"] = list(settings.budgets)
    results["how"] = (
        "tried until memory ran out"
        if settings.device.type == "cuda"
        else "extrapolated from measured slopes"
    )
    for what, counts in peak.items():
        rows = results[what] = {"lines": {}, "fits": {}}
        for variant in settings.variants:
            total = [
                a + b
                for a, b in zip(counts["peak"][variant], counts["resident"][variant], strict=True)
            ]
            line = fit_line(counts["sizes"], total)
            rows["lines"][variant] = line.as_dict()
            rows["fits"][variant] = [
                _search(settings, what, variant, budget)
                if settings.device.type == "cuda"
                else line.largest_within(budget * GIB)
                for budget in settings.budgets
            ]
            save()


def _saved_at(settings: Settings, name: str, blocks: int) -> dict[str, int]:
    counts = {}
    for variant in settings.variants:
        if variant != "memcnn":
            model = built(settings, variant, name, blocks)
            images, _, _ = settings.batch(model, settings.batch_size)
            counts[variant] = saved_bytes(partial(model, images), model)
    return counts


def _step_bytes(
    settings: Settings, variant: str, name: str, blocks: int, batch_size: int
) -> tuple[int, int]:
    """The peak of a training step above the memory in use before it, and that memory."""
    model = built(settings, variant, name, blocks)
    images, labels, _ = settings.batch(model, batch_size)
    first_step, optimiser = trainer(model, images[:2], labels[:2])
    first_step()  # creates the momentum
    step, _ = trainer(model, images, labels, optimiser=optimiser)
    return peak_bytes(step, settings.device), resident_bytes(model, optimiser)


def _search(settings: Settings, what: str, variant: str, budget: int) -> int:
    """The largest size whose training step fits into ``budget`` GiB of a CUDA device."""
    name = RELEASED
    total = torch.cuda.get_device_properties(settings.device).total_memory
    if budget * GIB > total:
        return 0

    def fits(size: int) -> bool:
        blocks = size if what == "blocks_per_stage" else settings.blocks[name]
        batch_size = size if what == "batch_size" else settings.batch_size
        try:
            _step_bytes(settings, variant, name, blocks, batch_size)
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    torch.cuda.set_per_process_memory_fraction(budget * GIB / total, settings.device)
    try:
        return largest(fits, 512 if what == "blocks_per_stage" else 2**16)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, settings.device)
