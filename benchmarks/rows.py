"""Figures of benchmarks as lines of JSON, written at once, which a later command goes on from."""

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def append_row(path: Path, row: Row) -> None:
    """Adds a line, which is on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[Row]:
    """All lines; none where there is no such file.

    Raises:
      ValueError: a line is no JSON object; it is named.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is damaged; remove it, or the file")
        rows.append(row)
    return rows
