"""Estimates with intervals."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = [
    "Estimate",
    "difference",
    "exact",
    "mean",
    "mean_of_networks",
    "proportion",
    "quantile",
]


@dataclass(frozen=True)
class Estimate:
    """A number, the interval that it is known to, and how many observations it rests on.

    Args:
        value: the estimate.
        low: lower end of the interval; ``value`` itself if nothing was sampled.
        high: upper end of the interval.
        n: number of observations.
    """

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return dataclasses.asdict(self)


def exact(value: float, n: int) -> Estimate:
    """A number that was counted over all of ``n``, not estimated from a sample."""
    return Estimate(float(value), float(value), float(value), n)


def mean(
    values: Sequence[float] | np.ndarray,
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Mean with Student's t interval.

    Args:
        values: at least two observations.
        level: coverage of the interval.
        bounds: what the quantity cannot leave, such as 0 and 1 for a share; nor does the interval.

    Raises:
        ValueError: if there are fewer than two values.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise ValueError(f"values must be two or more for an interval, got {len(values)}")
    centre = values.mean()
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    low, high = np.clip([centre - half, centre + half], *bounds)
    return Estimate(float(centre), float(low), float(high), len(values))


def mean_of_networks(
    values: Sequence[float] | np.ndarray, bounds: tuple[float, float], single: Estimate
) -> Estimate:
    """:func:`mean` over several networks; of one network, what is known of that one.

    Args:
        values: one per network.
        bounds: as for :func:`mean`.
        single: the estimate if there is one network only.
    """
    return single if len(values) == 1 else mean(values, bounds=bounds)


def difference(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, level: float = 0.9
) -> Estimate:
    """Difference of two means with Welch's t interval.

    At level 0.9, the interval lies inside a margin exactly when two one-sided tests at 5% find
    the two equivalent within it (Schuirmann, 1987, https://doi.org/10.1007/BF01068419).

    Args:
        first: at least two observations.
        second: at least two observations, independent of the first.
        level: coverage of the interval.

    Returns:
        The mean of ``first`` minus that of ``second``.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    centre = float(first.mean() - second.mean())
    n = len(first) + len(second)
    if first.std() == second.std() == 0:
        return exact(centre, n)
    test = stats.ttest_ind(first, second, equal_var=False)
    interval = test.confidence_interval(level)
    return Estimate(centre, float(interval.low), float(interval.high), n)


def proportion(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Share of successes with Wilson's score interval."""
    interval = stats.binomtest(int(successes), n).proportion_ci(level, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def quantile(
    values: Sequence[float] | np.ndarray, probability: float = 0.5, level: float = 0.95
) -> Estimate:
    """A quantile (the median by default) with the interval that order statistics give."""
    test = stats.quantile_test(values, p=probability)
    interval = test.confidence_interval(level)
    values = np.asarray(values, dtype=float)
    # Of few values no order statistic is far enough out: the extremes are all that is known.
    low = interval.low if np.isfinite(interval.low) else values.min()
    high = interval.high if np.isfinite(interval.high) else values.max()
    return Estimate(float(np.quantile(values, probability)), float(low), float(high), len(values))
