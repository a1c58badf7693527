"""Preparations for the first training step: checks of a recipe, and initialisation."""

from typing import cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from irevnet.data import ImageData
from irevnet.network.bottleneck import Bottleneck
from irevnet.training.config import TrainingConfig

__all__ = ["check_fit", "moving_average", "parts_per_process", "scale_residuals"]


def parts_per_process(config: TrainingConfig, processes: int) -> int:
    """Number of micro-batches per process."""
    return -(-config.accumulation // processes)


def check_fit(
    model: nn.Module,
    data: ImageData,
    config: TrainingConfig,
    processes: int,
    device: torch.device,
) -> None:
    """Raises ``ValueError`` if a recipe does not fit the data, the network or the processes."""
    if config.batch_size > len(data.train):
        raise ValueError(
            f"batch_size must be at most the number of training images, {len(data.train)}, "
            f"got {config.batch_size}"
        )
    parts = parts_per_process(config, processes)
    if config.batch_size % (processes * parts):
        raise ValueError(
            f"batch_size must be a multiple of {processes * parts}, for {processes} processes that "
            f"take {parts} parts each, got {config.batch_size}"
        )
    if config.sync_batch_norm and processes > 1 and device.type == "cpu":
        raise ValueError("sync_batch_norm needs GPUs: PyTorch's SyncBatchNorm does not run on CPUs")
    stride = getattr(model, "total_stride", 1)
    if wrong := [side for side in config.sides if side % stride]:
        raise ValueError(
            f"sides must be multiples of the network's total stride, {stride}, got {wrong[0]}"
        )


def scale_residuals(model: nn.Module, factor: float) -> None:
    """Scales the last convolution of every F, in place."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Bottleneck):
                cast("nn.Conv2d", module[-1]).weight.mul_(factor)


def moving_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """A network with averages of the model's weights and statistics; None if ``decay`` is 0."""
    if decay == 0:
        return None
    # Also average batch norm's statistics, which would otherwise not fit the averaged weights.
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
