"""DRNet beside its controls, in figures with intervals and in words: a part of `eval.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax

from drnet_jax.evaluation.controls import (
    Outcome,
    by_choice,
    cascade,
    cascade_costs,
    mixture,
    needed,
    oracle,
)
from drnet_jax.evaluation.curves import cascade_curve, drnet_curve
from drnet_jax.evaluation.intervals import Interval, auroc_interval, intervals
from drnet_jax.evaluation.metrics import EvalRecords, hull_weights
from drnet_jax.evaluation.verdicts import verdict, verdicts
from drnet_jax.inference.decision import choose
from drnet_jax.models.macs import ModelCost

# By which field of the records a cascade stops.
_CASCADES = {"cascade": "confidence", "margin_cascade": "margin"}
_LEAST_GAP = 1e-3


@dataclass(frozen=True)
class Compared:
    """DRNet and its controls on the same n images, at m resolutions.

    Attributes:
      records: of the images.
      outcomes: of `'drnet'` with its predictor, of every cascade and of the `'oracle'`.
      fixed: GMACs of the m fixed resolutions, by what to call them.
    """

    records: EvalRecords
    outcomes: Mapping[str, Outcome]
    fixed: Mapping[str, float]

    @property
    def costs(self) -> np.ndarray:
        """`[m]` GMACs of the fixed resolutions."""
        return np.array(list(self.fixed.values()))


def control_figures(
    test: EvalRecords,
    calibration: EvalRecords,
    cost: ModelCost,
    lam: float,
    resolutions: Sequence[int],
) -> dict[str, Any]:
    """Everything that DRNet is compared with.

    Args:
      test: what the figures are of.
      calibration: what the cascades' thresholds and the lambdas are chosen on.
      cost: of the networks.
      lam: lambda of `choose`, DRNet's.
      resolutions: in pixels.

    Returns:
      JSON values: accuracies are fractions, costs GMACs an image, intervals 95 % by bootstrap,
      over images, or over their origins where `test` has those.
    """
    costs, spent = np.array(cost.classifier_gmacs), np.array(cost.choice_gmacs)
    thresholds = _thresholds(calibration, cost, lam)
    outcomes = {
        "drnet": by_choice(test.answer_top1, test.choice, spent, cost.predictor_gmacs),
        **{
            name: cascade(test.top1, getattr(test, _CASCADES[name]), costs, threshold)
            for name, threshold in thresholds.items()
        },
        "oracle": oracle(test.top1, costs),
    }
    fixed = {f"{size} px": gmacs for size, gmacs in zip(resolutions, costs.tolist(), strict=True)}
    compared = Compared(test, outcomes, fixed)
    named = _named_intervals(compared)
    m = len(costs)
    shares = np.bincount(test.choice, minlength=m) / len(test.choice)
    # Of a glancing model too at its own cost: every image gets the first look.
    matched = mixture(test.answer_top1, shares, spent)
    uniform = mixture(test.top1, np.full(m, 1 / m), costs)
    random = {"uniform_random": uniform.gmacs, "matched_random": matched.gmacs}
    return {
        "intervals": {name: _json(interval) for name, interval in named.items()},
        "gmacs": random | {name: outcome.gmacs for name, outcome in outcomes.items()},
        "random_spread": {"uniform": uniform.spread, "matched": matched.spread},
        **{f"{name}_threshold": threshold for name, threshold in thresholds.items()},
        **_curves(test, calibration, cost),
        "auroc_larger_needed": _json(_ranking(test, costs, spent)),
        "chosen_by_needed": _confusion(test, costs).tolist(),
        **_words(named, compared),
    }


def _thresholds(calibration: EvalRecords, cost: ModelCost, lam: float) -> dict[str, float]:
    """Of every cascade: at DRNet's cost on these images."""
    costs, spent = np.array(cost.classifier_gmacs), np.array(cost.choice_gmacs)
    choice = choose(calibration.scores, np.array(cost.choice_costs), lam)
    budget = by_choice(calibration.answer_top1, choice, spent, cost.predictor_gmacs).gmacs
    return {
        name: cascade_threshold(getattr(calibration, sureness), costs, budget)
        for name, sureness in _CASCADES.items()
    }


def _curves(test: EvalRecords, calibration: EvalRecords, cost: ModelCost) -> dict[str, Any]:
    """Over lambda and thresholds, and where they are as good as the largest resolution."""
    costs = np.array(cost.classifier_gmacs)
    lambdas = drnet_curve(calibration, cost)
    found = {"lambda_curve": lambdas.points(test)}
    as_good = {"drnet": lambdas.as_good_as_largest(test, calibration)}
    for name, sureness in _CASCADES.items():
        found[f"{name}_curve"] = cascade_curve(test, sureness, costs).points(test)
        chosen = cascade_curve(calibration, sureness, costs)
        as_good[name] = chosen.as_good_as_largest(test, calibration)
    return {**found, "as_good_as_largest": as_good}


