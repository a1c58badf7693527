"""The training loop, resumable at any step to the bit."""

import contextlib
import dataclasses
import itertools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from irevnet.data import Augmentation, ImageData, TrainingPass
from irevnet.training.checkpoint import Checkpoint, code_digest
from irevnet.training.config import TrainingConfig
from irevnet.training.evaluation import autocast, combine, evaluate
from irevnet.training.optimizer import make_optimizers
from irevnet.training.preparation import (
    check_fit,
    moving_average,
    parts_per_process,
    scale_residuals,
)
from irevnet.training.processes import Processes
from irevnet.training.schedule import learning_rate
from irevnet.training.signals import Stopped, stop_signals
from irevnet.weights import load_weights

__all__ = ["NonFiniteLossError", "Row", "Trainer", "describe_row", "train"]

Row = dict[str, Any]


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the message says where."""


def _nothing(*_: object) -> None:
    pass


class Trainer:
    """A training run: its network, optimizers and place in the schedule.

    On a CPU the trained weights depend only on ``model``, ``data``, ``config`` and ``seed``: the
    same arguments give the same bits, and so does a run that is interrupted at any step and resumes
    from its checkpoint. The global random generator does not change.

    If each process of a group (:func:`~irevnet.training.processes.join_processes`) creates one, all
    of them train one network, each on its share of every batch: a step uses ``batch_size`` images,
    however many processes there are. A run may resume with another number of processes. It ends
    with the same bits only if that number stays the same, on machines of the same kind.

    Args:
        model: a new network; trained in place.
        data: its ``validation`` set is evaluated after every epoch; ``test`` is not touched.
        config: the recipe.
        seed: seed of order, augmentation and dropout (not of the weights, which ``model`` has).
        device: where to train.
        checkpoint: a file for the state of training, or None to keep none. If it already holds this
            run, training resumes from it. It stays after training, until :meth:`finish`. Only the
            first of several processes reads and writes it.

    Attributes:
        history: a row per finished epoch, see :func:`train`.
        step: steps taken in the current epoch.
        seconds: seconds spent in training, over all sessions of an interrupted run.
        sessions: number of times that the run was started.
        most_processes: largest number of processes that trained together in a session.
        notes: sentences about what was found on disk.

    Raises:
        ValueError: if the recipe does not fit the data or the network, or if the checkpoint belongs
            to another run, is damaged, is in use or cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        config: TrainingConfig,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        self.processes = Processes()
        self.device = torch.device(device)
        check_fit(model, data, config, self.processes.count, self.device)
        self.config = config
        self.seed = seed
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        if config.sync_batch_norm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(self.device).to(memory_format=layout).train()
        self.data = data.to(self.device)
        self.optimizers = make_optimizers(self.model, config)
        self.average = moving_average(self.model, config.averaging)
        self.steps_per_epoch = len(data.train) // config.batch_size
        self.history: list[Row] = []
        self.step = 0
        self.seconds = 0.0
        self.sessions = 1
        self.most_processes = self.processes.count
        self.notes: list[str] = []
        self._losses: list[Tensor] = []
        self._correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self._random_state: list[Tensor] | None = None
        self._checkpoint: Checkpoint | None = None
        self._path = None if checkpoint is None else Path(checkpoint)
        state = self.processes.from_first(self._load)
        if state is not None:
            self._restore(*state)
        elif config.residual_scale != 1:
            scale_residuals(self.model, config.residual_scale)
            if self.average is not None:
                scale_residuals(self.average, config.residual_scale)
        self._replica: DistributedDataParallel | None = None
        if self.processes.count > 1:
            self._replica = DistributedDataParallel(self.model)
        self._step_model: Callable[..., Any] = self._replica or self.model
        if config.compile:
            self._step_model = torch.compile(self._step_model)
            self._warm_up()

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def run(
        self, on_epoch: Callable[[Row], None] = _nothing, *, checkpoint_seconds: float = 300.0
    ) -> list[Row]:
        """Trains to the end; returns the history.

        SIGTERM and SIGINT stop it after the current step, once the state is saved.

        Args:
            on_epoch: called with the row of every finished epoch.
            checkpoint_seconds: time between two states on disk.

        Raises:
            NonFiniteLossError: with the step, the learning rate and the last good checkpoint.
            LostProcessError: if one of several processes has ended.
            Stopped: after a signal to any process.
        """
        try:
            with stop_signals() as stopped, self.processes.watching(self._last_good):
                self._run(on_epoch, checkpoint_seconds, stopped)
        except BaseException:
            if self._checkpoint is not None:
                self._checkpoint.close()
            raise
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        return self.history

    def _run(
        self, on_epoch: Callable[[Row], None], checkpoint_seconds: float, stopped: list[int]
    ) -> None:
        saved = time.monotonic()
        while self.epoch < self.config.epochs:
            for _ in self._steps():
                due = time.monotonic() - saved > checkpoint_seconds
                stopping, due = self.processes.any(bool(stopped), due)
                if stopping or due:
                    self.save()
                    saved = time.monotonic()
                if stopping:
                    name = signal.Signals(stopped[0]).name if stopped else "another process"
                    raise Stopped(f"stopped by {name}")
            on_epoch(self._finish_epoch())
        self.save()

    def save(self) -> None:
        """Writes the state to the checkpoint, if the run has one.

        Every process of a group must call it.
        """
        if self._path is None:
            return
        self._check_weights()
        random_states = self.processes.gather(self._random_state)
        self.processes.from_first(lambda: self._write(random_states))

    def _write(self, random_states: list[list[Tensor] | None]) -> None:
        assert self._checkpoint is not None
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            averaged = self.average.state_dict()
            tensors |= {f"average.{name}": tensor for name, tensor in averaged.items()}
        for number, (optimizer, _) in enumerate(self.optimizers):
            for index, parameter in enumerate(_parameters(optimizer)):
                momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
                if momentum is not None:
                    tensors[f"momentum.{number}.{index}"] = momentum
        if self._losses:
            tensors["losses"] = torch.stack(self._losses)
        tensors["correct"] = self._correct
        for rank, states in enumerate(random_states):
            for index, random_state in enumerate(states or []):
                tensors[f"random.{rank}.{index}"] = random_state
        metadata = {
            "history": self.history,
            "step": self.step,
            "seconds": self.seconds,
            "sessions": self.sessions,
            "most_processes": self.most_processes,
        }
        self._checkpoint.save(tensors, metadata)

    def finish(self) -> None:
        """Removes the checkpoint. Call it once the trained weights are safe elsewhere."""
        if self._checkpoint is not None:
            self._checkpoint.remove()

    def _load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Opens the checkpoint; returns the state from which to resume, if there is one."""
        if self._path is None:
            return None
        self._checkpoint = Checkpoint(self._path, self._describe())
        state = self._checkpoint.load()
        self.notes += self._checkpoint.notes
        return state

    def _describe(self) -> dict[str, Any]:
        """What a checkpoint must have in common with this run, by the names that errors use."""
        return {
            "network": repr(self.model),
            "settings": dataclasses.asdict(self.config),
            "seed": self.seed,
            "images": [self.data.train.digest(), self.data.validation.digest()],
            "classes": list(self.data.classes),
            "code": code_digest(),
        }

    def _restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        for module, prefix in ((self.model, "model."), (self.average, "average.")):
            if module is not None:
                state = {
                    name.removeprefix(prefix): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(prefix)
                }
                load_weights(module, state, "the checkpoint")
        for number, (optimizer, _) in enumerate(self.optimizers):
            for index, parameter in enumerate(_parameters(optimizer)):
                momentum = tensors.get(f"momentum.{number}.{index}")
                if momentum is not None:
                    buffer = torch.empty_like(parameter).copy_(momentum)
                    optimizer.state[parameter]["momentum_buffer"] = buffer
        self.history = metadata["history"]
        self.step = metadata["step"]
        self.seconds = metadata["seconds"]
        self.sessions = metadata["sessions"] + 1
        self.most_processes = max(self.processes.count, metadata["most_processes"])
        self._losses = list(tensors.get("losses", torch.zeros(0)).to(self.device))
        self._correct = tensors["correct"].to(self.device)
        own = f"random.{self.processes.rank}."
        names = sorted(name for name in tensors if name.startswith(own))
        self._random_state = [tensors[name] for name in names] or None
        self.notes.append(f"resumed after epoch {self.epoch}, step {self.step}")

    def _steps(self) -> Iterator[None]:
        """Takes the remaining steps of the current epoch."""
        config = self.config
        processes = self.processes
        epoch = TrainingPass(self.seed, self.epoch, self.step, processes.rank, processes.count)
        augmentation = Augmentation(
            config.padding, config.flip, config.cutout, config.side(self.epoch)
        )
        batches = self.data.train.training_batches(config.batch_size, augmentation, epoch)
        started = time.perf_counter()
        for x, labels in batches:
            with torch.random.fork_rng(devices=self._cuda):
                if self._random_state is None:
                    # Shares of a batch have different dropout masks, as its images have.
                    torch.manual_seed(epoch.epoch_seed + (processes.rank << 40))
                    torch.randint(2**62, ())  # skip the number that seeds order and augmentation
                else:
                    self._set_random_state(self._random_state)
                self._train_step(x.to(self.device), labels.to(self.device))
                self._random_state = self._get_random_state()
            self.step += 1
            self.seconds += time.perf_counter() - started
            yield
            started = time.perf_counter()

    def _train_step(self, x: Tensor, labels: Tensor) -> None:
        for optimizer, peaks in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = self._learning_rate(peak)
        loss, correct = self._gradients(x, labels)
        self._losses.append(self.processes.mean(loss))
        # Reading a loss would stall a GPU: there, losses are checked at the end of the epoch.
        if self.device.type == "cpu":
            self._check_losses()
        if self.config.gradient_clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        for optimizer, _ in self.optimizers:
            optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self._correct += self.processes.sum(correct)

    def _gradients(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Accumulates this process's gradient; returns its loss and how many images are right."""
        parts = parts_per_process(self.config, self.processes.count)
        losses, correct = [], torch.zeros_like(self._correct)
        for number, (images, own_labels) in enumerate(
            zip(x.chunk(parts), labels.chunk(parts), strict=True), start=1
        ):
            # The processes combine their gradients once, with the last part.
            replica = self._replica if number < parts else None
            with contextlib.nullcontext() if replica is None else replica.no_sync():
                loss, logits = self._loss(images, own_labels)
                (loss if parts == 1 else loss / parts).backward()
            losses.append(loss.detach())
            correct += (logits.argmax(dim=1) == own_labels).sum()
        return losses[0] if parts == 1 else torch.stack(losses).mean(), correct

    def _loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy of a batch, and its logits."""
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.config.precision):
            logits = self._step_model(x)
        smoothing = self.config.label_smoothing
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        return loss, logits.detach()

    def _finish_epoch(self) -> Row:
        """Evaluates the network after the last step of an epoch and adds the epoch's row."""
        self._check_losses()
        self._check_weights()
        evaluated = self.model if self.average is None else self.average.module
        self.processes.equalise_buffers(evaluated)
        shard = self.data.validation.shard(self.processes.rank, self.processes.count)
        evaluation = evaluate(evaluated, shard, precision=self.config.precision)
        validation = combine(self.processes.gather(evaluation))
        row = {
            "epoch": self.epoch + 1,
            "learning_rate": self._learning_rate(self.config.learning_rate, self.step - 1),
            "train_loss": torch.stack(self._losses).double().mean().item(),
            "train_accuracy": self._correct.item() / (self.step * self.config.batch_size),
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
        }
        self.history.append(row)
        self.step = 0
        self._losses = []
        self._correct = torch.zeros_like(self._correct)
        self._random_state = None
        return row

    def _learning_rate(self, peak: float, step: int | None = None) -> float:
        step = self.step if step is None else step
        taken = self.epoch * self.steps_per_epoch + step
        return learning_rate(self.config, peak, taken, self.steps_per_epoch)

    def _check_losses(self) -> None:
        """Raises if the last loss is not finite; names the first one that was not."""
        if math.isfinite(self._losses[-1].item()):
            return
        step = int(torch.stack(self._losses).isfinite().long().argmin())
        rate = self._learning_rate(self.config.learning_rate, step)
        raise NonFiniteLossError(
            f"loss is {self._losses[step].item()} in step {step + 1} of epoch {self.epoch + 1}, "
            f"at learning rate {rate:.3g}; last good checkpoint: {self._last_good()}"
        )

    def _check_weights(self) -> None:
        """Raises if the last update made weights non-finite, which no loss has shown yet."""
        finite = torch.stack([value.isfinite().all() for value in self.model.state_dict().values()])
        (spoilt,) = self.processes.any(not finite.all())
        if not spoilt:
            return
        rate = self._learning_rate(self.config.learning_rate, self.step - 1)
        raise NonFiniteLossError(
            f"weights are not finite after step {self.step} of epoch {self.epoch + 1}, at "
            f"learning rate {rate:.3g}; last good checkpoint: {self._last_good()}"
        )

    def _last_good(self) -> str:
        return str(self._path) if self._path is not None and self._path.exists() else "none"

    @property
    def _cuda(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _get_random_state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda)]

    def _set_random_state(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._cuda, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    def _warm_up(self) -> None:
        """Compiles the network by two steps that do not change it."""
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        for side in dict.fromkeys(self.config.sides or [None]):
            augmentation = Augmentation(self.config.padding, self.config.flip, side=side)
            batches = self.data.train.training_batches(
                self.config.batch_size,
                augmentation,
                TrainingPass(0, 0, 0, self.processes.rank, self.processes.count),
            )
            with torch.random.fork_rng(devices=self._cuda):
                # Two steps: the state after the first may make the second compile again.
                for x, labels in itertools.islice(batches, 2):
                    self._gradients(x.to(self.device), labels.to(self.device))
        self.model.zero_grad(set_to_none=True)
        self.model.load_state_dict(state)


def train(
    model: nn.Module,
    data: ImageData,
    config: TrainingConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[Row], None] = _nothing,
) -> list[Row]:
    """Trains ``model`` in place on ``data.train``: a :class:`Trainer` without a checkpoint.

    Args:
        model: a new network.
        data: its ``validation`` set is evaluated after every epoch; ``test`` is not touched.
        config: the recipe.
        seed: seed of order, augmentation and dropout.
        device: where to train.
        on_epoch: called with the row of every finished epoch.

    Returns:
        A row per epoch with ``epoch``, ``learning_rate`` (SGD's, of its last step), ``train_loss``,
        ``train_accuracy`` (both in the course of the epoch), ``validation_loss``,
        ``validation_accuracy`` (of the averaged weights, if there are any; NaN without validation
        images).

    Raises:
        ValueError: if the recipe does not fit the data or the network.
        NonFiniteLossError: with the step and the learning rate.
    """
    return Trainer(model, data, config, seed=seed, device=device).run(on_epoch)


def describe_row(row: Row, epochs: int) -> str:
    """One line about an epoch, for a log."""
    line = (
        f"epoch {row['epoch']:>3}/{epochs}  learning rate {row['learning_rate']:.4f}  "
        f"loss {row['train_loss']:.4f}  training accuracy {row['train_accuracy']:.2%}"
    )
    if not math.isnan(row["validation_accuracy"]):
        line += f"  validation {row['validation_accuracy']:.2%}"
    return line


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
