"""What has to hold of a weight file that is read, whatever is in it."""

import hashlib
import re
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from drnet_jax.pretrained.arrays import read_arrays
from drnet_jax.pretrained.errors import WeightsError
from experiments.mutation_runs import Outcome, peak_mebibytes
from experiments.weight_mutations import CHECKSUMS, MutatedWeights, make
from tests.weight_files import Arrays

# Of files of some kilobytes.
MEMORY_MIB = 64
# What a reader of files has no reason to do, by the names of Python's audit events.
_FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "exec")
_FORBIDDEN += ("socket.", "ctypes.", "os.remove", "os.rename", "os.mkdir", "shutil.", "webbrowser.")


def check(seed: int, index: int, folder: Path) -> Outcome:
    """Reads a file twice, and compares.

    Args:
      seed: see `make`.
      index: likewise.
      folder: where the file is written.
    """
    weights = make(seed, index)
    outcome = Outcome(index, weights.form, weights.mutation)
    path = folder / "weights"
    path.write_bytes(weights.content)
    _warm(folder)
    events = _audited()
    before = peak_mebibytes(reset=True)
    events.clear()
    start = time.process_time()
    first, second = (_read(path, outcome) for _ in range(2))
    outcome.seconds = round(time.process_time() - start, 4)
    outcome.mebibytes = round(peak_mebibytes() - before, 1)
    outcome.findings += [f"the reader does: {event}" for event in dict.fromkeys(events)]
    if outcome.mebibytes > MEMORY_MIB:
        outcome.findings.append(f"memory grew by {outcome.mebibytes:.0f} MiB")
    if _digest(first) != _digest(second):
        outcome.findings.append("another result from the same bytes")
    outcome.digest = _digest(first)
    if isinstance(first, str):
        outcome.reason = first
    else:
        outcome.read = True
        _compare(weights, first, outcome)
    return outcome


def _read(path: Path, outcome: Outcome) -> Arrays | str:
    """The arrays, or why there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_arrays(path)
    except WeightsError as error:
        text = str(error)
        if str(path) not in text or "\n" in text or len(text) > 500:
            outcome.findings.append(f"a reason that is no line: {text[:600]!r}")
        if "Memory" in text:
            outcome.findings.append(f"too little memory: {text}")
        # Of an object that a parser names.
        return re.sub("0x[0-9a-f]+", "0x", text.replace(str(path), "FILE"))
    # Nothing else may come out: that is what is looked for.
    except BaseException as error:
        outcome.findings.append(f"{type(error).__name__}: {error}")
        return f"{type(error).__name__}: {error}"


def _compare(weights: MutatedWeights, found: Arrays, outcome: Outcome) -> None:
    """Arrays of numbers; those that were written, where nothing happened or checksums tell."""
    for name, array in found.items():
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            outcome.findings.append(f"{name} is no array of numbers")
    if weights.mutation != "none" and weights.form not in CHECKSUMS:
        return
    same = set(found) == set(weights.arrays) and all(
        found[name].dtype == array.dtype and np.array_equal(found[name], array)
        for name, array in weights.arrays.items()
    )
    if not same:
        outcome.findings.append("other arrays than were written")


def _digest(found: Arrays | str) -> str:
    if isinstance(found, str):
        return hashlib.sha256(found.encode()).hexdigest()[:8]
    arrays = [(name, np.asarray(array)) for name, array in sorted(found.items())]
    parts = [(name, str(array.dtype), array.shape, array.tobytes()) for name, array in arrays]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


@cache
def _warm(folder: Path) -> None:
    """Every reader has been used once: what it imports is there, pickle's encoding of text too."""
    "".encode("raw_unicode_escape")
    path = folder / "first"
    for index in range(100):
        path.write_bytes(make(1, index).content)
        _read(path, Outcome(index, "", ""))


@cache
def _audited() -> list[str]:
    """What this process does from now on that is forbidden; a hook cannot be taken back."""
    events: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if writes or event.startswith(_FORBIDDEN):
            events.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(hook)
    return events
