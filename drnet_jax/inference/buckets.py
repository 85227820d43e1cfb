"""How many images to run at once: groups of any size, split into batches of a few fixed sizes."""

from collections.abc import Mapping, Sequence


class BucketPlan:
    """The cheapest way to run n images in buckets, the programs' fixed batch sizes.

    By dynamic programming over n. A bucket is padded where the times say that this is cheaper.

    Args:
      times: seconds that a bucket takes, by its size.

    Raises:
      ValueError: no bucket, or one below one image.
    """

    def __init__(self, times: Mapping[int, float]) -> None:
        if not times or min(times) < 1:
            raise ValueError(f"buckets={tuple(times)} must be one or more sizes above zero")
        self.times = dict(times)
        self.best = min(sorted(times, reverse=True), key=lambda size: times[size] / size)
        # Beyond so many images the best bucket comes first.
        self._limit = max(times) + self.best
        # Of the cheapest way to run n images: its time, and one of its buckets.
        self._total = [0.0]
        self._bucket = [0]
        for count in range(1, self._limit + 1):
            totals = {
                size: seconds + self._total[max(count - size, 0)]
                for size, seconds in sorted(times.items(), reverse=True)
            }
            bucket = min(totals, key=totals.__getitem__)
            self._bucket.append(bucket)
            self._total.append(totals[bucket])

    def seconds(self, count: int) -> float:
        """What `split(count)` takes."""
        return sum(self.times[size] for size in self.split(count))

    def split(self, count: int) -> list[int]:
        """The buckets for `count` images, largest first; only the last is ever padded."""
        sizes = [self.best] * max(0, -(-(count - self._limit) // self.best))
        count -= sum(sizes)
        while count > 0:
            sizes.append(self._bucket[count])
            count -= sizes[-1]
        return sorted(sizes, reverse=True)


def proportional_times(buckets: Sequence[int]) -> dict[int, float]:
    """Times where none are measured: so much an image, and a little a call; 13 = 8 + 4 + 1."""
    return {size: size + 0.01 for size in buckets}
