r"""Trains one network of an experiment on several GPUs, or machines, started by ``torchrun``.

.. code-block:: bash

    torchrun --standalone --nproc-per-node=8 \
        -m pipeline.train_parallel --experiment NAME --family FAMILY --seed SEED

The trained network is left in the run's checkpoint. ``make repro EXPERIMENT=NAME`` finds it there
at once, evaluates it and runs the stages that depend on it. After an interruption at any step, the
same command resumes the training, with another number of processes if necessary.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

import torch

from irevnet.training import (
    LostProcessError,
    NonFiniteLossError,
    Stopped,
    Trainer,
    TrainingConfig,
    join_processes,
)
from irevnet.training.trainer import describe_row
from pipeline.notebook import checkpoint_path, load_experiment_data, new_model
from pipeline.params import ParamsError, check_models, load_params

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="torchrun -m pipeline.train_parallel", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--experiment", required=True, help="a section of params.yaml")
    parser.add_argument("--family", required=True, help="one of its models")
    parser.add_argument("--seed", required=True, type=int, help="one of its seeds")
    options = parser.parse_args(arguments)
    try:
        params = load_params()
        section = params.section(options.experiment)
        for name, allowed in (("family", list(section.models)), ("seed", section.seeds)):
            if (value := getattr(options, name)) not in allowed:
                raise ParamsError(
                    f"{name} must be one of {allowed} for {options.experiment}, got {value!r}"
                )
        check_models(params)
        with join_processes() as device:
            _train(options.experiment, options.family, options.seed, device)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + signal.SIGTERM
    except (ValueError, LostProcessError, NonFiniteLossError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _train(experiment: str, family: str, seed: int, device: torch.device) -> None:
    section = load_params().section(experiment)
    if section.training is None:
        raise ParamsError(f"nothing is trained in {experiment}: its networks are converted")
    torch.set_num_threads(section.threads)
    config = TrainingConfig(**section.recipe(family))
    trainer = Trainer(
        new_model(experiment, family, seed),
        load_experiment_data(experiment),
        config,
        seed=seed,
        device=device,
        checkpoint=checkpoint_path(
            experiment, family, seed, f"results/{experiment}/train/{family}-{seed}"
        ),
    )

    def say(text: str) -> None:
        if trainer.processes.rank == 0:
            print(text, flush=True)

    for note in trainer.notes:
        say(note)
    trainer.run(lambda row: say(describe_row(row, config.epochs)))
    say(
        f"trained in {trainer.seconds:,.0f} s by {trainer.processes.count} processes; "
        f"make repro EXPERIMENT={experiment} evaluates and publishes it"
    )


if __name__ == "__main__":
    sys.exit(main())
