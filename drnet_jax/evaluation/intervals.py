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
from sklearn.metrics import roc_auc_score

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


def auroc(positive: np.ndarray, score: np.ndarray, times: np.ndarray | None = None) -> float:
    """Chance that a positive image has a higher score than a negative one; ties count half.

    scikit-learn's `roc_auc_score`.

    Args:
      positive: `[n]` bool.
      score: `[n]`.
      times: `[n]`, how often each image counts; None: once.

    Returns:
      NaN where all are positive, or none, or a score is NaN.
    """
    counted = positive if times is None else positive[times > 0]
    if counted.all() or not counted.any() or np.isnan(score).any():
        return float("nan")
    return float(roc_auc_score(positive, score, sample_weight=times))


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
    # Resamples of sorted scores are sorted, which is what takes the longest.
    order = np.argsort(score)
    positive, score, codes = positive[order], score[order], codes[order]

    def statistic(rows: np.ndarray) -> float:
        """Of one resample."""
        return auroc(positive, score, np.bincount(rows, minlength=n)[codes])

    with warnings.catch_warnings():
        # A resample without a positive image: the interval is not defined.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (np.arange(n),),
            statistic,
            vectorized=False,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=0,
        ).confidence_interval
    return Interval(value, float(found.low), float(found.high))
