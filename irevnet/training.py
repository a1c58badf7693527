"""Training of a classifier: SGD, the paper's schedules, resumable to the bit."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from irevnet.checkpoint import load_training_state, read_tensors, save_training_state
from irevnet.checks import check_interval, check_positive
from irevnet.data import Augmentation, FolderImages, ImageData, TensorImages

__all__ = ["Evaluation", "NonFiniteLossError", "TrainingConfig", "evaluate", "train"]

_PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained; every experiment's section ``training`` of ``params.yaml``.

    Args:
        epochs: passes over the training images.
        batch_size: images in a step.
        learning_rate: the peak (``"onecycle"``) or the first one (``"step"``).
        schedule: ``"onecycle"`` (rises for ``warmup`` of the steps, then falls to zero) or
            ``"step"`` (times ``decay`` at each of ``milestones``).
        warmup: share of the steps in which a one-cycle schedule rises.
        milestones: epochs after which a step schedule decays.
        decay: factor of a step schedule.
        momentum: of SGD, Nesterov's.
        weight_decay: of SGD, on every parameter.
        label_smoothing: share of the target spread over all classes.
        gradient_clip: largest Euclidean norm of the gradient; 0 for no limit.
        padding: pixels of padding for random crops.
        flip: whether to mirror images at random.
        precision: of the convolutions, ``"float32"`` or ``"bfloat16"`` (autocast).
        channels_last: whether activations are laid out with channels last.
        compile: whether to compile the network.
        averaging: decay per step of the moving average of the weights that training ends with
            (Polyak and Juditsky, 1992, https://doi.org/10.1137/0330046); 0 for the last weights.
        checkpoint_epochs: epochs between checkpoints.

    Raises:
        ValueError: if a value is out of range; the message names it.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str = "onecycle"
    warmup: float = 0.25
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    gradient_clip: float = 0.0
    padding: int = 0
    flip: bool = False
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    averaging: float = 0.0
    checkpoint_epochs: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "checkpoint_epochs"):
            check_positive(name, getattr(self, name))
        for name, interval in {
            "learning_rate": "(0, inf)",
            "warmup": "(0, 1)",
            "decay": "(0, 1]",
            "momentum": "[0, 1)",
            "weight_decay": "[0, inf)",
            "label_smoothing": "[0, 1)",
            "gradient_clip": "[0, inf)",
            "averaging": "[0, 1)",
        }.items():
            check_interval(name, getattr(self, name), interval)
        for name, allowed in {
            "schedule": ("onecycle", "step"),
            "precision": _PRECISIONS,
            "flip": (True, False),
            "channels_last": (True, False),
            "compile": (True, False),
        }.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if type(self.padding) is not int or self.padding < 0:
            raise ValueError(f"padding must be 0 or a positive integer, got {self.padding!r}")
        if (
            isinstance(self.milestones, str)
            or not isinstance(self.milestones, Sequence)
            or any(type(epoch) is not int or epoch < 1 for epoch in self.milestones)
            or list(self.milestones) != sorted(set(self.milestones))
        ):
            raise ValueError(
                f"milestones must be positive integers in rising order, got {self.milestones!r}"
            )
        object.__setattr__(self, "milestones", tuple(self.milestones))


@dataclass(frozen=True)
class Evaluation:
    """How well a network classifies a set.

    Args:
        accuracy: share of the images classified correctly, 0 to 1.
        loss: mean cross-entropy in nats.
        n: number of images.
    """

    accuracy: float
    loss: float
    n: int


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the message says where and what is left."""


def evaluate(
    model: nn.Module,
    images: TensorImages | FolderImages,
    *,
    batch_size: int = 256,
    precision: str = "float32",
    flips: bool = False,
) -> Evaluation:
    """Classifies every image of a set, in evaluation mode; the mode is restored.

    Args:
        model: images ``(B, C, H, W)`` to logits ``(B, num_classes)``.
        images: the set.
        batch_size: images at a time.
        precision: of the convolutions, ``"float32"`` or ``"bfloat16"``.
        flips: whether the logits of an image and of its mirror image are averaged.

    Raises:
        ValueError: if ``batch_size`` or ``precision`` is none of these.
    """
    check_positive("batch_size", batch_size)
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {_PRECISIONS}, got {precision!r}")
    if len(images) == 0:
        return Evaluation(accuracy=math.nan, loss=math.nan, n=0)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    correct = loss = torch.zeros((), dtype=torch.float64, device=device)
    with torch.no_grad(), _autocast(device, precision):
        for x, labels in images.batches(batch_size):
            x = x.to(device)
            logits = model(x).float()
            if flips:
                logits = (logits + model(x.flip(3)).float()) / 2
            targets = labels.to(device)
            correct = correct + (logits.argmax(dim=1) == targets).sum()
            loss = loss + functional.cross_entropy(logits, targets, reduction="sum")
    model.train(was_training)
    return Evaluation(correct.item() / len(images), loss.item() / len(images), len(images))


