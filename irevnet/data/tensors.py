"""Small image sets: one uint8 tensor that lives on the device and is augmented there."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from irevnet.data.augmentation import Augmentation, TrainingPass

__all__ = ["Batches", "TensorImages"]

Batches = Iterator[tuple[Tensor, Tensor]]


class TensorImages:
    """A set of images that is one tensor on the device.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "TensorImages":
        """Returns the same set on ``device``."""
        return TensorImages(self.images.to(device), self.labels.to(device))

    def subset(self, count: int) -> "TensorImages":
        """The first ``count`` images as a set of their own; all if there are fewer."""
        return TensorImages(self.images[:count], self.labels[:count])

    def of_classes(self, labels: Sequence[int]) -> "TensorImages":
        """The images of some classes as a set; labels do not change."""
        own = torch.isin(self.labels, torch.tensor(labels, device=self.labels.device))
        return TensorImages(self.images[own], self.labels[own])

    def shard(self, rank: int, processes: int) -> "TensorImages":
        """The images of one of several processes that divide the set, each image to one."""
        own = slice(rank, None, processes)
        return TensorImages(self.images[own], self.labels[own])

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """The first ``count`` images ``(count, C, H, W)``, float32 in [0, 1], and their labels."""
        return self.images[:count].float() / 255, self.labels[:count]

    def digest(self) -> str:
        """A fingerprint of images and labels in their order, 16 hexadecimal digits."""
        content = hashlib.sha256()
        for tensor in (self.images, self.labels):
            content.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            content.update(tensor.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()[:16]

    def batches(self, batch_size: int) -> Batches:
        """All images once, in order: float32 in [0, 1], and labels."""
        for images, labels in zip(
            self.images.split(batch_size), self.labels.split(batch_size), strict=True
        ):
            yield images.float() / 255, labels

    def training_batches(
        self, batch_size: int, augmentation: Augmentation, training_pass: TrainingPass
    ) -> Batches:
        """All images once, shuffled and augmented; an incomplete last batch is left out.

        Args:
            batch_size: images in every batch, of which a process gets its share.
            augmentation: what to change at random.
            training_pass: determines order and augmentation.
        """
        generator = training_pass.generator()
        order = torch.randperm(len(self), generator=generator)
        size = (self.images.shape[2], self.images.shape[3])
        flips = None
        if augmentation.flip == "alternating":
            flips = training_pass.alternating_flips(len(self))
        batches = order[: len(self) - len(self) % batch_size].split(batch_size)
        for number, index in enumerate(batches):
            drawn = augmentation.draw(len(index), size, generator)
            if number < training_pass.start:
                continue
            if flips is not None:
                drawn["mirrored"] = flips[index]
            if training_pass.processes > 1:
                own = training_pass.share(batch_size)
                index = index[own]
                drawn = {
                    name: numbers[:, own] if numbers.ndim > 1 else numbers[own]
                    for name, numbers in drawn.items()
                }
            index = index.to(self.labels.device)
            yield augmentation.apply(self.images[index], drawn), self.labels[index]
