"""Splitting a group into buckets, against trying everything."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drnet_jax.inference.buckets import BucketPlan, proportional_times

TIMES = st.dictionaries(st.integers(1, 12), st.floats(0.1, 10), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (13, [8, 4, 1]), (40, [32, 8]), (100, [32, 32, 32, 4])]
)
def test_without_times(count: int, sizes: list[int]) -> None:
    assert BucketPlan(proportional_times((1, 2, 4, 8, 16, 32))).split(count) == sizes


def test_without_a_bucket_of_one() -> None:
    assert BucketPlan(proportional_times((4, 16))).split(22) == [16, 4, 4]


def cheapest(times: dict[int, float], count: int) -> float:
    """Over every multiset of buckets: how many of each size, the last one filling up."""
    (size, seconds), *others = times.items()
    if not others:
        return -(-max(count, 0) // size) * seconds
    numbers = range(-(-max(count, 0) // size) + 1)
    return min(n * seconds + cheapest(dict(others), count - n * size) for n in numbers)


@example({4: 4.0, 3: 3.05}, 9)
@given(TIMES, st.integers(0, 40))
def test_cheapest(times: dict[int, float], count: int) -> None:
    plan = BucketPlan(times)
    sizes = plan.split(count)
    assert sum(sizes) >= count
    # Only the last, the smallest, may be padded.
    assert sum(sizes[:-1]) < count or not sizes
    assert plan.seconds(count) == pytest.approx(cheapest(times, count))


NEAR = st.dictionaries(st.integers(1, 16), st.floats(1, 1.2), min_size=1, max_size=6)


@given(NEAR, st.integers(0, 600))
def test_cheapest_of_many(rates: dict[int, float], count: int) -> None:
    """Where the times an image are close, so that the remainder decides; any order of asking."""
    times = {size: size * rate for size, rate in rates.items()}
    totals = [0.0]
    for n in range(1, count + 1):
        totals.append(min(t + totals[max(n - size, 0)] for size, t in times.items()))
    plan = BucketPlan(times)
    for n in {count, count // 2, max(count - 1, 0)}:
        assert plan.seconds(n) == pytest.approx(totals[n])


@pytest.mark.parametrize("buckets", [(), (0, 4)])
def test_bad_buckets(buckets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be one or more sizes above zero"):
        BucketPlan(proportional_times(buckets))
