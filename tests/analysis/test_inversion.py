import pytest
import torch

from irevnet import create_model
from irevnet.analysis import inversion


def test_errors_of_a_known_reconstruction():
    images = torch.full((2, 1, 2, 2), 0.5)
    reconstructed = images.clone()
    reconstructed[1, 0, 0, 0] += 0.1
    outcome = inversion.Reconstruction(images, reconstructed)
    assert outcome.relative_error.tolist() == pytest.approx([0.0, 0.1])
    assert outcome.equal_as_uint8.tolist() == [True, False]


def test_uint8_rounds_to_the_nearest_level_and_clips():
    x = torch.tensor([[-0.1, 0.0, 0.49 / 255, 0.51 / 255, 1.0, 1.5]])
    assert inversion.to_uint8(x).tolist() == [[0, 0, 0, 1, 255, 255]]


@pytest.mark.parametrize("name", ["irevnet_digits", "irevnet_digits_bijective"])
def test_an_untrained_network_recovers_every_image(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    outcome = inversion.reconstruct(model, torch.rand(10, 1, 8, 8), batch_size=4)
    assert outcome.reconstructed.shape == (10, 1, 8, 8)
    assert outcome.relative_error.max() < 1e-6
    assert outcome.equal_as_uint8.all()


@pytest.mark.parametrize("name", ["irevnet_digits_bijective", "irevnet_cifar_bijective"])
def test_states_are_moved_back_into_the_image(name):
    torch.manual_seed(0)
    model = create_model(name, blocks=(1, 2, 1)).eval()
    for block in model.blocks:  # without F the network only moves values
        torch.nn.init.zeros_(block.residual[-1].weight)
    x = torch.rand(2, *model.in_shape)
    walks = inversion.there_and_back(model, x)
    assert walks.shape == (2, 2, 5, *model.in_shape)
    assert torch.equal(walks, x[:, None, None].expand_as(walks))


def test_a_state_is_shown_by_its_values_in_other_places():
    torch.manual_seed(0)
    model = create_model("irevnet_digits_bijective").eval()
    x = torch.rand(2, 1, 8, 8)
    walks = inversion.there_and_back(model, x)
    assert torch.equal(walks[:, 0, 0], x)
    z = model.encode(x)
    assert torch.equal(walks[:, 0, -1].flatten(1).sort().values, z.flatten(1).sort().values)
    torch.testing.assert_close(walks[:, 1], walks[:, 0])
    injective = create_model("irevnet_digits").eval()
    with pytest.raises(ValueError, match="must be bijective"):
        inversion.there_and_back(injective, x)


def test_a_normalised_image_is_moved_back_to_the_image():
    normalization = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    model = create_model("irevnet_cifar_bijective", blocks=(1, 1, 1), normalization=normalization)
    x = torch.rand(2, 3, 32, 32)
    walks = inversion.there_and_back(model.eval(), x)
    torch.testing.assert_close(walks[:, 0, 0], x)
    torch.testing.assert_close(walks[:, 1, 0], x, rtol=0, atol=1e-5)


def test_training_mode_is_refused():
    model, x = create_model("irevnet_digits_bijective"), torch.rand(2, 1, 8, 8)
    refused = pytest.raises(ValueError, match="model must be in evaluation mode")
    with refused:
        inversion.reconstruct(model, x)
    with refused:
        inversion.there_and_back(model, x)
    with refused:
        inversion.random_representations(model, x, 3, torch.Generator())


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


def test_the_hash_of_a_picture_sees_a_change_of_one_grey_level():
    image = torch.randint(0, 256, (3, 5, 4)).float() / 255
    changed = image.clone()
    changed[2, 4, 3] = (image[2, 4, 3] * 255 + 1) % 256 / 255
    assert inversion.png_hash(image) == inversion.png_hash(image + 1e-4)
    assert inversion.png_hash(image) != inversion.png_hash(changed)
    assert len(inversion.png_hash(image)) == 64


def test_a_summary_counts_networks_not_images():
    x = torch.rand(10, 1, 4, 4) + 0.5
    perfect = inversion.Reconstruction(x, x.clone())
    off = inversion.Reconstruction(x, x * 1.1)
    summary = inversion.summarise([perfect, off, perfect])
    assert summary["networks"] == 3
    assert summary["relative_errors"] == pytest.approx([0.0, 0.1, 0.0], abs=1e-6)
    assert summary["shares_equal"][::2] == [1.0, 1.0]
    assert summary["relative_error"]["n"] == 3
    assert summary["relative_error"]["value"] == pytest.approx(0.1 / 3, abs=1e-6)
    # Student's t with two degrees of freedom: 4.303 standard errors, and nothing below zero.
    assert summary["relative_error"]["low"] == 0
    assert summary["relative_error"]["high"] == pytest.approx(0.1 / 3 * 5.303, rel=1e-3)
    assert summary["equal_as_uint8"]["value"] == pytest.approx(sum(summary["shares_equal"]) / 3)
    assert summary["largest_relative_error"] == pytest.approx(0.1, abs=1e-5)


def test_without_known_channels_an_injective_network_inverts_every_channel():
    model = create_model("irevnet_digits", blocks=(3, 2, 2)).eval()
    known = model.known
    with torch.no_grad():
        z = model.encode(torch.rand(2, 1, 8, 8))
        z[:, -1] += 1  # no image has such a representation
        restored = model.inverse(z)
        with inversion.known_channels_ignored(model):
            assert not torch.equal(model.inverse(z), restored)
    assert model.known is known
