import pytest
import torch
from torch.nn import functional

import irevnet
from irevnet.analysis import inversion, precision
from irevnet.data import ImageData, TensorImages
from irevnet.training import TrainingConfig


def small(**options):
    torch.manual_seed(0)
    model = irevnet.create_model("irevnet_digits", blocks=(3, 2, 2), **options)
    return model.eval()


def test_drift_is_zero_at_the_last_state_and_grows_with_rounding():
    x = torch.rand(4, 1, 8, 8)
    single, double = precision.drift(small(), x), precision.drift(small().double(), x.double())
    assert len(single) == len(double) == 8
    assert single[0] == double[0] == 0
    assert 0 < single[-1] < 1e-5
    assert 0 < double[-1] < 1e-7 * single[-1]


@pytest.mark.parametrize("training", [False, True])
def test_fixed_point_does_not_drift(training):
    model = small(streams="fixed").train(training)
    assert set(precision.drift(model, torch.rand(4, 1, 8, 8))) == {0.0}


def test_gradient_is_that_of_the_loss():
    model = small()
    x, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    actual = precision.gradient(model, x, labels)
    loss = functional.cross_entropy(model(x), labels)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(actual, torch.cat([g.flatten().double() for g in expected]))
    # A second call starts from zero gradients.
    torch.testing.assert_close(precision.gradient(model, x, labels), actual)


def test_known_channels_are_restored_after_they_were_ignored():
    model = small()
    known = model.known
    with inversion.known_channels_ignored(model):
        assert model.known == []
    assert model.known is known
    assert known


def test_training_is_followed_and_known_channels_make_the_difference():
    images = TensorImages(
        torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10
    )
    data = ImageData(images, images, images, tuple("0123456789"))
    config = TrainingConfig(epochs=12, batch_size=8, learning_rate=0.1)
    model = small(num_classes=10)
    values = precision.through_training(model, data, config, images.first(16)[0])
    assert len(values["restored"]) == len(values["ignored"]) == 12
    assert max(values["restored"]) < 1e-4
    assert values["ignored"][-1] > 10 * values["restored"][-1]
    # A constant channel keeps 0.9 of its running variance, 1 at first, in each of 8 steps an epoch.
    expected = [0.9 ** (8 * epoch) for epoch in range(1, 13)]
    assert values["smallest_running_variance"] == pytest.approx(expected, rel=1e-3)
