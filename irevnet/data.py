"""The experiments' images: embedded digits, CIFAR-10, and any tree of class folders.

Images are ``[0, 1]`` when a network sees them, as in the paper. Small sets are one uint8 tensor
that lives on the device and is augmented there, a batch at a time; folders of files go through
a :class:`~torch.utils.data.DataLoader`. (torchvision takes seconds to import, so it is
imported where it is used: the digits need none of it.)
"""

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

__all__ = [
    "Augmentation",
    "FolderImages",
    "ImageData",
    "TensorImages",
    "load_cifar10",
    "load_data",
    "load_digits",
    "load_image_folders",
]

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image.

    Args:
        padding: pixels of zero padding from which the image is cropped again at random.
        flip: whether to mirror it left to right with probability one half.
    """

    padding: int = 0
    flip: bool = False

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Augments a batch ``(B, C, H, W)`` on its device, each image on its own."""
        count, _, height, width = x.shape
        if self.padding:
            offsets = torch.randint(0, 2 * self.padding + 1, (2, count, 1), generator=generator)
            top, left = offsets.to(x.device)
            rows = top + torch.arange(height, device=x.device)
            columns = left + torch.arange(width, device=x.device)
            index = torch.arange(count, device=x.device)
            padded = functional.pad(x, (self.padding,) * 4)
            # Advanced indices around a slice come first: (B, H, W, C).
            x = padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]]
            x = x.permute(0, 3, 1, 2)
        if self.flip:
            mirrored = torch.rand(count, generator=generator).to(x.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x


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
        """The first ``count`` images as a set of their own; all where there are fewer."""
        return TensorImages(self.images[:count], self.labels[:count])

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """The first images ``(count, C, H, W)``, float32 in [0, 1], and their labels."""
        return self.images[:count].float() / 255, self.labels[:count]

    def batches(self, batch_size: int) -> Batches:
        """All images once, in order: float32 in [0, 1], and labels."""
        for images, labels in zip(
            self.images.split(batch_size), self.labels.split(batch_size), strict=True
        ):
            yield images.float() / 255, labels

    def training_batches(
        self, batch_size: int, augmentation: Augmentation, generator: torch.Generator
    ) -> Batches:
        """All images once, shuffled and augmented; an incomplete last batch is left out.

        Args:
            batch_size: images in every batch.
            augmentation: what to change at random.
            generator: on the CPU; its state alone decides order and augmentation.
        """
        order = torch.randperm(len(self), generator=generator).to(self.labels.device)
        for index in order[: len(self) - len(self) % batch_size].split(batch_size):
            images = augmentation(self.images[index], generator)
            yield images.float() / 255, self.labels[index]


class FolderImages:
    """A set of image files that is read, transformed and batched by worker processes.

    Training images are cropped at random scale, mirrored and colour-distorted; evaluation images
    are scaled to ``256 / 224`` of the size and cropped in the centre (paper, section 4.1).

    Args:
        folder: a tree ``class name/file``, as :class:`torchvision.datasets.ImageFolder` reads.
        size: height and width of the images returned, in pixels.
        workers: processes that read files.
        indices: the files to use, all if None.
    """

    def __init__(
        self, folder: Path, size: int, workers: int, indices: list[int] | None = None
    ) -> None:
        from torchvision import datasets
        from torchvision.transforms import v2

        self.size = size
        self.workers = workers
        to_float = [v2.ToImage(), v2.RGB(), v2.ToDtype(torch.float32, scale=True)]
        evaluation = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
        training = [
            v2.RandomResizedCrop(size),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4),
        ]
        self._evaluation = datasets.ImageFolder(folder, v2.Compose([*evaluation, *to_float]))
        self._training = datasets.ImageFolder(folder, v2.Compose([*training, *to_float]))
        self.classes = self._evaluation.classes
        self.indices = list(range(len(self._evaluation))) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> "FolderImages":
        """Returns itself: files stay where they are, batches are moved by who uses them."""
        return self

    def subset(self, count: int) -> "FolderImages":
        """``count`` images spread over the classes, or all if there are fewer, as a set."""
        fewer = copy.copy(self)
        fewer.indices = self.indices[:: max(1, len(self) // count)][:count]
        return fewer

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` images spread over the classes, ``(count, 3, size, size)``, and labels."""
        chosen = self.subset(count).indices
        images, labels = zip(*(self._evaluation[i] for i in chosen), strict=True)
        return torch.stack(images), torch.tensor(labels)

    def batches(self, batch_size: int) -> Batches:
        """All images once, in order: float32 in [0, 1], and labels."""
        yield from DataLoader(
            Subset(self._evaluation, self.indices), batch_size, num_workers=self.workers
        )

    def training_batches(
        self, batch_size: int, augmentation: Augmentation, generator: torch.Generator
    ) -> Batches:
        """All images once, shuffled and augmented; an incomplete last batch is left out.

        ``augmentation`` is not used: images of different sizes are augmented as files are read.
        """
        yield from DataLoader(
            Subset(self._training, self.indices),
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.workers,
            generator=generator,
        )


@dataclass(frozen=True)
class ImageData:
    """A data set, split.

    Args:
        train: what networks are fitted to.
        validation: held out of the training images, for choosing; may be empty.
        test: looked at once, when everything has been chosen.
        classes: names of the labels.
    """

    train: TensorImages | FolderImages
    validation: TensorImages | FolderImages
    test: TensorImages | FolderImages
    classes: tuple[str, ...]

    def to(self, device: torch.device | str) -> "ImageData":
        """Returns the same data with small sets moved to ``device``."""
        return ImageData(
            self.train.to(device), self.validation.to(device), self.test.to(device), self.classes
        )


def load_digits(validation: int = 0) -> ImageData:
    """The 1,797 handwritten digits that scikit-learn carries: 8x8 pixels, 17 grey levels.

    Source: Alpaydin and Kaynak (1998), https://doi.org/10.24432/C50P49. No download.

    The split is fixed: 540 test images, stratified by class, drawn once with seed 0; the other
    1,257 are for training.

    Args:
        validation: how many training images to hold out, stratified.

    Returns:
        Images ``(N, 1, 8, 8)`` uint8, grey levels spread over 0 to 255.
    """
    from sklearn.datasets import load_digits as load

    digits = load()
    images = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    rest, test = _stratified_split(labels.numpy(), 540)
    train, held_out = _stratified_split(labels[rest].numpy(), validation)
    return ImageData(
        TensorImages(images[rest[train]], labels[rest[train]]),
        TensorImages(images[rest[held_out]], labels[rest[held_out]]),
        TensorImages(images[test], labels[test]),
        tuple(str(digit) for digit in range(10)),
    )


def load_cifar10(root: str | os.PathLike[str] = "data", validation: int = 0) -> ImageData:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 and 10,000 colour images of 32x32 pixels.

    Args:
        root: folder with, or for, ``cifar-10-batches-py``; downloaded if it is not there.
        validation: how many training images to hold out, stratified.

    Returns:
        Images ``(N, 3, 32, 32)`` uint8.

    Raises:
        ValueError: if the data is missing or damaged and cannot be downloaded.
    """
    from torchvision import datasets

    root = Path(root)
    try:
        train, test = (datasets.CIFAR10(root, train=train) for train in (True, False))
    except RuntimeError:
        try:
            train, test = (
                datasets.CIFAR10(root, train=train, download=True) for train in (True, False)
            )
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"CIFAR-10 is not in {root / 'cifar-10-batches-py'}, or damaged there, and could "
                f"not be downloaded ({error}). Put cifar-10-python.tar.gz (md5 "
                f"{datasets.CIFAR10.tgz_md5}) unpacked into {root}, or name another folder in "
                "params.yaml (data.root) or the environment variable IREVNET_DATA"
            ) from error
    sets = []
    for source in (train, test):
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        sets.append(TensorImages(images, torch.tensor(source.targets)))
    kept, held_out = _stratified_split(sets[0].labels.numpy(), validation)
    return ImageData(
        TensorImages(sets[0].images[kept], sets[0].labels[kept]),
        TensorImages(sets[0].images[held_out], sets[0].labels[held_out]),
        sets[1],
        tuple(train.classes),
    )


def load_image_folders(
    root: str | os.PathLike[str], *, size: int = 224, validation: int = 0, workers: int = 2
) -> ImageData:
    """Images in class folders under ``train`` and ``val``: ILSVRC-2012, Imagenette, your own.

    Args:
        root: folder with ``train/CLASS/FILE`` and ``val/CLASS/FILE``; ``val`` is the test set.
        size: height and width of the images returned, in pixels.
        validation: how many training images to hold out, stratified.
        workers: processes that read files.

    Raises:
        ValueError: if a folder is missing or empty, or if the two have other classes.
    """
    root = Path(root)
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise ValueError(
                f"no folder {root / part}: image folders need train/CLASS/FILE and "
                "val/CLASS/FILE under data.root of params.yaml or IREVNET_DATA"
            )
    try:
        train = FolderImages(root / "train", size, workers)
        test = FolderImages(root / "val", size, workers)
    except FileNotFoundError as error:
        raise ValueError(f"{root}: {error}") from error
    if train.classes != test.classes:
        different = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"{root}: train and val have different class folders: {different[:5]}")
    labels = np.array([label for _, label in train._training.samples])
    kept, held_out = _stratified_split(labels, validation)
    return ImageData(
        FolderImages(root / "train", size, workers, kept.tolist()),
        FolderImages(root / "train", size, workers, held_out.tolist()),
        test,
        tuple(train.classes),
    )


def load_data(
    name: str,
    *,
    root: str | os.PathLike[str] = "data",
    validation: int = 0,
    size: int = 224,
    workers: int = 2,
) -> ImageData:
    """Loads a data set by name.

    Args:
        name: ``"digits"``, ``"cifar10"`` or ``"folders"``.
        root: where the files are; the environment variable ``IREVNET_DATA`` overrides it.
        validation: how many training images to hold out.
        size: of images from folders, in pixels.
        workers: processes that read files from folders.

    Raises:
        ValueError: if the name is unknown, or the data missing or damaged.
    """
    root = os.environ.get("IREVNET_DATA") or root
    if name == "digits":
        return load_digits(validation)
    if name == "cifar10":
        return load_cifar10(root, validation)
    if name == "folders":
        return load_image_folders(root, size=size, validation=validation, workers=workers)
    raise ValueError(f"data must be 'digits', 'cifar10' or 'folders', got {name!r}")


def _stratified_split(labels: np.ndarray, held_out: int) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of ``held_out`` items, class shares kept, the same every time."""
    indices = np.arange(len(labels))
    classes = len(np.unique(labels))
    if type(held_out) is not int or not (
        held_out == 0 or classes <= held_out <= len(labels) - classes
    ):
        raise ValueError(
            f"validation must be 0 or an integer from {classes} to {len(labels) - classes} (at "
            f"least one image of each class on either side), got {held_out!r}"
        )
    if held_out == 0:
        return torch.from_numpy(indices), torch.zeros(0, dtype=torch.int64)
    from sklearn.model_selection import train_test_split

    rest, chosen = train_test_split(indices, test_size=held_out, stratify=labels, random_state=0)
    return torch.from_numpy(np.sort(rest)), torch.from_numpy(np.sort(chosen))
