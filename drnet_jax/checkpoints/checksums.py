"""Checksums of the files of a checkpoint: written with it, verified before it is read.

Orbax verifies what its index says of the arrays (OCDBT's manifest and nodes have a CRC-32C), but
not their values.
"""

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drnet_jax.runtime.checked_json import read_json
from drnet_jax.runtime.files import write_json

NAME = "checksums.json"
# Orbax writes these at the end, after the checksums; nothing that is restored depends on them.
_NOT_COVERED = (NAME, "_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK = 1 << 20


def write_checksums(directory: Path) -> None:
    """Writes size and CRC-32 of every file of a checkpoint, on the first process only.

    Args:
      directory: of the checkpoint, with all that is restored from it.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    names = [path.relative_to(directory).as_posix() for path in files]
    covered = [name for name in names if name not in _NOT_COVERED]
    found = zip(covered, _each(directory, covered), strict=True)
    write_json(directory / NAME, {"files": dict(found)})


def has_checksums(directory: Path) -> bool:
    """Whether a checkpoint has any: those of earlier versions do not."""
    return (directory / NAME).exists()


def find_damage(directory: Path, *, under: str = "") -> str:
    """The first file of a checkpoint that is not as it was written, and why; empty: all are.

    Args:
      directory: of the checkpoint, which has checksums.
      under: only files below this folder of it.
    """
    path = directory / NAME
    try:
        files = read_json(path)["files"]
        wanted = {name: f"{files[name]}" for name in files if name.startswith(under)}
    except FileNotFoundError:
        return f"{path} is missing"
    except (ValueError, KeyError, TypeError) as error:
        return f"{path} is damaged ({error})"
    for name, found in zip(wanted, _each(directory, list(wanted)), strict=True):
        if found != wanted[name]:
            return f"{directory / name} is damaged: {found}, it was saved as {wanted[name]}"
    return ""


def _each(directory: Path, names: list[str]) -> Iterator[str]:
    """Size and checksum of each file, in words."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda name: file_checksum(directory / name), names)


def file_checksum(path: Path) -> str:
    """Size and CRC-32 of a file in words, or that it is missing."""
    checksum = size = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                checksum = zlib.crc32(chunk, checksum)
                size += len(chunk)
    except FileNotFoundError:
        return "it is missing"
    return f"{size} bytes, CRC-32 {checksum:08x}"