def train(
    model: nn.Module,
    data: ImageData,
    config: TrainingConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] = print,
    ready: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Trains ``model`` in place on ``data.train``.

    On a CPU the result depends on nothing but the arguments: the same seed gives the same bits,
    and so does a run that was interrupted and goes on from its checkpoint. The global random
    generator is left as it was.

    Args:
        model: the network, freshly made.
        data: its ``validation`` set is evaluated after every epoch; ``test`` is not touched.
        config: how to train.
        seed: of order, augmentation and dropout (not of the weights, which ``model`` has).
        device: where to train.
        checkpoint: a file to save the state in as training goes on. If it is there already and
            belongs to the same run, training goes on from it; it is removed at the end.
        report: called with one line an epoch.
        ready: called once, when network and data are on the device and the network is compiled:
            what comes after it is training.

    Returns:
        A row per epoch with ``epoch``, ``learning_rate`` (of its last step), ``train_loss``,
        ``train_accuracy`` (both while it learned), ``validation_loss``, ``validation_accuracy``
        (of the averaged weights, where there are some; NaN without validation images).

    Raises:
        ValueError: if ``config.batch_size`` exceeds the number of training images, or if the
            checkpoint is of another run or damaged.
        NonFiniteLossError: with the step, the learning rate and the last good checkpoint.
    """
    if config.batch_size > len(data.train):
        raise ValueError(
            f"batch_size must be at most the number of training images, {len(data.train)}, "
            f"got {config.batch_size}"
        )
    device = torch.device(device)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device=device, memory_format=memory_format).train()
    data = data.to(device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    steps_per_epoch = len(data.train) // config.batch_size
    scheduler = _scheduler(optimizer, config, steps_per_epoch)
    average = _moving_average(model, config.averaging)
    run = _fingerprint(model, data, config, seed)
    history: list[dict[str, Any]] = []
    checkpoint = None if checkpoint is None else Path(checkpoint)
    if checkpoint is not None and checkpoint.exists():
        history = _resume(checkpoint, run, model, average, optimizer, scheduler, steps_per_epoch)
        report(f"resumed after epoch {len(history)} from {checkpoint.name}")
    step_model = model
    if config.compile:
        step_model = torch.compile(model)
        _warm_up(step_model, data, config, device)
    ready()

    for epoch in range(len(history), config.epochs):
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # An epoch's randomness depends on its number alone, so that a run can go on anywhere.
            torch.manual_seed(seed * 1_000_003 + epoch)
            row = _train_epoch(
                step_model, average, data, config, optimizer, scheduler, device, epoch, checkpoint
            )
        best = model if average is None else average.module
        validation = evaluate(best, data.validation, precision=config.precision)
        row |= {"validation_loss": validation.loss, "validation_accuracy": validation.accuracy}
        history.append(row)
        report(_progress(row, config.epochs))
        if checkpoint is not None and (epoch + 1) % config.checkpoint_epochs == 0:
            save_training_state(
                checkpoint,
                model,
                optimizer,
                {
                    "run": run,
                    "history": history,
                    "next_learning_rate": scheduler.get_last_lr()[0],
                },
                average,
            )
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return history


def _moving_average(model: nn.Module, decay: float) -> AveragedModel | None:
    if decay == 0:
        return None
    # With batch norm's statistics, which would not be those of the averaged weights otherwise.
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _warm_up(
    model: nn.Module, data: ImageData, config: TrainingConfig, device: torch.device
) -> None:
    """Has a network compiled by two steps that leave no trace in it."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        batches = data.train.training_batches(
            config.batch_size,
            Augmentation(config.padding, config.flip),
            torch.Generator().manual_seed(0),
        )
        # Two: what the first step leaves behind may have the second one compiled again.
        for x, labels in itertools.islice(batches, 2):
            _loss(model, x.to(device), labels.to(device), config, device)[0].backward()
    model.zero_grad(set_to_none=True)
    model.load_state_dict(state)


