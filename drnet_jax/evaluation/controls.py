"""What needs no predictor, and what no predictor can beat: the controls of an evaluation.

Each is an `Outcome`: of every image, the chance that it is classified correctly and its cost. Means
over images, differences between controls and their bootstrap intervals follow from that.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Outcome:
    """What a method of classifying gives for n images.

    Attributes:
      correct: `[n]`, the chance that an image is classified correctly; 0 or 1 where nothing is
        random.
      cost: `[n]` GMACs, expected.
    """

    correct: np.ndarray
    cost: np.ndarray

    @property
    def top1(self) -> float:
        """Fraction, expected."""
        return float(self.correct.mean())

    @property
    def gmacs(self) -> float:
        """Of an image, expected."""
        return float(self.cost.mean())

    @property
    def spread(self) -> float:
        """Standard deviation of the fraction that is correct, over the random choices."""
        return float(
            np.sqrt(np.maximum(self.correct * (1 - self.correct), 0).sum()) / len(self.correct)
        )


def by_choice(
    correct: np.ndarray, choice: np.ndarray, costs: np.ndarray, predictor: float = 0.0
) -> Outcome:
    """One resolution an image.

    Args:
      correct: `[n, m]` bool, at each resolution.
      choice: `[n]` index of the resolution.
      costs: `[m]` GMACs.
      predictor: GMACs of whatever chose.
    """
    chosen = np.take_along_axis(correct, choice[:, None], axis=1)[:, 0]
    return Outcome(chosen.astype(float), costs[choice] + predictor)


def mixture(correct: np.ndarray, shares: np.ndarray, costs: np.ndarray) -> Outcome:
    """A resolution drawn with `shares` `[m]`, whatever the image; other arguments as `by_choice`.

    Uniform shares are the paper's random control, the predictor's own are the control that it has
    to beat, and those of the hull are the best of all mixtures at their cost.
    """
    return Outcome(correct @ shares, np.full(len(correct), float(shares @ costs)))


def oracle(correct: np.ndarray, costs: np.ndarray) -> Outcome:
    """The cheapest resolution that is correct, and the cheapest of all where none is.

    Arguments as `by_choice`. Free of cost for knowing.
    """
    return by_choice(correct, needed(correct, costs), costs)


def needed(correct: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """`[n]`: the resolution that `oracle` takes."""
    order = np.argsort(costs, kind="stable")
    return order[correct[:, order].argmax(axis=1)]


def cascade(
    correct: np.ndarray, sureness: np.ndarray, costs: np.ndarray, threshold: float
) -> Outcome:
    """Cheapest first, up to the first that is sure; every pass counts.

    Args:
      correct: `[n, m]` bool, at each resolution.
      sureness: `[n, m]`, of each resolution: its largest softmax, say.
      costs: `[m]` GMACs.
      threshold: of the sureness; the costliest resolution needs none.
    """
    order = np.argsort(costs, kind="stable")
    stop = _stops(sureness, order, threshold)
    return Outcome(by_choice(correct, order[stop], costs).correct, np.cumsum(costs[order])[stop])


def cascade_costs(sureness: np.ndarray, costs: np.ndarray, threshold: float) -> np.ndarray:
    """`[n]` GMACs of a cascade, whose arguments these are."""
    order = np.argsort(costs, kind="stable")
    return np.cumsum(costs[order])[_stops(sureness, order, threshold)]


def _stops(sureness: np.ndarray, order: np.ndarray, threshold: float) -> np.ndarray:
    """`[n]`: at which pass an image stops."""
    sure = sureness[:, order] >= threshold
    sure[:, -1] = True
    return sure.argmax(axis=1)
