"""Which process trains in a workdir: one at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from drnet_jax.config import ConfigError
from drnet_jax.runtime.locks import locked, other_holder


@contextmanager
def training_lock(workdir: Path) -> Iterator[None]:
    """Keeps other trainings from a workdir, which may not exist yet; see `locked`.

    The first process holds it, for all processes of the run; all have to call this.

    Raises:
      ConfigError: another process trains there; it is named. On the other processes of the run: the
        first one raises.
      OSError: on the first process, the workdir cannot be written to.
    """
    remedy = "wait until it ends, or give another --workdir"
    lock = locked(_path(workdir), f"trains in {workdir.resolve()}", remedy)
    failure: Exception | None = None
    with ExitStack() as held:
        try:
            held.enter_context(lock)
        except (ConfigError, OSError) as error:
            failure = error
        # Else the others would go on, and wait for the first one at the first thing done together.
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.int32(failure is not None))
            if failed.any() and failure is None:
                failure = ConfigError(f"the first process could not lock {workdir}, and says why")
        if failure is not None:
            raise failure
        yield


def other_training(workdir: Path) -> str:
    """Which other process trains in a workdir, in words; empty: none does."""
    return other_holder(_path(workdir))


def _path(workdir: Path) -> Path:
    return workdir / "train.lock"
