import re

import pytest
import torch

from irevnet import create_model
from irevnet.analysis import pixel_metamers
from networks import images, small_irevnet


def distance(first, second):
    return (first - second).flatten(1).norm(dim=1)


def test_the_difference_of_logits_is_relative_to_the_largest():
    model = torch.nn.Flatten().eval()  # its logits are the pixels
    x = torch.tensor([1.0, -4.0], dtype=torch.float64).view(1, 2, 1, 1)
    with torch.no_grad():
        logits = model(x)
    assert pixel_metamers.logit_difference(model, x, logits).item() == 0
    off = logits + torch.tensor([[0.5, -0.25]], dtype=torch.float64)
    expected = 0.5 / off.abs().max().item()
    assert pixel_metamers.logit_difference(model, x, off).item() == pytest.approx(expected)


class TestResembling:
    def test_for_a_linear_classifier_the_result_is_the_projection(self):
        linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).double().eval()
        x, appearance = torch.rand(2, 4, 3, 2, 2, dtype=torch.float64)
        result = pixel_metamers.resembling(linear, x, appearance)
        weight = linear[1].weight.detach()
        null = torch.eye(12) - torch.linalg.pinv(weight) @ weight
        expected = x + ((appearance - x).flatten(1) @ null).view_as(x)
        torch.testing.assert_close(result, expected)

    @pytest.mark.parametrize("name", ["irevnet_digits", "irevnet_digits_bijective"])
    def test_images_have_the_logits_and_are_nearer_to_the_others(self, name):
        model = create_model(name, pretrained="digits")
        x, appearance = torch.rand(2, 8, 1, 8, 8)
        result = pixel_metamers.resembling(model, x, appearance)
        assert result.dtype == torch.float32
        with torch.no_grad():
            assert pixel_metamers.logit_difference(model, result, model(x)).max() < 1e-5
        assert (distance(result, appearance) < distance(x, appearance)).all()
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_gradients_may_be_computed_a_few_at_a_time(self, monkeypatch):
        model = small_irevnet("irevnet_digits_bijective")
        x, appearance = images(model, 4).split(2)
        at_once = pixel_metamers.resembling(model, x, appearance)
        monkeypatch.setattr(pixel_metamers, "_VALUES", 3 * x[0].numel())
        torch.testing.assert_close(pixel_metamers.resembling(model, x, appearance), at_once)

    def test_images_that_have_the_logits_are_kept(self):
        model = small_irevnet("irevnet_digits_bijective")
        x = images(model)
        torch.testing.assert_close(pixel_metamers.resembling(model, x, x, approach=0), x)

    def test_an_appearance_of_another_shape_is_refused(self):
        model = small_irevnet("irevnet_digits_bijective")
        x = images(model)
        message = "appearance must have the shape of images, (2, 1, 8, 8), got (1, 1, 8, 8)"
        with pytest.raises(ValueError, match=re.escape(message)):
            pixel_metamers.resembling(model, x, x[:1])


@pytest.mark.parametrize("name", pixel_metamers.__all__)
def test_training_mode_is_refused(name):
    model = create_model("irevnet_digits")
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"model must be in evaluation mode.*model\.eval"):
        getattr(pixel_metamers, name)(model, x, x)
