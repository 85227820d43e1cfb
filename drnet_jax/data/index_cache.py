"""Indices that take long to make, made once."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


def digest(*parts: object) -> str:
    """A short name for whatever the parts, bytes or anything with a `repr`, say."""
    hashed = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        # With its length: the parts cannot run into each other.
        hashed.update(len(content).to_bytes(8, "big") + content)
    return hashed.hexdigest()[:16]


def cached(name: str, directories: Sequence[Path], build: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of `build()`, from the first directory that has it, else made and kept.

    It is kept in the first directory that can be written to: beside the data, or, if that is
    read-only, in the run's cache.

    Args:
      name: of the file, without suffix; it has to tell apart whatever `build` depends on.
      directories: where it may be, with suffix `.npy`.
      build: makes the array.
    """
    for directory in directories:
        path = directory / f"{name}.npy"
        if path.is_file():
            return np.load(path)
    array = build()
    for directory in directories:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _write(directory / f"{name}.npy", array)
        except OSError:
            continue
        return array
    print(f"warning: cannot keep {name} in {' or '.join(map(str, directories))}", file=sys.stderr)
    return array


def _write(path: Path, array: np.ndarray) -> None:
    # Whole or not at all, with several processes too.
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
