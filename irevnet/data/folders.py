"""Image files in class folders, read and augmented by worker processes.

torchvision takes seconds to import, so it is imported where it is used.
"""

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from irevnet.data.augmentation import Augmentation, TrainingPass
from irevnet.data.tensors import Batches

__all__ = ["FolderImages", "read_image"]

# The extensions of torchvision.datasets.ImageFolder.
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_MOST_PIXELS = 2**27  # 134 megapixels, 400 MB decoded
_MOST_ASPECT = 64  # the longer side over the shorter; beyond this an image is only a stripe


def read_image(path: Path) -> Image.Image:
    """Reads an image file as 8-bit RGB.

    Greyscale becomes three equal channels, CMYK and palettes are converted, the upper eight of 16
    bits are kept, and transparency is dropped, which leaves the colours under it as they are in the
    file. Orientation tags are not applied, as in torchvision.

    Args:
        path: a file in any format that Pillow reads, whatever its extension.

    Raises:
        ValueError: if it is not a regular file or not an image, is damaged, has floating-point
            values, is larger than 134 megapixels or more than 64 times as long as wide; the message
            names it.
    """
    if not path.is_file():  # opening a named pipe would block forever
        raise ValueError(f"{path} is not a regular file")
    try:
        with Image.open(path) as image:
            long, short = max(image.size), min(image.size)
            if long * short > _MOST_PIXELS or long > _MOST_ASPECT * short:
                raise ValueError(
                    f"an image may have {_MOST_PIXELS} pixels at most and be {_MOST_ASPECT} times "
                    f"as long as wide, got {image.width} x {image.height}"
                )
            if image.mode == "F":
                raise ValueError("images of floating-point values have no range to scale by")
            if image.mode.startswith("I"):
                pixels = np.asarray(image).astype(np.int64) >> 8
                return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    # Pillow's errors for damaged files depend on the format.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


