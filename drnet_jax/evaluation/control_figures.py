"""DRNet beside its controls, in figures with intervals and in words: a part of `eval.json`."""

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
from drnet_jax.evaluation.intervals import Interval, auroc_interval, intervals, proportion
from drnet_jax.evaluation.metrics import EvalRecords, hull_weights
from drnet_jax.inference.decision import choose, lambda_changes
from drnet_jax.models.macs import ModelCost

_CURVE_POINTS = 41
_LEAST_GAP = 1e-3


@dataclass(frozen=True)
class Compared:
    """DRNet and its controls on the same n images, at m resolutions.

    Attributes:
      correct: `[n, m]` bool, at each fixed resolution.
      answers: `[n, m]` bool, by choice, see `EvalRecords.answer_top1`.
      choice: `[n]`, DRNet's.
      drnet: with its predictor.
      cascade: by the largest probability, at DRNet's cost on the calibration split.
      margin_cascade: by its lead over the second largest, likewise.
      oracle: see `controls.oracle`.
      costs: `[m]` GMACs.
      origin: `[n]`, see `EvalRecords`.
    """

    correct: np.ndarray
    answers: np.ndarray
    choice: np.ndarray
    drnet: Outcome
    cascade: Outcome
    margin_cascade: Outcome
    oracle: Outcome
    costs: np.ndarray
    origin: np.ndarray | None


def control_figures(
    test: EvalRecords, calibration: EvalRecords, cost: ModelCost, lam: float
) -> dict[str, Any]:
    """Everything that DRNet is compared with.

    Args:
      test: what the figures are of.
      calibration: what the cascade's threshold and the lambdas are chosen on.
      cost: of the networks.
      lam: lambda of `choose`, DRNet's.

    Returns:
      JSON values: accuracies are fractions, costs GMACs an image, intervals 95 % by bootstrap,
      over images, or over their origins where `test` has those.
    """
    costs, spent = np.array(cost.classifier_gmacs), np.array(cost.choice_gmacs)
    predictor = cost.predictor_gmacs
    choice = choose(calibration.scores, spent, lam)
    budget = by_choice(calibration.answer_top1, choice, spent, predictor).gmacs
    threshold = cascade_threshold(calibration.confidence, costs, budget)
    margin_threshold = cascade_threshold(calibration.margin, costs, budget)
    compared = Compared(
        test.top1,
        test.answer_top1,
        test.choice,
        by_choice(test.answer_top1, test.choice, spent, predictor),
        cascade(test.top1, test.confidence, costs, threshold),
        cascade(test.top1, test.margin, costs, margin_threshold),
        oracle(test.top1, costs),
        costs,
        test.origin,
    )
    named = _named_intervals(compared)
    m = len(costs)
    shares = np.bincount(test.choice, minlength=m) / len(test.choice)
    # Of a glancing model too at its own cost: every image gets the first look.
    matched = mixture(test.answer_top1, shares, spent)
    uniform = mixture(test.top1, np.full(m, 1 / m), costs)
    return {
        "intervals": {name: _json(interval) for name, interval in named.items()},
        "gmacs": {
            "drnet": compared.drnet.gmacs,
            "uniform_random": uniform.gmacs,
            "matched_random": matched.gmacs,
            "cascade": compared.cascade.gmacs,
            "margin_cascade": compared.margin_cascade.gmacs,
            "oracle": compared.oracle.gmacs,
        },
        "random_spread": {"uniform": uniform.spread, "matched": matched.spread},
        "cascade_threshold": threshold,
        "margin_cascade_threshold": margin_threshold,
        "cascade_curve": _cascade_curve(test, costs),
        "lambda_curve": _lambda_curve(test, calibration, spent, predictor),
        "auroc_larger_needed": _json(_ranking(test, costs, spent)),
        "chosen_by_needed": _confusion(test, costs).tolist(),
        "verdict": verdict(named),
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
    m = len(compared.costs)
    columns = np.concatenate(
        [
            compared.correct,
            compared.answers,
            np.eye(m)[compared.choice],
            np.stack(
                [
                    compared.drnet.correct,
                    compared.drnet.cost,
                    compared.cascade.correct,
                    compared.margin_cascade.correct,
                    compared.oracle.correct,
                ],
                axis=1,
            ),
        ],
        axis=1,
    )
    names: list[str] = []

    def figures(means: np.ndarray) -> np.ndarray:
        """From means of the columns `[b, 3m + 5]` to the figures `[b, f]`."""
        rows = [_figures(row, compared.costs) for row in means]
        names[:] = rows[0]
        return np.array([list(row.values()) for row in rows])

    found = intervals(columns, figures, compared.origin)
    return dict(zip(names, found, strict=True))


def _figures(means: np.ndarray, costs: np.ndarray) -> dict[str, float]:
    m = len(costs)
    fixed, answers, shares = means[:m], means[m : 2 * m], means[2 * m : 3 * m]
    drnet, gmacs, cascaded, by_margin, best = means[3 * m :]
    hull = float(hull_weights(costs, fixed, gmacs) @ fixed)
    controls = {
        "hull": hull,
        "uniform_random": float(fixed.mean()),
        "matched_random": float(shares @ answers),
        "cascade": float(cascaded),
        "margin_cascade": float(by_margin),
    }
    figures = {"drnet": float(drnet), "oracle": float(best), **controls}
    figures |= {f"drnet - {name}": float(drnet) - value for name, value in controls.items()}
    figures["regret"] = float(best - drnet)
    # Of the way from the hull to the oracle, if there is one to speak of.
    gap = float(best) - hull
    figures["oracle_gap_closed"] = (float(drnet) - hull) / gap if gap > _LEAST_GAP else np.nan
    return figures


def verdict(named: dict[str, Interval]) -> str:
    """Whether the predictor earned its cost, in words."""
    gain = named["drnet - hull"]
    points = [100 * value for value in (gain.value, gain.low, gain.high)]
    if gain.low > 0:
        words = "above the hull"
    elif gain.high < 0:
        words = "below the hull"
    else:
        words = "not above the hull"
    return (
        f"{words} of the fixed resolutions at equal cost: {points[0]:+.2f} points "
        f"({points[1]:+.2f} to {points[2]:+.2f})"
    )


def _cascade_curve(records: EvalRecords, costs: np.ndarray) -> list[list[float]]:
    """Points from always stopping at once to never before the end (threshold 2.0)."""
    quantiles = np.quantile(records.confidence, np.linspace(0, 1, _CURVE_POINTS))
    curve = []
    for threshold in (*np.unique(quantiles), 2.0):
        outcome = cascade(records.top1, records.confidence, costs, threshold)
        curve.append(_point(float(threshold), outcome, records.origin))
    return curve


def _lambda_curve(
    test: EvalRecords, calibration: EvalRecords, spent: np.ndarray, predictor: float
) -> list[list[float]]:
    """Points on the test split, at lambdas that change choices on the calibration split."""
    changes = lambda_changes(calibration.scores, spent)
    quantiles = np.quantile(changes, np.linspace(0, 1, _CURVE_POINTS)) if changes.size else []
    curve = []
    for lam in sorted({0.0, *map(float, quantiles)}):
        choice = choose(test.scores, spent, lam)
        outcome = by_choice(test.answer_top1, choice, spent, predictor)
        curve.append(_point(lam, outcome, test.origin))
    return curve


def _point(setting: float, outcome: Outcome, origin: np.ndarray | None) -> list[float]:
    """Setting, GMACs, top-1 and the ends of its interval."""
    top1 = proportion(outcome.correct, origin)
    return [setting, outcome.gmacs, top1.value, top1.low, top1.high]


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
