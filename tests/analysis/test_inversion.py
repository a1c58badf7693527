import math

import pytest
import torch

from irevnet import create_model
from irevnet.analysis import inversion


def test_errors_of_a_reconstruction_that_is_known():
    images = torch.full((2, 1, 2, 2), 0.5)
    reconstructed = images.clone()
    reconstructed[1, 0, 0, 0] += 0.1
    outcome = inversion.Reconstruction(images, reconstructed)
    assert outcome.relative_error.tolist() == pytest.approx([0.0, 0.1])
    assert outcome.equal_as_uint8.tolist() == [True, False]
    assert outcome.peak_signal_to_noise_ratio == pytest.approx(10 * math.log10(8 / 0.01), rel=1e-4)


def test_uint8_rounds_to_the_nearest_level_and_clips():
    x = torch.tensor([[-0.1, 0.0, 0.49 / 255, 0.51 / 255, 1.0, 1.5]])
    assert inversion.to_uint8(x).tolist() == [[0, 0, 0, 1, 255, 255]]


@pytest.mark.parametrize("name", ["irevnet_digits", "irevnet_digits_bijective"])
def test_an_untrained_network_gives_every_image_back(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    outcome = inversion.reconstruct(model, torch.rand(10, 1, 8, 8), batch_size=4)
    assert outcome.reconstructed.shape == (10, 1, 8, 8)
    assert outcome.relative_error.max() < 1e-6
    assert outcome.equal_as_uint8.all()


def test_the_inverse_of_a_bijective_network_costs_what_encoding_costs():
    model = create_model("irevnet_digits_bijective").eval()
    forward, backward = inversion.flops(model, torch.rand(2, 1, 8, 8))
    assert forward == backward > 0


def test_random_representations_have_the_channels_mean_and_spread():
    torch.manual_seed(0)
    model = create_model("irevnet_digits_bijective").eval()
    images = torch.rand(50, 1, 8, 8)
    z = inversion.random_representations(model, images, 4000, torch.Generator().manual_seed(0))
    expected = model.encode(images)
    assert z.shape == (4000, 64, 1, 1)
    torch.testing.assert_close(z.mean(0), expected.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(z.std(0), expected.std(0), atol=0.1, rtol=0.1)


def test_the_hash_of_a_picture_is_that_of_its_file_and_sees_one_grey_level():
    image = torch.randint(0, 256, (3, 5, 4)).float() / 255
    changed = image.clone()
    changed[2, 4, 3] = (image[2, 4, 3] * 255 + 1) % 256 / 255
    assert inversion.png_hash(image) == inversion.png_hash(image + 1e-4)
    assert inversion.png_hash(image) != inversion.png_hash(changed)
    assert len(inversion.png_hash(image)) == 64
