"""Accuracy over cost of what has a setting: DRNet by its lambda, a cascade by its threshold."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from drnet_jax.evaluation.cascades import NEVER, Cascade
from drnet_jax.evaluation.controls import Outcome, by_choice
from drnet_jax.evaluation.intervals import intervals, proportion
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.inference.decision import choose, lambda_changes
from drnet_jax.models.macs import ModelCost

_POINTS = 41


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


def cascade_curve(settings: EvalRecords, cascade: Cascade) -> Curve:
    """A cascade by its threshold, from always stopping at once to never before the end.

    Args:
      settings: the images whose sureness the thresholds are.
      cascade: with its resolutions.
    """
    quantiles = np.quantile(cascade.sure(settings), np.linspace(0, 1, _POINTS))
    return Curve((*map(float, np.unique(quantiles)), NEVER), cascade.outcome)


def as_good_as_largest(
    curves: Sequence[Curve], test: EvalRecords, calibration: EvalRecords
) -> dict[str, Any]:
    """The cheapest setting that costs no accuracy, chosen on other images than it is tried on.

    Args:
      curves: of one method: its variants.
      test: the images that the figures are of.
      calibration: those on which the setting has at least as many right as the largest fixed
        resolution, at the least cost.

    Returns:
      `setting`, `gmacs` and `top1`, and `minus_largest`: the difference to the largest fixed
      resolution with its interval, paired; all null where no setting is good enough.
    """
    enough = calibration.top1[:, 0].sum()
    kept = [
        (known.gmacs, setting, curve)
        for curve in curves
        for setting in curve.settings
        if (known := curve.outcome(calibration, setting)).correct.sum() >= enough
    ]
    if not kept:
        return dict.fromkeys(("setting", "gmacs", "top1", "minus_largest"))
    _, setting, curve = min(kept, key=lambda found: found[:2])
    outcome = curve.outcome(test, setting)
    gain = outcome.correct - test.top1[:, 0]
    (difference,) = intervals(gain[:, None], lambda means: means, test.origin)
    return {
        "setting": setting,
        "gmacs": outcome.gmacs,
        "top1": outcome.top1,
        "minus_largest": asdict(difference),
    }
