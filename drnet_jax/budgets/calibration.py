"""From a budget to lambda: what each lambda costs and gets right on the calibration split."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import numpy as np
from scipy.stats import beta, binom

from drnet_jax.inference.arguments import check_count
from drnet_jax.inference.buckets import BucketPlan
from drnet_jax.inference.decision import choose, lambda_changes
from drnet_jax.inference.programs import CostTable

_NUM_POINTS = 201


class BudgetError(ValueError):
    """A budget cannot be kept, or nothing is calibrated; the message says what can be done."""


@dataclass(frozen=True)
class Point:
    """One lambda.

    Attributes:
      lam: lambda of `choose`, a GMAC, or a ms where choices are made by time.
      gmacs: mean cost of an image, predictor included.
      top1: fraction.
      shares: of the resolutions.
      lost: images that are correct at the largest resolution and wrong at the chosen one.
      won: the other way round.
    """

    lam: float
    gmacs: float
    top1: float
    shares: tuple[float, ...]
    lost: int
    won: int


@dataclass(frozen=True)
class Times:
    """What was measured on one device.

    Attributes:
      setting: device, buckets, image size and whether BatchNorm was folded, in words.
      table: seconds of every bucket of every network.
    """

    setting: str
    table: CostTable

    def milliseconds(self, shares: np.ndarray, batch_size: int = 0) -> np.ndarray:
        """Expected time of an image, predictor included.

        A batch's images choose independently, so that how many choose a resolution is binomial.

        Args:
          shares: `[p, m]` of the resolutions.
          batch_size: images that are classified at once; 0: any number, each network at its best
            bucket.

        Returns:
          `[p]` ms.

        Raises:
          ValueError: `batch_size` is no integer, or below zero.
        """
        check_count("batch_size", batch_size)
        tables = self.table.classifiers
        predictor = self.table.predictor or {size: 0.0 for size in tables[0]}
        if self.table.glances:
            # Where the smallest resolution is chosen, the first look was all.
            shares, tables = shares[:, :-1], tables[:-1]
        if batch_size == 0:
            first, *each = (_best_time(times) for times in (predictor, *tables))
            return 1000 * (first + shares @ np.array(each))
        counts = range(batch_size + 1)
        total = np.full(len(shares), BucketPlan(predictor).seconds(batch_size))
        for share, times in zip(shares.T, tables, strict=True):
            plan = BucketPlan(times)
            seconds = np.array([plan.seconds(count) for count in counts])
            total += binom.pmf(np.array(counts), batch_size, share[:, None]) @ seconds
        return 1000 * total / batch_size


def _check_budget(name: str, value: float) -> None:
    """Stops for a budget that is no number.

    Raises:
      BudgetError: it is not, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(float(value)):
        raise BudgetError(f"a budget of {value!r} {name} is no finite number")


def _best_time(times: Mapping[int, float]) -> float:
    """Seconds an image at the best bucket."""
    return min(seconds / size for size, seconds in times.items())


