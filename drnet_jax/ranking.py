"""How well a score ranks images that need something above those that do not (AUROC)."""

import warnings

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap, rankdata

from drnet_jax.intervals import CONFIDENCE, RESAMPLES, Interval


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
