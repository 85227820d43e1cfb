"""The figures of the experiment on fixed places, by hand."""

import numpy as np
import pytest

from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.models.macs import ModelCost
from experiments.first_look_runs import Run
from experiments.fused_batches import assigned, at_cost, capacities_with, computed, optimum

# By choice 0.9 and 0.1 GMACs: 0.1 of a first look, and 0.8 of a second.
COST = ModelCost(10_000_000, (800_000_000, 100_000_000), glances=True)


def test_the_best_assignment_beats_the_largest_first() -> None:
    """The second image gains most at the largest size, but loses least by the smallest."""
    values = np.array([[3, 2, 0], [3, 1.5, 1.5], [0, 9, 0]], np.float32)
    assert assigned(values[None], (1, 1, 1)).tolist() == [[2, 0, 1]]
    assert optimum(values, (1, 1, 1)).tolist() == [0, 2, 1]
    # With places for all, both give every image what it prefers.
    assert assigned(values[None], (3, 3, 3)).tolist() == [[0, 0, 1]]
    assert optimum(values, (3, 3, 3)).tolist() == [0, 0, 1]


def test_every_place_costs() -> None:
    assert computed(COST, (2, 6), 8) == pytest.approx(0.01 + 0.1 + 2 / 8 * 0.8)
    pixels = ModelCost(10_000_000, (900_000_000, 100_000_000))
    assert computed(pixels, (3, 7), 8) == pytest.approx(0.01 + (3 * 0.9 + 7 * 0.1) / 8)


@pytest.mark.parametrize(
    ("shares", "places", "expected"),
    [((0.25, 0.75), 1.0, (2, 6)), ((0.25, 0.75), 1.25, (3, 7)), ((0.1, 0.9), 1.25, (1, 8))],
)
def test_places(shares: tuple[float, ...], places: float, expected: tuple[int, ...]) -> None:
    """2.5 and 7.5 of ten are 3 and 7; nine places of ten are more than eight images take."""
    assert capacities_with(shares, 8, places) == expected


def test_exact_dispatch_between_two_lambdas() -> None:
    """Of four images the largest size helps the first two, which want it most in this order."""
    scores = np.array([[4, 0], [3, 0], [2, 0], [1, 0]], np.float32)
    right = np.array([[1, 0], [1, 0], [1, 1], [0, 1]], bool)
    none = np.zeros(4)
    records = EvalRecords(
        scores, right, right, right, scores.argmax(1), scores, scores, scores, none, none
    )
    run = Run("a", 0, (96, 32), COST, records, records)
    one, two = ((0.11 + count * 0.2) for count in (1, 2))
    np.testing.assert_allclose(at_cost(run, one), [1, 0, 1, 1])
    np.testing.assert_allclose(at_cost(run, two), [1, 1, 1, 1])
    np.testing.assert_allclose(at_cost(run, one + 0.3 * (two - one)), [1, 0.3, 1, 1], atol=1e-6)
    np.testing.assert_allclose(at_cost(run, 9.0), [1, 1, 1, 0])