@dataclass(frozen=True)
class Calibration:
    """The lambdas of a model, the costliest choice first.

    Attributes:
      model: which model, on which data: another value for another one.
      num_images: of the calibration split.
      points: by rising lambda.
      times: None where they were not measured.
    """

    model: str
    num_images: int
    points: tuple[Point, ...]
    times: Times | None = None

    def for_gmacs(self, budget: float) -> Point:
        """The most accurate choice whose mean cost is within the budget, the cheapest of equals.

        Raises:
          BudgetError: no choice is, or the budget is no finite number.
        """
        _check_budget("GMACs", budget)
        return self._most_accurate(budget, [point.gmacs for point in self.points], "GMACs")

    def spending(self, budget: float) -> Point:
        """The costliest choice whose mean cost in GMACs is within the budget.

        Raises:
          BudgetError: as `for_gmacs`.
        """
        _check_budget("GMACs", budget)
        costs = [point.gmacs for point in self.points]
        return self.points[max(self._within(budget, costs, "GMACs"), key=costs.__getitem__)]

    def for_ms(self, budget: float, batch_size: int = 0) -> Point:
        """The most accurate choice whose mean time is within the budget, the fastest of equals.

        Args:
          budget: ms an image.
          batch_size: see `Times.milliseconds`.

        Raises:
          BudgetError: no choice is, no times are measured, or the budget is no finite number.
          ValueError: `batch_size` is no integer, or below zero.
        """
        _check_budget("ms", budget)
        times = self.times
        if times is None:
            raise BudgetError(
                "no times are measured: run --mode=calibrate with the same budget.ms, or take the "
                "calibration of a classifier that was compiled for arrays with measure=True"
            )
        shares = np.array([point.shares for point in self.points])
        each = times.milliseconds(shares, batch_size).tolist()
        size = f"batch {batch_size}, " if batch_size else ""
        return self._most_accurate(budget, each, f"ms an image ({size}{times.setting})")

    def _most_accurate(self, budget: float, costs: list[float], unit: str) -> Point:
        within = self._within(budget, costs, unit)
        return self.points[max(within, key=lambda i: (self.points[i].top1, -costs[i]))]

    def _within(self, budget: float, costs: list[float], unit: str) -> list[int]:
        within = [index for index, cost in enumerate(costs) if cost <= budget]
        if not within:
            raise BudgetError(
                f"a budget of {budget:g} {unit} cannot be kept: {min(costs):.4g} to "
                f"{max(costs):.4g} can"
            )
        return within

    def for_drop(self, points: float, confidence: float = 0.0) -> Point:
        """The cheapest choice that loses at most so many points of top-1 to the largest resolution.

        With a confidence, also on new images, if the calibration images are independent draws from
        the same distribution and chose neither the checkpoint nor the lambdas. Here they choose
        both, the checkpoint by its loss; a first look's fitted head and weights of reused logits
        come from them too; and images of one origin (the embedded data is drawn from few digits)
        are not independent, so that the bound is a guide rather than a proof. By Learn then Test
        (Angelopoulos et al. 2021) by fixed-sequence testing. From the costliest choice on, each is
        tested for a drop above the budget, and the first that is not rejected ends the sequence.
        The test: exact binomial bounds (Clopper and Pearson 1934) on the fractions lost and won,
        each at half of 1 - confidence.

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
        lost = beta.ppf(1 - error, point.lost + 1, n - point.lost) if point.lost < n else 1.0
        won = beta.ppf(error, point.won, n - point.won + 1) if point.won else 0.0
        return float(lost - won)


def calibrate(
    scores: np.ndarray,
    correct: np.ndarray,
    largest: np.ndarray,
    gmacs: np.ndarray,
    predictor_gmacs: float,
    model: str,
    times: Times | None = None,
    *,
    costs: np.ndarray | None = None,
) -> Calibration:
    """Evaluates the lambdas at which choices change, at most some 200 of them, and 0.

    Args:
      scores: `[n, m]`, the predictor's.
      correct: `[n, m]` bool, the answers by choice, largest resolution first.
      largest: `[n]` bool, the classifier at the largest resolution alone.
      gmacs: `[m]`, the classifier's by choice (`ModelCost.choice_gmacs`).
      predictor_gmacs: the predictor's.
      model: see `Calibration`.
      times: measured, or None.
      costs: `[m]`, what lambda counts by choice (`ModelCost.choice_costs`); default: `gmacs`.

    Raises:
      ValueError: no images, or scores and costs that are not finite or do not go together.
    """
    if not len(scores) or correct.shape != scores.shape:
        raise ValueError(
            f"expected scores and correct [n, m] of images, got {list(scores.shape)} and "
            f"{list(correct.shape)}"
        )
    costs = gmacs if costs is None else costs
    points = []
    for lam in _lambdas(scores, costs):
        choice = choose(scores, costs, lam)
        chosen = np.take_along_axis(correct, choice[:, None], axis=1)[:, 0]
        shares = np.bincount(choice, minlength=len(gmacs)) / len(choice)
        points.append(
            Point(
                lam=lam,
                gmacs=float(gmacs[choice].mean()) + predictor_gmacs,
                top1=float(chosen.mean()),
                shares=tuple(shares.tolist()),
                lost=int((largest & ~chosen).sum()),
                won=int((~largest & chosen).sum()),
            )
        )
    return Calibration(model, len(scores), tuple(points), times)


def _lambdas(scores: np.ndarray, costs: np.ndarray) -> list[float]:
    """From all at the largest resolution to all at the smallest, spread evenly over the changes."""
    changes = lambda_changes(scores, costs)
    if not changes.size:
        return [0.0]
    changes = np.unique(changes)
    # At a change itself rounding would decide.
    between = (changes[1:] + changes[:-1]) / 2
    if len(between) > _NUM_POINTS:
        picked = np.linspace(0, len(between) - 1, _NUM_POINTS).round().astype(int)
        between = between[picked]
    margin = 1 + abs(changes).max()
    ends = [changes[0] - margin, 0.0, changes[-1] + margin]
    return sorted({float(lam) for lam in (*between, *ends)})
