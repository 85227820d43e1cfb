"""Indices that take long to make, made once."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from drnet_jax.runtime.files import NPZ_DAMAGE, replacing


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
    read-only, in the run's cache. A damaged file, which its checksum tells, is made anew.

    Args:
      name: of the file, without suffix; it has to tell apart whatever `build` depends on.
      directories: where it may be, with suffix `.npz`.
      build: makes the array.
    """
    paths = [directory / f"{name}.npz" for directory in directories]
    for path in paths:
        if not path.is_file():
            continue
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays["index"]
        except NPZ_DAMAGE as error:
            print(f"warning: {path} is damaged ({error}), and made anew", file=sys.stderr)
    array = build()
    for path in paths:
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, index=array)
        except OSError:
            continue
        return array
    print(f"warning: cannot keep {name} in {' or '.join(map(str, directories))}", file=sys.stderr)
    return array
