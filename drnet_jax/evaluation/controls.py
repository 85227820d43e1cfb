"""What needs no predictor, and what no predictor can beat: the controls of an evaluation.

Each is an `Outcome`: of every image, the chance that it is classified right and its cost. Means
over images, differences between controls and their bootstrap intervals follow from that.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Outcome:
    """A way of classifying n images.

    Attributes:
      right: `[n]`, the chance that an image is classified right; 0 or 1 where nothing is random.
      cost: `[n]` GMACs, expected.
    """

    right: np.ndarray
    cost: np.ndarray

    @property
    def top1(self) -> float:
        """Fraction, expected."""
        return float(self.right.mean())

    @property
    def gmacs(self) -> float:
        """Of an image, expected."""
        return float(self.cost.mean())

    @property
    def spread(self) -> float:
        """Standard deviation of the fraction that is right, over the random choices."""
        return float(np.sqrt(np.maximum(self.right * (1 - self.right), 0).sum()) / len(self.right))


def by_choice(
    right: np.ndarray, choice: np.ndarray, costs: np.ndarray, predictor: float = 0.0
) -> Outcome:
    """One resolution an image.

    Args:
      right: `[n, m]` bool, at each resolution.
      choice: `[n]` index of the resolution.
      costs: `[m]` GMACs.
      predictor: GMACs of whatever chose.
    """
    chosen = np.take_along_axis(right, choice[:, None], axis=1)[:, 0]
    return Outcome(chosen.astype(float), costs[choice] + predictor)


def mixture(right: np.ndarray, shares: np.ndarray, costs: np.ndarray) -> Outcome:
    """A resolution drawn with `shares` `[m]`, whatever the image; other arguments as `by_choice`.

    Uniform shares are the paper's random control, the predictor's own are the control that it has
    to beat, and those of the hull are the best of all mixtures at their cost.
    """
    return Outcome(right @ shares, np.full(len(right), float(shares @ costs)))


def oracle(right: np.ndarray, costs: np.ndarray) -> Outcome:
    """The cheapest resolution that is right, and the cheapest of all where none is.

    Arguments as `by_choice`. Free of cost for knowing.
    """
    return by_choice(right, needed(right, costs), costs)


def needed(right: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """`[n]`: the resolution that `oracle` takes."""
    order = np.argsort(costs, kind="stable")
    return order[right[:, order].argmax(axis=1)]


def cascade(
    right: np.ndarray, confidence: np.ndarray, costs: np.ndarray, threshold: float
) -> Outcome:
    """Cheapest first, up to the first that is confident; every pass counts.

    Args:
      right: `[n, m]` bool, at each resolution.
      confidence: `[n, m]`, the largest softmax at each resolution.
      costs: `[m]` GMACs.
      threshold: of the confidence; the costliest resolution needs none.
    """
    order = np.argsort(costs, kind="stable")
    confident = confidence[:, order] >= threshold
    confident[:, -1] = True
    stop = confident.argmax(axis=1)
    spent = np.cumsum(costs[order])[stop]
    return Outcome(by_choice(right, order[stop], costs).right, spent)
