"""Results on the disk: whole or not at all, whoever else writes them."""

import errno
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import jax

from drnet_jax.runtime.checked_json import with_checksum

# What reading a damaged `.npz` raises. RuntimeError: a flipped bit makes a member look encrypted,
# or (NotImplementedError) compressed in a way that there is not. TokenError: a header is cut off.
NPZ_DAMAGE = (
    *(BadZipFile, zlib.error, RuntimeError, KeyError, ValueError, EOFError, OSError),
    TokenError,
)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes the file whole or not at all, on the first process only; see `with_checksum`."""
    write_text(path, json.dumps(with_checksum(content), indent=2) + "\n")


def remove_file(path: Path) -> None:
    """Removes the file if it is there, on the first process only."""
    if jax.process_index() == 0:
        path.unlink(missing_ok=True)


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes those that are empty, the innermost one first."""
    for folder in folders:
        # One that ends in `..` has others of them in it.
        with suppress(OSError):
            folder.rmdir()


def write_text(path: Path, content: str) -> None:
    """Writes the file whole or not at all, on the first process only, in UTF-8.

    File names that are no UTF-8 keep their bytes.
    """
    if jax.process_index() != 0:
        return
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="surrogateescape", newline="\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, ending in `.tmp`, of a file that takes its place at the end.

    It is removed on an error; that of a killed process stays. No other writer has the same one.

    Raises:
      OSError: naming `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with naming(path):
            yield temporary
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path`, ending in `.tmp`, that takes its place at the end.

    It is removed on an error; that of a killed process stays.

    Args:
      path: of a folder that is empty, or not there yet.

    Raises:
      OSError: naming `path`; `FileExistsError` where it is something else.
    """
    check_new_folder(path)
    # A link to an empty folder stays; `..` has no name to put a temporary one beside.
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with naming(path):
            temporary.mkdir()
            yield temporary
            # Not onto a folder that another process has filled meanwhile.
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_new_folder(path: Path) -> None:
    """Checks that a folder is empty, or not there yet.

    Raises:
      FileExistsError: it holds something, or is no folder.
    """
    if path.is_dir():
        found = next(path.iterdir(), None)
        what = "" if found is None else f"the folder holds {found.name!r}"
    else:
        what = "it is no folder" if os.path.lexists(path) else ""
    if what:
        problem = f"{what}, and nothing is overwritten: name another folder"
        raise FileExistsError(errno.EEXIST, problem, str(path))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system name the file: those of writing say only what is wrong."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


def in_words(error: OSError) -> str:
    """The file, what is wrong, and, of a full disk, what is kept."""
    if error.strerror is None:
        return str(error)
    text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        text += "; what was complete before is kept: free space, and run the same command again"
    return text


def check_writable(folder: Path) -> None:
    """Checks that results can be written to a folder, which may not exist yet, by writing.

    It leaves nothing there. On the first process only.

    Raises:
      OSError: they cannot, naming the folder or what is in its place.
    """
    if jax.process_index() != 0:
        return
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    probe = existing / f".{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        try:
            probe.write_text("writable\n")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        problem = f"no results can be written there ({error.strerror})"
        raise type(error)(error.errno, problem, str(existing)) from error
