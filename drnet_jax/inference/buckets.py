"""How many images to run at once: groups of any size, split into batches of a few fixed sizes."""

import math
from collections.abc import Mapping, Sequence
from threading import Lock


class BucketPlan:
    """The cheapest way to run n images in buckets, the programs' fixed batch sizes.

    Exact for every n: by dynamic programming over n, which is filled in as larger groups come, up
    to a limit beyond which a bucket of the best rate is part of a cheapest way. A bucket is padded
    where the times say that this is cheaper. Any number of threads may use one plan.

    Args:
      times: seconds that a bucket takes, by its size.

    Raises:
      ValueError: no bucket, one below one image, or a time that is none.
    """

    def __init__(self, times: Mapping[int, float]) -> None:
        if not times or min(times) < 1:
            raise ValueError(f"buckets={tuple(times)} must be one or more sizes above zero")
        if not all(0 <= seconds < math.inf for seconds in times.values()):
            raise ValueError(f"the buckets' times {dict(times)} must be finite, zero or more")
        self.times = dict(sorted(times.items(), reverse=True))
        self.best = min(self.times, key=lambda size: times[size] / size)
        # Of any `best` buckets of other sizes some add up to a multiple of `best`: two of the
        # partial sums have the same remainder. Buckets of the best rate take no longer in their
        # place, so that a cheapest way needs fewer than `best` others. Whatever these cannot hold
        # takes a bucket of the best rate.
        others = [size for size in times if size != self.best]
        self._limit = (self.best - 1) * max(others, default=0)
        # Of the cheapest way to run n images: its time, and one of its buckets.
        self._total = [0.0]
        self._bucket = [0]
        self._lock = Lock()

    def seconds(self, count: int) -> float:
        """What `split(count)` takes."""
        return sum(self.times[size] for size in self.split(count))

    def split(self, count: int) -> list[int]:
        """The buckets for `count` images, largest first; only the last is ever padded."""
        sizes = [self.best] * max(0, -(-(count - self._limit) // self.best))
        count -= sum(sizes)
        self._solve(count)
        while count > 0:
            sizes.append(self._bucket[count])
            count -= sizes[-1]
        return sorted(sizes, reverse=True)

    def _solve(self, count: int) -> None:
        """Fills in the cheapest ways for up to `count` images."""
        with self._lock:
            for n in range(len(self._total), count + 1):
                totals = {
                    size: seconds + self._total[max(n - size, 0)]
                    for size, seconds in self.times.items()
                }
                bucket = min(totals, key=totals.__getitem__)
                self._bucket.append(bucket)
                self._total.append(totals[bucket])


def proportional_times(buckets: Sequence[int]) -> dict[int, float]:
    """Times where none are measured: one per image, 0.01 per bucket; 13 = 8 + 4 + 1."""
    return {size: size + 0.01 for size in buckets}
