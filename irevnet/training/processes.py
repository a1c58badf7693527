"""Several processes that train one network together, each on its share of every batch.

``torchrun`` starts them, on one or several machines, and gives each its rank in environment
variables (https://docs.pytorch.org/docs/stable/elastic/run.html). The script that it runs calls
:func:`join_processes`. A :class:`~irevnet.training.trainer.Trainer` created in that context takes
its share of every batch by itself.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["LostProcessError", "Processes", "join_processes"]

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class LostProcessError(RuntimeError):
    """Another process has ended or cannot be reached; the message says how to resume."""


@contextlib.contextmanager
def join_processes(timeout: float = 600.0) -> Iterator[torch.device]:
    """Joins the group that ``torchrun`` has started, and leaves it at the end.

    Args:
        timeout: seconds after which a process that does not answer counts as lost.

    Yields:
        The device of this process: the GPU with its local rank, or the CPU.

    Raises:
        ValueError: if ``torchrun`` has not started this process, or if there are more processes
            on the machine than GPUs.
        LostProcessError: if the others cannot be reached, the port is in use, or one is lost later.
    """
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise ValueError(
            f"the environment has no {', '.join(missing)}: start this with torchrun, for example "
            "torchrun --standalone --nproc-per-node=2 -m MODULE"
        )
    rank, count, local = (int(os.environ[name]) for name in _VARIABLES[:3])
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"--nproc-per-node must be at most {torch.cuda.device_count()}, the number of "
                f"GPUs of this machine; this is its process {local + 1}"
            )
        device, backend = torch.device("cuda", local), "nccl"
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            backend, rank=rank, world_size=count, timeout=datetime.timedelta(seconds=timeout)
        )
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise LostProcessError(
            f"process {rank + 1} of {count} could not join the others at {address}: the port is in "
            f"use, or that machine cannot be reached ({_first_line(error)})"
        ) from error
    try:
        yield device
    except RuntimeError as error:
        if isinstance(error, LostProcessError) or not _is_connection_error(error):
            raise
        raise LostProcessError(
            f"process {rank + 1} of {count} has lost another one ({_first_line(error)}). Start all "
            "of them again; training resumes from its checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


class Processes:
    """This process in the group of those that train together, or alone without a group.

    Every process must create one, and call the same methods in the same order.

    Attributes:
        rank: rank of this process, from 0.
        count: number of processes.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.count = dist.get_world_size() if together else 1
        # Processes agree between steps with tensors on the CPU, so that no GPU has to wait.
        self._control: Any = dist.new_group(backend="gloo") if self.count > 1 else None

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is true in any process."""
        if self.count == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self._control)
        return tuple(map(bool, raised.tolist()))

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401
        """The values of all processes, in their order; they must be picklable."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._control)
        return values

    def from_first(self, make: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Calls ``make`` in the first process alone, and returns its result in every process.

        Raises:
            ValueError: in every process, if ``make`` raises it.
        """
        if self.count == 1:
            return make()
        made: list[Any] = [None, None]
        if self.rank == 0:
            try:
                made[0] = make()
            except ValueError as error:
                made[1] = error
        dist.broadcast_object_list(made, src=0, group=self._control)
        if made[1] is not None:
            raise made[1]
        return made[0]

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes, on its device."""
        return value if self.count == 1 else self.sum(value) / self.count

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes, on its device."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def equalise_buffers(self, *modules: nn.Module) -> None:
        """Gives all processes the buffers of the first, such as batch norm's statistics."""
        if self.count > 1:
            for module in modules:
                for buffer in module.buffers():
                    dist.broadcast(buffer, src=0)

    @contextlib.contextmanager
    def watching(self, last_good: Callable[[], str]) -> Iterator[None]:
        """Turns the backend's connection errors into :class:`LostProcessError`.

        Args:
            last_good: returns the name of the checkpoint from which a new attempt starts.

        Raises:
            LostProcessError: in place of such an error.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _is_connection_error(error):
                raise
            raise LostProcessError(
                f"process {self.rank + 1} of {self.count} has lost another one "
                f"({_first_line(error)}); last good checkpoint: {last_good()}. Start all of them "
                "again to go on from there"
            ) from error


def _is_connection_error(error: RuntimeError) -> bool:
    # Gloo's errors have no class of their own.
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
