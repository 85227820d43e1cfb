"""The plain cascades that DRNet is compared with: the same network, nothing reused."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from drnet_jax.evaluation.controls import Outcome, cascade, cascade_costs
from drnet_jax.evaluation.metrics import EvalRecords

# Above every sureness: the threshold of a cascade that never stops before its end.
NEVER = 2.0


@dataclass(frozen=True)
class Cascade:
    """A cascade through some of m fixed resolutions.

    Attributes:
      sureness: by which field of the records it stops: `'confidence'` or `'margin'`.
      steps: indices of its resolutions; it begins with the cheapest.
      gmacs: of all m.
    """

    sureness: str
    steps: tuple[int, ...]
    gmacs: tuple[float, ...]

    @property
    def costs(self) -> np.ndarray:
        """GMACs of its resolutions."""
        return np.array(self.gmacs)[list(self.steps)]

    def sure(self, records: EvalRecords) -> np.ndarray:
        """`[n, steps]`: how sure each of its resolutions is."""
        found: np.ndarray = getattr(records, self.sureness)
        return found[:, list(self.steps)]

    def outcome(self, records: EvalRecords, threshold: float) -> Outcome:
        """At a threshold."""
        correct = records.top1[:, list(self.steps)]
        return cascade(correct, self.sure(records), self.costs, threshold)


def through_all(sureness: str, gmacs: Sequence[float]) -> list[Cascade]:
    """Through all resolutions, of these GMACs."""
    return [Cascade(sureness, tuple(range(len(gmacs))), tuple(gmacs))]


def through_some(sureness: str, gmacs: Sequence[float]) -> list[Cascade]:
    """Through any two resolutions or more: an unnecessary step costs, and gains nothing."""
    m = len(gmacs)
    steps = [found for count in range(2, m + 1) for found in combinations(range(m), count)]
    return [Cascade(sureness, found, tuple(gmacs)) for found in steps]


def at_cost(
    cascades: Sequence[Cascade], calibration: EvalRecords, gmacs: float
) -> tuple[Cascade, float]:
    """The most accurate of them on the calibration images within a cost, and its threshold.

    One that is too expensive at every threshold only where all are.
    """

    def rank(found: tuple[Cascade, float]) -> tuple[bool, float]:
        """By cost first, then by accuracy."""
        outcome = found[0].outcome(calibration, found[1])
        return outcome.gmacs <= gmacs, outcome.top1

    thresholds = [cascade_threshold(one.sure(calibration), one.costs, gmacs) for one in cascades]
    return max(zip(cascades, thresholds, strict=True), key=rank)


def cascade_threshold(sureness: np.ndarray, costs: np.ndarray, gmacs: float) -> float:
    """The highest threshold whose cascade costs at most so much, up to `NEVER`; 0: none does.

    Args:
      sureness: `[n, m]`, as `cascade` takes it.
      costs: `[m]` GMACs.
      gmacs: of an image.
    """
    candidates = np.append(np.unique(sureness), NEVER)
    low, high = -1, len(candidates) - 1
    # The cost rises with the threshold.
    while low < high:
        middle = (low + high + 1) // 2
        spent = float(cascade_costs(sureness, costs, candidates[middle]).mean())
        low, high = (middle, high) if spent <= gmacs else (low, middle - 1)
    return float(candidates[low]) if low >= 0 else 0.0
