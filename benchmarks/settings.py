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

__all__ = ["BIJECTIVE", "RELEASED", "Save", "Settings", "built"]

RELEASED = "irevnet_cifar"
BIJECTIVE = "irevnet_cifar_bijective"

Save = Callable[[], None]
"""Writes the results up to now."""


@dataclass(frozen=True)
class Settings:
    """Sizes of a run.

    Args:
        device: device to measure.
        data: folder that may hold ``cifar-10-batches-py``.
        skip: variants that cannot be measured here.
        rounds: rounds of every comparison of times.
        blocks: per network, blocks in each stage if depth does not vary.
        depths: blocks in each stage of the released network, for times and peaks.
        byte_depths: the same for saved bytes.
        batch_size: images in a batch if the batch size does not vary.
        batches: batch sizes, for times and peaks.
        training_steps: training steps before gradients are compared.
        throughput_batch: images in a batch for the comparison of throughput.
        inverse_batch: images in a batch for inverting ``irevnet_b`` at 64 x 64 pixels.
        compile: whether compiled F are tried.
        budgets: sizes of memory into which training has to fit, in GiB.
        overrides: per network, arguments that make it smaller; for tests.
    """

    device: torch.device
    data: Path = Path("data")
    skip: tuple[str, ...] = ()
    rounds: int = 5
    blocks: Mapping[str, int] = field(default_factory=lambda: {RELEASED: 18, BIJECTIVE: 6})
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
        """The variants that are measured."""
        return [variant for variant in LABELS if variant not in self.skip]

    def arguments(self, name: str, blocks: int | None = None, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """Arguments of a network that has ``blocks`` blocks in each stage."""
        count = blocks or self.blocks.get(name)
        depth = {"blocks": (count,) * 3} if count else {}
        return {**depth, **self.overrides.get(name, {}), **more}

    def batch(self, model: torch.nn.Module, count: int) -> tuple[Tensor, Tensor, str]:
        """Images and labels for a network or a variant of one, and a description of the images.

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
    """A network of one variant, on the device, always with the same weights.

    Args:
        settings: sizes of the run.
        variant: a key of :data:`benchmarks.variants.LABELS`.
        name: name of an i-RevNet of the zoo.
        blocks: blocks in each stage; None for those of ``settings``.
        **more: arguments of the network.
    """
    torch.manual_seed(0)
    model = build(variant, name, **settings.arguments(name, blocks, **more))
    return model.to(settings.device)
