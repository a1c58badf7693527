"""Data sets by name: the digits, CIFAR-10, and folders of images such as ILSVRC-2012."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from irevnet.data.folders import FolderImages
from irevnet.data.tensors import TensorImages

__all__ = ["ImageData", "load_cifar10", "load_data", "load_digits", "load_image_folders"]


@dataclass(frozen=True)
class ImageData:
    """A data set, split.

    Args:
        train: images to which networks are fitted.
        validation: images held out of the training images, for choices; may be empty.
        test: images that are used once, after all choices.
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

    def of_classes(self, count: int, seed: int = 0) -> "ImageData":
        """The images of classes drawn at random; labels and names do not change.

        Args:
            count: number of classes.
            seed: seed of the draw.

        Raises:
            ValueError: if there are fewer classes.
        """
        if not 1 <= count <= len(self.classes):
            raise ValueError(f"count must be from 1 to {len(self.classes)} classes, got {count!r}")
        order = torch.randperm(len(self.classes), generator=torch.Generator().manual_seed(seed))
        labels = sorted(order[:count].tolist())
        return ImageData(
            self.train.of_classes(labels),
            self.validation.of_classes(labels),
            self.test.of_classes(labels),
            self.classes,
        )

    def digest(self) -> dict[str, str]:
        """Fingerprints of the images and labels of each part."""
        return {name: getattr(self, name).digest() for name in ("train", "validation", "test")}


def load_digits(validation: int = 0) -> ImageData:
    """The 1,797 handwritten digits that come with scikit-learn: 8x8 pixels, 17 grey levels.

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
    remaining, test = _stratified_split(labels.numpy(), 540)
    train, held_out = _stratified_split(labels[remaining].numpy(), validation)
    return ImageData(
        TensorImages(images[remaining[train]], labels[remaining[train]]),
        TensorImages(images[remaining[held_out]], labels[remaining[held_out]]),
        TensorImages(images[test], labels[test]),
        tuple(str(digit) for digit in range(10)),
    )


def load_cifar10(root: str | os.PathLike[str] = "data", validation: int = 0) -> ImageData:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 and 10,000 colour images of 32x32 pixels.

    Args:
        root: folder of ``cifar-10-batches-py``, which is downloaded if it is missing.
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
    root: str | os.PathLike[str],
    *,
    size: int = 224,
    validation: int = 0,
    workers: int = 2,
    divided: bool = False,
) -> ImageData:
    """Images in class folders under ``train`` and ``val``: ILSVRC-2012, Imagenette, your own.

    Args:
        root: folder with ``train/CLASS/FILE`` and ``val/CLASS/FILE``; ``val`` is the test set.
        size: height and width of the images returned, in pixels.
        validation: how many training images to hold out, stratified.
        workers: processes that read files.
        divided: whether to use ``val`` alone, for a network that has not seen it. In every class,
            every other image is then for training, that is for fitting classifiers and the like to
            the network's representations; the other images are for tests.

    Raises:
        ValueError: if a folder is missing or empty, or if the two are the same or have different
            classes; if a class to be divided has only one image. Files are read later; see
            :func:`irevnet.data.folders.read_image`.
    """
    root = Path(root)
    if divided:
        return _divided(root, size, validation, workers)
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise ValueError(
                f"no folder {root / part}: image folders need train/CLASS/FILE and "
                "val/CLASS/FILE under data.root of params.yaml or IREVNET_DATA"
            )
    if (root / "train").samefile(root / "val"):
        raise ValueError(f"{root}: train and val are the same folder")
    train = FolderImages(root / "train", size, workers)
    test = FolderImages(root / "val", size, workers)
    if train.classes != test.classes:
        different = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"{root}: train and val have different class folders: {different[:5]}")
    labels = np.array([label for _, label in train.files])
    kept, held_out = _stratified_split(labels, validation)
    return ImageData(
        FolderImages(root / "train", size, workers, kept.tolist()),
        FolderImages(root / "train", size, workers, held_out.tolist()),
        test,
        tuple(train.classes),
    )


def _divided(root: Path, size: int, validation: int, workers: int) -> ImageData:
    if validation:
        raise ValueError(f"divided images have no validation images, got validation={validation}")
    if not (root / "val").is_dir():
        raise ValueError(
            f"no folder {root / 'val'}: divided image folders need val/CLASS/FILE under data.root "
            "of params.yaml or IREVNET_DATA"
        )
    whole = FolderImages(root / "val", size, workers)
    places: list[list[int]] = [[] for _ in whole.classes]
    for place, (_, label) in enumerate(whole.files):
        places[label].append(place)
    for name, own in zip(whole.classes, places, strict=True):
        if len(own) < 2:
            raise ValueError(f"class folder {root / 'val' / name} has one image: not divisible")
    halves = ([place for own in places for place in own[start::2]] for start in (0, 1))
    train, test = (FolderImages(root / "val", size, workers, half) for half in halves)
    none = FolderImages(root / "val", size, workers, [])
    return ImageData(train, none, test, tuple(whole.classes))


def load_data(
    name: str,
    *,
    root: str | os.PathLike[str] = "data",
    validation: int = 0,
    size: int = 224,
    workers: int = 2,
    divided: bool = False,
) -> ImageData:
    """Loads a data set by name.

    Args:
        name: ``"digits"``, ``"cifar10"`` or ``"folders"``.
        root: where the files are; the environment variable ``IREVNET_DATA`` overrides it.
        validation: how many training images to hold out.
        size: of images from folders, in pixels.
        workers: processes that read files from folders.
        divided: whether ``val`` is divided in place of a folder ``train``, see
            :func:`load_image_folders`.

    Raises:
        ValueError: if the name is unknown, or the data missing or damaged.

    Example:
        >>> from irevnet.data import load_data
        >>> data = load_data("digits", validation=180)
        >>> len(data.train), len(data.validation), len(data.test), len(data.classes)
        (1077, 180, 540, 10)
        >>> images, labels = next(iter(data.test.batches(32)))
        >>> images.shape, images.dtype, labels.shape
        (torch.Size([32, 1, 8, 8]), torch.float32, torch.Size([32]))
    """
    root = os.environ.get("IREVNET_DATA") or root
    if name == "digits":
        return load_digits(validation)
    if name == "cifar10":
        return load_cifar10(root, validation)
    if name == "folders":
        return load_image_folders(
            root, size=size, validation=validation, workers=workers, divided=divided
        )
    raise ValueError(f"data must be 'digits', 'cifar10' or 'folders', got {name!r}")


def _stratified_split(labels: np.ndarray, held_out: int) -> tuple[Tensor, Tensor]:
    """Indices of the remaining and of ``held_out`` items, stratified, the same every time."""
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

    remaining, chosen = train_test_split(
        indices, test_size=held_out, stratify=labels, random_state=0
    )
    return torch.from_numpy(np.sort(remaining)), torch.from_numpy(np.sort(chosen))
