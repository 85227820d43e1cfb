"""From a budget to lambda: what each lambda costs and gets right on the calibration split.

The table is that of drnet_jax's `--mode=calibrate`, and choices are made as its `Calibration` does.
"""

from dataclasses import dataclass
from numbers import Real

import numpy as np

from drnet_runtime.errors import BudgetError


@dataclass(frozen=True)
class Point:
    """One lambda.

    Attributes:
      lam: lambda of `choose`.
      gmacs: mean cost of an image in GMACs, predictor or first look included.
      top1: fraction.
      shares: of the resolutions.
      lost: images that are correct at the largest resolution and wrong at the chosen one.
      won: the other way round.
      largest_gmacs: GMACs of the largest resolution alone.
    """

    lam: float
    gmacs: float
    top1: float
    shares: tuple[float, ...]
    lost: int
    won: int
    largest_gmacs: float

    @property
    def cost(self) -> float:
        """Mean multiply-adds, as a fraction of those of the largest resolution alone."""
        return self.gmacs / self.largest_gmacs

    @property
    def saving(self) -> float:
        """The fraction of the largest resolution's multiply-adds that is not spent; may be < 0."""
        return 1 - self.cost


@dataclass(frozen=True)
class Calibration:
    """The lambdas of a model, the costliest choice first.

    Attributes:
      num_images: of the calibration split.
      points: by rising lambda.
    """

    num_images: int
    points: tuple[Point, ...]

    def for_gmacs(self, budget: float) -> Point:
        """The most accurate choice whose mean cost is within the budget, the cheapest of equals.

        Raises:
          BudgetError: no choice is, or the budget is no finite number.
        """
        return self._most_accurate(budget, [point.gmacs for point in self.points], "GMACs")

    def for_fraction(self, budget: float) -> Point:
        """As `for_gmacs`, of a fraction of the largest resolution's multiply-adds."""
        costs = [point.cost for point in self.points]
        return self._most_accurate(budget, costs, "of the largest resolution's multiply-adds")

    def _most_accurate(self, budget: float, costs: list[float], unit: str) -> Point:
        _check_budget(unit, budget)
        within = [index for index, cost in enumerate(costs) if cost <= budget]
        if not within:
            raise BudgetError(
                f"a budget of {budget:g} {unit} cannot be kept: {min(costs):.4g} to "
                f"{max(costs):.4g} can"
            )
        return self.points[max(within, key=lambda i: (self.points[i].top1, -costs[i]))]

    def for_drop(self, points: float, confidence: float = 0.0) -> Point:
        """The cheapest choice that loses at most so many points of top-1 to the largest resolution.

        With a confidence, also on new images, as far as the calibration images are independent
        draws from the same distribution: Learn then Test (Angelopoulos et al. 2021) by
        fixed-sequence testing from the costliest choice on, with exact binomial bounds (Clopper and
        Pearson 1934) on the fractions lost and won, each at half of 1 - confidence.

        Raises:
          BudgetError: not even the costliest choice is shown to keep it, `points` is no finite
            number, or `confidence` lies outside [0, 1).
        """
        _check_budget("points", points)
        _check_budget("confidence", confidence)
        if not 0 <= confidence < 1:
            raise BudgetError(f"a confidence of {confidence!r} does not lie in [0, 1)")
        if not confidence:
            drops = [(point.lost - point.won) / self.num_images for point in self.points]
            kept = [p for p, drop in zip(self.points, drops, strict=True) if 100 * drop <= points]
            if not kept:
                raise BudgetError(
                    f"a drop of {points:g} points cannot be kept: {100 * min(drops):.4g} to "
                    f"{100 * max(drops):.4g} can"
                )
            return min(kept, key=lambda point: point.gmacs)
        last = None
        for point in self.points:
            if 100 * self._largest_drop(point, confidence) > points:
                break
            last = point
        if last is None:
            least = 100 * self._largest_drop(self.points[0], confidence)
            raise BudgetError(
                f"{self.num_images} calibration images show no drop below {least:.2f} points with "
                f"confidence {confidence:g}; allow that much, or calibrate on more images"
            )
        return last

    def _largest_drop(self, point: Point, confidence: float) -> float:
        """Upper bound of lost - won, as a fraction of all images."""
        n, error = self.num_images, (1 - confidence) / 2
        # The lower bound of what is won is the upper one of what is not.
        return upper_bound(point.lost, n, error) + upper_bound(n - point.won, n, error) - 1


def upper_bound(count: int, total: int, error: float) -> float:
    """The p at which so few of `total` draws, or fewer, have the probability `error`.

    The upper end of Clopper and Pearson's interval; 1 where all draws count. By bisection.
    """
    if count >= total:
        return 1.0
    logarithms = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    k = np.arange(count + 1)
    ways = logarithms[total] - logarithms[k] - logarithms[total - k]
    low, high = count / total, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        terms = ways + k * np.log(middle) + (total - k) * np.log1p(-middle)
        if np.exp(terms).sum() > error:
            low = middle
        else:
            high = middle
    return float(high)


def _check_budget(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(float(value)):
        raise BudgetError(f"a budget of {value!r} {name} is no finite number")
