"""Estimates with intervals."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = [
    "Estimate",
    "difference_of_accuracies",
    "exact",
    "mean",
    "mean_of_medians",
    "mean_of_networks",
    "mean_of_shares",
    "networks_needed",
    "power_of_non_inferiority",
    "proportion",
    "quantile",
]


@dataclass(frozen=True)
class Estimate:
    """A number, its interval, and the number of observations behind it.

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
    """A number that was counted over all ``n`` items, not estimated from a sample."""
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
        bounds: limits of the quantity, such as 0 and 1 for a share; they also clip the interval.

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
    values: Sequence[float] | np.ndarray,
    bounds: tuple[float, float],
    single: Estimate | None = None,
) -> Estimate:
    """The :func:`mean` over several networks, or the estimate of a single one.

    Args:
        values: one per network.
        bounds: as for :func:`mean`.
        single: the estimate if there is only one network; by default its value without an
            interval, where ``n`` is 1.
    """
    if len(values) > 1:
        return mean(values, bounds=bounds)
    return exact(values[0], 1) if single is None else single


def mean_of_medians(
    values: np.ndarray,
    bounds: tuple[float, float],
    of_images: Callable[[np.ndarray], Estimate],
) -> Estimate:
    """The :func:`mean` over several networks of each one's median over images.

    Args:
        values: ``(networks, images)``.
        bounds: as for :func:`mean`.
        of_images: the estimate for a single network, from its values at the images.

    Returns:
        ``n`` counts networks. It is 1 for a single network, whose interval is over images.
    """
    if len(values) > 1:
        return mean(np.median(values, axis=1), bounds=bounds)
    return dataclasses.replace(of_images(values[0]), n=1)


def mean_of_shares(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of shares of a whole, whose interval stays in [0, 1].

    The interval is Student's t at 95%. The spread of fewer than five values is hardly known, so
    their interval is their range, as it is for the median, see :func:`quantile`.

    Args:
        values: one or more observations, 0 to 1.
    """
    values = np.asarray(values, dtype=float)
    if len(values) >= 5:
        return mean(values, bounds=(0, 1))
    return Estimate(float(values.mean()), float(values.min()), float(values.max()), len(values))


def difference_of_accuracies(first: np.ndarray, second: np.ndarray, level: float = 0.9) -> Estimate:
    """Difference of two families' mean accuracies, over networks and test images.

    The variance has two parts: that of the networks' accuracies over seeds, and that of the
    difference over test images, which both families share. The noise of a network at an image is
    in both parts and is counted twice, so the interval is a little too wide. It is Student's t with
    the degrees of freedom of Welch and Satterthwaite; a bootstrap over few seeds would be too
    narrow.

    At level 0.9, the interval lies inside a margin exactly when two one-sided tests at 5% find
    the two equivalent within it (Schuirmann, 1987, https://doi.org/10.1007/BF01068419).

    Args:
        first: which test images the networks of a family get right, ``(networks, images)`` bool, at
            least two networks.
        second: the same for another family, on the same images.
        level: coverage of the interval.

    Returns:
        The mean of ``first`` minus that of ``second``; ``n`` counts networks.

    Raises:
        ValueError: if either has fewer than two networks, or if the numbers of images differ.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(
            "both families must have two networks or more and the same images, got "
            f"{first.shape} and {second.shape}"
        )
    centre = float(first.mean() - second.mean())
    variances, per_image = _variances(first, second)
    parts = [variances[0] / len(first), variances[1] / len(second), per_image]
    n = len(first) + len(second)
    if sum(parts) == 0:
        return exact(centre, n)
    degrees = _degrees_of_freedom(parts, [len(first) - 1, len(second) - 1, first.shape[1] - 1])
    half = stats.t.ppf((1 + level) / 2, degrees) * math.sqrt(sum(parts))
    return Estimate(centre, float(centre - half), float(centre + half), n)


def power_of_non_inferiority(
    first: np.ndarray,
    second: np.ndarray,
    margin: float,
    level: float = 0.9,
    networks: int | None = None,
) -> float:
    """The probability of finding non-inferiority of families with the same true accuracy.

    That is the probability that the interval of :func:`difference_of_accuracies` lies above
    ``-margin``, if the spread over seeds and images is the measured one.

    Args:
        first: which test images the networks of a family get right, ``(networks, images)`` bool.
        second: the same for another family, on the same images.
        margin: positive.
        level: coverage of the interval.
        networks: number of networks in each family; None for the measured number.
    """
    variances, per_image = _variances(first, second)
    sizes = [networks or len(first), networks or len(second)]
    parts = [*(v / n for v, n in zip(variances, sizes, strict=True)), per_image]
    images = np.shape(first)[1]
    degrees = _degrees_of_freedom(parts, [*(n - 1 for n in sizes), images - 1])
    error = math.sqrt(sum(parts))
    if error == 0:
        return 1.0
    return float(stats.nct.sf(stats.t.ppf((1 + level) / 2, degrees), degrees, margin / error))


def networks_needed(
    first: np.ndarray,
    second: np.ndarray,
    margin: float,
    level: float = 0.9,
    power: float = 0.8,
    most: int = 1000,
) -> int | None:
    """How many networks per family :func:`power_of_non_inferiority` needs to reach ``power``.

    None if ``most`` are not enough, which means that there are too few test images.
    """
    for networks in range(2, most + 1):
        if power_of_non_inferiority(first, second, margin, level, networks) >= power:
            return networks
    return None


def _variances(first: np.ndarray, second: np.ndarray) -> tuple[list[float], float]:
    """Variances of each family's accuracies over networks, of the mean difference over images."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    per_image = first.mean(axis=0) - second.mean(axis=0)
    over_networks = [float(family.mean(axis=1).var(ddof=1)) for family in (first, second)]
    return over_networks, float(per_image.var(ddof=1) / len(per_image))


def _degrees_of_freedom(parts: Sequence[float], freedom: Sequence[int]) -> float:
    """Degrees of freedom of a sum of variances, after Welch and Satterthwaite."""
    squares = sum(part**2 / one for part, one in zip(parts, freedom, strict=True))
    return sum(parts) ** 2 / squares if squares else math.inf


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
    # With few values, no order statistic reaches the level: then the extremes bound the interval.
    low = interval.low if np.isfinite(interval.low) else values.min()
    high = interval.high if np.isfinite(interval.high) else values.max()
    return Estimate(float(np.quantile(values, probability)), float(low), float(high), len(values))
