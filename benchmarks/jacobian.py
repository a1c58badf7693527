"""Times whole Jacobians against a loop over their rows: ``python -m benchmarks.jacobian``.

i-RevNets are differentiated block by block, any network many rows or columns at a time. The loop is
the obvious method: a backward pass for every output. Only some of its rows are timed, and their
time is scaled to all rows, because each takes the same time. The other methods are timed in full.
All methods take turns in every round.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import Run, make_parser
from benchmarks.measure import estimate, interleave, ratios
from benchmarks.targets import goal
from benchmarks.variants import create_irevnet
from irevnet.analysis.blockwise_jacobian import irevnet_jacobians
from irevnet.analysis.jacobian import jacobians
from irevnet.network.model import IRevNet

__all__ = ["Sizes", "main", "measure"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run.

    Args:
        in_shape: shape of the image.
        blocks: blocks in each stage of ``irevnet_cifar_bijective``.
        rounds: rounds of the comparison.
        rows: number of rows of the loop that are timed.
        memory: bytes for the rows or columns that are computed together.
    """

    in_shape: tuple[int, int, int] = (3, 32, 32)
    blocks: tuple[int, int, int] = (4, 4, 4)
    rounds: int = 3
    rows: int = 32
    memory: int = 2**28


def loop(model: IRevNet, image: Tensor, rows: int) -> Tensor:
    """The first rows of the Jacobian, one backward pass each, for the image alone."""
    image = image.clone().requires_grad_()
    out = model.encode(image).flatten()
    results = [torch.autograd.grad(value, image, retain_graph=True)[0] for value in out[:rows]]
    return torch.stack(results).flatten(1)


def loop_with_parameters(model: IRevNet, image: Tensor, rows: int) -> Tensor:
    """The same with ``backward()``, which also computes the gradients of all parameters."""
    image = image.clone().requires_grad_()
    out = model.encode(image).flatten()
    results = []
    for value in out[:rows]:
        value.backward(retain_graph=True)
        assert image.grad is not None
        results.append(image.grad)
        image.grad = None
    model.zero_grad()
    return torch.stack(results).flatten(1)


def measure(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Seconds of every method, and how many times as fast as the others two of them are.

    ``times_as_fast_as`` is about the method for i-RevNets, ``rows_times_as_fast_as`` about rows.
    """
    torch.manual_seed(0)
    model = create_irevnet("irevnet_cifar_bijective", in_shape=sizes.in_shape, blocks=sizes.blocks)
    model = model.to(device).eval()
    image = torch.rand(1, *sizes.in_shape, device=device)
    dimensions = image.numel()
    rows = min(sizes.rows, dimensions)
    ways = {
        "loop": lambda: loop(model, image, rows),
        "loop_with_parameters": lambda: loop_with_parameters(model, image, rows),
        "blockwise": lambda: irevnet_jacobians(model, image, memory=sizes.memory),
        "rows": lambda: jacobians(model.encode, image, memory=sizes.memory),
        "columns": lambda: jacobians(model.encode, image, side="columns", memory=sizes.memory),
    }
    reference = ways["loop"]()
    differences = {
        name: ((ways[name]()[0, :rows] - reference).norm() / reference.norm()).item()
        for name in ("blockwise", "rows", "columns")
    }
    seconds = interleave(ways, sizes.rounds, device)
    for name in ("loop", "loop_with_parameters"):
        seconds[name] = [value * dimensions / rows for value in seconds[name]]

    def faster(method: str, others: Sequence[str]) -> dict[str, Any]:
        return {name: estimate(ratios(seconds[name], seconds[method])) for name in others}

    blockwise = faster("blockwise", ("loop", "loop_with_parameters", "rows", "columns"))
    return {
        "dimensions": dimensions,
        "loop_rows_timed": rows,
        "relative_difference": differences,
        "seconds": {name: estimate(values) for name, values in seconds.items()},
        "rounds": seconds,
        "times_as_fast_as": blockwise,
        "rows_times_as_fast_as": faster("rows", ("loop", "loop_with_parameters", "columns")),
        "targets": [
            goal(
                f"Jacobian of {dimensions} dimensions: speed over a loop over its rows",
                blockwise["loop"],
                at_least=10,
            )
        ],
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Runs from the command line; returns the file of the results."""
    chosen = make_parser("jacobian", threads=None, device=True).parse_args(arguments)
    run = Run("jacobian", arguments, chosen)
    sizes = Sizes(memory=2**33 if run.device.type == "cuda" else 2**28)
    if chosen.quick:
        sizes = dataclasses.replace(
            sizes, in_shape=(3, 8, 8), blocks=(1, 1, 1), rounds=1, rows=4, memory=2**24
        )
    results = measure(sizes, run.device)
    settings = dataclasses.asdict(sizes)
    settings |= {"device": str(run.device), "threads": torch.get_num_threads()}
    path = run.save({"settings": settings, **results})
    for name, ratio in results["times_as_fast_as"].items():
        print(f"{ratio['value']:.1f} times as fast as {name}", file=sys.stderr)
    return path


if __name__ == "__main__":
    main()
