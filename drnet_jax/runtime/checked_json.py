"""JSON objects in files, with a checksum of their own."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAME = "crc32"


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with a last member `crc32`, the CRC-32 of the others."""
    return {**content, _NAME: _checksum(content)}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, without its checksum, which it may lack.

    Raises:
      ValueError: it holds something else, or not what was written.
      OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_int=_integer)
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, no object")
        wanted = content.pop(_NAME, None)
        found = None if wanted is None else _checksum(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if wanted != found:
        raise ValueError(
            f"its content is not that of its checksum {wanted}; if you have changed it, remove "
            f"{_NAME!r} from it too"
        )
    return content


def _integer(digits: str) -> int:
    """What is written is counted, or nanoseconds; what no float holds would stop its reader."""
    value = int(digits)
    if abs(value) >= 2**64:
        raise ValueError(f"it holds an integer of {len(digits.lstrip('-'))} digits")
    return value


def _checksum(content: Mapping[str, Any]) -> str:
    # What is written and what is read have the same JSON: it has neither tuples nor other names
    # than texts.
    return f"{zlib.crc32(json.dumps(content).encode()):08x}"
