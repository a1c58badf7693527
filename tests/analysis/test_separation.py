import numpy as np
import pytest
import torch

from irevnet import create_model
from irevnet.analysis import separation


def clusters(generator, dimensions, centres, count):
    labels = np.arange(count) % len(centres)
    noise = generator.normal(0, 0.1, (count, dimensions))
    return centres[labels] + noise, labels


@pytest.fixture
def separable():
    generator = np.random.default_rng(0)
    centres = generator.normal(0, 3, (3, 5))
    return *clusters(generator, 5, centres, 60), *clusters(generator, 5, centres, 30)


def test_both_classifiers_separate_separable_classes(separable):
    assert separation.nearest_neighbour_correct(*separable).all()
    assert separation.svm_correct(*separable, penalties=[0.1, 1.0]).all()


def test_a_linear_machine_cannot_do_what_a_neighbour_can():
    generator = np.random.default_rng(0)
    corners = np.array([[0, 0], [1, 1], [0, 1], [1, 0]]) * 4.0
    train, corner = clusters(generator, 2, corners, 80)
    test, test_corner = clusters(generator, 2, corners, 40)
    labels, test_labels = corner // 2, test_corner // 2
    assert separation.nearest_neighbour_correct(train, labels, test, test_labels).all()
    svm = separation.svm_correct(train, labels, test, test_labels, penalties=[1.0])
    assert svm.mean() < 0.8


def test_class_distances_are_those_of_planted_classes():
    # Two classes, 4 apart, each of two points, 1 apart: two pairs within, four between.
    features = np.array([[0.0, 0.0], [0.0, 4.0], [1.0, 0.0], [1.0, 4.0]])
    distances = separation.class_distances(features, np.array([0, 1, 0, 1]))
    assert distances.within == pytest.approx(1)
    assert distances.between == pytest.approx((4 + np.sqrt(17)) / 2)
    assert distances.ratio == pytest.approx(2 / (4 + np.sqrt(17)))


def test_class_distances_do_not_see_classes_that_are_not_there():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(400, 50)).astype(np.float32)
    distances = separation.class_distances(features, np.arange(400) % 4)
    assert distances.ratio == pytest.approx(1, abs=0.005)
    # Two points of a Gaussian are the square root of two times as far apart as one from 0.
    assert distances.within == pytest.approx(np.sqrt(2 * 50), rel=0.02)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_class_distances_need_pairs_of_both_kinds(labels):
    with pytest.raises(ValueError, match="two classes or more, one of them twice"):
        separation.class_distances(np.eye(3), np.array(labels))


def test_averaged_states_are_those_of_the_network():
    torch.manual_seed(0)
    model = create_model("irevnet_digits_bijective").eval()
    images = torch.rand(5, 1, 8, 8)
    averaged = separation.averaged_states(model, images, batch_size=2)
    with torch.no_grad():
        states = list(model.states(images))
    assert len(averaged) == len(states) == 13
    for ours, state in zip(averaged, states, strict=True):
        np.testing.assert_allclose(ours, state.mean(dim=(2, 3)), atol=1e-6)


def test_principal_components_find_a_planted_plane():
    generator = np.random.default_rng(0)
    plane, _ = np.linalg.qr(generator.normal(size=(20, 2)))
    data = generator.normal(size=(500, 2)) * [5, 3] @ plane.T
    data += generator.normal(0, 0.01, data.shape)
    train, test, variance = separation.principal_components(data[:400], data[400:])
    assert variance[1] > 0.999
    assert train[:, 2:].std() < 0.02
    assert test[:, 0].std() == pytest.approx(5, rel=0.2)


def test_the_plateau_starts_where_accuracy_stays():
    assert separation.plateau([1, 2, 4, 8], [0.5, 0.9, 0.895, 0.9], tolerance=0.01) == 2
    assert separation.plateau([1, 2, 4, 8], [0.5, 0.9, 0.7, 0.9], tolerance=0.01) == 8
