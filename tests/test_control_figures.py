"""The controls of `eval.json`: figures by hand, intervals against theory, verdicts in words."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drnet_jax.evaluation.control_figures import cascade_threshold, control_figures, verdict
from drnet_jax.evaluation.controls import cascade
from drnet_jax.evaluation.intervals import Interval, intervals
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.models.macs import ModelCost

COST = ModelCost(100_000_000, (4_000_000_000, 2_000_000_000, 1_000_000_000))
COSTS = np.array([4.0, 2.0, 1.0])


def records(seed: int, count: int = 400, skill: float = 3.0) -> EvalRecords:
    """Images of a random difficulty, which accuracy, confidence and scores follow."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random((count, 1))
    top1 = rng.random((count, 3)) < np.array([0.95, 0.9, 0.85]) - difficulty * [0.1, 0.3, 0.6]
    confidence = np.clip(1 - 0.6 * difficulty + rng.normal(0, 0.1, (count, 3)), 0.1, 1)
    scores = skill * difficulty * [1.0, 0.3, -1.0] + rng.normal(0, 0.3, (count, 3))
    zeros = np.zeros((count, 3))
    choice = scores.argmax(1)
    index, label = np.arange(count), np.zeros(count, int)
    return EvalRecords(zeros, top1, top1, choice, scores, confidence, index, label)


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return control_figures(records(0), records(1), COST, 0.0)


def test_figures(figures: dict[str, Any]) -> None:
    test = records(0)
    value = {name: entry["value"] for name, entry in figures["intervals"].items()}
    correct = test.top1[np.arange(400), test.choice]
    assert value["drnet"] == pytest.approx(correct.mean())
    shares = np.bincount(test.choice, minlength=3) / 400
    assert value["matched_random"] == pytest.approx(shares @ test.top1.mean(0))
    assert value["uniform_random"] == pytest.approx(test.top1.mean())
    assert value["oracle"] == pytest.approx(test.top1.any(1).mean())
    assert value["regret"] == pytest.approx((test.top1.any(1) & ~correct).mean())
    assert figures["gmacs"]["drnet"] == pytest.approx(shares @ COSTS + 0.1)
    assert figures["gmacs"]["matched_random"] == pytest.approx(shares @ COSTS)
    large, middle, small = test.top1.mean(0)
    cost = figures["gmacs"]["drnet"]
    hull = np.interp(cost, [1, 2, 4], [small, middle, large])
    assert value["hull"] == pytest.approx(hull)
    for name in ("hull", "matched_random", "cascade"):
        assert value[f"drnet - {name}"] == pytest.approx(value["drnet"] - value[name])
    closed = (value["drnet"] - hull) / (value["oracle"] - hull)
    assert value["oracle_gap_closed"] == pytest.approx(closed)
    for entry in figures["intervals"].values():
        assert entry["low"] <= entry["value"] <= entry["high"]


def test_confusion(figures: dict[str, Any]) -> None:
    test = records(0)
    expected = np.zeros((3, 4), int)
    for choice, correct in zip(test.choice, test.top1, strict=True):
        cheapest = [column for column in (2, 1, 0) if correct[column]]
        expected[choice, cheapest[0] if cheapest else 3] += 1
    assert figures["chosen_by_needed"] == expected.tolist()


def test_a_skilled_predictor_ranks(figures: dict[str, Any]) -> None:
    auroc = figures["auroc_larger_needed"]
    assert 0.5 < auroc["low"] < auroc["value"] < auroc["high"]
    blind = control_figures(records(0, skill=0.0), records(1, skill=0.0), COST, 0.0)
    assert 0.4 < blind["auroc_larger_needed"]["value"] < 0.6


def test_the_cascade_is_chosen_on_the_calibration_images(figures: dict[str, Any]) -> None:
    calibration, threshold = records(1), figures["cascade_threshold"]
    spent = COSTS[calibration.choice].mean() + 0.1
    arguments = calibration.top1, calibration.confidence, COSTS
    assert cascade(*arguments, threshold).gmacs <= spent
    above = calibration.confidence[calibration.confidence > threshold].min()
    assert cascade(*arguments, above).gmacs > spent
    # Nothing costs less than the cheapest resolution.
    assert cascade_threshold(calibration, COSTS, 0.5) == 0.0


def test_curves(figures: dict[str, Any]) -> None:
    thresholds, costs, top1, *ends = zip(*figures["cascade_curve"], strict=True)
    assert list(thresholds) == sorted(thresholds) and list(costs) == sorted(costs)
    assert (costs[0], costs[-1]) == (1.0, 7.0)
    assert top1[0] == records(0).top1[:, 2].mean() and top1[-1] == records(0).top1[:, 0].mean()
    assert all(low < p < high for low, p, high in zip(ends[0], top1, ends[1], strict=True))
    lambdas, costs, top1, *_ = zip(*figures["lambda_curve"], strict=True)
    assert list(lambdas) == sorted(lambdas) and list(costs) == sorted(costs, reverse=True)
    at_zero = lambdas.index(0.0)
    assert top1[at_zero] == pytest.approx(figures["intervals"]["drnet"]["value"])


def test_a_budget_moves_the_cascade() -> None:
    test = records(0)
    moved = replace(test, choice=np.full(400, 2))
    cheap = control_figures(moved, records(1), COST, lam=100.0)
    usual = control_figures(test, records(1), COST, lam=0.0)
    assert cheap["cascade_threshold"] < usual["cascade_threshold"]


@pytest.mark.filterwarnings("error")
def test_no_gap_is_null() -> None:
    """The cheapest resolution is correct wherever any is: the hull is the oracle."""
    correct = np.repeat(np.arange(50)[:, None] > 4, 3, axis=1)
    test = replace(records(0, 50), top1=correct)
    gap = control_figures(test, test, COST, 0.0)["intervals"]["oracle_gap_closed"]
    assert gap == {"value": None, "low": None, "high": None}


def test_intervals_are_those_of_theory() -> None:
    """Of a mean, a paired difference and a constant."""
    rng = np.random.default_rng(0)
    first = rng.normal(5, 2, 2000)
    second = first + rng.normal(1, 0.1, 2000)
    got = intervals(
        np.stack([first, second], 1),
        lambda means: np.stack([means[:, 0], means[:, 1] - means[:, 0], 0 * means[:, 0] + 7], 1),
    )
    for found, sample in zip(got, (first, second - first), strict=False):
        half = 1.96 * sample.std() / np.sqrt(2000)
        assert found.value == pytest.approx(sample.mean())
        assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert got[2] == Interval(7.0, 7.0, 7.0)
    (alone,) = intervals(np.array([[3.0]]), lambda means: means)
    assert alone == Interval(3.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.03, "above the hull of the fixed resolutions at equal cost: +2.00 points (+1.00"),
        (-0.01, 0.05, "not above the hull"),
        (-0.03, -0.01, "below the hull"),
    ],
)
def test_verdict(low: float, high: float, words: str) -> None:
    assert verdict({"drnet - hull": Interval((low + high) / 2, low, high)}).startswith(words)