def _loss(
    model: nn.Module, x: Tensor, labels: Tensor, config: TrainingConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of a batch, and its logits."""
    if config.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with _autocast(device, config.precision):
        logits = model(x)
    loss = functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
    return loss, logits.detach()


def _train_epoch(
    model: nn.Module,
    average: AveragedModel | None,
    data: ImageData,
    config: TrainingConfig,
    optimizer: torch.optim.Optimizer,
    scheduler: lr_scheduler.LRScheduler,
    device: torch.device,
    epoch: int,
    checkpoint: Path | None,
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ()).item()))
    augmentation = Augmentation(config.padding, config.flip)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    losses: list[Tensor] = []
    learning_rates: list[float] = []
    for x, labels in data.train.training_batches(config.batch_size, augmentation, generator):
        x, labels = x.to(device), labels.to(device)
        loss, logits = _loss(model, x, labels, config, device)
        losses.append(loss.detach())
        learning_rates.append(scheduler.get_last_lr()[0])
        # A GPU would have to be waited for: its losses are looked at when the epoch is over.
        if device.type == "cpu":
            _check_finite(losses, learning_rates, epoch, checkpoint)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.gradient_clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()
        scheduler.step()
        if average is not None:
            average.update_parameters(model)
        correct += (logits.argmax(dim=1) == labels).sum()
    _check_finite(losses, learning_rates, epoch, checkpoint)
    # The last update of an epoch may be the one that fails: it must not reach the checkpoint.
    if not torch.stack([value.isfinite().all() for value in model.state_dict().values()]).all():
        raise NonFiniteLossError(
            f"weights are not finite after epoch {epoch + 1}, step {len(losses)} of it, at "
            f"learning rate {learning_rates[-1]:.3g}; last good checkpoint: "
            f"{_last_good(checkpoint)}"
        )
    return {
        "epoch": epoch + 1,
        "learning_rate": learning_rates[-1],
        "train_loss": torch.stack(losses).double().mean().item(),
        "train_accuracy": correct.item() / (len(losses) * config.batch_size),
    }


def _check_finite(
    losses: list[Tensor], learning_rates: list[float], epoch: int, checkpoint: Path | None
) -> None:
    """Raises if the last loss is not finite; names the first one that was not."""
    if math.isfinite(losses[-1].item()):
        return
    step = int(torch.stack(losses).isfinite().long().argmin())
    raise NonFiniteLossError(
        f"loss is {losses[step].item()} in epoch {epoch + 1}, step {step + 1} of it, at learning "
        f"rate {learning_rates[step]:.3g}; last good checkpoint: {_last_good(checkpoint)}"
    )


def _last_good(checkpoint: Path | None) -> str:
    return str(checkpoint) if checkpoint is not None and checkpoint.exists() else "none"


def _scheduler(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, steps_per_epoch: int
) -> lr_scheduler.LRScheduler:
    if config.schedule == "onecycle":
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=config.learning_rate,
            # One more than is taken: the scheduler is stepped after the last step, too.
            total_steps=config.epochs * steps_per_epoch + 1,
            # A rise of one step at least: OneCycleLR divides by its length.
            pct_start=max(config.warmup, 2 / (config.epochs * steps_per_epoch + 1)),
            anneal_strategy="linear",
            cycle_momentum=False,
        )
    return lr_scheduler.MultiStepLR(
        optimizer, [epoch * steps_per_epoch for epoch in config.milestones], gamma=config.decay
    )


def _resume(
    path: Path,
    run: str,
    model: nn.Module,
    average: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    scheduler: lr_scheduler.LRScheduler,
    steps_per_epoch: int,
) -> list[dict[str, Any]]:
    # Asked before anything is loaded: a refused checkpoint leaves the model as it was.
    if read_tensors(path)[1].get("run") != run:
        raise ValueError(
            f"{path} is the checkpoint of a run with other settings, another seed, network or "
            "data set; remove it, or name another file"
        )
    metadata = load_training_state(path, model, optimizer, average)
    history = metadata["history"]
    for group in optimizer.param_groups:
        group["lr"] = metadata["next_learning_rate"]
    scheduler.load_state_dict(
        {
            "last_epoch": len(history) * steps_per_epoch,
            "_last_lr": [metadata["next_learning_rate"]],
        }
    )
    return history


def _fingerprint(model: nn.Module, data: ImageData, config: TrainingConfig, seed: int) -> str:
    images = [data.classes, len(data.train), len(data.validation)]
    description = json.dumps([repr(model), images, dataclasses.asdict(config), seed])
    return hashlib.sha256(description.encode()).hexdigest()[:16]


def _progress(row: dict[str, Any], epochs: int) -> str:
    line = (
        f"epoch {row['epoch']:>3}/{epochs}  learning rate {row['learning_rate']:.4f}  "
        f"loss {row['train_loss']:.4f}  training accuracy {row['train_accuracy']:.2%}"
    )
    if not math.isnan(row["validation_accuracy"]):
        line += f"  validation {row['validation_accuracy']:.2%}"
    return line


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
