"""Training images that cannot be read or decoded."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from drnet_jax.data.crops import problem
from drnet_jax.data.files import printable
from drnet_jax.data.sources import Source
from drnet_jax.evaluation.outputs import name_images


class CorruptImages:
    """Which images were left out, each once.

    Args:
      source: the training images.
      limit: how many may be corrupt, over all processes.
      warn: takes a line about every one of them, on the process that finds it.
    """

    def __init__(self, source: Source, limit: int, warn: Callable[[str], None]) -> None:
        self._source = source
        self._limit = limit
        self._warn = warn
        self._found: set[int] = set()

    def add(self, indices: np.ndarray) -> None:
        """Notes images by their indices in the source; those that are new are named."""
        new = sorted(set(indices.tolist()) - self._found)
        self._found |= set(new)
        for index in new:
            # It may have come back since.
            why = problem(self._source, index) or "it could not be read a moment ago"
            self._warn(f"left out: {printable(self._source.name(index))}: {why}")

    def count(self) -> int:
        """How many all processes have found; all of them have to ask."""
        if jax.process_count() > 1:
            # In every epoch another process may come upon the same image.
            self._found = _union(self._found)
        return len(self._found)

    def excess(self) -> str:
        """Why to stop, or nothing; of several processes, as of the last `count`."""
        if len(self._found) <= self._limit:
            return ""
        named = name_images(self._source, np.array(sorted(self._found), int))
        return (
            f"{len(self._found)} training images cannot be read ({named}), more than "
            f"data.max_corrupt={self._limit}: repair them or raise it; stopped"
        )


def _union(found: set[int]) -> set[int]:
    """Of the sets of all processes."""
    most = int(multihost_utils.process_allgather(np.int32(len(found))).max())
    padded = np.full(most, -1, np.int32)
    padded[: len(found)] = sorted(found)
    return set(multihost_utils.process_allgather(padded).ravel().tolist()) - {-1}
