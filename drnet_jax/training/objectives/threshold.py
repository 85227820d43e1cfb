"""Choose by one score of the first look, with a threshold a step: nothing is trained."""

import numpy as np

from drnet_jax.budgets.calibration import BudgetError
from drnet_jax.training.objectives.fitting import FittedHead, HeldOut

# Halvings of the interval that the price of a unit of cost is searched in.
_HALVINGS = 60


def fit(held_out: HeldOut) -> FittedHead:
    """Thresholds t_1 <= ... of the score s: below t_1 the largest resolution, and so on.

    At every price of a unit of cost some thresholds are best on the held-out images; these are the
    best at the lowest price at which they keep the target. As a head, the score of choice j is
    j * s - (t_1 + ... + t_j): j is ahead of j - 1 where s > t_j, and a lambda lowers all
    thresholds, each by what its step costs.

    Args:
      held_out: what to fit to; its first input is the score, and the others do not count.

    Raises:
      BudgetError: no choice is within the target.
    """
    score = held_out.inputs[:, 0]
    thresholds = _thresholds(score, held_out)
    steps = np.arange(held_out.correct.shape[1])
    kernel = np.zeros((held_out.inputs.shape[1], len(steps)))
    kernel[0] = steps
    bias = -np.concatenate([[0.0], np.cumsum(thresholds)])
    return FittedHead(kernel, bias, np.zeros(len(steps)))


def _thresholds(score: np.ndarray, held_out: HeldOut) -> np.ndarray:
    """`[m - 1]`, rising."""
    order = np.argsort(score, kind="stable")
    score, correct, costs = score[order], held_out.correct[order], held_out.costs
    # Equal scores get the same choice.
    apart = np.array([True, *(score[1:] > score[:-1]), True])
    steps = np.diff(np.unique(costs))
    # From no price to one that no correct answer is worth.
    low, high = 0.0, 2 / steps.min() if len(steps) else 1.0
    ends, kept = _ends(correct, costs, low, apart), _ends(correct, costs, high, apart)
    if _mean_cost(kept, costs) > held_out.limit:
        raise BudgetError(
            f"a mean cost of {held_out.target:.4g} cannot be kept: choices cost {costs.min():.4g} "
            f"to {costs.max():.4g}"
        )
    if _mean_cost(ends, costs) <= held_out.limit:
        kept = ends
    else:
        for _ in range(_HALVINGS):
            price = (low + high) / 2
            found = _ends(correct, costs, price, apart)
            if _mean_cost(found, costs) <= held_out.limit:
                high, kept = price, found
            else:
                low = price
    return _between(score, kept[1:-1])


def _ends(correct: np.ndarray, costs: np.ndarray, price: float, apart: np.ndarray) -> np.ndarray:
    """Where each choice's images begin and end, sorted by score: `[m + 1]`, from 0 to n.

    Those that maximise (number correct) - price * cost: by dynamic programming over the choices.

    Args:
      correct: `[n, m]` bool.
      costs: `[m]`.
      price: of a unit of cost, in correct answers.
      apart: `[n + 1]`, whether a choice may end before an image.
    """
    n, m = correct.shape
    gains = np.concatenate([np.zeros((1, m)), np.cumsum(correct - price * costs, axis=0)])
    best, starts = gains[:, 0], []
    for choice in range(1, m):
        # Of the images up to here, those from `start` on get this choice.
        before = np.where(apart, best - gains[:, choice], -np.inf)
        peak = np.maximum.accumulate(before)
        starts.append(np.maximum.accumulate(np.where(before == peak, np.arange(n + 1), 0)))
        best = peak + gains[:, choice]
    ends = [n]
    for start in reversed(starts):
        ends.append(int(start[ends[-1]]))
    return np.array([0, *reversed(ends)])


def _mean_cost(ends: np.ndarray, costs: np.ndarray) -> float:
    return float(np.diff(ends) @ costs / ends[-1])


def _between(score: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Half way between the last score of a choice and the first of the next one."""
    padded = np.concatenate([[score[0] - 1], score, [score[-1] + 1]])
    return (padded[ends] + padded[ends + 1]) / 2
