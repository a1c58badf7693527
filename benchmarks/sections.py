"""The sections of a run; each writes its results into a dict as it goes."""

from collections.abc import Callable

from benchmarks.gradients import gradient_agreement
from benchmarks.memory import capacity, memory
from benchmarks.speed import inverse_throughput, step_time, training_throughput

__all__ = ["SECTIONS"]

SECTIONS: dict[str, Callable[..., None]] = {
    "memory": memory,
    "capacity": capacity,
    "gradients": gradient_agreement,
    "inverse": inverse_throughput,
    "step_time": step_time,
    "throughput": training_throughput,
}
"""In running order: each section after its dependencies, the longest last."""
