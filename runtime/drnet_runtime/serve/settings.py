"""What the server is started with, from the command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from drnet_runtime.serve.budget import NAMES
from drnet_runtime.sessions import usable_cores

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Settings:
    """How to serve an export.

    Attributes:
      directory: of the export.
      host: address to listen at.
      port: 0 for any free one.
      threads: of ONNX Runtime; 0 for one a core.
      int8: run the export's files in int8.
      decode_threads: that decode pictures.
      max_batch: pictures of a model call, at most.
      max_wait: seconds that a picture waits for others to share its model call.
      queue: pictures that are accepted and not answered yet, at most.
      max_pictures: of a request.
      max_body: bytes of a request.
      max_held: bytes of all requests that are not answered yet.
      max_pixels: of a picture.
      max_connections: at a time; more are refused.
      client_seconds: for a client to send a head, to send a body, and to take an answer.
      drain_seconds: how long new connections are still taken after SIGTERM.
      budget: of requests that state none, by name; at most one.
    """

    directory: Path
    host: str
    port: int
    threads: int
    int8: bool
    decode_threads: int
    max_batch: int
    max_wait: float
    queue: int
    max_pictures: int
    max_body: int
    max_held: int
    max_pixels: int
    max_connections: int
    client_seconds: float
    drain_seconds: float
    budget: dict[str, float]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints what is wrong, without the usage, which --help has."""
        self.exit(2, f"error: {message}\n")


def parse(arguments: Sequence[str]) -> Settings:
    """The settings; ends the program with 2 and a message where they cannot be."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.max_pictures > given.queue:
        parser.error(
            f"--max-pictures {given.max_pictures} is above --queue {given.queue}: "
            "such a request could never be accepted"
        )
    if given.max_held_mb < given.max_body_mb:
        parser.error(
            f"--max-held-mb {given.max_held_mb:g} is below --max-body-mb {given.max_body_mb:g}: "
            "such a request could never be accepted"
        )
    budget = {name: getattr(given, name) for name in NAMES if getattr(given, name) is not None}
    return Settings(
        directory=given.directory,
        host=given.host,
        port=given.port,
        threads=given.threads,
        int8=given.int8,
        decode_threads=given.decode_threads,
        max_batch=given.max_batch,
        max_wait=given.max_wait_ms / 1000,
        queue=given.queue,
        max_pictures=given.max_pictures,
        max_body=int(given.max_body_mb * MEBIBYTE),
        max_held=int(given.max_held_mb * MEBIBYTE),
        max_pixels=given.max_pixels,
        max_connections=given.max_connections,
        client_seconds=given.client_seconds,
        drain_seconds=given.drain_seconds,
        budget=budget,
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m drnet_runtime.serve",
        description="Serves an export over HTTP, with a page at /.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="of the export")
    _add(parser, "--host", str, "127.0.0.1", "address to listen at; 0.0.0.0 for every one")
    _add(parser, "--port", _between(int, 0, 65535), 8000, "0 for any free one")
    _add(parser, "--threads", _between(int, 0), 0, "of ONNX Runtime; 0 for one a core")
    help = "the export's files in int8, if it has any"
    parser.add_argument("--int8", action="store_true", help=help)
    _add(parser, "--decode-threads", _between(int, 1), usable_cores(), "that decode pictures")
    _add(parser, "--max-batch", _between(int, 1), 32, "pictures of a model call")
    help = "that a picture waits for others to share its model call"
    _add(parser, "--max-wait-ms", _between(float, 0), 3.0, help)
    _add(parser, "--queue", _between(int, 1), 256, "pictures accepted and not answered yet")
    _add(parser, "--max-pictures", _between(int, 1), 64, "of a request")
    _add(parser, "--max-body-mb", _between(float, 0.001), 16.0, "of a request")
    help = "of all requests that are not answered yet"
    _add(parser, "--max-held-mb", _between(float, 0.001), 256.0, help)
    _add(parser, "--max-pixels", _between(int, 1), 50_000_000, "of a picture")
    help = "at a time; below what ulimit -n says"
    _add(parser, "--max-connections", _between(int, 1), 512, help)
    help = "for a client to send a head, to send a body, and to take an answer"
    _add(parser, "--client-seconds", _between(float, 0.01), 30.0, help)
    help = "after SIGTERM in which /health says draining and new connections are still taken"
    _add(parser, "--drain-seconds", _between(float, 0), 0.0, help)
    budgets = parser.add_argument_group(
        "budget of requests that state none"
    ).add_mutually_exclusive_group()
    for name, help in NAMES.items():
        budgets.add_argument(f"--{name}", type=float, default=argparse.SUPPRESS, help=help)
        parser.set_defaults(**{name: None})
    return parser


def _add(parser: argparse.ArgumentParser, name: str, kind: Any, default: Any, help: str) -> None:
    parser.add_argument(name, type=kind, default=default, help=help)


def _between(kind: type, least: float, most: float = float("inf")) -> Any:
    """A type of argparse: finite numbers of a range."""

    def number(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} does not lie in {least:g} to {most:g}")
        return value

    number.__name__ = kind.__name__
    return number
