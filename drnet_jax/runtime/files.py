"""Results on the disk: whole or not at all."""

import json
from pathlib import Path
from typing import Any

import jax


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes the file whole or not at all, on the first process only."""
    write_text(path, json.dumps(content, indent=2) + "\n")


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
