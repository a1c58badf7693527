"""Random changes of training images, and the seeds that determine them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Augmentation", "TrainingPass"]


@dataclass(frozen=True)
class TrainingPass:
    """One pass over the training images: these numbers determine all of its randomness.

    Args:
        seed: seed of the training run.
        epoch: number of earlier passes.
        start: number of batches to skip at the beginning, because an interrupted run has used them
            already. The other batches do not change.
        rank: rank of this process, from 0.
        processes: number of processes that share every batch.
    """

    seed: int
    epoch: int
    start: int = 0
    rank: int = 0
    processes: int = 1

    @property
    def epoch_seed(self) -> int:
        """A seed for everything else that is random in this pass, such as dropout."""
        return self.seed * 1_000_003 + self.epoch

    def share(self, batch_size: int) -> slice:
        """This process's part of a batch."""
        return slice(
            self.rank * batch_size // self.processes,
            (self.rank + 1) * batch_size // self.processes,
        )

    def generator(self) -> torch.Generator:
        """A generator on the CPU for order and augmentation."""
        seeds = torch.Generator().manual_seed(self.epoch_seed)
        seed = torch.randint(2**62, (), generator=seeds).item()
        return torch.Generator().manual_seed(int(seed))

    def alternating_flips(self, count: int) -> Tensor:
        """Which of ``count`` images are mirrored, ``(count,)`` bool, alternating over passes."""
        first = torch.rand(count, generator=torch.Generator().manual_seed(self.seed)) < 0.5
        return first if self.epoch % 2 == 0 else ~first


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image.

    Args:
        padding: pixels of zero padding from which the image is cropped again at random.
        flip: whether to mirror it left to right: ``"none"``, ``"random"`` (with probability one
            half) or ``"alternating"``, see :meth:`TrainingPass.alternating_flips`.
        cutout: side of a square that is set to grey, in pixels; 0 for none. It may lie partly
            outside of the image.
        side: height and width to which the image is resized in the end; None for its own.
    """

    padding: int = 0
    flip: str = "none"
    cutout: int = 0
    side: int | None = None

    def draw(
        self, count: int, size: tuple[int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Random numbers for ``count`` images of ``size`` (height, width), on the CPU."""
        drawn = {}
        if self.padding:
            drawn["offsets"] = torch.randint(
                0, 2 * self.padding + 1, (2, count, 1), generator=generator
            )
        if self.flip == "random":
            drawn["mirrored"] = torch.rand(count, generator=generator) < 0.5
        if self.cutout:
            fraction = torch.rand((2, count, 1), generator=generator)
            drawn["centres"] = (fraction * torch.tensor(size)[:, None, None]).long()
        return drawn

    def apply(self, x: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """Changes images ``(B, C, H, W)`` uint8 on their device.

        Args:
            x: the images.
            drawn: what :meth:`draw` returns, and ``mirrored``, ``(B,)`` bool, to alternate flips.

        Returns:
            ``(B, C, side, side)`` float32 in [0, 1].
        """
        count, _, height, width = x.shape
        drawn = {name: numbers.to(x.device) for name, numbers in drawn.items()}
        rows = torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device)
        if "offsets" in drawn:
            top, left = drawn["offsets"]
            index = torch.arange(count, device=x.device)
            padded = functional.pad(x, (self.padding,) * 4)
            # Advanced indices around a slice come first: (B, H, W, C).
            x = padded[index[:, None, None], :, (top + rows)[:, :, None], (left + columns)[:, None]]
            x = x.permute(0, 3, 1, 2)
        if "mirrored" in drawn:
            x = torch.where(drawn["mirrored"][:, None, None, None], x.flip(3), x)
        if "centres" in drawn:
            row, column = (centre - self.cutout // 2 for centre in drawn["centres"])
            in_row = (row <= rows) & (rows < row + self.cutout)
            in_column = (column <= columns) & (columns < column + self.cutout)
            x = x.masked_fill(in_row[:, None, :, None] & in_column[:, None, None, :], 127)
        return self.resize(x.float() / 255)

    def resize(self, x: Tensor) -> Tensor:
        """Resizes images ``(B, C, H, W)``, floating point, to ``side``."""
        if self.side is None or x.shape[2:] == (self.side, self.side):
            return x
        size = (self.side, self.side)
        return functional.interpolate(x, size, mode="bilinear", antialias=True)
