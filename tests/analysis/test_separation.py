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


def test_nearest_neighbours_separate_classes_that_a_linear_svm_cannot():
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


def test_class_distances_of_random_labels_have_a_ratio_of_one():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(400, 50)).astype(np.float32)
    distances = separation.class_distances(features, np.arange(400) % 4)
    assert distances.ratio == pytest.approx(1, abs=0.005)
    # Two points of a Gaussian are sqrt(2) times as far from each other as one is from 0.
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
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        separation.averaged_states(model.train(), images)


def planted(accuracies, contraction=0.5):
    """Networks with the same accuracies of both classifiers at every depth."""
    rows = np.array(accuracies, dtype=float)
    same = np.full_like(rows, contraction)
    return {"svm": rows, "knn": rows, "within": same, "between": same, "contraction": same}


def test_errors_removed():
    trained, initial = np.array([[0.2, 0.8, 1.0, 0.4]]), np.array([0.2, 0.6, 0.6, 0.5])
    removed = separation.errors_removed(trained, initial)
    np.testing.assert_allclose(removed, [[0, 0.5, 1, -0.2]])
    assert separation.errors_removed(np.array([1.0, 0.9]), np.array(1.0)).tolist() == [0, 0]


def test_summary_judges_what_training_adds():
    initial = planted([[0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]])
    trained = planted([[0.1, 0.3, 0.5, 0.7, 0.9], [0.1, 0.3, 0.5, 0.7, 0.8]])
    results = separation.summary(trained, initial, 100)
    assert results["svm_last"]["value"] == pytest.approx(0.85)
    assert results["svm_last"]["n"] == results["svm_errors_removed"]["n"] == 2
    assert results["svm_errors_removed"]["value"] == pytest.approx((0.8 + 0.6) / 2)
    assert results["svm_gain_rank_correlation"]["value"] == pytest.approx(1)
    assert results["initial_svm_by_depth"] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert results["knn_jump"]["value"] == pytest.approx(0.55)
    assert results["initial_knn_jump"] == pytest.approx(0.3)
    assert results["contraction_last"]["value"] == 0.5


def test_summary_of_networks_at_initialisation_has_no_gain():
    initial = planted([[0.1, 0.2, 0.3, 0.4, 0.5]])
    results = separation.summary(initial, initial, 100)
    assert results["svm_gain_rank_correlation"]["value"] == 0
    assert results["svm_errors_removed"] == {"value": 0, "low": 0, "high": 0, "n": 1}
    # With one network, the interval of an accuracy is over test images.
    assert results["svm_last"]["n"] == 100


def test_summary_of_a_network_of_few_blocks():
    """The jump over the last three blocks is then that over all."""
    initial, trained = planted([[0.1, 0.2]]), planted([[0.1, 0.7]])
    results = separation.summary(trained, initial, 100)
    assert results["svm_jump"]["value"] == pytest.approx(0.6)
    assert results["initial_svm_jump"] == pytest.approx(0.1)


def test_standardised_removes_the_mean_and_spread_of_the_training_items():
    train = np.array([[0.0, 7.0], [4.0, 7.0]])
    fitted, scored = separation.standardised(train, np.array([[6.0, 8.0]]))
    np.testing.assert_allclose(fitted, [[-1, 0], [1, 0]])
    np.testing.assert_allclose(scored, [[2, 1]])


def test_the_penalty_is_chosen_among_those_given():
    generator = np.random.default_rng(0)
    # Few items in many dimensions of noise: the weak machine, with a small C, does better.
    labels = np.arange(60) % 2
    features = generator.normal(0, 1, (60, 300)) + 0.3 * (2 * labels[:, None] - 1)
    assert separation.fit_svm(features, labels, [1e-3, 1e3]).C == 1e-3
    assert separation.fit_svm(features, labels, [7.0]).C == 7.0


def test_by_depth_finds_classes_where_a_network_shows_them():
    class Planted:
        def states(self, x):
            yield torch.rand(x.shape)  # noise first, then the class that the image shows
            yield x

    torch.manual_seed(0)
    labels = np.arange(60) % 3
    images = torch.zeros(60, 3, 2, 2)
    images[torch.arange(60), torch.from_numpy(labels)] = 1
    scores = separation.by_depth(Planted(), images, labels, images, labels, [0.1, 1.0])
    assert scores["svm"][1] == scores["knn"][1] == 1
    assert max(scores["svm"][0], scores["knn"][0]) < 0.6
    assert scores["contraction"][1] == 0
