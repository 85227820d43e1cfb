"""A network compiled ahead of time for a few batch sizes, which run groups of any size."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from drnet_jax.inference.buckets import BucketPlan, proportional_times

# Runs that are timed together, as a pass starts the next bucket before it waits for the last.
_RUNS_IN_FLIGHT = 2
Array = jax.Array | np.ndarray
# Maps variables and uint8 images [n, h, w, 3] to [n, width].
Apply = Callable[[Any, jax.Array], jax.Array]


@dataclass(frozen=True)
class CostTable:
    """Seconds that the networks' buckets take on a device.

    Attributes:
      predictor: by bucket, with the upload of its images; None without a predictor.
      classifiers: per resolution, by bucket, of images that are on the device; with their
        upload where networks take images of their own sizes.
      glances: the predictor is a first look at the smallest resolution: where that is chosen, its
        classifier does not run.
    """

    predictor: dict[int, float] | None
    classifiers: tuple[dict[int, float], ...]
    glances: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CostTable":
        """The table whose `asdict` was kept as JSON, which has names only.

        Raises:
          ValueError: it is something else; or KeyError, TypeError, AttributeError.
        """

        def by_bucket(times: Mapping[str, float]) -> dict[int, float]:
            """Of one network."""
            return {int(bucket): float(seconds) for bucket, seconds in times.items()}

        predictor = content["predictor"]
        classifiers = tuple(by_bucket(times) for times in content["classifiers"])
        # Tables of earlier versions have no such entry: there was no first look.
        glances = content.get("glances", False)
        if not isinstance(glances, bool) or (glances and predictor is None):
            raise ValueError(f"glances={glances!r} does not go with its predictor")
        return cls(None if predictor is None else by_bucket(predictor), classifiers, glances)


def compile_all(lowered: Sequence[Any]) -> list[Any]:
    """Executables of `jax.stages.Lowered` programs, compiled in parallel."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda program: program.compile(), lowered))


class Program:
    """One executable per bucket, of one network at one image size, on one device.

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
        self._device = device
        self._variables = jax.device_put(variables, device)
        sharding = SingleDeviceSharding(device)
        jitted = jax.jit(apply)
        self.buckets = tuple(sorted(set(buckets)))
        lowered = []
        for bucket in self.buckets:
            shape = (bucket, *self.image_shape)
            images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)
            lowered.append(jitted.lower(self._variables, images))
        self._executables = dict(zip(self.buckets, compile_all(lowered), strict=True))

    def run(self, images: Array) -> jax.Array:
        """Starts one bucket `[bucket, h, w, 3]`; its output `[bucket, width]`, not waited for."""
        output: jax.Array = self._executables[len(images)](self._variables, images)
        output.copy_to_host_async()
        return output

    def measure(self, repeats: int, *, upload: bool) -> dict[int, float]:
        """Median seconds that each bucket takes among others: two are run, and timed together.

        Args:
          repeats: how often, in turns, after one run that warms up.
          upload: include the images' way to the device.
        """
        times: dict[int, list[float]] = {bucket: [] for bucket in self.buckets}
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (max(self.buckets), *self.image_shape), np.uint8)
        # In turns, so that a slow moment of the machine does not hit one bucket only.
        for repeat in range(repeats + 1):
            for bucket, seconds in times.items():
                part: Array = images[:bucket]
                if not upload:
                    part = jax.block_until_ready(jax.device_put(part, self._device))
                start = time.perf_counter()
                for output in [self.run(part) for _ in range(_RUNS_IN_FLIGHT)]:
                    np.asarray(output)
                if repeat:
                    seconds.append((time.perf_counter() - start) / _RUNS_IN_FLIGHT)
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
