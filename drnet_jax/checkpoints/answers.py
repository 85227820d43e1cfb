"""What an imported network says of pictures without labels: a file beside the checkpoints.

These are the labels of its conversion (`convert.labels=False`), in training and in evaluation.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drnet_jax.checkpoints.checkpoint import CheckpointError, damaged
from drnet_jax.data.sources import EncodedSource, Source, part
from drnet_jax.runtime.files import NPZ_DAMAGE, replacing
from drnet_jax.runtime.progress import log

# In the place of a label: the picture could not be read.
UNKNOWN = -1


def agreement(config: Mapping[str, Any]) -> str:
    """What top-1 is where the labels are answers, in words; empty where they are not.

    Args:
      config: flattened, of a run of any version.
    """
    if config.get("convert.labels", True):
        return ""
    return (
        "top-1 is agreement with the imported network at "
        f"{max(config['model.resolutions'])} px, right or wrong, no accuracy"
    )


def answers_path(workdir: Path) -> Path:
    """The file of a run."""
    return workdir / "answers.npz"


def write_answers(workdir: Path, label: np.ndarray) -> None:
    """Keeps them, on the first process only; the file is written whole or not at all.

    Args:
      workdir: of the run.
      label: `[n]` by the position of a picture in the data set's reader, or `UNKNOWN`.
    """
    if jax.process_index() != 0:
        return
    with replacing(answers_path(workdir)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, label=label.astype(np.int32))


def with_answers(origin: Path, source: Source) -> Source:
    """A source with the answers as labels, without pictures that none is known of.

    Args:
      origin: the workdir of the run.
      source: of the same pictures, by their positions.

    Raises:
      CheckpointError: the answers are missing, damaged, or of fewer pictures.
    """
    assert isinstance(source, EncodedSource)
    path = answers_path(origin)
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing, which has the labels of the pictures that the checkpoints beside "
            "it were trained on: restore it from a copy, or convert in another --workdir"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            label = arrays["label"]
    except NPZ_DAMAGE as error:
        raise damaged(path, error) from error
    if label.ndim != 1 or source.positions.max() >= len(label):
        raise damaged(path, f"it has {label.shape} labels")
    found = label[source.positions].astype(np.int32)
    known = np.flatnonzero(found != UNKNOWN)
    if len(known) < len(found):
        log(f"left out: {len(found) - len(known)} pictures without a label of the imported network")
    return part(replace(source, labels=found), known.tolist())
