"""Fixtures for the tests of training."""

import pytest

from irevnet.data import ImageData, TensorImages, load_digits


@pytest.fixture(scope="session")
def digits():
    """132 training images, so that batches of 32 leave some out, and 20 for validation."""
    data = load_digits(20)
    few = TensorImages(data.train.images[:132], data.train.labels[:132])
    return ImageData(few, data.validation, data.test, data.classes)
