"""Image data: scikit-learn's digits, CIFAR-10, and image files in class folders.

Networks see images in ``[0, 1]``, as in the paper. A small set is one uint8 tensor that lives on
the device and is augmented there, a batch at a time; folders of files go through a
:class:`~torch.utils.data.DataLoader`.
"""

from irevnet.data.augmentation import Augmentation, TrainingPass
from irevnet.data.datasets import (
    ImageData,
    load_cifar10,
    load_data,
    load_digits,
    load_image_folders,
)
from irevnet.data.folders import FolderImages
from irevnet.data.tensors import TensorImages

__all__ = [
    "Augmentation",
    "FolderImages",
    "ImageData",
    "TensorImages",
    "TrainingPass",
    "load_cifar10",
    "load_data",
    "load_digits",
    "load_image_folders",
]
