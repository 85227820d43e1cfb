"""Results on the disk: whole or not at all, and of one process at a time."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from drnet_jax.config import ConfigError
from drnet_jax.runtime.checked_json import with_checksum


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes the file whole or not at all, on the first process only; see `with_checksum`."""
    write_text(path, json.dumps(with_checksum(content), indent=2) + "\n")


def remove_file(path: Path) -> None:
    """Removes the file if it is there, on the first process only."""
    if jax.process_index() == 0:
        path.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Writes the file whole or not at all, on the first process only, in UTF-8.

    File names that are no UTF-8 keep their bytes.
    """
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(content, encoding="utf-8", errors="surrogateescape", newline="\n")
    temporary.replace(path)


@contextmanager
def locked(path: Path, problem: str) -> Iterator[None]:
    """Holds a lock file, which stays there, empty: others may wait for it already.

    Args:
      path: of the file, which is made if need be; it serves for nothing else.
      problem: what to say where another process holds it, and the remedy.

    Raises:
      ConfigError: another process does.
      OSError: it cannot be made, or the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Network file systems lock only what is open for writing.
    with path.open("a") as file:
        try:
            # It ends with the process, however that ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(problem) from error
        yield