def _words(named: Mapping[str, Interval], compared: Compared) -> dict[str, Any]:
    begin = "drnet - "
    differences = {n.removeprefix(begin): i for n, i in named.items() if n.startswith(begin)}
    gmacs = compared.outcomes["drnet"].gmacs
    relative = {name: gmacs / fixed for name, fixed in compared.fixed.items()}
    return {
        "verdict": verdict(differences, relative),
        "verdicts": verdicts(differences, relative),
    }


def _json(interval: Interval) -> dict[str, float | None]:
    """Null where a figure is not defined, for all images or for some resample."""
    return {name: None if np.isnan(value) else value for name, value in asdict(interval).items()}


def cascade_threshold(sureness: np.ndarray, costs: np.ndarray, gmacs: float) -> float:
    """The highest threshold whose cascade costs at most so much; 0 where none does.

    Args:
      sureness: `[n, m]`, as `cascade` takes it.
      costs: `[m]` GMACs.
      gmacs: of an image.
    """
    candidates = np.unique(sureness)
    low, high = -1, len(candidates) - 1
    # The cost rises with the threshold.
    while low < high:
        middle = (low + high + 1) // 2
        spent = float(cascade_costs(sureness, costs, candidates[middle]).mean())
        low, high = (middle, high) if spent <= gmacs else (low, middle - 1)
    return float(candidates[low]) if low >= 0 else 0.0


def _named_intervals(compared: Compared) -> dict[str, Interval]:
    """Accuracies, DRNet's paired differences to its controls, and what of the gap is closed."""
    records, outcomes = compared.records, compared.outcomes
    columns = np.concatenate(
        [
            records.top1,
            records.answer_top1,
            np.eye(len(compared.fixed))[records.choice],
            outcomes["drnet"].cost[:, None],
            np.stack([outcome.correct for outcome in outcomes.values()], axis=1),
        ],
        axis=1,
    )
    names: list[str] = []

    def figures(means: np.ndarray) -> np.ndarray:
        """From means of the columns `[b, q]` to the figures `[b, f]`."""
        rows = [_figures(row, compared) for row in means]
        names[:] = rows[0]
        return np.array([list(row.values()) for row in rows])

    found = intervals(columns, figures, records.origin)
    return dict(zip(names, found, strict=True))


def _figures(means: np.ndarray, compared: Compared) -> dict[str, float]:
    m = len(compared.fixed)
    fixed, answers, shares, (gmacs,), correct = np.split(means, [m, 2 * m, 3 * m, 3 * m + 1])
    reached = dict(zip(compared.outcomes, map(float, correct), strict=True))
    drnet, best = reached.pop("drnet"), reached.pop("oracle")
    hull = float(hull_weights(compared.costs, fixed, gmacs) @ fixed)
    controls = {
        "hull": hull,
        "uniform_random": float(fixed.mean()),
        "matched_random": float(shares @ answers),
        **reached,
    }
    figures = {"drnet": drnet, "oracle": best, **controls}
    others = controls | dict(zip(compared.fixed, map(float, fixed), strict=True))
    figures |= {f"drnet - {name}": drnet - value for name, value in others.items()}
    figures["regret"] = best - drnet
    # Of the way from the hull to the oracle, if there is one to speak of.
    gap = best - hull
    figures["oracle_gap_closed"] = (drnet - hull) / gap if gap > _LEAST_GAP else np.nan
    return figures


def _ranking(records: EvalRecords, costs: np.ndarray, spent: np.ndarray) -> Interval:
    """AUROC of the expected cost under the predictor, for images that the cheapest gets wrong and
    a larger one correct; NaN where there are none, or no others."""
    larger = ~records.top1[:, costs.argmin()] & records.top1.any(axis=1)
    p = np.exp(log_softmax(records.scores.astype(float), axis=1))
    return auroc_interval(larger, p @ spent, records.origin)


def _confusion(records: EvalRecords, costs: np.ndarray) -> np.ndarray:
    """Images by chosen resolution (rows) and needed one; the last column: none is correct."""
    m = len(costs)
    column = np.where(records.top1.any(axis=1), needed(records.top1, costs), m)
    counts = np.zeros((m, m + 1), int)
    np.add.at(counts, (records.choice, column), 1)
    return counts
