"""Places a resolution, and who gets them: against loops, an optimal assignment and the choices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from drnet_jax.inference.capacity import assign, capacities_of, checked_capacities
from drnet_jax.inference.decision import choose

CAPACITIES = [(3, 5), (2, 1, 5), (0, 3, 5), (8, 0, 0), (4, 4, 8)]


def assigned(values: np.ndarray, capacities: tuple[int, ...], count: int) -> np.ndarray:
    """Choices of the real images, which must be those that the places hold."""
    choices, placed = _jitted(jnp.asarray(values, jnp.float32), capacities, count)
    choices, n = np.asarray(choices)[:count], len(values)
    for j, (rows, capacity) in enumerate(zip(placed, capacities, strict=True)):
        assert len(rows) == capacity
        rows = np.asarray(rows)
        assert sorted(rows[rows < n]) == np.flatnonzero(choices == j).tolist()
    return choices


_jitted: Any = partial(jax.jit, static_argnums=1)(assign)


def by_hand(values: np.ndarray, capacities: tuple[int, ...], count: int) -> list[int]:
    """The rule in words of Python."""
    found, left = [-1] * count, list(range(count))
    for j, capacity in enumerate(capacities):
        later = values[:, j + 1 :]

        def gain(row: int, j: int = j, later: np.ndarray = later) -> float:
            return float(values[row, j] - max(later[row], default=-np.inf))

        willing = [row for row in left if gain(row) >= 0]
        must = len(left) - sum(capacities[j + 1 :])
        number = min(max(len(willing), must), capacity)
        for row in sorted(left, key=lambda row: (-gain(row), row))[:number]:
            found[row] = j
            left.remove(row)
    return found


def small_integers(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """With many ties."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CAPACITIES), st.integers(0, 8), st.integers(0, 10**6))
def test_the_rule(capacities: tuple[int, ...], count: int, seed: int) -> None:
    values = small_integers(seed, (8, len(capacities)))
    assert assigned(values, capacities, count).tolist() == by_hand(values, capacities, count)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CAPACITIES[:4]), st.integers(0, 10**6), st.booleans())
def test_places_as_many_as_choices_give_the_choices(
    capacities: tuple[int, ...], seed: int, ties: bool
) -> None:
    """Whatever the values, of two and three resolutions, and where values are equal."""
    m = len(capacities)
    pool = small_integers(seed, (400, m))
    if not ties:
        pool = np.random.default_rng(seed).normal(size=(400, m)).astype(np.float32)
    chosen = choose(pool, np.ones(m), 0.0)
    rows = [np.flatnonzero(chosen == j)[:places] for j, places in enumerate(capacities)]
    rows = np.random.default_rng(seed).permutation(np.concatenate(rows))
    assert np.bincount(chosen[rows], minlength=m).tolist() == list(capacities)
    np.testing.assert_array_equal(assigned(pool[rows], capacities, 8), chosen[rows])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CAPACITIES), st.integers(0, 8), st.integers(0, 10**6))
def test_padding_takes_no_place(capacities: tuple[int, ...], count: int, seed: int) -> None:
    """Whatever padding holds: where the images' choices fit into the places, they get them."""
    values = small_integers(seed, (8, len(capacities)))
    chosen = values[:count].argmax(1)
    other = values.copy()
    other[count:] = 100 - 200 * (np.arange(8 - count) % 2)[:, None]
    got = assigned(values, capacities, count)
    np.testing.assert_array_equal(got, assigned(other, capacities, count))
    if (np.bincount(chosen, minlength=len(capacities)) <= capacities).all():
        np.testing.assert_array_equal(got, chosen)


@pytest.mark.parametrize("seed", range(5))
def test_two_resolutions_are_assigned_at_the_largest_sum(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(8, 2)).astype(np.float32)
    got = assigned(values, (3, 5), 8)
    places = np.repeat([0, 1], (3, 5))
    rows, columns = linear_sum_assignment(values[:, places], maximize=True)
    np.testing.assert_array_equal(got[rows], places[columns])


@pytest.mark.parametrize(
    ("shares", "batch_size", "expected"),
    [
        ((0.5, 0.25, 0.25), 8, (4, 2, 2)),
        # Quotas 3.2, 2.4 and 2.4; of equal remainders the first gets the place.
        ((0.4, 0.3, 0.3), 8, (3, 3, 2)),
        ((1, 1, 1), 2, (1, 1, 0)),
        ((1, 1, 1), 32, (11, 11, 10)),
        ((0.0, 0.01, 0.99), 8, (0, 0, 8)),
        # Numbers of images, whose quotas are 0.7, 1.4 and 4.9.
        ((10, 20, 70), 7, (1, 1, 5)),
        ((0.1,) * 10, 30, (3,) * 10),
        ((1e-300, 1e300), 5, (0, 5)),
        ((1.0,), 5, (5,)),
    ],
)
def test_shares_are_rounded_by_largest_remainders(
    shares: tuple[float, ...], batch_size: int, expected: tuple[int, ...]
) -> None:
    assert capacities_of(shares, batch_size) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=5).filter(any),
    st.integers(1, 2000),
)
def test_rounded_shares_lie_within_a_place_of_the_quota(
    shares: list[float], batch_size: int
) -> None:
    places = np.array(capacities_of(shares, batch_size))
    assert places.sum() == batch_size
    assert np.abs(places - np.array(shares) / sum(shares) * batch_size).max() < 1 + 1e-9


@pytest.mark.parametrize("shares", [(), (0.0, 0.0), (-0.1, 1.1), (np.nan, 1.0), ("a", 1.0)])
def test_shares_that_are_none(shares: Any) -> None:
    with pytest.raises(ValueError, match="shares=.* must be finite, zero or more, and not all"):
        capacities_of(shares, 8)


@pytest.mark.parametrize(
    ("capacities", "batch_size", "words"),
    [
        (None, 8, r"capacities=None must be places for each of 3 .*: capacities_of\(shares, 8\)"),
        ((4, 4), 8, r"capacities=\(4, 4\) must be places for each of 3 resolutions"),
        ((4, 4.0, 0), 8, "a capacity=4.0 must be an integer, 0 or more"),
        ((9, -1, 0), 8, "a capacity=-1 must be an integer, 0 or more"),
        ((4, 2, 1), 8, "must have places for a batch of 8 images"),
        ((9, 0, 0), 8, "must have places for a batch of 8 images, and no resolution more"),
        ((1, 0, 0), 1, "a batch of one image has none"),
    ],
)
def test_places_that_are_none(capacities: Any, batch_size: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        checked_capacities(capacities, batch_size, 3)
