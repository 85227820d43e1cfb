"""Values that are not finite: in what is saved or restored, and in what a model gives."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drnet_jax.checkpoints.checkpoint import CheckpointError, instead_of
from drnet_jax.models.glance import ArrayT


class NotFiniteError(CheckpointError):
    """A model gives outputs that are NaN or infinite.

    Args:
      images: which, in words.
      checkpoint: of the model; None: it is of none yet.

    Attributes:
      rows: `[r]`, which images of the batch.
      batch: the batch, as its caller gave it.
    """

    def __init__(
        self, images: str, checkpoint: Path | None, rows: np.ndarray, batch: object = None
    ) -> None:
        super().__init__(images, checkpoint)
        self.rows = rows
        self.batch = batch

    @cached_property
    def _text(self) -> str:
        images, checkpoint = self.args
        if checkpoint is None:
            return f"the outputs of the model are not finite for {images}"
        return f"the outputs of {checkpoint} are not finite for {images}; {instead_of(checkpoint)}"

    def __str__(self) -> str:
        """Made once it is read: for the remedy, the checkpoints beside are read whole."""
        return self._text


def rows_finite(*outputs: ArrayT) -> ArrayT:
    """`[n]` bool: which rows hold neither NaN nor infinity in any of the arrays `[n, ...]`.

    Of NumPy's arrays, or of JAX's, under `jit` too.
    """
    xp: Any = outputs[0].__array_namespace__()
    finite = [xp.isfinite(values).all(axis=tuple(range(1, values.ndim))) for values in outputs]
    return xp.stack(finite).all(axis=0)


def rows_not_finite(*outputs: np.ndarray) -> np.ndarray:
    """Indices of the rows that hold NaN or infinity in any of the arrays `[n, ...]`."""
    return np.flatnonzero(~rows_finite(*outputs))


def first_few(names: Sequence[object]) -> str:
    """The first few of them, for a message."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


def find_not_finite(tree: Any) -> str:
    """Which arrays hold NaN or infinity, in words; empty: none does.

    On the host, where they go anyway to be saved: a program for this would have to be compiled for
    every model.
    """
    found = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not np.isfinite(np.asarray(leaf)).all()
    ]
    return f"{len(found)} arrays, {found[0]} first" if found else ""


def check_restored(tree: Any, checkpoint: Path) -> None:
    """Stops if what was restored from a checkpoint is not finite.

    Raises:
      CheckpointError: it is not, as after a training that diverged.
    """
    found = find_not_finite(tree)
    if found:
        raise CheckpointError(
            f"{checkpoint} holds values that are not finite ({found}): its training diverged; "
            f"{instead_of(checkpoint)}"
        )
