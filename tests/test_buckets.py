"""Splitting a group into buckets, against trying everything."""

from functools import cache

import pytest
from hypothesis import given
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


@given(TIMES, st.integers(0, 20))
def test_cheapest(times: dict[int, float], count: int) -> None:
    @cache
    def cheapest(left: int) -> float:
        if left <= 0:
            return 0.0
        return min(seconds + cheapest(left - size) for size, seconds in times.items())

    plan = BucketPlan(times)
    sizes = plan.split(count)
    assert sum(sizes) >= count
    # Only the last, the smallest, may be padded.
    assert sum(sizes[:-1]) < count or not sizes
    if count <= max(times) + plan.best:
        assert sum(times[size] for size in sizes) == pytest.approx(cheapest(count))


@pytest.mark.parametrize("buckets", [(), (0, 4)])
def test_bad_buckets(buckets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be one or more sizes above zero"):
        BucketPlan(proportional_times(buckets))
