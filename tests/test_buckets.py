"""Splitting a group into buckets, against trying everything."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drnet_jax.inference.buckets import (
    BucketPlan,
    buckets_for,
    default_buckets,
    proportional_times,
)

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


USUAL = (1, 2, 3, 4, 6, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("side", "platform", "larger"),
    [
        (32, "cpu", ()),
        (224, "cpu", ()),
        (512, "gpu", ()),
        (224, "gpu", (128, 256)),
        (168, "gpu", (128, 256, 512)),
        (128, "gpu", (128, 256, 512)),
        (112, "gpu", (128, 256, 512, 1024)),
        (32, "gpu", (128, 256, 512, 1024)),
    ],
)
def test_defaults_by_device(side: int, platform: str, larger: tuple[int, ...]) -> None:
    """Up to 1024 images, as long as half a bucket has fewer pixels than 2^23, by hand."""
    assert default_buckets(side, platform) == USUAL + larger


def test_defaults_of_images_that_are_uploaded_larger() -> None:
    """At most 2^26 pixels: 64 images of 1024 px, 256 of 512, 512 of 300 and 1024 of 256."""
    found = [default_buckets(64, "gpu", side)[-1] for side in (1024, 512, 300, 256)]
    assert found == [64, 256, 512, 1024]
    # The usual ones stay.
    assert default_buckets(64, "gpu", 4096) == USUAL


@pytest.mark.parametrize(
    ("buckets", "count", "expected"),
    [
        (USUAL, 1, (1,)),
        (USUAL, 5, (4, 1, 3, 2, 6)),
        (USUAL, 8, (8, 1, 6, 4, 3, 2)),
        (USUAL, 128, (64, 1, 32, 16, 8, 6, 4, 3, 2)),
        ((16, 4), 1, (4,)),
        ((16, 4), 5, (4, 16)),
    ],
)
def test_buckets_of_a_batch(
    buckets: tuple[int, ...], count: int, expected: tuple[int, ...]
) -> None:
    assert buckets_for(buckets, count) == expected


RISING = st.dictionaries(st.integers(1, 40), st.floats(0.01, 10), min_size=1, max_size=7)


@given(RISING, st.integers(1, 60))
def test_no_other_bucket_would_make_a_smaller_group_cheaper(
    steps: dict[int, float], count: int
) -> None:
    """Where a larger bucket takes longer."""
    sizes = sorted(steps)
    times = {size: sum(steps[s] for s in sizes if s <= size) for size in sizes}
    few, all_of_them = buckets_for(sizes, count), BucketPlan(times)
    plan = BucketPlan({size: times[size] for size in few})
    for n in range(count + 1):
        assert plan.seconds(n) == pytest.approx(all_of_them.seconds(n))
