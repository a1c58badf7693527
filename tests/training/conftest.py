"""What the tests of training share."""

import pytest

from irevnet.data import ImageData, TensorImages, load_digits


@pytest.fixture(scope="session")
def digits():
    """132 training images, which at a batch size of 32 leaves some out, and 20 to validate."""
    data = load_digits(20)
    few = TensorImages(data.train.images[:132], data.train.labels[:132])
    return ImageData(few, data.validation, data.test, data.classes)
