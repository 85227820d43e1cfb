"""Tables that rows are appended to, and what is kept of one that was cut off anywhere."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_type_hints

from drnet_jax.runtime.files import naming

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# File names that are no UTF-8 keep their bytes.
_ENCODING = ("utf-8", "surrogateescape")

RowT = TypeVar("RowT", bound="DataclassInstance")


class Table(Generic[RowT]):
    """Rows in a file, which are appended: JSON objects if it is named `.jsonl`, else CSV.

    In UTF-8; file names that are no UTF-8 keep their bytes.

    Args:
      path: of the file.
      row: dataclass of a row; its fields, of type str, int or float, are the columns, and the
        header of a CSV.
    """

    def __init__(self, path: Path, row: type[RowT]) -> None:
        self.path = path
        self._row: type[RowT] = row
        self._types = {field.name: get_type_hints(row)[field.name] for field in fields(row)}
        self._json = path.suffix == ".jsonl"

    def read(self) -> list[RowT]:
        """All rows; a last one that is only half written does not count.

        Raises:
          ValueError: the file holds something else.
        """
        return self._parse()[0]

    def repair(self) -> list[RowT]:
        """`read`, and the file is left with just these rows (and the header); it may be missing.

        Raises:
          ValueError: the file holds something else; it is left as it is.
        """
        rows, length = self._parse()
        with naming(self.path), self.path.open("ab") as file:
            file.truncate(length)
        if not length and not self._json:
            self._write(_csv(tuple(self._types)))
        return rows

    def append(self, rows: Sequence[RowT]) -> None:
        """Writes rows to the disk; where that is cut short, the last of them is half written."""
        self._write("".join(map(self._line, rows)))

    def _line(self, row: RowT) -> str:
        values = astuple(row)
        if self._json:
            return json.dumps(dict(zip(self._types, values, strict=True))) + "\n"
        return _csv(values)

    def _write(self, text: str) -> None:
        with naming(self.path), self.path.open("ab") as file:
            file.write(_encoded(text))
            file.flush()
            os.fsync(file.fileno())

    def _parse(self) -> tuple[list[RowT], int]:
        """The whole rows, and how many bytes they take, the header included."""
        if not self.path.exists():
            return [], 0
        content = self.path.read_bytes()
        rows: list[RowT] = []
        end = 0
        # One by one: the records of a million rows, and their text, would take more than the rows.
        if self._json:
            records = _json_records(content, self._types)
        else:
            records = _csv_records(content)
            first = next(records, None)
            _check_header(content, first and first[0], _csv(tuple(self._types)))
            end = first[1] if first else 0
        for record, stop in records:
            rows.append(self._row(*self._values(record)))
            end = stop
        return rows, end

    def _values(self, record: Sequence[object]) -> list[Any]:
        pairs = zip(self._types.values(), record, strict=True)
        return [convert(value) for convert, value in pairs]


def _encoded(text: str) -> bytes:
    return text.encode(*_ENCODING)


def _json_records(content: bytes, types: Mapping[str, type]) -> Iterator[tuple[list[object], int]]:
    """The values of every whole line, and how many bytes end there.

    Raises:
      ValueError: a line is no object with these names and values of these types, or what follows
        the last one does not begin as such a line does.
    """
    end = 0
    while stop := content.find(b"\n", end) + 1:
        record = json.loads(content[end:stop].decode(*_ENCODING))
        if not isinstance(record, dict) or list(record) != list(types):
            raise ValueError(f"a line has other names than {', '.join(types)}")
        for name, value in record.items():
            # JSON has 1 for 1.0.
            if type(value) is not types[name] and (type(value), types[name]) != (int, float):
                raise ValueError(f"a line has {name} {value!r}")
        yield list(record.values()), stop
        end = stop
    rest, begin = content[end:], _encoded(f"{{{json.dumps(next(iter(types)))}: ")
    if not rest.startswith(begin) and not begin.startswith(rest):
        raise ValueError("its last line is no row")


def _check_header(content: bytes, first: Sequence[object] | None, header: str) -> None:
    """Stops if the content of a CSV, whose first whole record this is, begins otherwise.

    Raises:
      ValueError: it does.
    """
    # One that is cut off is the beginning of the header.
    if _csv(first) != header if first else not _encoded(header).startswith(content):
        raise ValueError(f"its header is not {header.strip()}")


def _csv_records(content: bytes) -> Iterator[tuple[list[object], int]]:
    """The values of every whole record, of one or more lines, and how many bytes end there.

    Raises:
      ValueError: a record is no CSV.
    """
    end = 0

    def lines() -> Iterator[str]:
        """Noting how far they are read."""
        nonlocal end
        for line in io.TextIOWrapper(io.BytesIO(content), *_ENCODING, newline=""):
            end += len(_encoded(line))
            yield line

    try:
        for record in csv.reader(lines(), strict=True):
            if content.endswith(b"\n", 0, end):
                yield [*record], end
    except csv.Error as error:
        # At the end a quoted value is cut off.
        if end < len(content):
            raise ValueError(str(error)) from error


def _csv(values: Sequence[object]) -> str:
    """A record that ends with a line feed."""
    text = io.StringIO()
    # Python 3.11 quotes a carriage return only where lines end with one.
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"
