"""A damaged latest checkpoint of a training that is resumed: the one before takes its place."""

from pathlib import Path

import jax
from jax.experimental import multihost_utils

from drnet_jax.checkpoints.checkpoint import steps
from drnet_jax.checkpoints.checksums import find_damage, has_checksums
from drnet_jax.runtime.files import naming
from drnet_jax.runtime.progress import log


def set_damaged_aside(directory: Path) -> None:
    """Renames damaged checkpoints after the newest intact one, and says so; none is removed.

    The training computes them anew, so that it ends as it would have. Older ones stay where they
    are: nothing would compute a damaged best one again, and the result would be another. All stay
    where none is known to be intact, and reading says what is wrong.

    All processes of a run call this, none of which may have opened the directory; the first one
    looks.

    Args:
      directory: of a stage, which no other process trains.

    Raises:
      OSError: one cannot be renamed.
    """
    try:
        if jax.process_index() == 0:
            _set_aside(directory)
    finally:
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")


def _set_aside(directory: Path) -> None:
    found: list[tuple[Path, str]] = []
    for step in reversed(steps(directory)):
        checkpoint = directory / str(step)
        # Those of earlier versions may be damaged or not.
        if not has_checksums(checkpoint):
            return
        damage = find_damage(checkpoint)
        if not damage:
            break
        found.append((checkpoint, damage))
    else:
        return
    for checkpoint, damage in found:
        aside = _free_name(checkpoint)
        with naming(checkpoint):
            checkpoint.rename(aside)
        log(
            f"{damage}; set aside as {aside}: the training goes on from the one before, step "
            f"{step}, and computes it anew"
        )


def _free_name(checkpoint: Path) -> Path:
    """Beside a checkpoint, and read as none."""
    path, number = checkpoint.with_name(f"{checkpoint.name}.damaged"), 2
    while path.exists():
        path, number = checkpoint.with_name(f"{checkpoint.name}.damaged-{number}"), number + 1
    return path
