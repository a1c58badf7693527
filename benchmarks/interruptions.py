"""Training that is killed again and again: ``python -m benchmarks.interruptions``.

A network for the digits is trained twice: once without interruption, and once with kills (SIGKILL,
all processes at once) at random moments, after each of which training is started again. This is
done with one process and with two. The benchmark compares the bits of the final weights.
"""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import Run, make_parser, positive
from benchmarks.provenance import ROOT
from irevnet import create_model
from irevnet.data import load_digits
from irevnet.training import Trainer, TrainingConfig, join_processes

__all__ = ["main", "measure", "train"]


def train(folder: Path, epochs: int) -> None:
    """Trains to the end, resuming after a kill; writes the weights' hash to ``folder / "weights"``.

    Under ``torchrun`` it trains together with the other processes.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    group = join_processes() if "RANK" in os.environ else contextlib.nullcontext()
    with group:
        trainer = Trainer(
            create_model("irevnet_digits_bijective"),
            load_digits(180),
            TrainingConfig(
                epochs=epochs,
                batch_size=128,
                learning_rate=0.1,
                padding=1,
                flip="random",
                averaging=0.99,
            ),
            checkpoint=folder / "checkpoint",
        )
        if trainer.processes.rank == 0:
            (folder / "begun").touch()
        trainer.run(checkpoint_seconds=0.5)
        if trainer.processes.rank == 0:
            content = hashlib.sha256()
            for name, tensor in sorted(trainer.model.state_dict().items()):
                content.update(name.encode() + tensor.contiguous().numpy().tobytes())
            (folder / "weights").write_text(content.hexdigest())


def measure(processes: int, kills: int, epochs: int, longest: float, seed: int) -> dict[str, Any]:
    """Trains once without kills and once with.

    Args:
        processes: number of processes that train together.
        kills: number of kills.
        epochs: epochs of training.
        longest: longest training between two kills, in seconds.
        seed: seed of the moments of the kills.

    Raises:
        RuntimeError: if training fails, or ends before the last kill.
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name, "whole"), Path(name, "killed")
        for folder in (whole, killed):
            folder.mkdir()
        _finish(whole, processes, epochs)
        delays: list[float] = []
        in_between = 0
        while len(delays) < kills:
            (killed / "begun").unlink(missing_ok=True)
            training = _start(killed, processes, epochs)
            try:
                while not (killed / "begun").exists():
                    if training.poll() is not None:
                        raise RuntimeError(f"training failed:\n{training.communicate()[0]}")
                    time.sleep(0.01)
                delays.append(moments.uniform(0, longest))
                time.sleep(delays[-1])
                if training.poll() is not None:
                    raise RuntimeError(
                        f"training ended after {len(delays) - 1} kills: use more epochs"
                    )
            finally:
                # Training has its own session and would outlive an interruption of this process.
                if training.poll() is None:
                    os.killpg(training.pid, signal.SIGKILL)
            training.communicate()
            in_between += any(killed.glob("checkpoint.new*"))
        _finish(killed, processes, epochs)
        equal = (whole / "weights").read_text() == (killed / "weights").read_text()
    return {
        "processes": processes,
        "kills": kills,
        "epochs": epochs,
        "while_a_checkpoint_was_written": in_between,
        "seconds_of_training_before_each_kill": [round(delay, 2) for delay in delays],
        "equal_bits": equal,
    }


def _finish(folder: Path, processes: int, epochs: int) -> None:
    training = _start(folder, processes, epochs)
    output = training.communicate()[0]
    if training.returncode:
        raise RuntimeError(f"training failed:\n{output}")


def _start(folder: Path, processes: int, epochs: int) -> subprocess.Popen[str]:
    module = ["-m", "benchmarks.interruptions", "--worker", str(folder), "--epochs", str(epochs)]
    group = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(group if processes > 1 else []), *module]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # its own process group, which is killed as a whole
    )


def main(arguments: Sequence[str] | None = None) -> Path | None:
    """Runs from the command line; returns the file of the results."""
    parser = make_parser("interruptions")
    parser.add_argument("--kills", type=positive, default=20, help="of each training; default: 20")
    parser.add_argument(
        "--epochs", type=positive, default=250, help="of each training; default: 250"
    )
    parser.add_argument("--worker", type=Path, help="only train into this folder")
    chosen = parser.parse_args(arguments)
    if chosen.worker is not None:
        train(chosen.worker, chosen.epochs)
        return None
    run = Run("interruptions", arguments, chosen)
    kills, epochs, longest = (1, 12, 0.2) if chosen.quick else (chosen.kills, chosen.epochs, 3.0)
    counts = (1,) if chosen.quick else (1, 2)
    trainings = [measure(count, kills, epochs, longest, seed=count) for count in counts]
    targets = [
        {
            "what": f"equal bits after {one['kills']} kills, {one['processes']} processes",
            "target": "yes",
            "measured": one["equal_bits"],
            "met": one["equal_bits"],
        }
        for one in trainings
    ]
    return run.save({"trainings": trainings, "targets": targets})


if __name__ == "__main__":
    main()
