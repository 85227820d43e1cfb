"""What a model said of every image, kept beside `eval.json`: figures need it once only."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import numpy as np
from numpy.lib.npyio import NpzFile

from drnet_jax.evaluation.metrics import EvalRecords, record
from drnet_jax.runtime.files import NPZ_DAMAGE, replacing


class LogitsError(RuntimeError):
    """The kept logits cannot be used; the message says why."""


@dataclass(frozen=True)
class Logits:
    """The outputs of n images of a split at m resolutions, in the order of the source.

    Attributes:
      logits: `[n, m, k]` float32, of the k classes.
      scores: `[n, m]`, the predictor's, see `choose`.
      weight: `[m]` float32, of the smallest resolution's logits in the answer that every choice
        leads to (`models.glance.mixed`); zero without reuse.
      label: `[n]` int32.
      index: `[n]` int32, of the image in the source; corrupt images are left out.
      name: `[n]` str, of the image: its path, say.
      version: `[n]` str, of the image when it was read: another one once there is another image
        under the same name (of a file, its size and the time of its last change).
      device: `[]` str: what computed them, with the version of JAX.
    """

    logits: np.ndarray
    scores: np.ndarray
    weight: np.ndarray
    label: np.ndarray
    index: np.ndarray
    name: np.ndarray
    version: np.ndarray
    device: np.ndarray

    def records(self) -> EvalRecords:
        """What the figures are computed from."""
        return record(self.logits, self.scores, self.weight, self.label, self.index)


def save(path: Path, key: str, split: str, found: Logits) -> None:
    """Adds a split to the file, on the first process only; it is written whole or not at all.

    Other splits in it are kept if they have the same key.

    Args:
      path: of the file, `.npz`.
      key: of the checkpoint and the data.
      split: its name.
      found: its outputs.
    """
    if jax.process_index() != 0:
        return
    arrays = {f"{split}/{field.name}": getattr(found, field.name) for field in fields(Logits)}
    try:
        with _opened(path, key) as others:
            kept = {n: others[n] for n in others.files if "/" in n and n not in arrays}
    except LogitsError:
        kept = {}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, key=np.array(key), **kept, **arrays)


def load(path: Path, key: str, split: str) -> Logits | None:
    """The outputs of a split; None where the file has others only.

    Raises:
      LogitsError: there is no such file, it is damaged, or of another checkpoint or other data.
    """
    with _opened(path, key) as arrays:
        if f"{split}/logits" not in arrays.files:
            return None
        lacking = [f.name for f in fields(Logits) if f"{split}/{f.name}" not in arrays.files]
        if lacking:
            raise LogitsError(f"{path} is of an earlier version, without {' and '.join(lacking)}")
        return Logits(*(arrays[f"{split}/{field.name}"] for field in fields(Logits)))


@contextmanager
def _opened(path: Path, key: str) -> Iterator[NpzFile]:
    """The file, whose arrays are read when they are asked for."""
    if not path.exists():
        raise LogitsError(f"{path} is missing")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = str(arrays["key"])
            if found != key:
                raise LogitsError(
                    f"{path} is of another checkpoint or other data ({found}; now {key})"
                )
            yield arrays
    # Itself a RuntimeError, as some damage is.
    except LogitsError:
        raise
    except NPZ_DAMAGE as error:
        raise LogitsError(f"{path} is damaged ({error})") from error
