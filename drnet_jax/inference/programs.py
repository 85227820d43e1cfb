"""A network compiled ahead of time for a few batch sizes, which run groups of any size."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from drnet_jax.inference.buckets import BucketPlan, proportional_times

# Maps variables and uint8 images [n, h, w, 3] to [n, k].
Apply = Callable[[Any, jax.Array], jax.Array]


@dataclass(frozen=True)
class CostTable:
    """Seconds that the networks' buckets take on a device, transfers included.

    Attributes:
      predictor: by bucket; None without a predictor.
      classifiers: by bucket, at every resolution.
    """

    predictor: dict[int, float] | None
    classifiers: tuple[dict[int, float], ...]


@dataclass(frozen=True)
class Run:
    """A bucket that was started: its output, not waited for, and how many of its rows count."""

    output: jax.Array
    count: int

    def wait(self) -> np.ndarray:
        """The rows `[count, k]`."""
        return np.asarray(self.output)[: self.count]


class Program:
    """One executable a bucket, of one network at one image size, on one device.

    Nothing is compiled after the constructor, and nothing in it changes: any number of threads may
    use it. `replan` gives another one that shares the executables.

    Args:
      apply: what to compile.
      variables: its first argument, kept on the device.
      image_size: height and width of the images.
      buckets: batch sizes.
      device: where to run.
    """

    def __init__(
        self,
        apply: Apply,
        variables: Any,
        image_size: tuple[int, int],
        buckets: Sequence[int],
        device: jax.Device,
    ) -> None:
        self.plan = BucketPlan(proportional_times(buckets))
        self.image_shape = (*image_size, 3)
        self._variables = jax.device_put(variables, device)
        self._sharding = SingleDeviceSharding(device)
        jitted = jax.jit(apply)
        self._executables = {
            bucket: jitted.lower(self._variables, self._abstract(bucket)).compile()
            for bucket in sorted(set(buckets))
        }

    def _abstract(self, bucket: int) -> jax.ShapeDtypeStruct:
        """A bucket of images, for the compiler."""
        shape = (bucket, *self.image_shape)
        return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=self._sharding)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes, smallest first."""
        return tuple(self._executables)

    def start(self, images: np.ndarray) -> list[Run]:
        """Starts `images` `[n, h, w, 3]` uint8 in buckets, without waiting for a result."""
        runs = []
        done = 0
        for bucket in self.plan.split(len(images)):
            part = images[done : done + bucket]
            batch = self._padded(part, bucket)
            runs.append(Run(self._executables[bucket](self._variables, batch), len(part)))
            done += len(part)
        return runs

    def _padded(self, images: np.ndarray, bucket: int) -> np.ndarray:
        """Black images after the real ones, up to the bucket's size."""
        padding = np.zeros((bucket - len(images), *self.image_shape), np.uint8)
        return np.concatenate([images, padding]) if len(padding) else images

    def measure(self, repeats: int) -> dict[int, float]:
        """Median seconds that each bucket takes, transfers to and from the device included."""
        times: dict[int, list[float]] = {bucket: [] for bucket in self.buckets}
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (max(self.buckets), *self.image_shape), np.uint8)
        # In turns, so that a slow moment of the machine does not hit one bucket only.
        for repeat in range(repeats + 1):
            for bucket, seconds in times.items():
                start = time.perf_counter()
                np.asarray(self._executables[bucket](self._variables, images[:bucket]))
                if repeat:  # The first run warms up.
                    seconds.append(time.perf_counter() - start)
        return {bucket: statistics.median(seconds) for bucket, seconds in times.items()}

    def replan(self, times: Mapping[int, float]) -> "Program":
        """The same program, split into buckets by measured times.

        Raises:
          ValueError: times of other buckets.
        """
        if set(times) != set(self.buckets):
            raise ValueError(f"times of the buckets {sorted(times)}, compiled are {self.buckets}")
        other = copy(self)
        other.plan = BucketPlan(times)
        return other
