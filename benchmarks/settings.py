"""Sizes of a run, and the networks that it measures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.steps import images_for
from benchmarks.variants import LABELS, build
from irevnet.network.model import IRevNet

__all__ = ["Save", "Settings", "built"]

Save = Callable[[], None]
"""Writes what has been found until now."""


@dataclass(frozen=True)
class Settings:
    """Sizes of a run.

    Args:
        device: what to measure on.
        data: folder that may hold ``cifar-10-batches-py``.
        skip: variants that cannot be measured here.
        rounds: of every comparison of times.
        blocks: per network, blocks in each stage where depth is not what varies.
        depths: blocks in each stage of ``irevnet_cifar``, for times and peaks.
        byte_depths: the same for saved bytes.
        batch_size: images in a batch where that is not what varies.
        batches: batch sizes, for times and peaks.
        training_steps: before gradients are compared.
        throughput_batch: images in a batch where throughput is compared.
        inverse_batch: the same for ``irevnet_b`` at 64 pixels.
        compile: whether compiled F are tried.
        budgets: memory that something has to fit into, in GiB.
        overrides: per network, arguments that make it smaller; for tests.
    """

    device: torch.device
    data: Path = Path("data")
    skip: tuple[str, ...] = ()
    rounds: int = 5
    blocks: Mapping[str, int] = field(
        default_factory=lambda: {"irevnet_cifar": 18, "irevnet_cifar_bijective": 6}
    )
    depths: tuple[int, ...] = (2, 4, 8, 16)
    byte_depths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    batch_size: int = 32
    batches: tuple[int, ...] = (8, 16, 32)
    training_steps: int = 30
    throughput_batch: int = 32
    inverse_batch: int = 8
    compile: bool = True
    budgets: tuple[int, ...] = (2, 8, 24, 80)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def variants(self) -> list[str]:
        """What is measured."""
        return [variant for variant in LABELS if variant not in self.skip]

    def arguments(self, name: str, blocks: int | None = None, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """Arguments of a network that has ``blocks`` blocks in each stage."""
        count = blocks or self.blocks.get(name)
        depth = {"blocks": (count,) * 3} if count else {}
        return {**depth, **self.overrides.get(name, {}), **more}

    def batch(self, model: torch.nn.Module, count: int) -> tuple[Tensor, Tensor, str]:
        """Images and labels for a network or a variant of one, and what they are.

        Raises:
            ValueError: if it is not an i-RevNet.
        """
        network = getattr(model, "network", model)
        if not isinstance(network, IRevNet):
            raise ValueError(f"model must be an IRevNet or hold one, got {type(model).__name__}")
        return images_for(network.in_shape, count, self.device, self.data)


def built(
    settings: Settings,
    variant: str,
    name: str,
    blocks: int | None,
    **more: Any,  # noqa: ANN401
) -> torch.nn.Module:
    """A network that trains in one of the ways, on the device, always with the same weights.

    Args:
        settings: sizes of the run.
        variant: a key of :data:`benchmarks.variants.LABELS`.
        name: of an i-RevNet of the zoo.
        blocks: in each stage; None for those of ``settings``.
        **more: arguments of the network.
    """
    torch.manual_seed(0)
    model = build(variant, name, **settings.arguments(name, blocks, **more))
    return model.to(settings.device)
