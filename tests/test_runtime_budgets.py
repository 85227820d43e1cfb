"""drnet_runtime chooses as drnet_jax does, and keeps budgets by the same points."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from drnet_jax.budgets import calibration as jax_budgets
from drnet_jax.inference import decision
from drnet_runtime.budgets import Calibration, Point, upper_bound
from drnet_runtime.choice import choose
from drnet_runtime.errors import BudgetError

GMACS = np.array([4.0, 2.0, 1.0])


def tables(seed: int, n: int = 60) -> tuple[Calibration, jax_budgets.Calibration]:
    """The same table for both, of random scores of which some tell what is correct."""
    rng = np.random.default_rng(seed)
    difficulty = rng.uniform(size=n)
    correct = difficulty[:, None] < np.array([0.9, 0.7, 0.5]) + rng.normal(0, 0.1, (n, 3))
    scores = rng.normal(size=(n, 3)) - 3 * difficulty[:, None] * np.array([0, 1, 2])
    known = jax_budgets.calibrate(scores, correct, correct[:, 0], GMACS, 0.1, "model")
    points = [
        Point(p.lam, p.gmacs, p.top1, p.shares, p.lost, p.won, GMACS[0]) for p in known.points
    ]
    return Calibration(n, tuple(points)), known


def outcome(find: Callable[..., Any], *budget: Any) -> tuple[float, ...] | str:
    try:
        point = find(*budget)
    except (BudgetError, jax_budgets.BudgetError) as error:
        return str(error)
    return (point.lam, point.gmacs, point.top1)


@pytest.mark.parametrize("seed", range(5))
def test_budgets(seed: int) -> None:
    ours, known = tables(seed)
    found = set()
    for gmacs in (*np.linspace(0.5, 4.5, 81).tolist(), float("nan"), float("inf"), True, "1"):
        point = outcome(ours.for_gmacs, gmacs)
        assert point == outcome(known.for_gmacs, gmacs)
        found.add(point)
        if type(gmacs) is float and gmacs >= 1.1 and np.isfinite(gmacs):
            # Of 4 GMACs, by which nothing is rounded.
            assert outcome(ours.for_fraction, gmacs / 4) == point
    for drop in (*np.linspace(-20, 60, 81).tolist(), float("nan"), None):
        point = outcome(ours.for_drop, drop)
        assert point == outcome(known.for_drop, drop)
        found.add(point)
    assert len(found) > 20
    with pytest.raises(BudgetError, match="0.2 of the largest resolution's multiply-adds cannot"):
        ours.for_fraction(0.2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [60, 3000])
def test_drops_with_a_confidence(seed: int, n: int) -> None:
    ours, known = tables(seed, n)
    for confidence in (0.5, 0.9, 0.999, 1.0, -0.1):
        for drop in (1.0, 5.0, 8.0, 20.0, 100.0):
            found = outcome(ours.for_drop, drop, confidence)
            assert found == outcome(known.for_drop, drop, confidence)


@settings(deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1), st.floats(1e-6, 0.5))
def test_bounds_are_clopper_and_pearsons(total: int, share: float, error: float) -> None:
    count = round(share * total)
    expected = beta.ppf(1 - error, count + 1, total - count) if count < total else 1.0
    assert upper_bound(count, total, error) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-3, 0.7, -0.7, 50.0]))
def test_choices(seed: int, lam: float) -> None:
    """Among them ties, of which the first counts, and what only lambda 0 tells apart."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(50, 3)).astype(np.float32)
    scores[::3] = scores[::3].round()
    scores[0] = 0, 1e-30, -1
    expected = decision.choose(scores, GMACS, lam)
    np.testing.assert_array_equal(choose(scores, GMACS, np.full(50, lam)), expected)
