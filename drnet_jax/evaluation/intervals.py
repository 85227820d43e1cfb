"""Intervals over images (bootstrap, paired for differences) and over seeds (SciPy); AUROC.

Images of one origin (crops of one picture, drawings of one digit) are not independent, and
intervals that take them for it are too narrow. Where the origins are known they are what is
resampled, each with all its images: the cluster bootstrap (Field and Welsh 2007, "Bootstrapping
clustered data"). Proportions have Wilson's interval at the effective number of images instead.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap, norm, sem, t

RESAMPLES = 1000
CONFIDENCE = 0.95
# Resampled rows that are held at once, in numbers.
_BATCH_NUMBERS = 2e7


@dataclass(frozen=True)
class Interval:
    """A figure, and where 95 of 100 such figures would lie.

    Attributes:
      value: of all images.
      low: 2.5th percentile over resampled images, or origins.
      high: 97.5th.
    """

    value: float
    low: float
    high: float


def intervals(
    columns: np.ndarray,
    figures: Callable[[np.ndarray], np.ndarray],
    origin: np.ndarray | None = None,
) -> list[Interval]:
    """Intervals of figures that depend on means over images.

    The same images are drawn for all columns, so that differences are paired.

    Args:
      columns: `[n, q]`, q values of every image.
      figures: from means `[b, q]` to figures `[b, f]`.
      origin: `[n]`, equal for images that are drawn together; None: each by itself.

    Returns:
      One a figure, by the percentile bootstrap.
    """
    q = columns.shape[1]
    values = figures(columns.mean(axis=0, keepdims=True))[0]
    sums, counts = (columns, None) if origin is None else _of_origins(columns, origin)
    n = len(sums)
    if n == 1:
        return [Interval(float(value), float(value), float(value)) for value in values]

    def statistic(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        """Figures `[f, b]` of resampled rows `[b, n]`."""
        del axis
        if counts is None:
            means = sums[rows].mean(axis=-2)
        else:
            # Origins have more or fewer images: a resample's mean is a ratio of sums.
            means = sums[rows].sum(axis=-2) / counts[rows].sum(axis=-1)[..., None]
        return figures(means.reshape(-1, q)).T

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


def _of_origins(columns: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums `[g, q]` of the columns over the images of each origin, and how many `[g]` those are."""
    _, codes = np.unique(origin, return_inverse=True)
    sums = np.stack([np.bincount(codes, weights=column) for column in columns.T], axis=1)
    return sums, np.bincount(codes)


def mean_margin(values: np.ndarray, origin: np.ndarray | None = None) -> float:
    """Half the width of the 95 % interval of a mean, by its standard error over origins.

    The clustered standard error (Liang and Zeger 1986, "Longitudinal data analysis using
    generalized linear models"); of images that are all independent, deviation over root of n.

    Args:
      values: `[n]`, one of each image.
      origin: `[n]`, equal for images that are not independent; None: all are.

    Returns:
      In the unit of the values; infinite for a single origin, which tells nothing of others.
    """
    n = len(values)
    centred = (values - values.mean())[:, None]
    sums, counts = _of_origins(centred, np.arange(n) if origin is None else origin)
    g = len(counts)
    if g == 1:
        return float("inf")
    z = norm.ppf(0.5 + 0.5 * CONFIDENCE)
    return float(z * np.sqrt(g / (g - 1) * (sums**2).sum()) / n)


def proportion(correct: np.ndarray, origin: np.ndarray | None = None) -> Interval:
    """The fraction of images that is correct, with Wilson's interval (at 0 and 1 a bootstrap has
    none).

    Args:
      correct: `[n]`, 0 or 1.
      origin: `[n]`, equal for images that are not independent; None: all are. Then the interval is
        that of `effective_count` independent images, as Dean and Pagano (2015), "Evaluating
        confidence interval methods for binomial proportions in clustered surveys", recommend.
    """
    value = float(correct.mean())
    n = len(correct) if origin is None else effective_count(correct, origin)
    # Wilson (1927): where |value - p| is z standard errors at p.
    z = norm.ppf(0.5 + 0.5 * CONFIDENCE)
    centre = (2 * n * value + z**2) / (2 * (n + z**2))
    half = z / (2 * (n + z**2)) * np.sqrt(4 * n * value * (1 - value) + z**2)
    low = 0.0 if value == 0 else centre - half
    high = 1.0 if value == 1 else centre + half
    return Interval(value, float(low), float(high))


