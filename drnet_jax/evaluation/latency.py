"""How long methods of classifying a batch take, timed in turns, with intervals."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import bootstrap

from drnet_jax.config import LEAST_REPEATS

T = TypeVar("T")
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Latency:
    """The timing of one method at one batch size.

    Attributes:
      batch_size: images in a batch.
      seconds: of every repeat.
    """

    batch_size: int
    seconds: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        """A percentile of the repeats, in ms per batch."""
        return 1000 * float(np.percentile(self.seconds, percent))

    @property
    def mean(self) -> float:
        """Of the repeats, in ms per batch.

        What many batches take together. The median is not: where three images of four stop after a
        first look, that of single images is the time of a first look.
        """
        return 1000 * statistics.fmean(self.seconds)

    @property
    def throughput(self) -> tuple[float, float, float]:
        """Images per second at the mean time, and its 95 % interval, by bootstrap (SciPy)."""
        interval = bootstrap(
            (np.array(self.seconds),),
            np.mean,
            confidence_level=_CONFIDENCE,
            n_resamples=2000,
            method="percentile",
            rng=0,
        ).confidence_interval
        times = (self.mean / 1000, interval.high, interval.low)
        middle, low, high = (self.batch_size / float(seconds) for seconds in times)
        return middle, low, high


def time_in_turns(
    methods: Sequence[Callable[[T], object]],
    next_batch: Callable[[], T],
    *,
    batch_size: int,
    repeats: int,
    seconds: float,
) -> list[Latency]:
    """Times every method on the same batches, one after another, so that a slow moment hits all.

    Args:
      methods: what to time; each waits for its result.
      next_batch: gives the batch of the next turn.
      batch_size: of those batches.
      repeats: turns, after one that warms up.
      seconds: once they are over no further turn begins, but five there are at least.
    """
    times: list[list[float]] = [[] for _ in methods]
    begin = time.perf_counter()
    for repeat in range(repeats + 1):
        if repeat > LEAST_REPEATS and time.perf_counter() - begin > seconds:
            break
        batch = next_batch()
        for method, record in zip(methods, times, strict=True):
            start = time.perf_counter()
            method(batch)
            if repeat:
                record.append(time.perf_counter() - start)
    return [Latency(batch_size, tuple(record)) for record in times]
