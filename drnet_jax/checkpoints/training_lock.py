"""Which process trains in a workdir: one at a time."""

from contextlib import AbstractContextManager
from pathlib import Path

from drnet_jax.runtime.locks import locked, other_holder


def training_lock(workdir: Path) -> AbstractContextManager[None]:
    """Keeps other trainings from a workdir, which may not exist yet; see `locked`.

    Raises:
      ConfigError: another process trains there; it is named.
    """
    remedy = "wait until it ends, or give another --workdir"
    return locked(_path(workdir), f"trains in {workdir.resolve()}", remedy)


def other_training(workdir: Path) -> str:
    """Which other process trains in a workdir, in words; empty: none does."""
    return other_holder(_path(workdir))


def _path(workdir: Path) -> Path:
    return workdir / "train.lock"
