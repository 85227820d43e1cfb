"""Intervals over images (bootstrap, paired for differences) and over seeds (SciPy); AUROC."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap, rankdata, sem, t

RESAMPLES = 1000
CONFIDENCE = 0.95
# Resampled rows that are held at once, in numbers.
_BATCH_NUMBERS = 2e7


@dataclass(frozen=True)
class Interval:
    """A figure, and where 95 of 100 such figures would lie.

    Attributes:
      value: of all images.
      low: 2.5th percentile over resampled images.
      high: 97.5th.
    """

    value: float
    low: float
    high: float


def intervals(columns: np.ndarray, figures: Callable[[np.ndarray], np.ndarray]) -> list[Interval]:
    """Intervals of figures that depend on means over images.

    The same images are drawn for all columns, so that differences are paired.

    Args:
      columns: `[n, q]`, q values of every image.
      figures: from means `[b, q]` to figures `[b, f]`.

    Returns:
      One a figure, by the percentile bootstrap.
    """
    n, q = columns.shape
    values = figures(columns.mean(axis=0, keepdims=True))[0]
    if n == 1:
        return [Interval(float(value), float(value), float(value)) for value in values]

    def statistic(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        """Figures `[f, b]` of resampled rows `[b, n]`."""
        del axis
        return figures(columns[rows].mean(axis=-2).reshape(-1, q)).T

    with warnings.catch_warnings():
        # Figures that are not defined have an interval that is not defined.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (np.arange(n),),
            statistic,
            n_resamples=RESAMPLES,
            batch=max(1, int(_BATCH_NUMBERS / (n * q))),
            confidence_level=CONFIDENCE,
            method="percentile",
            vectorized=True,
            rng=0,
        ).confidence_interval
    lows, highs = np.atleast_1d(found.low), np.atleast_1d(found.high)
    return [
        Interval(float(value), float(low), float(high))
        for value, low, high in zip(values, lows, highs, strict=True)
    ]


def proportion(correct: int, count: int) -> Interval:
    """`correct` of `count` images, with Wilson's interval (at 0 and 1 a bootstrap has none)."""
    found = binomtest(correct, count).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(correct / count, float(found.low), float(found.high))


def over_seeds(values: np.ndarray) -> Interval:
    """Mean of a figure over k >= 2 trainings `[k]`, with Student's interval."""
    mean, error = float(values.mean()), float(sem(values))
    if error == 0:
        return Interval(mean, mean, mean)
    low, high = t.interval(CONFIDENCE, len(values) - 1, loc=mean, scale=error)
    return Interval(mean, float(low), float(high))


def auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Chance that a positive image has a higher score than a negative one; ties count half.

    By the rank sum of Mann and Whitney (1947).

    Args:
      positive: `[n]` bool.
      score: `[n]`.

    Returns:
      NaN where all are positive, or none.
    """
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return float("nan")
    ranks = rankdata(score)[positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * others))


def auroc_interval(positive: np.ndarray, score: np.ndarray) -> Interval:
    """`auroc` with its bootstrap interval over the images."""
    value = auroc(positive, score)
    if np.isnan(value):
        return Interval(value, value, value)
    with warnings.catch_warnings():
        # A resample without a positive image: the interval is not defined.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (np.arange(len(score)),),
            lambda rows: auroc(positive[rows], score[rows]),
            vectorized=False,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=0,
        ).confidence_interval
    return Interval(value, float(found.low), float(found.high))
