"""The sizes of the pictures that a run was trained with: whether files were replaced since."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from drnet_jax.checkpoints.checkpoint import damaged
from drnet_jax.config import SPLITS
from drnet_jax.data.sources import DataError
from drnet_jax.runtime.files import NPZ_DAMAGE, replacing
from drnet_jax.runtime.progress import log

_NAME = "picture_sizes.npz"


def write_sizes(workdir: Path, sizes: Mapping[str, np.ndarray]) -> None:
    """Keeps them beside `data.json`, which identifies pictures by name; on the first process only.

    Args:
      workdir: of the run.
      sizes: by split, `[n]` in bytes.

    Raises:
      OSError: naming the file, which is written whole or not at all.
    """
    if jax.process_index() != 0:
        return
    with replacing(workdir / _NAME) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **sizes)


def read_sizes(origin: Path) -> dict[str, np.ndarray]:
    """What `write_sizes` wrote; nothing where an earlier version trained the run.

    Raises:
      CheckpointError: the file is damaged.
    """
    path = origin / _NAME
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {split: arrays[split] for split in SPLITS}
    except NPZ_DAMAGE as error:
        raise damaged(path, error) from error


def check_sizes(origin: Path, sizes: Mapping[str, np.ndarray], limit: int) -> None:
    """Compares the pictures of some splits, which have the same names, with those of a run.

    By their sizes: these stay the same when a data set is copied to another machine, as the times
    of their files do not, and of compressed pictures that are replaced they hardly ever do. A few
    others may have been corrupt and were repaired. Runs of earlier versions have no such file.

    Args:
      origin: the workdir of the run.
      sizes: of the present pictures, by split, `[n]` in bytes.
      limit: how many may differ, over these splits.

    Raises:
      DataError: more do.
      CheckpointError: the file is damaged.
    """
    trained = read_sizes(origin)
    if not trained:
        return
    changed = {split: int((trained[split] != now).sum()) for split, now in sizes.items()}
    if not any(changed.values()):
        return
    which = ", ".join(f"{count} of {split}" for split, count in changed.items() if count)
    if sum(changed.values()) > limit:
        raise DataError(
            f"pictures were replaced under the same names since {origin} was trained with them "
            f"({which}; more than data.max_corrupt={limit}, which may have been repaired): restore "
            "them, or train in another --workdir"
        )
    log(f"pictures have other sizes than {origin} was trained with ({which}): taken for repaired")
