"""What a model said of every image, kept beside `eval.json`: figures need it once only."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import jax
import numpy as np

from drnet_jax.metrics import EvalRecords, record


class LogitsError(RuntimeError):
    """The kept logits cannot be used; the message says why, and what to do."""


@dataclass(frozen=True)
class Logits:
    """The outputs of n images of a split at m resolutions, in the order of the source.

    Attributes:
      logits: `[n, m, k]` float32, of the k classes.
      scores: `[n, m]`, the predictor's unnormalised log-probabilities.
      label: `[n]` int32.
      index: `[n]` int32, of the image in the source; corrupt images are left out.
      name: `[n]` str, of the image: its path, say.
    """

    logits: np.ndarray
    scores: np.ndarray
    label: np.ndarray
    index: np.ndarray
    name: np.ndarray

    def records(self) -> EvalRecords:
        """What the figures are computed from."""
        return record(self.logits, self.scores, self.label, self.index)


def save(path: Path, key: str, splits: Mapping[str, Logits]) -> None:
    """Writes the file whole or not at all, on the first process only.

    Args:
      path: of the file, `.npz`.
      key: of the checkpoint and the data.
      splits: by name.
    """
    if jax.process_index() != 0:
        return
    arrays = {
        f"{split}/{field.name}": getattr(found, field.name)
        for split, found in splits.items()
        for field in fields(Logits)
    }
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, allow_pickle=False, key=np.array(key), **arrays)
    temporary.replace(path)


def load(path: Path, key: str) -> dict[str, Logits]:
    """The splits that the file holds, by name.

    Raises:
      LogitsError: there is no such file, it is damaged, or of another checkpoint or other data.
    """
    if not path.exists():
        raise LogitsError(f"{path} is missing: run --mode=eval")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = str(arrays["key"])
            if found != key:
                raise LogitsError(
                    f"{path} is of another checkpoint or other data ({found}; now {key}): run "
                    "--mode=eval"
                )
            splits = dict.fromkeys(name.split("/")[0] for name in arrays.files if "/" in name)
            return {
                split: Logits(*(arrays[f"{split}/{field.name}"] for field in fields(Logits)))
                for split in splits
            }
    except (BadZipFile, KeyError, ValueError, OSError) as error:
        raise LogitsError(f"{path} is damaged ({error}): remove it, run --mode=eval") from error
