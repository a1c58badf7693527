import copy
import itertools
import math

import pytest
import torch
from torch import nn

import irevnet
from irevnet.analysis import inversion, jacobian, stability
from irevnet.data import ImageData, TensorImages
from irevnet.training import TrainingConfig, train
from networks import images, randomise, small_irevnet


class Times(nn.Module):
    """A linear F."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def one_coupling(factor):
    """``(a, b)`` to ``(b, a + factor * b)`` on the two halves of an image's pixels."""
    model = irevnet.IRevNet(
        in_shape=(1, 4, 4),
        num_classes=2,
        entry_factor=2,
        blocks=(1,),
        strides=(1,),
        half_channels=(2,),
        bottleneck_ratio=1,
    )
    model.blocks[0].residual = Times(factor)
    return model.double().eval()


def small(**options):
    model = irevnet.create_model("irevnet_digits", blocks=(3, 2, 2), **options)
    return randomise(model).eval()


def test_lipschitz_bounds_of_a_linear_coupling_are_the_known_constants():
    factor = 3.0
    # The singular values of ((0, 1), (1, factor)): with determinant -1, one is the other's inverse.
    expected = (factor + math.sqrt(factor**2 + 4)) / 2
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    for bound in stability.lipschitz_bounds(one_coupling(factor), x, steps=20):
        assert bound.tolist() == pytest.approx([expected] * 2, rel=1e-6)


@pytest.mark.parametrize("name", ["irevnet_digits_bijective", "irevnet_digits"])
def test_power_iteration_agrees_with_the_whole_jacobian(name):
    model = small_irevnet(name)
    x = images(model)
    z = model.encode(x).detach()
    forward = jacobian.spectra(jacobian.jacobians(model.encode, x))
    backward = jacobian.spectra(jacobian.jacobians(model.inverse, z))
    bounds = stability.lipschitz_bounds(model, x, steps=100)
    torch.testing.assert_close(bounds[0], forward[:, 0], rtol=1e-3, atol=0)
    torch.testing.assert_close(bounds[1], backward[:, 0], rtol=1e-3, atol=0)
    slack = 1 + 1e-3
    assert (bounds[1] * slack >= 1 / forward[:, -1]).all()
    if model.is_bijective:
        torch.testing.assert_close(bounds[1], 1 / forward[:, -1], rtol=1e-3, atol=0)


def test_power_iteration_approaches_from_below():
    matrix = torch.randn(7, 12, dtype=torch.float64)
    points = torch.rand(3, 12, dtype=torch.float64)
    largest = torch.linalg.matrix_norm(matrix, 2)
    result = [
        stability.largest_singular_values(lambda x: x @ matrix.T, points, steps)
        for steps in (0, 1, 2, 5, 200)
    ]
    for earlier, later in itertools.pairwise(result):
        assert (earlier <= later * (1 + 1e-12)).all()
    assert (result[0] < 0.99 * largest).all()
    torch.testing.assert_close(result[-1], largest.expand(3))


def test_training_mode_is_refused():
    model, x = small().train(), torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        stability.lipschitz_bounds(model, x, steps=1)
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        stability.errors(model, x)


def test_the_largest_singular_value_of_a_constant_is_zero():
    points = torch.rand(3, 4)
    result = stability.largest_singular_values(lambda x: 0 * x, points, steps=3)
    assert result.tolist() == [0, 0, 0]


def test_known_angles():
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert stability.angle(x, 3 * x) == 0
    assert stability.angle(x, y) == pytest.approx(90)
    assert stability.angle(x, -x) == pytest.approx(180)
    # At an angle this small, the cosine is exactly 1.
    assert stability.angle(x.double(), x + 1e-10 * y.double()) == pytest.approx(
        math.degrees(2e-10), rel=1e-6
    )


@pytest.mark.parametrize("training", [False, True])
def test_reversible_gradients_point_where_stored_ones_do(training):
    model = small(num_classes=10).train(training)
    before = copy.deepcopy(model.state_dict())
    x, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    assert 0 < stability.gradient_angle(model, x, labels) < 0.01
    assert stability.gradient_angle(model.double(), x.double(), labels) < 1e-9
    # Fixed point recovers activations to the bit, so the gradients are the same.
    fixed = irevnet.create_model("irevnet_digits", blocks=(3, 2, 2), streams="fixed")
    fixed.load_state_dict(before)
    assert stability.gradient_angle(fixed.train(training), x, labels) < 1e-5
    # Dropout masks do not make the two differ, either.
    dropping = irevnet.create_model("irevnet_digits", blocks=(3, 2, 2), dropout=0.5)
    assert stability.gradient_angle(dropping.train(training), x, labels) < 0.01
    assert all(layer.p == 0.5 for layer in dropping.modules() if isinstance(layer, nn.Dropout))
    assert model.training == training
    assert model.backward == "stored"
    assert all(
        torch.equal(value, before[name]) for name, value in model.float().state_dict().items()
    )


