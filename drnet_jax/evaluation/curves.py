"""Accuracy over cost of what has a setting: DRNet by its lambda, a cascade by its threshold."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from drnet_jax.evaluation.controls import Outcome, by_choice, cascade
from drnet_jax.evaluation.intervals import intervals, proportion
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.inference.decision import choose, lambda_changes
from drnet_jax.models.macs import ModelCost

_POINTS = 41
# Above every sureness: a cascade that never stops before its end.
_NEVER = 2.0


@dataclass(frozen=True)
class Curve:
    """A method that trades accuracy for cost by a setting.

    Attributes:
      settings: some, by rising value.
      outcome: what the method gives for images at a setting.
    """

    settings: tuple[float, ...]
    outcome: Callable[[EvalRecords, float], Outcome]

    def points(self, records: EvalRecords) -> list[list[float]]:
        """Every setting with its GMACs, its top-1 and the ends of that one's interval."""
        return [self._point(records, setting) for setting in self.settings]

    def _point(self, records: EvalRecords, setting: float) -> list[float]:
        outcome = self.outcome(records, setting)
        top1 = proportion(outcome.correct, records.origin)
        return [setting, outcome.gmacs, top1.value, top1.low, top1.high]

    def as_good_as_largest(self, test: EvalRecords, calibration: EvalRecords) -> dict[str, Any]:
        """The cheapest setting that costs no accuracy, chosen on other images than it is tried on.

        Args:
          test: the images that the figures are of.
          calibration: those on which the setting has at least as many right as the largest fixed
            resolution, at the least cost.

        Returns:
          `setting`, `gmacs` and `top1`, and `minus_largest`: the difference to the largest fixed
          resolution with its interval, paired; all null where no setting is good enough.
        """
        enough = calibration.top1[:, 0].sum()
        found = [(self.outcome(calibration, setting), setting) for setting in self.settings]
        kept = [(known.gmacs, s) for known, s in found if known.correct.sum() >= enough]
        if not kept:
            return dict.fromkeys(("setting", "gmacs", "top1", "minus_largest"))
        _, setting = min(kept)
        outcome = self.outcome(test, setting)
        gain = outcome.correct - test.top1[:, 0]
        (difference,) = intervals(gain[:, None], lambda means: means, test.origin)
        return {
            "setting": setting,
            "gmacs": outcome.gmacs,
            "top1": outcome.top1,
            "minus_largest": asdict(difference),
        }


def drnet_curve(settings: EvalRecords, cost: ModelCost) -> Curve:
    """DRNet by its lambda: 0, and those that change choices.

    Args:
      settings: the images whose choices change.
      cost: of the networks.
    """
    costs, spent = np.array(cost.choice_costs), np.array(cost.choice_gmacs)
    changes = lambda_changes(settings.scores, costs)
    quantiles = np.quantile(changes, np.linspace(0, 1, _POINTS)) if changes.size else []

    def outcome(records: EvalRecords, lam: float) -> Outcome:
        """At a lambda, with the predictor."""
        choice = choose(records.scores, costs, lam)
        return by_choice(records.answer_top1, choice, spent, cost.predictor_gmacs)

    return Curve(tuple(sorted({0.0, *map(float, quantiles)})), outcome)


def cascade_curve(settings: EvalRecords, sureness: str, costs: np.ndarray) -> Curve:
    """A cascade by its threshold, from always stopping at once to never before the end.

    Args:
      settings: the images whose sureness the thresholds are.
      sureness: of which field of the records: `'confidence'` or `'margin'`.
      costs: `[m]` GMACs of the fixed resolutions.
    """
    quantiles = np.quantile(getattr(settings, sureness), np.linspace(0, 1, _POINTS))

    def outcome(records: EvalRecords, threshold: float) -> Outcome:
        """At a threshold."""
        return cascade(records.top1, getattr(records, sureness), costs, threshold)

    return Curve((*map(float, np.unique(quantiles)), _NEVER), outcome)
