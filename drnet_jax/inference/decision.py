"""Which resolution an image gets: argmax_j (log p_j - lambda * c_j)."""

import numpy as np
from scipy.special import log_softmax


def choose(scores: np.ndarray, gmacs: np.ndarray, lam: float) -> np.ndarray:
    """The resolutions that are worth their cost; the first of equals.

    Args:
      scores: `[n, m]`, the predictor's unnormalised log-probabilities.
      gmacs: `[m]`, c: the classifier's cost per resolution, in GMACs.
      lam: lambda, in nats a GMAC. 0 is the paper's choice, a larger one saves, one below 0 spends.

    Returns:
      Their indices `[n]`.
    """
    if lam == 0:
        return scores.argmax(axis=1)
    return (log_softmax(scores.astype(np.float64), axis=1) - lam * gmacs).argmax(axis=1)


def lambda_changes(scores: np.ndarray, gmacs: np.ndarray) -> np.ndarray:
    """The lambdas `[n, pairs]` at which an image prefers the other of two resolutions.

    Arguments as of `choose`. Pairs of equal cost are left out: there lambda changes nothing.
    """
    log_p = log_softmax(scores.astype(np.float64), axis=1)
    first, second = np.triu_indices(len(gmacs), 1)
    differ = gmacs[first] != gmacs[second]
    first, second = first[differ], second[differ]
    return (log_p[:, first] - log_p[:, second]) / (gmacs[first] - gmacs[second])
