"""The figures of the experiment on first looks, on made-up records."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drnet_jax.evaluation.controls import Outcome
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.models.macs import ModelCost
from experiments.first_look_both import both
from experiments.first_look_methods import (
    adaptive,
    differences,
    equal,
    lambda_within,
    minus_hull,
    with_seeds_of,
)
from experiments.first_look_runs import Run, load_all, save

COST = ModelCost(3_000_000, (900_000_000, 100_000_000), glances=True)


def records(count: int, seed: int) -> EvalRecords:
    """Small looks are right where they are sure, large ones nearly always."""
    rng = np.random.default_rng(seed)
    sure = rng.random(count, np.float32)
    top1 = np.stack([rng.random(count) < 0.9, rng.random(count) < 0.3 + 0.7 * sure], axis=1)
    answers = top1 | np.stack([rng.random(count) < 0.3, np.zeros(count, bool)], axis=1)
    scores = np.stack([np.full(count, 0.9, np.float32), sure], axis=1)
    each = np.stack([sure, sure], axis=1)
    index = np.arange(count, dtype=np.int32)
    return EvalRecords(
        each, top1, answers, answers, scores.argmax(axis=1), scores, each, each, index, index
    )


def run(seed: int, variant: str = "a: b") -> Run:
    return Run(variant, seed, (96, 32), COST, records(200, seed), records(300, 100 + seed))


def test_lambda_is_the_least_within_the_cost() -> None:
    one = run(0)
    assert one.calibration is not None
    lam = lambda_within(one)(0.5)
    costs = np.array(COST.choice_gmacs)

    def spent(lam: float) -> float:
        scores = one.calibration.scores.astype(np.float64)
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return costs[(log_p - lam * costs).argmax(axis=1)].mean() + 0.003

    assert spent(lam) <= 0.5
    # One image more would have its second look.
    assert spent(lam) + 0.9 / 300 > 0.5
    outcome = adaptive(one)(0.5, one.calibration)
    assert outcome.gmacs == pytest.approx(spent(lam))


def test_differences_are_means_over_the_seeds() -> None:
    runs = [run(0), run(1)]
    outcomes = [adaptive(one)(0.5, one.test) for one in runs]
    others = [one.test.top1[:, 1].astype(float) for one in runs]
    found = differences(runs, outcomes, others)
    each = [o.correct.mean() - other.mean() for o, other in zip(outcomes, others, strict=True)]
    assert found.value == pytest.approx(np.mean(each))
    # The hull of two sizes is the line between them, of every seed its own.
    minus = []
    for one, outcome in zip(runs, outcomes, strict=True):
        large, small = one.test.top1.mean(axis=0)
        share = (outcome.cost.mean() - 0.1) / 0.8
        minus.append(outcome.correct.mean() - (small + share * (large - small)))
    found = minus_hull(runs, outcomes)
    assert found.value == pytest.approx(np.mean(minus))
    assert found.low < found.value < found.high


def test_only_common_seeds_are_compared() -> None:
    runs = [run(0), run(2), run(1)]
    outcomes = [adaptive(one)(0.5, one.test) for one in runs]
    others = [run(1), run(0), run(5)]
    ours, common = with_seeds_of(others, runs, outcomes)
    assert ours == [outcomes[0], outcomes[2]]
    assert common == [others[1], others[0]]


def test_as_good_as_the_largest_by_the_calibration_split() -> None:
    runs = [run(0), run(1)]
    found = equal(runs, adaptive)
    assert found is not None

    cheaper = [
        np.mean([adaptive(one)(target, one.calibration).top1 for one in runs if one.calibration])
        for target in np.arange(0.15, 1.2, 0.01) * 0.9
    ]
    wanted = np.mean([one.calibration.top1[:, 0].mean() for one in runs if one.calibration])
    target = (np.arange(0.15, 1.2, 0.01) * 0.9)[np.argmax(np.array(cheaper) >= wanted)]
    outcomes = [adaptive(one)(target, one.test) for one in runs]
    assert found["cost"] == pytest.approx(np.mean([o.gmacs for o in outcomes]) / 0.9)
    gain = [
        o.correct.mean() - one.test.top1[:, 0].mean() for o, one in zip(outcomes, runs, strict=True)
    ]
    assert found["minus largest"][0] == pytest.approx(100 * np.mean(gain))


def test_a_predictor_before_the_first_look() -> None:
    """The share with the best value on the calibration split, and what it comes to on the test's.

    The predictor nearly knows how sure the first look will be, and nothing is reused.
    """
    one, seen = run(0), {}
    assert one.calibration is not None
    test, calibration = (
        replace(found, answer_top1=found.top1) for found in (one.test, one.calibration)
    )
    one = replace(one, test=test, calibration=calibration)
    for split, records_of in (("calibration", calibration), ("test", test)):
        noise = np.random.default_rng(7).normal(0, 0.05, len(records_of.label))
        wants = 1 - records_of.margin[:, 1] + noise
        scores = np.stack([wants, np.zeros_like(wants)], axis=1)
        seen[split] = replace(records_of, scores=scores), wants
    before = ModelCost(10_000_000, COST.classifier)
    paper = Run("paper", 0, (96, 32), before, seen["test"][0], seen["calibration"][0])
    lam = lambda_within(one)(0.5)
    found = both(one, paper, lam)

    chosen: Outcome = adaptive(one)(0.5, one.test)
    assert found["alone cost"] == pytest.approx(chosen.gmacs / 0.9)
    assert found["alone top1"] == pytest.approx(100 * chosen.top1)
    second = (chosen.cost > 0.5).mean()
    assert found["perfect saves"] == pytest.approx(second / 9)
    assert found["predictor costs"] == pytest.approx(0.01 / 0.9)

    def outcome(share: float, split: str) -> tuple[float, float]:
        """Top-1 in % and cost, image by image."""
        records_of, wants = getattr(one, split), seen[split][1]
        limit = np.quantile(seen["calibration"][1], 1 - share)
        looked = adaptive(one)(0.5, records_of)
        correct, spent = [], []
        for row, want in enumerate(wants):
            past = share > 0 and want > limit
            correct.append(records_of.top1[row, 0] if past else looked.correct[row])
            spent.append(0.01 + (0.9 if past else looked.cost[row]))
        return 100 * float(np.mean(correct)), float(np.mean(spent)) / 0.9

    large, small = 100 * calibration.top1.mean(axis=0)
    price = (large - small) / (1 - 1 / 9)
    shares = np.arange(26) / 50
    values = [top1 - price * cost for top1, cost in (outcome(s, "calibration") for s in shares)]
    best = shares[int(np.argmax(values))]
    assert found["share"] == pytest.approx(best) and 0 < best < 0.5
    assert (found["top1"], found["cost"]) == pytest.approx(outcome(best, "test"))


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    plain = Run("plain", 1, (96,), ModelCost(0, (900,)), records(10, 5), None)
    for one in (run(0), plain):
        save(one, tmp_path)
    found = {one.variant: one for one in load_all(tmp_path)}
    assert found["plain"].calibration is None
    assert (found["a: b"].seed, found["a: b"].cost) == (0, COST)
    np.testing.assert_array_equal(found["a: b"].test.scores, run(0).test.scores)
    np.testing.assert_array_equal(found["plain"].test.top1, plain.test.top1)