class FolderImages:
    """A set of image files that is read, transformed and batched by worker processes.

    Training images are cropped at random scale, mirrored and colour-distorted; evaluation images
    are scaled to ``256 / 224`` of the size and cropped in the centre (paper, section 4.1).

    Args:
        folder: a tree ``class name/file``, in which files may lie deeper. Names that begin with a
            dot are left out, such as ``.ipynb_checkpoints``. A class folder may be a link; links to
            folders inside it are not followed.
        size: height and width of the images returned, in pixels.
        workers: processes that read files.
        indices: the files to use, all if None.

    Raises:
        ValueError: if there are no classes, or one has no images.

    Attributes:
        classes: names of the class folders, sorted; a label is an index into them.
        files: paths and labels, sorted.
    """

    def __init__(
        self, folder: Path, size: int, workers: int, indices: list[int] | None = None
    ) -> None:
        from torchvision.transforms import v2

        self.folder = Path(folder)
        self.size = size
        self.workers = workers
        to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        evaluation = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
        training = [
            v2.RandomResizedCrop(size),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4),
        ]
        self._evaluation = v2.Compose([*evaluation, *to_float])
        self._training = v2.Compose([*training, *to_float])
        self.classes = _classes(self.folder)
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in _images(self.folder / name)
        ]
        self.indices = list(range(len(self.files))) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> "FolderImages":
        """Returns itself: files stay where they are, and the caller moves batches."""
        return self

    def subset(self, count: int) -> "FolderImages":
        """``count`` images evenly spaced over the set, or all if there are fewer, as a set.

        Files are sorted by class, so that each class is represented in proportion to its size.
        """
        number = min(count, len(self))
        subset = copy.copy(self)
        subset.indices = [self.indices[i * len(self) // number] for i in range(number)]
        return subset

    def of_classes(self, labels: Sequence[int]) -> "FolderImages":
        """The images of some classes as a set; labels do not change."""
        subset = copy.copy(self)
        wanted = set(labels)
        subset.indices = [index for index in self.indices if self.files[index][1] in wanted]
        return subset

    def shard(self, rank: int, processes: int) -> "FolderImages":
        """The images of one of several processes that divide the set, each image to one."""
        subset = copy.copy(self)
        subset.indices = self.indices[rank::processes]
        return subset

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """The images of :meth:`subset`, ``(count, 3, size, size)``, and their labels.

        They are evenly spaced over the set, not its first ones, because files are sorted by class.
        """
        chosen = self.subset(count).indices
        files = _Files(self.files, chosen, self._evaluation)
        images, labels = zip(*(files[i] for i in range(len(files))), strict=True)
        return torch.stack(images), torch.tensor(labels)

    def batches(self, batch_size: int) -> Batches:
        """All images once, in order: float32 in [0, 1], and labels."""
        files = _Files(self.files, self.indices, self._evaluation)
        yield from self._loader(files, batch_size)

    def digest(self) -> str:
        """A fingerprint of the files' names, sizes and labels, 16 hexadecimal digits.

        A file that is replaced by another of the same size goes unnoticed: reading the files would
        take as long as an epoch of training.
        """
        content = hashlib.sha256(str(self.size).encode())
        for index in self.indices:
            path, label = self.files[index]
            name = path.relative_to(self.folder).as_posix()
            content.update(f"{name} {path.stat().st_size} {label}\n".encode())
        return content.hexdigest()[:16]

    def training_batches(
        self, batch_size: int, augmentation: Augmentation, training_pass: TrainingPass
    ) -> Batches:
        """All images once, shuffled and augmented; an incomplete last batch is left out.

        ``training_pass`` determines order and augmentation, whatever the number of workers.

        Args:
            batch_size: images in every batch, of which a process gets its share.
            augmentation: only ``side`` is used: images of different sizes are augmented when
                files are read.
            training_pass: determines order and augmentation.
        """
        generator = training_pass.generator()
        order = torch.randperm(len(self), generator=generator)
        seeds = torch.randint(2**62, (len(self),), generator=generator)
        taken = slice(training_pass.start * batch_size, len(self) - len(self) % batch_size)
        own = training_pass.share(batch_size)
        positions, own_seeds = (
            numbers[taken].view(-1, batch_size)[:, own].flatten().tolist()
            for numbers in (order, seeds)
        )
        chosen = [self.indices[position] for position in positions]
        files = _Files(self.files, chosen, self._training, own_seeds)
        size = own.stop - own.start
        for images, labels in self._loader(files, size):
            yield augmentation.resize(images), labels

    def _loader(self, files: "_Files", batch_size: int) -> "DataLoader[tuple[Tensor, int]]":
        # Without its own generator, the loader would draw a seed from the global one.
        return DataLoader(files, batch_size, num_workers=self.workers, generator=torch.Generator())


class _Files(Dataset[tuple[Tensor, int]]):
    """Chosen files as tensors; with seeds, each file's transform is seeded with its own."""

    def __init__(
        self,
        files: list[tuple[Path, int]],
        indices: list[int],
        transform: Callable[[Image.Image], Tensor],
        seeds: list[int] | None = None,
    ) -> None:
        self.files = [files[index] for index in indices]
        self.transform = transform
        self.seeds = seeds

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        path, label = self.files[position]
        image = read_image(path)
        if self.seeds is None:
            return self.transform(image), label
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seeds[position])
            return self.transform(image), label


def _classes(folder: Path) -> list[str]:
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise ValueError(f"{folder} has no class folders")
    for name in names:
        if folder.resolve().is_relative_to((folder / name).resolve()):
            raise ValueError(f"{folder / name} is a link to a folder that it lies in")
    return names


def _images(folder: Path) -> list[Path]:
    def walk() -> Iterator[Path]:
        for place, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if name.lower().endswith(_EXTENSIONS) and not name.startswith("."):
                    yield Path(place, name)

    images = sorted(walk())
    if not images:
        raise ValueError(
            f"class folder {folder} has no images; their names end in {', '.join(_EXTENSIONS)}"
        )
    return images
