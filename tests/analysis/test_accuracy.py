import numpy as np
import pytest
import torch
from scipy import stats

from irevnet.analysis.accuracy import accuracy_of, correct, differences, spread
from irevnet.data import TensorImages

FAMILIES = {
    "irevnet": [0.90, 0.92, 0.94],
    "irevnet_bijective": [0.85, 0.87],
    "revnet": [0.91, 0.93],
    "resnet": [0.90, 0.92, 0.94],
}


def test_the_accuracy_of_several_networks_is_their_mean_with_its_interval():
    estimate = accuracy_of(FAMILIES["irevnet"], 540)
    half = stats.t.ppf(0.975, 2) * 0.02 / 3**0.5
    assert estimate.value == pytest.approx(0.92)
    assert estimate.n == 3
    assert (estimate.low, estimate.high) == pytest.approx((0.92 - half, 0.92 + half))


def test_the_interval_of_a_single_network_is_over_test_images():
    estimate = accuracy_of([0.9], 100)
    assert (estimate.value, estimate.n) == (0.9, 100)
    # Wilson's interval of 90 of 100, by its formula.
    z = stats.norm.ppf(0.975)
    centre = (0.9 + z**2 / 200) / (1 + z**2 / 100)
    half = z * (0.9 * 0.1 / 100 + z**2 / 40000) ** 0.5 / (1 + z**2 / 100)
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half))


def test_the_spread_is_the_standard_deviation_of_a_sample():
    assert spread(FAMILIES["irevnet"]) == pytest.approx(0.02)
    assert spread([0.9]) is None


def right(*accuracies, images=100):
    """Networks of the given accuracies, each right on the first images and wrong on the others."""
    return np.array([np.arange(images) < round(accuracy * images) for accuracy in accuracies])


def test_the_families_of_every_pair_are_compared():
    families = {family: right(*accuracies) for family, accuracies in FAMILIES.items()}
    pairs = [(f, other) for f in ("irevnet", "irevnet_bijective") for other in ("resnet", "revnet")]
    measured = differences(families, pairs, 0.95)
    assert list(measured) == [
        "irevnet_minus_resnet",
        "irevnet_minus_revnet",
        "irevnet_bijective_minus_resnet",
        "irevnet_bijective_minus_revnet",
    ]
    same, other = measured["irevnet_minus_resnet"], measured["irevnet_minus_revnet"]
    assert (same.value, same.n) == (pytest.approx(0.0), 6)
    assert (other.value, other.n) == (pytest.approx(0.0), 5)
    # Both families are right on the same images, so the interval is Welch's over seeds. A 90%
    # interval lies within a margin exactly if two one-sided tests at 5% find equivalence.
    half = stats.t.ppf(0.95, 4) * (2 * 0.02**2 / 3) ** 0.5
    assert same.high == pytest.approx(half)
    assert measured["irevnet_bijective_minus_resnet"].value == pytest.approx(-0.06)


def test_missing_families_and_single_networks_have_no_difference():
    families = {"irevnet": right(0.9, 0.91), "sgd": right(0.8), "resnet": right(0.9, 0.92)}
    pairs = [(family, other) for family in ("irevnet", "sgd") for other in ("resnet", "revnet")]
    assert set(differences(families, pairs, 0.95)) == {"irevnet_minus_resnet"}


def test_an_image_is_correct_if_the_largest_logit_is_its_label():
    images = TensorImages(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1, 0, 1]))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.0, 1.0]))
    assert correct(model, images, batch_size=2).tolist() == [False, True, True, False, True]
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        correct(model.train(), images)
