"""How many images to run at once: groups of any size, split into batches of a few fixed sizes."""

import math
from collections.abc import Mapping, Sequence
from threading import Lock

# What every network has where no buckets are given.
_USUAL = (1, 2, 3, 4, 6, 8, 16, 32, 64)
# On a GPU they are doubled further, up to:
_LARGEST = 1024
# Pixels of a batch that keeps a GPU busy, those of 167 images of 224 px: an H100 computes a
# ResNet-50 on them in 1.6 times the 4 ms that it takes to launch it (docs/performance.md).
_BUSY = 2**23
# Pixels of the images of a batch, at most: 192 MiB of memory.
_UPLOADED = 2**26


def default_buckets(side: int, platform: str, uploaded: int | None = None) -> tuple[int, ...]:
    """The buckets of a network on a device where none are given, rising.

    On the CPU they are the same for every network. Elsewhere one of twice as many images is added
    as long as the largest has fewer pixels than keep a device busy, up to 1024 images: they end at
    256 for 224 px, at 512 for 168 px, and at 1024 for 112 px. Of images that are uploaded larger,
    as many as 192 MiB hold.

    Args:
      side: of what the network sees, in pixels.
      platform: of the device, as `jax.Device` has it.
      uploaded: side of the images that it makes its own of, in pixels; None: the same.
    """
    buckets = list(_USUAL)
    most = min(_LARGEST, _UPLOADED // (uploaded or side) ** 2)
    while platform != "cpu" and 2 * buckets[-1] <= most and buckets[-1] * side**2 < _BUSY:
        buckets.append(2 * buckets[-1])
    return tuple(buckets)


def buckets_for(buckets: Sequence[int], count: int) -> tuple[int, ...]:
    """Those that groups of up to `count` images are split into, the most telling one first.

    These are the largest that they fill; the smallest, so that little of the rest is padding; the
    others in between, falling; and, unless the largest takes them all, the next larger one, which
    may be padded.
    """
    filled = sorted(size for size in buckets if size <= count)
    padded = sorted(size for size in buckets if size > count)[:1]
    if not filled:
        return tuple(padded)
    rest = padded if filled[-1] < count else []
    return tuple(dict.fromkeys((filled[-1], filled[0], *reversed(filled), *rest)))


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
