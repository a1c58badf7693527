import numpy as np
import pytest

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


def test_of_one_network_what_is_known_of_it_is_said():
    single = statistics.proportion(9, 10)
    assert statistics.mean_of_networks([0.9], (0, 1), single) == single
    several = statistics.mean_of_networks([0.8, 0.9], (0, 1), single)
    assert several == statistics.mean([0.8, 0.9], bounds=(0, 1))


def test_mean_of_one_value_is_refused():
    with pytest.raises(ValueError, match="values must be two or more for an interval, got 1"):
        statistics.mean([1.0])


def test_difference_is_welchs_and_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        first, second = generator.normal(1, 1, 5), generator.normal(0, 3, 8)
        estimate = statistics.difference(first, second, level=0.9)
        covered += estimate.low <= 1 <= estimate.high
    assert covered / 2000 == pytest.approx(0.9, abs=0.02)
    assert estimate.value == pytest.approx(first.mean() - second.mean())


def test_difference_of_constants_is_exact():
    estimate = statistics.difference([0.5, 0.5], [0.25, 0.25])
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_proportion_has_wilsons_interval():
    # Newcombe (1998), table 1: 81 of 263, score method: 0.2553 to 0.3662.
    estimate = statistics.proportion(81, 263)
    assert estimate.value == pytest.approx(81 / 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)


def test_quantile_is_the_median_and_stays_inside_the_values():
    estimate = statistics.quantile([1, 2, 3, 100])
    assert estimate.value == 2.5
    assert 1 <= estimate.low <= 2.5 <= estimate.high <= 100
