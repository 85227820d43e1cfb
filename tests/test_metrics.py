"""Evaluation figures against hand counts."""

import numpy as np
import pytest

from drnet_jax.evaluation.metrics import (
    EvalRecords,
    by_class,
    by_resolution,
    by_size,
    hull_top1,
    matched_random_top1,
    objective,
    summarise,
)
from drnet_jax.models.macs import ModelCost

COST = ModelCost(predictor=10**8, classifier=(4 * 10**9, 2 * 10**9, 10**9))
TOP1 = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], dtype=bool)
RECORDS = EvalRecords(
    ce=np.array([[0.1, 0.2, 0.9], [0.5, 0.4, 0.3], [1.0, 2.0, 3.0], [0.2, 0.2, 0.8]]),
    top1=TOP1,
    answer_top1=TOP1,
    answer_top5=np.array([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=bool),
    choice=np.array([0, 2, 2, 1]),
    scores=np.zeros((4, 3)),
    confidence=np.ones((4, 3)),
    margin=np.ones((4, 3)),
    index=np.arange(4),
    label=np.array([0, 1, 1, 0]),
)


def test_taken_records_are_those_images() -> None:
    taken = RECORDS.take(np.array([3, 0, 3]))
    assert taken.index.tolist() == [3, 0, 3] and taken.choice.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(taken.ce, RECORDS.ce[[3, 0, 3]])


def test_summary_counts() -> None:
    summary = summarise(RECORDS, (224, 168, 112), COST)
    assert summary["num_images"] == 4
    assert summary["top1"] == 2 / 4
    assert summary["top5"] == 3 / 4
    assert summary["shares"] == [0.25, 0.25, 0.5]
    assert summary["gmacs_classifier"] == pytest.approx(0.25 * 4 + 0.25 * 2 + 0.5 * 1)
    assert summary["gmacs"] == pytest.approx(2.0 + 0.1)
    assert [entry["top1"] for entry in summary["fixed"]] == [0.75, 0.5, 0.25]
    assert [entry["gmacs"] for entry in summary["fixed"]] == [4.0, 2.0, 1.0]
    assert matched_random_top1(summary) == pytest.approx(0.25 * 0.75 + 0.25 * 0.5 + 0.5 * 0.25)


def test_by_class_and_resolution() -> None:
    """Images 0 and 3 are of one class, 1 and 2 of another; two classes may share a name."""
    first, second = by_class(RECORDS, ("a", "a", "unused"))
    assert [row["class"] for row in (first, second)] == ["a", "a"]
    assert (first["num_images"], first["top1"], first["fixed_top1"]) == (2, 0.5, [1.0, 0.5, 0.0])
    assert (second["top1"], second["shares"]) == (0.5, [0.0, 0.0, 1.0])
    large, middle, small = by_resolution(RECORDS, (224, 168, 112))
    assert (large["num_images"], large["top1"]) == (1, 1.0)
    assert (middle["top1"], middle["fixed_top1"]) == (0.0, [1.0, 0.0, 0.0])
    assert (small["num_images"], small["top1"]) == (2, 0.5)


def test_objective_adds_the_excess_cost() -> None:
    ce = (0.1 + 0.3 + 3.0 + 0.2) / 4
    assert objective(RECORDS, COST, target=None, eta=0.2) == pytest.approx(ce)
    assert objective(RECORDS, COST, target=1.4, eta=0.2) == pytest.approx(ce + 0.2 * 0.6 / 3)
    assert objective(RECORDS, COST, target=2.5, eta=0.2) == pytest.approx(ce)


def test_by_size() -> None:
    """Images 0 and 2 are small, 1 and 3 large; the range between is empty."""
    small, large = by_size(RECORDS, np.array([10, 40, 13, 55]), (10, 14, 20, 57))
    assert small == {
        "pixels": [10, 13],
        "num_images": 2,
        "shares": [0.5, 0.0, 0.5],
        "top1": 0.5,
        # Wilson: of p, (1/2 - p)^2 = 1.96^2 p (1 - p) / 2.
        "interval": pytest.approx([0.0945, 0.9055], abs=1e-4),
        "fixed_top1": [0.5, 0.5, 0.0],
    }
    assert large["pixels"] == [20, 56]
    assert large["shares"] == [0.0, 0.5, 0.5]
    assert large["top1"] == 0.5


@pytest.mark.parametrize(
    ("points", "gmacs", "expected"),
    [
        ([(4, 0.8), (2, 0.7), (1, 0.4)], 3.0, 0.75),
        ([(4, 0.8), (2, 0.7), (1, 0.4)], 1.5, 0.55),
        # The middle point lies below the line from the smallest to the largest.
        ([(4, 0.8), (2, 0.45), (1, 0.5)], 2.5, 0.65),
        # The largest is worse than the middle: paying more never has to lose.
        ([(4, 0.6), (2, 0.7), (1, 0.4)], 3.0, 0.7),
        ([(4, 0.8), (2, 0.7), (1, 0.4)], 9.0, 0.8),
    ],
)
def test_hull(points: list[tuple[float, float]], gmacs: float, expected: float) -> None:
    summary = {"fixed": [{"gmacs": cost, "top1": top1} for cost, top1 in points]}
    assert hull_top1(summary, gmacs) == pytest.approx(expected)
