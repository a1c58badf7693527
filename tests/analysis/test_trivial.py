import numpy as np
import pytest
import torch
from torch import nn

import irevnet
from irevnet.analysis import dimensionality, interpolation, jacobian, separation, trivial
from networks import randomise


class Linear(nn.Module):
    """``phi(x) = A x``, as a network of two states."""

    in_shape = (3, 2, 2)

    def __init__(self, features=7):
        super().__init__()
        matrix = torch.randn(features, 12, dtype=torch.float64)
        self.matrix = nn.Parameter(matrix, requires_grad=False)

    def encode(self, x):
        return (x.flatten(1) @ self.matrix.T)[:, :, None, None]

    def states(self, x):
        yield x
        yield self.encode(x)


def trained():
    return randomise(irevnet.create_model("resnet_digits").double()).eval()


def test_the_jacobian_has_the_singular_values_that_the_theory_says():
    network = Linear()
    x = torch.rand(2, 3, 2, 2, dtype=torch.float64)
    actual = jacobian.spectra(jacobian.jacobians(trivial.TrivialMap(network).eval().encode, x))
    # phi has rank 7: in the other five directions the map is only the copy.
    own = torch.cat([torch.linalg.svdvals(network.matrix), torch.zeros(5, dtype=torch.float64)])
    torch.testing.assert_close(actual, (1 + own.square()).sqrt().expand(2, 12))


def test_the_inverse_is_exact_to_the_bit():
    network = trained()
    model = trivial.TrivialMap(network).eval()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    z = model.encode(x)
    assert z.shape == (5, 64 + 192, 1, 1)
    assert torch.equal(model.inverse(z), x)
    torch.testing.assert_close(z[:, 64:], network.encode(x).mean(dim=(2, 3), keepdim=True))


def test_states_are_the_image_beside_each_state_of_the_network():
    network = trained()
    model = trivial.TrivialMap(network).eval()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    own, states = list(network.states(x)), list(model.states(x))
    assert len(own) == len(states) == 13
    assert torch.equal(states[-1], model.encode(x))
    averaged = separation.averaged_states(model, x, batch_size=2)
    for state, mine, array in zip(own, states, averaged, strict=True):
        assert mine.shape == (5, 64 + state.shape[1], 1, 1)
        assert torch.equal(mine[:, :64, 0, 0], x.flatten(1))
        torch.testing.assert_close(mine[:, 64:, 0, 0], state.mean(dim=(2, 3)))
        np.testing.assert_allclose(array, mine[:, :, 0, 0].detach(), atol=1e-12)


def test_the_path_between_two_images_is_the_blend_of_their_pixels():
    model = trivial.TrivialMap(trained()).eval()
    start, end = torch.rand(2, 3, 1, 8, 8, dtype=torch.float64).unbind(0)
    path = interpolation.interpolate(model, start, end, 5)
    assert torch.equal(path, interpolation.blend(start, end, 5))


def test_known_shares_of_the_image():
    # Two pixels with squares 1 and 9 and no variance, a feature with square 4 and variance 4.
    codes = np.array([[1.0, 3.0, 2.0], [1.0, 3.0, -2.0]])
    assert trivial.image_shares(codes, 2) == pytest.approx((10 / 14, 0.0))
    assert trivial.image_shares(codes, 3) == pytest.approx((1.0, 1.0))


def test_at_equal_dimension_the_image_loses_its_last_components():
    generator = np.random.default_rng(0)
    # Every image is a point on a circle in each of two planes, so that all norms are equal.
    phases = generator.uniform(0, 2 * np.pi, (500, 2))
    planes = np.stack([np.cos(phases), np.sin(phases)], axis=2) * [[3.0], [1.0]]
    turn, _ = np.linalg.qr(generator.normal(size=(4, 4)))
    images = planes.reshape(500, 4) @ turn
    features = generator.normal(size=(500, 9))
    codes = np.concatenate([images, features], axis=1)
    lost = []
    for k in range(5):
        train, test, errors = trivial.equal_dimension(codes[:400], codes[400:], 4, k)
        assert train.shape == (400, 4)
        assert test.shape == (100, 4)
        assert errors.shape == (100,)
        lost.append(errors.mean())
    # Without the small circle, its radius over the norm is lost; without both, everything.
    assert lost[0] == 0
    assert lost[2] == pytest.approx(1 / np.sqrt(10), rel=0.05)
    assert lost[4] == pytest.approx(1, rel=0.05)
    assert lost == sorted(lost)
    # The features' own components, largest first.
    expected = dimensionality.principal_components(features[:400], features[400:])
    np.testing.assert_allclose(train, expected[0][:, :4])
    np.testing.assert_allclose(test, expected[1][:, :4])


def test_features_that_determine_the_image_lose_nothing_of_it():
    images = np.random.default_rng(0).normal(size=(60, 3))
    codes = np.concatenate([images, 2 * images + 1], axis=1)
    _, _, lost = trivial.equal_dimension(codes[:40], codes[40:], 3, 3)
    np.testing.assert_allclose(lost, 0, atol=1e-12)


@pytest.mark.parametrize("features", [-1, 3, 5])
def test_more_components_than_available_are_refused(features):
    codes = np.random.default_rng(0).normal(size=(30, 6))
    with pytest.raises(ValueError, match=f"features must be from 0 to 2.* got {features}"):
        trivial.equal_dimension(codes, codes, 4, features)


def test_fewer_images_than_pixels_are_refused():
    codes = np.random.default_rng(0).normal(size=(3, 6))
    with pytest.raises(ValueError, match="more items than pixels, 4; got 1 and 3 items"):
        trivial.equal_dimension(codes, codes, 4, 1)


def test_both_classifiers_score_what_is_separable():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    codes = 5 * np.eye(3)[labels] + generator.normal(0, 0.1, (60, 3))
    wrong = (labels[30:] + (np.arange(30) < 6)) % 3
    actual = trivial.accuracies(codes[:30], codes[30:], (labels[:30], wrong), [1.0], 0.1)
    assert actual == {"svm": 0.8, "knn": 0.8, "penalty": 1.0, "penalty_at_edge": 0}
