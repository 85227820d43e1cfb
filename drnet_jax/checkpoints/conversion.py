"""What is known of a conversion: a file beside its checkpoints, for the report."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from drnet_jax.checkpoints.checkpoint import read_object
from drnet_jax.runtime.files import write_json

_REMEDY = "remove it: only the figures before the training and the minutes are lost"


def conversion_path(origin: Path) -> Path:
    """The file of a run."""
    return origin / "conversion.json"


def read_conversion(origin: Path) -> dict[str, Any] | None:
    """What the run in `origin` noted; None: it began with random weights.

    Raises:
      CheckpointError: the file is damaged.
    """
    path = conversion_path(origin)
    return read_object(path, _REMEDY) if path.exists() else None


def note_conversion(workdir: Path, facts: Mapping[str, Any]) -> None:
    """Adds facts to what is noted, in the place of those of the same names.

    Raises:
      CheckpointError: the file is damaged.
    """
    write_json(conversion_path(workdir), {**(read_conversion(workdir) or {}), **facts})


@contextmanager
def timed(workdir: Path, step: str) -> Iterator[None]:
    """Adds the seconds of a block to those of a step of the conversion, interrupted ones too.

    Raises:
      CheckpointError: the file is damaged.
    """
    start = perf_counter()
    try:
        yield
    finally:
        seconds = dict((read_conversion(workdir) or {}).get("seconds", {}))
        seconds[step] = seconds.get(step, 0.0) + perf_counter() - start
        note_conversion(workdir, {"seconds": seconds})
