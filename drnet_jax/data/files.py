"""The picture files of a folder: which ones are read, and which are left out."""

import errno
import os
import stat
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drnet_jax.data.decode import SUFFIXES

# More is no picture: it would fill the memory.
_MOST_BYTES = 2**30
# Of a line about files.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A regular file that is named as a picture.

    Attributes:
      name: path from the folder, with slashes.
      size: in bytes.
      changed: when its content last was, in ns since 1970.
    """

    name: str
    size: int
    changed: int

    @property
    def version(self) -> str:
        """As `version` gives it."""
        return _version(self.size, self.changed)


@dataclass(frozen=True)
class LeftOut:
    """A file that is not read.

    Attributes:
      name: path from the folder, with slashes.
      kind: why, in a word or two: its suffix, or what it is instead of a regular file.
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Listing:
    """What is in a folder, hidden files and folders aside.

    Attributes:
      pictures: in the order of their paths, part by part.
      left_out: likewise.
    """

    pictures: list[PictureFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def list_pictures(root: Path, place: Path = Path(), *, without: Collection[str] = ()) -> Listing:
    """The pictures in a folder and in all folders in it, links to folders followed.

    Pictures are regular files named as in `decode.SUFFIXES`, whatever the case; others are left
    out: named pipes, devices, links to nothing, and folders that come up again by way of a link.

    Args:
      root: what the names are paths from.
      place: of the folder in `root`.
      without: names in the folder that are passed over.

    Raises:
      OSError: a folder cannot be listed.
    """
    found = Listing()
    start = "" if place == Path() else place.as_posix()
    for entry in _walk(root, start, set(without)):
        if isinstance(entry, LeftOut):
            found.left_out.append(entry)
        else:
            found.pictures.append(entry)
    for files in (found.pictures, found.left_out):
        files.sort(key=lambda file: file.name.split("/"))
    return found


def _walk(root: Path, start: str, without: Collection[str]) -> Iterator[PictureFile | LeftOut]:
    """Everything below a folder. Links wait, so that a folder is listed by its own name."""
    seen: set[tuple[int, int]] = set()
    folders, links = [start], deque[str]()
    while folders or links:
        place = folders.pop() if folders else links.popleft()
        found = (root / place).stat()
        if (found.st_dev, found.st_ino) in seen:
            yield LeftOut(place, "folder listed already")
            continue
        seen.add((found.st_dev, found.st_ino))
        with os.scandir(root / place) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        for entry in inside:
            if entry.name.startswith(".") or (place == start and entry.name in without):
                continue
            name = f"{place}/{entry.name}" if place else entry.name
            try:
                found = entry.stat()
            except OSError as error:
                yield LeftOut(name, _why(entry, error))
                continue
            if not stat.S_ISDIR(found.st_mode):
                yield _file(name, found)
            elif entry.is_symlink():
                links.append(name)
            else:
                folders.append(name)


def _why(entry: os.DirEntry[str], error: OSError) -> str:
    if entry.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
        return "link to nothing"
    return error.strerror or str(error)


def _file(name: str, found: os.stat_result) -> PictureFile | LeftOut:
    suffix = os.path.splitext(name)[1]
    if not stat.S_ISREG(found.st_mode):
        return LeftOut(name, "no regular file")
    if suffix.lower() not in SUFFIXES:
        return LeftOut(name, suffix or "no suffix")
    return PictureFile(name, found.st_size, found.st_mtime_ns)


def version(path: Path) -> str:
    """Size and time of the last change: of other content, in practice, others.

    Empty where there is no such file, or nothing is known of it.
    """
    try:
        found = path.stat()
    except OSError:
        return ""
    return _version(found.st_size, found.st_mtime_ns)


def _version(size: int, changed: int) -> str:
    return f"{size} bytes of {changed}"


def read_picture(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
      OSError: it cannot be read, is something else (a named pipe, say, which might never end), or
        is larger than any picture.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if found.st_size > _MOST_BYTES:
            raise OSError(errno.EFBIG, f"it is larger than {_MOST_BYTES >> 30} GiB", str(path))
        try:
            return file.read()
        except MemoryError as error:
            raise OSError(errno.ENOMEM, "there is too little memory to read it") from error


def _open_at_once(path: str, flags: int) -> int:
    """Opening a named pipe would wait for its other end."""
    return os.open(path, flags | os.O_NONBLOCK)


def describe(left_out: Sequence[LeftOut], where: Path) -> str:
    """A line that counts and names files of a folder that are not read."""
    kinds = Counter(file.kind for file in left_out).most_common()
    counted = ", ".join(f"{printable(kind)} {count}" for kind, count in kinds)
    named = ", ".join(printable(file.name) for file in left_out[:_NAMED])
    more = ", ..." if len(left_out) > _NAMED else ""
    files = "file" if len(left_out) == 1 else "files"
    return (
        f"left out of {printable(str(where))}: {len(left_out)} {files} ({counted}): {named}{more}"
    )


def printable(name: str) -> str:
    """A file name in one line: control characters, and bytes that are no UTF-8, as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in name
    )
