"""What the experiments on first looks compare: methods at a cost, and their differences."""

from collections.abc import Callable, Sequence

import numpy as np

from drnet_jax.evaluation.cascades import at_cost, through_some
from drnet_jax.evaluation.controls import Outcome, by_choice
from drnet_jax.evaluation.intervals import Interval, intervals
from drnet_jax.evaluation.metrics import EvalRecords, hull_weights
from drnet_jax.inference.decision import choose, lambda_changes
from experiments.first_look_runs import Run

# Mean costs over the largest size's.
TARGETS = (0.55, 0.6, 0.65)
# At a mean cost on the calibration split, in GMACs: what a method gives for images.
Method = Callable[[float, EvalRecords], Outcome]


def lambda_within(run: Run) -> Callable[[float], float]:
    """From a cost to the least lambda within it on the calibration split."""
    assert run.calibration is not None
    costs, scores = np.array(run.cost.choice_gmacs), run.calibration.scores
    changes = np.unique(lambda_changes(scores, costs))
    between = (changes[1:] + changes[:-1]) / 2
    lambdas = np.array([changes[0] - 1, *between, changes[-1] + 1])
    lambdas = lambdas[np.linspace(0, len(lambdas) - 1, min(len(lambdas), 1000)).round().astype(int)]
    spent = np.array([costs[choose(scores, costs, lam)].mean() for lam in lambdas])

    def within(gmacs: float) -> float:
        """The cheapest choice where none is."""
        found = np.flatnonzero(spent + run.cost.predictor_gmacs <= gmacs)
        return float(lambdas[found[0] if len(found) else -1])

    return within


def adaptive(run: Run) -> Method:
    """A model's own choice, by its lambda."""
    costs, within = np.array(run.cost.choice_gmacs), lambda_within(run)

    def method(gmacs: float, records: EvalRecords) -> Outcome:
        """Of the least lambda within the cost."""
        choice = choose(records.scores, costs, within(gmacs))
        return by_choice(records.answer_top1, choice, costs, run.cost.predictor_gmacs)

    return method


def plain_cascade(run: Run, sureness: str) -> Method:
    """Without reuse, by the confidence or the margin, through the sizes that do best."""
    cascades = through_some(sureness, run.cost.classifier_gmacs)

    def method(gmacs: float, records: EvalRecords) -> Outcome:
        """Of the highest threshold within the cost."""
        assert run.calibration is not None
        best, threshold = at_cost(cascades, run.calibration, gmacs)
        return best.outcome(records, threshold)

    return method


def largest_alone(run: Run) -> Outcome:
    """The largest size for every image."""
    everywhere = np.zeros(len(run.test.label), int)
    return by_choice(run.test.top1, everywhere, np.array(run.cost.classifier_gmacs))


def differences(
    runs: Sequence[Run], outcomes: Sequence[Outcome], others: Sequence[np.ndarray]
) -> Interval:
    """Top-1 minus another's.

    Args:
      runs: one a seed.
      outcomes: of each.
      others: of each, whether another method is right `[n]`.
    """
    columns = np.stack([*(found.correct for found in outcomes), *others], axis=1)
    return intervals(
        columns,
        lambda means: (means[:, : len(runs)] - means[:, len(runs) :]).mean(axis=1, keepdims=True),
        runs[0].test.origin,
    )[0]


def minus_hull(sizes: Sequence[Run], outcomes: Sequence[Outcome]) -> Interval:
    """Top-1 minus the hull of the fixed sizes at the same cost.

    Args:
      sizes: whose sizes, one a seed.
      outcomes: of each.
    """
    seeds = len(sizes)
    own = [column for found in outcomes for column in (found.correct, found.cost)]
    costs = np.array(sizes[0].cost.classifier_gmacs)
    fixed = [column for run in sizes for column in run.test.top1.T]
    columns = np.stack([*own, *fixed], axis=1)

    def difference(means: np.ndarray) -> np.ndarray:
        """`[b, 1]` of means `[b, q]`."""
        found = []
        for mean in means:
            levels = mean[2 * seeds :].reshape(seeds, -1)
            pairs = zip(mean[0 : 2 * seeds : 2], mean[1 : 2 * seeds : 2], levels, strict=True)
            found.append(
                np.mean([top1 - hull_weights(costs, at, cost) @ at for top1, cost, at in pairs])
            )
        return np.array(found)[:, None]

    return intervals(columns, difference, sizes[0].test.origin)[0]


def with_seeds_of(
    others: Sequence[Run], runs: Sequence[Run], outcomes: Sequence[Outcome]
) -> tuple[list[Outcome], list[Run]]:
    """The outcomes of runs whose seeds others have, too, and those others."""
    known = {other.seed: other for other in others}
    pairs = [
        (outcome, known[run.seed])
        for run, outcome in zip(runs, outcomes, strict=True)
        if run.seed in known
    ]
    return [outcome for outcome, _ in pairs], [other for _, other in pairs]


def equal(runs: Sequence[Run], method: Callable[[Run], Method]) -> dict[str, object] | None:
    """The least cost at which the seeds' mean is as accurate as the largest size, on calibration.

    There the choice was fitted, too: on the test split expect a little less. Its cost there, over
    the largest size's, and the difference; None where no cost is enough.
    """
    methods = [method(run) for run in runs]
    largest = runs[0].cost.classifier_gmacs[0]
    known = [(run, run.calibration) for run in runs if run.calibration is not None]
    wanted = np.mean([records.top1[:, 0].mean() for _, records in known])
    for target in np.arange(0.15, 1.2, 0.01) * largest:
        found = [each(target, r).top1 for each, (_, r) in zip(methods, known, strict=True)]
        if np.mean(found) >= wanted:
            outcomes = [each(target, run.test) for each, run in zip(methods, runs, strict=True)]
            fixed = [run.test.top1[:, 0].astype(float) for run in runs]
            minus = in_points(differences(runs, outcomes, fixed))
            return {"cost": mean_cost(outcomes) / largest, "minus largest": minus}
    return None


def mean_cost(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([outcome.gmacs for outcome in outcomes]))


def in_points(interval: Interval) -> list[float]:
    """In percentage points."""
    return [100 * interval.value, 100 * interval.low, 100 * interval.high]


def cell(points: Sequence[float] | None) -> str:
    return "" if points is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*points)
