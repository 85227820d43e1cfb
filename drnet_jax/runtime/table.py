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
        text: str = self.path.read_bytes().decode("utf-8", "surrogateescape")
        if self._json:
            records = [*_json_records(text, self._types)]
        else:
            records = [*_csv_records(text)]
            _check_header(text, records, _csv(tuple(self._types)))
        length = len(_encoded(text[: records[-1][1]])) if records else 0
        rows = records if self._json else records[1:]
        return [self._row(*self._values(record)) for record, _ in rows], length

    def _values(self, record: Sequence[object]) -> list[Any]:
        pairs = zip(self._types.values(), record, strict=True)
        return [convert(value) for convert, value in pairs]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _json_records(text: str, types: Mapping[str, type]) -> Iterator[tuple[list[object], int]]:
    """The values of every whole line, and the position after it.

    Raises:
      ValueError: a line is no object with these names and values of these types, or what follows
        the last one does not begin as such a line does.
    """
    end = 0
    while stop := text.find("\n", end) + 1:
        record = json.loads(text[end:stop])
        if not isinstance(record, dict) or list(record) != list(types):
            raise ValueError(f"a line has other names than {', '.join(types)}")
        for name, value in record.items():
            # JSON has 1 for 1.0.
            if type(value) is not types[name] and (type(value), types[name]) != (int, float):
                raise ValueError(f"a line has {name} {value!r}")
        yield list(record.values()), stop
        end = stop
    rest, begin = text[end:], f"{{{json.dumps(next(iter(types)))}: "
    if not rest.startswith(begin) and not begin.startswith(rest):
        raise ValueError("its last line is no row")


def _check_header(text: str, records: Sequence[tuple[list[object], int]], header: str) -> None:
    """Stops if the text of a CSV, whose records these are, begins otherwise.

    Raises:
      ValueError: it does.
    """
    whole = bool(records) and _csv(records[0][0]) == header
    if not whole and (records or not header.startswith(text)):
        raise ValueError(f"its header is not {header.strip()}")


def _csv_records(text: str) -> Iterator[tuple[list[object], int]]:
    """The values of every whole record, which may be of several lines, and the position after it.

    Raises:
      ValueError: a record is no CSV.
    """
    end = 0

    def lines() -> Iterator[str]:
        """Noting how far they are read."""
        nonlocal end
        for line in io.StringIO(text, newline=""):
            end += len(line)
            yield line

    try:
        for record in csv.reader(lines(), strict=True):
            if text.endswith("\n", 0, end):
                yield [*record], end
    except csv.Error as error:
        # At the end of the text a quoted value is cut off.
        if end < len(text):
            raise ValueError(str(error)) from error


def _csv(values: Sequence[object]) -> str:
    """A record that ends with a line feed."""
    text = io.StringIO()
    # Python 3.11 quotes a carriage return only where lines end with one.
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"
