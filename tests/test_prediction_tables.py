"""Tables of predictions: what is kept of a file that was cut off anywhere."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drnet_jax.reports.predictions import Prediction, Unreadable
from drnet_jax.runtime.table import Table

NAMES = ["a.png", '"b"\r\n,.png', "é 猫.png", os.fsdecode(b"\xff\n.png"), "e.png"]


def tables(folder: Path) -> Iterator[tuple[Table[Any], list[Any]]]:
    """Of every kind, each with rows for it."""
    predictions = [
        Prediction(file, f'label, "{row}"\n', row, 1 / (row + 3), 2**row, 0.1 * row)
        for row, file in enumerate(NAMES)
    ]
    yield Table(folder / "predictions.csv", Prediction), predictions
    yield Table(folder / "predictions.jsonl", Prediction), predictions
    unreadable = [Unreadable(file, f"{file}\n\r") for file in NAMES]
    yield Table(folder / "unreadable.csv", Unreadable), unreadable


def test_a_table_cut_anywhere(tmp_path: Path) -> None:
    """Whole rows are kept, half a row or half a header is not, and what follows fits."""
    for table, rows in tables(tmp_path):
        assert table.repair() == [] == table.repair()
        ends = [table.path.stat().st_size]
        for row in rows:
            table.append([row])
            ends.append(table.path.stat().st_size)
        content = table.path.read_bytes()
        assert table.read() == rows
        for length in range(len(content) + 1):
            table.path.write_bytes(content[:length])
            whole = sum(end <= length for end in ends[1:])
            assert table.read() == table.repair() == rows[:whole]
            assert table.path.read_bytes() == content[: ends[whole]]
            table.append(rows[whole:])
            assert table.path.read_bytes() == content


# Whatever a folder of a class may be called, at either end of a value too.
ODD = [
    "\r",
    "\n",
    "\r\n",
    "\t",
    '"',
    '""',
    "'",
    ",",
    "\\",
    " ",
    "=1+1",
    "@",
    "-",
    "#",
    "\x01",
    "\x1a",
]
ODD += [
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\u2028",
    "\ufeff",
    "猫",
    os.fsdecode(b"\xff"),
    "{}",
    "null",
]


def test_odd_names_are_read_back_by_anyone(tmp_path: Path) -> None:
    """By Python's csv and json, without this program: every value as it was."""
    names = [name for odd in ODD for name in (odd, f"a{odd}", f"{odd}b", f"a{odd}b")]
    rows = [Prediction(f"{name}.png", name, 1, 0.5, 32, 0.25) for name in names]
    for path in (tmp_path / "t.csv", tmp_path / "t.jsonl"):
        table = Table(path, Prediction)
        table.repair()
        for start in range(0, len(rows), 7):
            table.append(rows[start : start + 7])
        assert table.read() == table.repair() == rows
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            if path.suffix == ".csv":
                found = [*csv.reader(file, strict=True)]
                assert found.pop(0)[:2] == ["file", "label"]
                values = [(record[0], record[1]) for record in found]
            else:
                objects = [json.loads(line) for line in file.read().split("\n") if line]
                values = [(record["file"], record["label"]) for record in objects]
        assert values == [(f"{name}.png", name) for name in names]


def row(**changes: object) -> str:
    """A line of a table."""
    values = {"file": "x", "label": "a", "class_index": 0, "confidence": 1, "resolution": 32}
    return json.dumps(values | {"gmacs": 0.5} | changes) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("t.jsonl", f"{line}\n") for line in ("[]", "5", '{"file": "x"}', "{", "text")),
        *(("t.jsonl", text) for text in ("text", "[1, 2]", '{"fill": 1}', '{\n  "file": "x"\n}')),
        ("t.jsonl", row() + "text"),
        ("t.jsonl", "text\r" + row()),
        ("t.jsonl", row(class_index=None)),
        ("t.jsonl", row(label=5)),
        ("t.jsonl", row(confidence="much")),
        ("t.csv", "text"),
        ("t.csv", "file,label,text"),
        ("t.csv", '"text,\ntext,'),
        ("t.csv", "file,label\n"),
        ("t.csv", "text\rtext"),
    ],
)
def test_other_tables_are_refused_and_left_alone(name: str, content: str, tmp_path: Path) -> None:
    table = Table(tmp_path / name, Prediction)
    table.path.write_bytes(content.encode())
    with pytest.raises(ValueError):
        table.repair()
    assert table.path.read_bytes() == content.encode()


def test_whole_numbers_in_json(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.jsonl", Prediction)
    table.path.write_text(row() + row(file="y")[:-5])
    assert table.repair() == [Prediction("x", "a", 0, 1.0, 32, 0.5)]
    assert table.path.read_text() == row()
