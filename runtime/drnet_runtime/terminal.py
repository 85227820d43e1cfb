"""The standard streams, in any encoding."""

import io
import sys


def prepare_streams() -> None:
    """What the encoding of a stream lacks is printed as an escape; both programs begin with it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: object) -> str:
    """In one line and one column: control characters, and bytes that are no UTF-8, as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )
