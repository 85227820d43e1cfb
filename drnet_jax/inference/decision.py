"""Which resolution an image gets: argmax_j (s_j - lambda * c_j), s_j its scores."""

from numbers import Real

import numpy as np
from scipy.special import log_softmax


def choose(scores: np.ndarray, costs: np.ndarray, lam: float) -> np.ndarray:
    """The resolutions that are worth their cost; the first of equals.

    Args:
      scores: `[n, m]`, the predictor's: utilities, of which only differences within an image count
        (`DRNetOutput`).
      costs: `[m]`, c: what each choice costs (`ModelCost.choice_costs`).
      lam: lambda, in units of the scores (nats where they are log-probabilities) a GMAC or ms,
        whatever the costs are in. 0 is the paper's choice, a larger one saves, one below 0 spends.

    Returns:
      Their indices `[n]`.

    Raises:
      ValueError: scores and costs are not finite or do not go together, or `lam` is no finite
        number.
    """
    check_lambda(lam)
    _check(scores, costs)
    if lam == 0:
        return scores.argmax(axis=1)
    return (log_softmax(scores.astype(np.float64), axis=1) - lam * costs).argmax(axis=1)


def lambda_changes(scores: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The lambdas `[n, pairs]` at which an image prefers the other of two resolutions.

    Arguments as of `choose`. Pairs of equal cost are left out: there lambda changes nothing.

    Raises:
      ValueError: scores and costs are not finite or do not go together.
    """
    _check(scores, costs)
    log_p = log_softmax(scores.astype(np.float64), axis=1)
    first, second = np.triu_indices(len(costs), 1)
    differ = costs[first] != costs[second]
    first, second = first[differ], second[differ]
    return (log_p[:, first] - log_p[:, second]) / (costs[first] - costs[second])


def check_lambda(lam: float) -> None:
    """Stops for a lambda that is no finite number: any choice would follow from it.

    Raises:
      ValueError: it is not.
    """
    if isinstance(lam, bool) or not isinstance(lam, Real) or not np.isfinite(float(lam)):
        raise ValueError(
            f"lam={lam!r} must be a finite number, in units of the scores a GMAC or ms"
        )


def _check(scores: np.ndarray, costs: np.ndarray) -> None:
    if scores.ndim != 2 or costs.shape != scores.shape[1:] or not costs.size:
        raise ValueError(
            f"expected scores [n, m] and m costs, got {list(scores.shape)} and {list(costs.shape)}"
        )
    for name, values in (("scores", scores), ("costs", costs)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite numbers")
