"""Locks that one process holds at a time, and which one it is."""

import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import jax

from drnet_jax.config import ConfigError
from drnet_jax.runtime.files import check_writable, naming, remove_empty
from drnet_jax.runtime.progress import log

# Who asks for the holder has the lock for a moment, too.
_ATTEMPTS, _PAUSE = 5, 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, does: str, remedy: str) -> Iterator[None]:
    """Holds a lock file, on the first process only; the file is there as long as it is held.

    The lock ends with the process, however that ends; the file of one that was killed is taken over
    by the next. Folders that were made for the file are removed at the end if they are empty. On a
    file system without locks it warns and goes on.

    Args:
      path: of the file; it serves for nothing else.
      does: what this process does, after "process 1 on host a".
      remedy: what to do where another process holds it.

    Raises:
      ConfigError: another process does; it is named.
      OSError: the file cannot be written.
    """
    if jax.process_index() != 0:
        yield
        return
    check_writable(path.parent)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _acquired(path, remedy) as file:
            holder = f"{_this_process()} {does} since {datetime.now(UTC):%Y-%m-%d %H:%M UTC}\n"
            try:
                with naming(path):
                    file.truncate(0)
                    file.write(holder.encode(errors="backslashreplace"))
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        remove_empty(made)


def other_holder(path: Path) -> str:
    """Which other process holds a lock file, and what it does; empty: none does.

    For messages: as soon as this returns, it may be otherwise.
    """
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(path)
        return "" if holder.startswith(f"{_this_process()} ") else holder
    except OSError:
        pass
    return ""


def _this_process() -> str:
    return f"process {os.getpid()} on host {platform.node()}"


def _holder(path: Path) -> str:
    """What the file says."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return text.strip() or "another process is at work there"


def _acquired(path: Path, remedy: str) -> BinaryIO:
    """The file, locked.

    Raises:
      ConfigError: another process holds it.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE)
        # Network file systems lock only what is open for writing.
        file = path.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
            file.close()
        except BlockingIOError:
            file.close()
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            log(
                f"warning: the file system of {path.parent} has no locks ({error.strerror}): see "
                "to it that no other process writes there"
            )
            return file
    raise ConfigError(f"{_holder(path)}: {remedy}")


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether it is the file there: its last holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
