"""A network compiled ahead of time for a few batch sizes, which run groups of any size."""

import math
import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from drnet_jax.inference.buckets import BucketPlan, proportional_times

# Runs that are timed together, as a pass starts the next bucket before it waits for the last.
_RUNS_IN_FLIGHT = 2
# Programs that are compiled at once: each takes memory.
_MOST_THREADS = 16
Key = TypeVar("Key", bound=Hashable)
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


def compile_all(
    lowered: Iterable[tuple[Key, jax.stages.Lowered]], until: float = math.inf
) -> dict[Key, jax.stages.Compiled]:
    """Compiles programs in parallel threads, and has the next ones lowered meanwhile.

    They are lowered in the calling thread, one after another: that is Python, of which one thread
    runs at a time. XLA compiles without holding the others up.

    Args:
      lowered: programs by their keys, each lowered when it is asked for.
      until: as of `time.monotonic`; what has not begun by then is left out.

    Returns:
      Executables by their keys.
    """

    def compiled(program: jax.stages.Lowered) -> jax.stages.Compiled | None:
        """The executable; None: it is too late."""
        return program.compile() if time.monotonic() <= until else None

    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS))
    try:
        in_time = takewhile(lambda _: time.monotonic() <= until, lowered)
        started = [(key, pool.submit(compiled, program)) for key, program in in_time]
        finished = [(key, future.result()) for key, future in started]
        return {key: executable for key, executable in finished if executable is not None}
    finally:
        # An error or an interruption does not wait for what has not begun.
        pool.shutdown(cancel_futures=True)


class PlacedNetwork:
    """A network for images of one size, with its weights on a device.

    Args:
      apply: the network.
      variables: its first argument, kept on the device.
      image_size: height and width of the images.
      device: where to run.
    """

    def __init__(
        self, apply: Apply, variables: Any, image_size: tuple[int, int], device: jax.Device
    ) -> None:
        self.image_shape = (*image_size, 3)
        self.device = device
        self.variables = jax.device_put(variables, device)
        self._jitted = jax.jit(apply)

    def lower(self, bucket: int) -> jax.stages.Lowered:
        """The network for so many images, to be compiled."""
        sharding = SingleDeviceSharding(self.device)
        shape = (bucket, *self.image_shape)
        images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)
        return self._jitted.lower(self.variables, images)


class Program:
    """One executable per bucket, of one network.

    Nothing is compiled here, and nothing in it changes: any number of threads may use it. `replan`
    gives another one that shares the executables.

    Args:
      network: what was compiled.
      executables: by bucket.

    Raises:
      ValueError: there is none.
    """

    def __init__(
        self, network: PlacedNetwork, executables: Mapping[int, jax.stages.Compiled]
    ) -> None:
        self.network = network
        self.image_shape = network.image_shape
        self.executables = dict(sorted(executables.items()))
        self.buckets = tuple(self.executables)
        self.plan = BucketPlan(proportional_times(self.buckets))

    def run(self, images: Array) -> jax.Array:
        """Starts one bucket `[bucket, h, w, 3]`; its output `[bucket, width]`, not waited for."""
        output: jax.Array = self.executables[len(images)](self.network.variables, images)
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
                    part = jax.block_until_ready(jax.device_put(part, self.network.device))
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


def compile_programs(
    networks: Sequence[PlacedNetwork],
    buckets: Sequence[Sequence[int]],
    until: float = math.inf,
    known: Sequence[Program] = (),
) -> list[Program]:
    """Compiles networks for their buckets, all together (`compile_all`).

    A bucket is compiled for every network that has it or for none, so that their times can be
    compared.

    Args:
      networks: what to compile.
      buckets: of each, those that matter most first.
      until: see `compile_all`; of what has no bucket yet the first is compiled whatever the time.
      known: what is compiled already, of each; empty: nothing.
    """
    had: list[dict[int, jax.stages.Compiled]] = [program.executables for program in known]
    had = had or [{} for _ in networks]
    lists = [
        [size for size in sizes if size not in has] for sizes, has in zip(buckets, had, strict=True)
    ]
    firsts = [sizes[0] for sizes in lists if sizes]
    order = dict.fromkeys(chain(firsts, *lists))
    wanted = [(i, size) for size in order for i, sizes in enumerate(lists) if size in sizes]
    tasks = (((i, size), networks[i].lower(size)) for i, size in wanted)
    # Without a limit all are compiled together.
    limited = not known and until < math.inf
    certain = sum(size in firsts for _, size in wanted) if limited else 0
    found = compile_all(islice(tasks, certain)) | compile_all(tasks, until)
    partly = {size for i, size in wanted if (i, size) not in found}
    return [
        Program(network, has | {s: found[i, s] for s in lists[i] if s not in partly})
        for i, (network, has) in enumerate(zip(networks, had, strict=True))
    ]
