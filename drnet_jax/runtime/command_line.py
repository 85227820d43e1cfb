"""Parsers of command lines: no abbreviations, and every error is one line."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from drnet_jax.config import ConfigError
from drnet_jax.config_paths import user_path

# Of a run that was interrupted, and that the same command goes on with: what supervisors and job
# scripts can tell from an error (2). EX_TEMPFAIL of sysexits.h, "temporary failure, try again".
INTERRUPTED = 75


class CommandLine(argparse.ArgumentParser):
    """A parser that takes what is written in full, and ends with 2 and one line otherwise.

    Args:
      settings: of `argparse.ArgumentParser`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong, without the usage, which --help has."""
        self.exit(2, f"error: {message}\n")


class SetOnce(argparse.Action):
    """An option that may be repeated, but not with another value."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Stores the value, or ends with an error where it is another one."""
        given = namespace.__dict__.setdefault("_given", {})
        if given.setdefault(self.dest, values) != values:
            parser.error(
                f"{option_string} is given twice, as {given[self.dest]} and as {values}: "
                "leave out one"
            )
        setattr(namespace, self.dest, values)


def a_path(text: str) -> Path:
    """For the `type` of an argument: a path with `~` replaced (`user_path`)."""
    try:
        return user_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def a_location(text: str) -> str:
    """`a_path` as text, which may be a URL (`gs://bucket/folder`)."""
    return text if "://" in text else str(a_path(text))
