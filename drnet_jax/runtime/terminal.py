"""The standard streams, whatever they are: a terminal, a pipe or a file, in any encoding."""

import atexit
import os
import sys
import unicodedata
from contextlib import suppress
from typing import Any, TextIO


class OutputError(RuntimeError):
    """What is printed is lost: its terminal or pipe is closed, or its file cannot grow."""


def prepare_streams() -> None:
    """Makes printing safe; every program calls it first.

    What the encoding of a stream lacks is printed as an escape (`\\xb1`). Streams that are closed
    from the start (`>&-`) are discarded.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream: Any = getattr(sys, name)
        if stream is None:
            # Else the next file that is opened would get what libraries print.
            _discard(descriptor)
            stream = open(descriptor, "r" if name == "stdin" else "w", closefd=False)
            setattr(sys, name, stream)
        if name != "stdin":
            stream.reconfigure(errors="backslashreplace")
    atexit.register(_flush_streams)


def print_line(text: str, file: TextIO | None = None) -> None:
    """Prints a line at once; control characters, which a terminal would obey, as escapes.

    Names of classes and of files come from elsewhere.

    Args:
      text: the line, or several.
      file: a stream; None: the standard output.

    Raises:
      OutputError: it cannot be printed.
    """
    try:
        print(_visible(text, but="\n\t"), file=file, flush=True)
    except OSError as error:
        stream = "stderr" if file is sys.stderr else "stdout"
        raise OutputError(f"{stream} takes no more output ({error.strerror})") from error


def print_error(message: str) -> None:
    """Prints what is wrong in one line; where nobody reads it, the status says enough."""
    with suppress(OutputError):
        print_line(f"error: {_visible(message)}", sys.stderr)


def _visible(text: str, but: str = "") -> str:
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) == "Cc" and char not in but
        else char
        for char in text
    )


def _flush_streams() -> None:
    """Python would end with a traceback for what it cannot print at last."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _discard(stream.fileno())


def _discard(descriptor: int) -> None:
    """Lets a file descriptor lead to nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == descriptor:
        os.set_inheritable(null, True)
    else:
        os.dup2(null, descriptor)
        os.close(null)
