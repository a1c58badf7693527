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
    scores = separation.scores(*separable, [0.1, 1.0])
    assert (scores["svm"], scores["knn"]) == (1, 1)


def test_nearest_neighbours_separate_classes_that_a_linear_svm_cannot():
    generator = np.random.default_rng(0)
    corners = np.array([[0, 0], [1, 1], [0, 1], [1, 0]]) * 4.0
    train, corner = clusters(generator, 2, corners, 80)
    test, test_corner = clusters(generator, 2, corners, 40)
    labels, test_labels = corner // 2, test_corner // 2
    scores = separation.scores(train, labels, test, test_labels, [1.0])
    assert scores["knn"] == 1
    assert scores["svm"] < 0.8


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
    distances = dict.fromkeys(("within", "between", "contraction"), same)
    penalties = {"penalty": np.full_like(rows, 0.1), "penalty_at_edge": rows > 0.8}
    return {"svm": rows, "knn": rows, **distances, **penalties}


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
    assert results["svm_penalty"] == {"value": 0.1, "low": 0.1, "high": 0.1, "n": 2}
    assert (results["svm_fits_at_edge"], results["svm_fits"]) == (1, 20)


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


def test_a_penalty_is_chosen_by_accuracy_on_a_part_of_the_training_items():
    generator = np.random.default_rng(0)
    # Few items in many dimensions of noise: the weak machine, with a small C, does better.
    labels = np.arange(60) % 2
    features = generator.normal(0, 1, (60, 300)) + 0.3 * (2 * labels[:, None] - 1)
    assert separation.choose_penalty(features, labels, [1e-3, 1e3]).value <= 1e-3
    assert separation.choose_penalty(features, labels, [7.0]) == separation.Penalty(7.0, False)


@pytest.mark.parametrize(
    ("accuracies", "penalty"),
    [
        ({}, separation.Penalty(0.01, False)),  # all the same: the smallest, and the next no better
        ({0.1: 1}, separation.Penalty(0.1, False)),
        ({1e-3: 1}, separation.Penalty(1e-3, False)),
        ({1e-3: 1, 1e-4: 2, 1e-5: 2}, separation.Penalty(1e-4, False)),
        (
            {0.1: 1, 1.0: 2, 10.0: 3, 100.0: 4},
            separation.Penalty(100.0, True),
        ),  # the last that is tried
        ({1e-3: 1, 1e-4: 2, 1e-5: 3}, separation.Penalty(1e-5, True)),
        ({1e-5: 1}, separation.Penalty(0.01, False)),  # out of sight
    ],
)
def test_the_search_goes_on_beyond_the_grid_while_that_is_better(monkeypatch, accuracies, penalty):
    class Machine:
        def __init__(self, value, tolerance):
            self.value = value

        def fit(self, *_):
            return self

        def score(self, *_):
            return accuracies.get(float(f"{self.value:.6g}"), 0)

    monkeypatch.setattr(separation, "_machine", Machine)
    items = np.zeros((12, 2)), np.arange(12) % 2
    chosen = separation.choose_penalty(*items, [0.01, 0.1])
    assert chosen.value == pytest.approx(penalty.value)
    assert chosen.at_edge == penalty.at_edge


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
