"""Classifies pictures by an export: a row for each, and what was saved in the last line.

python -m drnet_runtime DIRECTORY FILE_OR_FOLDER... [--drop=0.5]

Of a folder, every file in it and in its folders that is named as a picture; hidden ones and links
to folders are passed over. Ends with 0; with 1 where no picture can be read, or nobody reads the
rows; with 2 and one line where the directory, a path or an option is not what it should be, or
after Ctrl-C.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from drnet_runtime.errors import BudgetError, ExportDirectoryError
from drnet_runtime.model import AdaptiveModel
from drnet_runtime.pictures import SUFFIXES
from drnet_runtime.results import Answer
from drnet_runtime.terminal import prepare_streams, printable


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints what is wrong, without the usage, which --help has."""
        self.exit(2, f"error: {message}\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = _Parser(
        prog="python -m drnet_runtime",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, help="what drnet_jax's --mode=export wrote")
    parser.add_argument("pictures", nargs="+", type=Path, help="files, or folders of them")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--gmacs", type=float, help="mean cost of a picture, in GMACs")
    budget.add_argument(
        "--fraction", type=float, help="the same, of the largest resolution's multiply-adds"
    )
    budget.add_argument(
        "--drop", type=float, help="points of top-1 that may be lost to the largest resolution"
    )
    budget.add_argument("--lam", type=float, help="lambda itself; without any of these: 0")
    parser.add_argument("--json", action="store_true", help="rows as lines of JSON")
    parser.add_argument("--int8", action="store_true", help="the files in int8, if there are any")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures at once")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: every core")
    return parser.parse_args(arguments)


def main() -> int:
    """Of the command line; the exit status."""
    prepare_streams()
    arguments = parse(sys.argv[1:])
    try:
        return _classify(arguments)
    except KeyboardInterrupt:
        print("error: interrupted; the pictures without a row are not classified", file=sys.stderr)
        return 2
    except (ExportDirectoryError, BudgetError, ValueError, FloatingPointError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read the rows has enough of them; Python would complain as it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2


def _classify(arguments: argparse.Namespace) -> int:
    files = [file for path in arguments.pictures for file in _files(path)]
    model = AdaptiveModel.load(arguments.directory, threads=arguments.threads, int8=arguments.int8)
    lam = arguments.lam or 0.0
    budgets = {name: getattr(arguments, name) for name in ("gmacs", "fraction", "drop")}
    if any(value is not None for value in budgets.values()):
        lam = model.lam_for(**budgets)
    spent: list[float] = []
    for answers in model.classify_batches(files, lam, batch_size=arguments.batch_size):
        for answer in answers:
            print(json.dumps(asdict(answer)) if arguments.json else _row(answer))
            if answer.gmacs is not None:
                spent.append(answer.gmacs)
        sys.stdout.flush()
    print(_last_line(model, lam, len(files), spent, as_json=arguments.json), flush=True)
    return 0 if spent else 1


def _files(path: Path) -> Iterator[Path]:
    """A file itself, or the pictures in a folder, in the order of their paths.

    Raises:
      ValueError: there is neither, or no picture in the folder.
      OSError: it, or a folder in it, cannot be read.
    """
    if not path.is_dir():
        if not path.exists():
            raise ValueError(f"{printable(path)} is not there: give files, or folders of pictures")
        yield path
        return
    count = 0

    def stop(error: OSError) -> NoReturn:
        raise error

    for place, folders, names in os.walk(path, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                count += 1
                yield Path(place, name)
    if not count:
        raise ValueError(f"{printable(path)} has no picture ({', '.join(SUFFIXES)}) in it")


def _row(answer: Answer) -> str:
    """Columns between tabs."""
    file = printable(answer.file)
    if answer.reason is not None:
        return f"{file}\tunreadable: {printable(answer.reason)}"
    looks = "1 look" if answer.looks == 1 else f"{answer.looks} looks"
    columns = (
        file,
        printable(answer.label),
        f"{answer.confidence:.3f}",
        f"{answer.resolution} px",
        looks,
        f"{answer.gmacs:.4g} GMACs",
    )
    return "\t".join(columns)


def _last_line(
    model: AdaptiveModel, lam: float, num_files: int, spent: Sequence[float], *, as_json: bool
) -> str:
    """What was spent, and what was saved over the largest resolution alone."""
    largest = model.largest_macs / 1e9
    gmacs = sum(spent) / len(spent) if spent else 0.0
    unreadable = num_files - len(spent)
    if as_json:
        figures = {
            "num_images": len(spent),
            "num_unreadable": unreadable,
            "lambda": lam,
            "gmacs": gmacs if spent else None,
            "saving": 1 - gmacs / largest if spent else None,
        }
        return json.dumps(figures)
    more = f"; {unreadable} more cannot be read" if unreadable else ""
    if not spent:
        return f"none of {num_files} pictures can be read"
    return (
        f"{len(spent)} pictures, {gmacs:.4g} GMACs each, {model.resolutions[0]} px alone "
        f"{largest:.4g}: {100 * (1 - gmacs / largest):.1f} % saved (lambda {lam:.4g}){more}"
    )


if __name__ == "__main__":
    sys.exit(main())