def test_distributions_change_the_images_as_named():
    x = torch.rand(5, 3, 4, 6)
    sets = stability.distributions(x, torch.Generator().manual_seed(0))
    assert list(sets) == ["data", "noise", "inverted", "shuffled"]
    assert sets["data"] is x
    assert all(s.shape == x.shape and s.min() >= 0 and s.max() <= 1 for s in sets.values())
    torch.testing.assert_close(sets["inverted"] + x, torch.ones_like(x))
    shuffled = sets["shuffled"]
    assert not torch.equal(shuffled, x)
    assert torch.equal(shuffled.flatten(2).sort().values, x.flatten(2).sort().values)
    # One order for all images and channels: their first pixel comes from the same place.
    same = (shuffled[:, :, 0, 0, None] == x.flatten(2)).flatten(0, 1)
    assert same.all(dim=0).sum() == 1


def test_the_search_finds_larger_errors_inside_the_limits():
    model = small()
    x = torch.rand(6, 1, 8, 8)
    start = stability.errors(model, x)
    result, largest = stability.break_inverse(model, x, steps=15, step_size=0.1)
    assert result.min() >= 0
    assert result.max() <= 1
    assert (largest >= start).all()
    assert largest.mean() > 1.2 * start.mean()
    assert torch.equal(stability.errors(model, result), largest)
    wider, wide = stability.break_inverse(model, x, 15, 100.0, limits=(-1000.0, 1000.0))
    assert wider.abs().max() <= 1000
    assert wide.mean() > 10 * largest.mean()
    # The model is unchanged.
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_fixed_point_is_exact_on_what_breaks_floating_point_or_refuses_it():
    model = small()
    fixed = irevnet.create_model("irevnet_digits", blocks=(3, 2, 2), streams="fixed").eval()
    fixed.load_state_dict(model.state_dict())
    result, _ = stability.break_inverse(model, torch.rand(6, 1, 8, 8), steps=10, step_size=0.1)
    assert stability.fixed_point_outcome(fixed, result) == "exact"
    # What comes back is the image rounded to 16 binary digits.
    back = fixed.inverse(fixed.encode(result))
    assert torch.equal(back, (result * 2**16).round() / 2**16)
    outcomes = {stability.fixed_point_outcome(fixed, result * 2.0**k) for k in range(-30, 128, 4)}
    assert outcomes == {"exact", "refused"}
    for value in (math.inf, math.nan):
        assert stability.fixed_point_outcome(fixed, torch.full((1, 1, 8, 8), value)) == "refused"


def test_an_error_other_than_an_overflow_is_raised():
    fixed = small(streams="fixed")
    with pytest.raises(ValueError, match="x must"):
        stability.fixed_point_outcome(fixed, torch.rand(1, 2, 8, 8))


def test_a_wrong_inverse_is_detected(monkeypatch):
    fixed = small(streams="fixed")
    states = irevnet.IRevNet.inverse_states
    monkeypatch.setattr(
        irevnet.IRevNet, "inverse_states", lambda self, z: (s + 1 for s in states(self, z))
    )
    assert stability.fixed_point_outcome(fixed, torch.rand(2, 1, 8, 8)) == "wrong"


def test_errors_at_every_magnitude():
    model = small()
    fixed = irevnet.create_model("irevnet_digits", blocks=(3, 2, 2), streams="fixed").eval()
    fixed.load_state_dict(model.state_dict())
    x = torch.rand(4, 1, 8, 8)
    tiny, one, large, overflowing = stability.scaled_errors(model, x, [1e-7, 1, 1e6, 3e38])
    expected = inversion.reconstruct(model, x).relative_error.max().item()
    assert one == pytest.approx(expected)
    # Piecewise linear: far out, the relative error no longer grows. Near zero, biases remain.
    assert large < 10 * one
    assert tiny > 1e3 * one
    assert overflowing == math.inf
    one, large = stability.scaled_errors(fixed, x, [1, 1e6])
    assert 0 < one < 1e-4
    assert large == math.inf


def test_measuring_through_training_does_not_change_it():
    random = TensorImages(
        torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10
    )
    data = ImageData(random, random, random, tuple("0123456789"))
    config = TrainingConfig(epochs=2, batch_size=16, learning_rate=0.1)
    x, labels = random.first(16)
    sets = stability.distributions(x, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    alone = irevnet.create_model("irevnet_digits", blocks=(3, 2, 2))
    model = copy.deepcopy(alone)
    history = stability.through_training(model, data, config, sets, labels, steps=3)
    assert list(history) == [*sets, "data_ignored"]
    for quantities in history.values():
        assert set(quantities) == {"encode", "inverse", "error", "angle"}
        assert all(len(values) == 2 and min(values) > 0 for values in quantities.values())
    train(alone, data, config)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    bijective = irevnet.create_model("irevnet_digits_bijective", blocks=(1, 1, 1))
    assert list(stability.through_training(bijective, data, config, sets, labels, 3)) == list(sets)
