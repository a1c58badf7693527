import numpy as np
import pytest
from scipy import stats

from irevnet.analysis import statistics


def test_mean_has_students_interval():
    # Textbook: mean 3, standard error sqrt(2.5 / 5), t quantile 2.776 with 4 degrees of freedom.
    estimate = statistics.mean([1, 2, 3, 4, 5])
    assert estimate.value == 3
    assert estimate.low == pytest.approx(3 - 2.7764451 * np.sqrt(0.5))
    assert estimate.high == pytest.approx(3 + 2.7764451 * np.sqrt(0.5))
    assert estimate.n == 5


def test_an_interval_does_not_leave_the_bounds_of_what_is_estimated():
    estimate = statistics.mean([0.9, 1.0], bounds=(-1, 1))
    assert estimate.value == pytest.approx(0.95)
    assert estimate.low == pytest.approx(0.95 - 12.706205 * 0.05)
    assert estimate.high == 1


def test_a_single_network_keeps_its_own_estimate():
    single = statistics.proportion(9, 10)
    assert statistics.mean_of_networks([0.9], (0, 1), single) == single
    several = statistics.mean_of_networks([0.8, 0.9], (0, 1), single)
    assert several == statistics.mean([0.8, 0.9], bounds=(0, 1))


def test_mean_of_one_value_is_refused():
    with pytest.raises(ValueError, match="values must be two or more for an interval, got 1"):
        statistics.mean([1.0])


def test_proportion_has_wilsons_interval():
    # Newcombe (1998), table 1: 81 of 263, score method: 0.2553 to 0.3662.
    estimate = statistics.proportion(81, 263)
    assert estimate.value == pytest.approx(81 / 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)


def test_quantile_is_the_median_and_stays_inside_the_values():
    estimate = statistics.quantile([1, 2, 3, 100])
    assert estimate.value == 2.5
    assert 1 <= estimate.low <= 2.5 <= estimate.high <= 100


def test_the_interval_of_a_median_is_between_order_statistics():
    # The 2nd and the 10th of 11: the binomial's tails up to 1 and from 10 on lie outside, with
    # 12 / 2048 each. The 3rd and the 9th would leave 67 / 2048 outside on either side, over 2.5%.
    assert stats.binom.cdf(1, 11, 0.5) == pytest.approx(12 / 2048)
    assert stats.binom.cdf(2, 11, 0.5) == pytest.approx(67 / 2048)
    estimate = statistics.quantile(range(1, 12))
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (6, 2, 10, 11)


def test_the_interval_of_shares_stays_between_zero_and_one():
    few = statistics.mean_of_shares([0.2, 0.9, 0.4])
    assert (few.value, few.low, few.high, few.n) == (pytest.approx(0.5), 0.2, 0.9, 3)
    several = [0.9, 0.99, 1.0, 1.0, 1.0]
    assert statistics.mean(several).high > 1
    assert statistics.mean_of_shares(several) == statistics.mean(several, bounds=(0, 1))


def test_difference_of_accuracies_covers_seeds_and_images():
    """For families of equal accuracy, nine in ten intervals contain zero, even with few seeds."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        # Images differ in difficulty, partly for both families and partly for each alone.
        hard = generator.normal(0, 1.5, 300)
        families = []
        for _ in range(2):
            own = hard + generator.normal(0, 1, 300)
            skill = 1.5 + generator.normal(0, 0.2, (4, 1))
            chance = 1 / (1 + np.exp(own - skill + generator.normal(0, 0.5, (4, 300))))
            families.append(generator.random((4, 300)) < chance)
        interval = statistics.difference_of_accuracies(*families, level=0.9)
        covered += interval.low <= 0 <= interval.high
    assert 0.88 <= covered / 400 <= 0.97


def test_difference_of_accuracies_without_spread_over_seeds_is_that_over_images():
    first = np.repeat([[True] * 60 + [False] * 40], 3, axis=0)
    second = np.repeat([[True] * 50 + [False] * 50], 3, axis=0)
    interval = statistics.difference_of_accuracies(first, second, level=0.95)
    half = stats.t.ppf(0.975, 99) * (0.1 * 0.9 / 99) ** 0.5
    assert interval.value == pytest.approx(0.1)
    assert (interval.low, interval.high) == pytest.approx((0.1 - half, 0.1 + half))
    assert statistics.difference_of_accuracies(first, first).high == 0


@pytest.mark.parametrize("shape", [(1, 5), (2, 4)])
def test_difference_of_accuracies_needs_two_networks_and_the_same_images(shape):
    with pytest.raises(ValueError, match=r"two networks or more and the same images, got"):
        statistics.difference_of_accuracies(np.zeros((2, 5)), np.zeros(shape))


def simulated(generator, networks, images=400):
    """Networks of a family with an expected accuracy of 0.9; seeds and images vary it."""
    easy = generator.random(images) < 0.8
    skill = 0.5 + generator.normal(0, 0.05, (networks, 1))
    return easy | (generator.random((networks, images)) < skill)


def test_power_is_how_often_equal_families_are_found_not_inferior():
    generator = np.random.default_rng(1)
    margin, not_inferior, predicted = 0.03, 0, []
    for _ in range(300):
        families = simulated(generator, 5), simulated(generator, 5)
        not_inferior += statistics.difference_of_accuracies(*families).low > -margin
        predicted.append(statistics.power_of_non_inferiority(*families, margin))
    assert 0.2 < not_inferior / 300 < 0.95
    assert np.median(predicted) == pytest.approx(not_inferior / 300, abs=0.12)


def test_more_networks_are_needed_for_a_smaller_margin():
    generator = np.random.default_rng(0)
    families = simulated(generator, 5, 4000), simulated(generator, 5, 4000)
    wide, narrow = (statistics.networks_needed(*families, margin) for margin in (0.03, 0.015))
    assert 2 <= wide < narrow
    assert statistics.power_of_non_inferiority(*families, 0.015, networks=narrow) >= 0.8
    assert statistics.power_of_non_inferiority(*families, 0.015, networks=narrow - 1) < 0.8
    # With so few images, no number of networks is enough.
    assert statistics.networks_needed(*families, 0.0001, most=50) is None