def effective_count(correct: np.ndarray, origin: np.ndarray) -> float:
    """How many independent images would tell a proportion as exactly: n over the design effect.

    The design effect (Kish 1965, "Survey sampling") is the variance of the fraction as a ratio of
    sums over origins, over that of independent images. Below 1 it counts as 1. Where all images
    are correct, or none, nothing tells how alike those of one origin are: as if wholly.

    Args:
      correct: `[n]`, 0 or 1.
      origin: `[n]`, equal for images of one origin.
    """
    n, p = len(correct), correct.mean()
    sums, counts = _of_origins(correct[:, None], origin)
    g = len(counts)
    if g == 1 or p in (0, 1):
        return float(g)
    variance = g / (g - 1) * np.square(sums[:, 0] - p * counts).sum() / n**2
    return float(min(n, p * (1 - p) / variance)) if variance else float(n)


def over_seeds(values: np.ndarray) -> Interval:
    """Mean of a figure over k >= 2 trainings `[k]`, with Student's interval."""
    mean, error = float(values.mean()), float(sem(values))
    if error == 0:
        return Interval(mean, mean, mean)
    low, high = t.interval(CONFIDENCE, len(values) - 1, loc=mean, scale=error)
    return Interval(mean, float(low), float(high))


def auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Chance that a positive image has a higher score than a negative one; ties count half.

    Args:
      positive: `[n]` bool.
      score: `[n]`.

    Returns:
      NaN where all are positive, or none, or a score is NaN.
    """
    return float(resampled_aurocs(positive, score, np.ones((1, len(score))))[0])


def resampled_aurocs(positive: np.ndarray, score: np.ndarray, times: np.ndarray) -> np.ndarray:
    """`auroc` `[b]` of b resamples at once, by the statistic of Mann and Whitney (1947).

    scikit-learn's `roc_auc_score` takes one resample at a time, and ten times as long or more.

    Args:
      positive: `[n]` bool.
      score: `[n]`.
      times: `[b, n]`, how often each image counts.
    """
    if np.isnan(score).any():
        return np.full(len(times), np.nan)
    order = np.argsort(score)
    _, starts = np.unique(score[order], return_index=True)
    # At each score, how many images are positive, and how many are not.
    higher = np.add.reduceat(times[:, order] * positive[order], starts, axis=1)
    lower = np.add.reduceat(times[:, order] * ~positive[order], starts, axis=1)
    won = (higher * (lower.cumsum(axis=1) - lower / 2)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return won / (higher.sum(axis=1) * lower.sum(axis=1))


def auroc_interval(
    positive: np.ndarray, score: np.ndarray, origin: np.ndarray | None = None
) -> Interval:
    """`auroc` with its bootstrap interval over the images, or over origins `[n]` as `intervals`."""
    value = auroc(positive, score)
    if np.isnan(value):
        return Interval(value, value, value)
    codes = np.arange(len(score))
    if origin is not None:
        _, codes = np.unique(origin, return_inverse=True)
    n = int(codes.max()) + 1
    if n == 1:
        return Interval(value, value, value)

    def statistic(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        """Of resampled origins `[b, n]`."""
        del axis
        resamples = np.arange(rows.size // n)[:, None]
        counts = np.bincount((rows + n * resamples).ravel(), minlength=n * len(resamples))
        return resampled_aurocs(positive, score, counts.reshape(-1, n)[:, codes])

    with warnings.catch_warnings():
        # A resample without a positive image: the interval is not defined.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (np.arange(n),),
            statistic,
            n_resamples=RESAMPLES,
            batch=max(1, int(_BATCH_NUMBERS / len(score))),
            confidence_level=CONFIDENCE,
            method="percentile",
            vectorized=True,
            rng=0,
        ).confidence_interval
    return Interval(value, float(found.low), float(found.high))
