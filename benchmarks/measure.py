"""Clocks, byte counts, and their statistics."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = [
    "Line",
    "estimate",
    "fit_line",
    "interleave",
    "largest",
    "peak_bytes",
    "ratios",
    "resident_bytes",
]

Name = TypeVar("Name")


def interleave(
    tasks: Mapping[Name, Callable[[], object]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Times tasks in turn, so that disturbances of the machine affect all of them.

    Each task runs once beforehand. Every round runs all of them once and starts with a different
    one.

    Args:
        tasks: tasks by name.
        rounds: number of rounds.
        device: device to wait for before the clock is read.
        clock: ``time.process_time`` counts seconds of the processor, which other processes on the
            machine disturb less.

    Returns:
        Seconds of each task, one value per round.
    """
    for task in tasks.values():
        task()
    names = list(tasks)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            _synchronise(device)
            start = clock()
            tasks[name]()
            _synchronise(device)
            seconds[name].append(clock() - start)
    return seconds


def estimate(values: Iterable[float]) -> dict[str, float | int]:
    """Median and quartiles, in the form of every estimate in ``results/``."""
    values = list(values)
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"value": middle, "low": low, "high": high, "n": len(values)}


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Quotients of two tasks' times, each within one round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The largest rise of the memory that torch has allocated during ``step``.

    On CUDA it is the allocator's own count; on the CPU it comes from the profiler's record of every
    allocation, which does not include what libraries allocate themselves.
    """
    if device.type == "cuda":
        _synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        _synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    allocated = highest = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        allocated += event["args"]["Bytes"]
        highest = max(highest, allocated)
    return highest


def resident_bytes(model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Bytes in use between two steps: parameters, buffers, state of the optimiser."""
    state = (value for values in optimiser.state.values() for value in values.values())
    tensors = [*model.parameters(), *model.buffers(), *filter(torch.is_tensor, state)]
    return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class Line:
    """``bytes = offset + slope * size``, fitted by least squares.

    Args:
        offset: in bytes.
        slope: in bytes per image or block.
        error: the largest relative distance of a measured point.
    """

    offset: float
    slope: float
    error: float

    def largest_within(self, budget: float) -> int:
        """The largest size that needs at most ``budget`` bytes; 0 if none does."""
        return max(0, int((budget - self.offset) // self.slope))

    def as_dict(self) -> dict[str, Any]:
        """For a results file."""
        return {"offset": self.offset, "slope": self.slope, "largest_relative_error": self.error}


def fit_line(sizes: Sequence[float], counts: Sequence[float]) -> Line:
    """Fits bytes against sizes.

    Raises:
        ValueError: if bytes do not grow, so that nothing would ever be too large.
    """
    slope, offset = statistics.linear_regression(sizes, counts)
    if slope <= 0:
        raise ValueError(f"bytes do not grow with size: {list(sizes)}, {list(counts)}")
    pairs = zip(sizes, counts, strict=True)
    error = max(abs(offset + slope * size - count) / count for size, count in pairs)
    return Line(offset, slope, error)


def largest(fits: Callable[[int], bool], limit: int, tolerance: float = 0.05) -> int:
    """The largest whole number that fits, by doubling and bisection.

    Args:
        fits: true up to some number and false beyond it.
        limit: nothing larger is tried.
        tolerance: relative amount by which the answer may fall short.

    Returns:
        A number that fits; 0 if not even 1 does; ``limit`` if that fits.
    """
    if not fits(1):
        return 0
    good, bad = 1, None
    while bad is None:
        if good == limit:
            return limit
        size = min(2 * good, limit)
        if fits(size):
            good = size
        else:
            bad = size
    while bad - good > max(1, tolerance * good):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
