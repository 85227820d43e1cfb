"""DRNet beside its controls, in figures with intervals and in words: a part of `eval.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax

from drnet_jax.evaluation.cascades import Cascade, at_cost, through_all, through_some
from drnet_jax.evaluation.controls import Outcome, by_choice, mixture, needed, oracle
from drnet_jax.evaluation.curves import as_good_as_largest, cascade_curve, drnet_curve
from drnet_jax.evaluation.intervals import Interval, auroc_interval, intervals
from drnet_jax.evaluation.metrics import EvalRecords, hull_weights
from drnet_jax.evaluation.verdicts import verdict, verdicts
from drnet_jax.inference.decision import choose
from drnet_jax.models.macs import ModelCost

_LEAST_GAP = 1e-3
# A cascade and its threshold.
_Chosen = tuple[Cascade, float]


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
    cascades = _cascades(calibration, cost, lam)
    outcomes = {
        "drnet": by_choice(test.answer_top1, test.choice, spent, cost.predictor_gmacs),
        **{name: cascade.outcome(test, level) for name, (cascade, level) in cascades.items()},
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
        **{f"{name}_threshold": threshold for name, (_, threshold) in cascades.items()},
        "cascade_sizes": {
            name: [resolutions[step] for step in cascade.steps]
            for name, (cascade, _) in cascades.items()
        },
        **_curves(test, calibration, cost, cascades),
        "auroc_larger_needed": _json(_ranking(test, spent)),
        "chosen_by_needed": _confusion(test, spent).tolist(),
        **_words(named, compared),
    }


def _cascades(calibration: EvalRecords, cost: ModelCost, lam: float) -> dict[str, _Chosen]:
    """Every cascade with its threshold, at DRNet's cost on these images."""
    spent = np.array(cost.choice_gmacs)
    choice = choose(calibration.scores, np.array(cost.choice_costs), lam)
    budget = by_choice(calibration.answer_top1, choice, spent, cost.predictor_gmacs).gmacs
    variants = _variants(cost)
    return {name: at_cost(found, calibration, budget) for name, found in variants.items()}


def _variants(cost: ModelCost) -> dict[str, list[Cascade]]:
    gmacs = cost.classifier_gmacs
    return {
        "cascade": through_all("confidence", gmacs),
        "margin_cascade": through_some("margin", gmacs),
    }


def _curves(
    test: EvalRecords, calibration: EvalRecords, cost: ModelCost, cascades: Mapping[str, _Chosen]
) -> dict[str, Any]:
    """Over lambda and thresholds, and where they are as good as the largest resolution."""
    lambdas = drnet_curve(calibration, cost)
    found = {"lambda_curve": lambdas.points(test)}
    methods = {"drnet": [lambdas]}
    for name, (cascade, _) in cascades.items():
        found[f"{name}_curve"] = cascade_curve(test, cascade).points(test)
    for name, variants in _variants(cost).items():
        methods[name] = [cascade_curve(calibration, cascade) for cascade in variants]
    as_good = {
        name: as_good_as_largest(curves, test, calibration) for name, curves in methods.items()
    }
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


def _ranking(records: EvalRecords, spent: np.ndarray) -> Interval:
    """AUROC of the expected cost under the predictor, for images that the cheapest choice gets
    wrong and a larger one correct; NaN where there are none, or no others."""
    larger = ~records.answer_top1[:, spent.argmin()] & records.answer_top1.any(axis=1)
    p = np.exp(log_softmax(records.scores.astype(float), axis=1))
    return auroc_interval(larger, p @ spent, records.origin)


def _confusion(records: EvalRecords, spent: np.ndarray) -> np.ndarray:
    """Images by chosen resolution (rows) and needed one: the cheapest choice that is correct; the
    last column: none is."""
    correct, m = records.answer_top1, len(spent)
    column = np.where(correct.any(axis=1), needed(correct, spent), m)
    counts = np.zeros((m, m + 1), int)
    np.add.at(counts, (records.choice, column), 1)
    return counts
