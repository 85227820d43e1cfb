"""Small random weight files of every kind, and what can have happened to such a file."""

import io
import re
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.byte_mutations import BYTE_MUTATIONS, EXTREMES, Rng
from tests.weight_files import WRITERS, Arrays, write_keras

# `inside`: a member of the archive is damaged, and its checksum is that of the damage.
FORMS = {
    **WRITERS,
    "npz, inside": WRITERS["npz"],
    "torch, inside": WRITERS["torch"],
    "keras": write_keras,
}
# Whatever is damaged, the checksums of a zip archive tell.
CHECKSUMS = ("npz", "torch")
_KINDS = (np.float32, np.float32, np.float64, np.float16, np.int64)
# What a pickle calls: `os.system` of a command that leaves a file behind.
_CALL = b"cos\nsystem\n(X\x0a\x00\x00\x00touch evil\x74R"
_NUMBERS = (b"0", b"-1", b"7", b"4294967296", b"9223372036854775808", b"1" * 30, b"nan", b"[1]")


@dataclass(frozen=True)
class MutatedWeights:
    """A file that may be damaged.

    Attributes:
      form: its format.
      mutation: what happened to it.
      arrays: that were written.
      content: its bytes.
    """

    form: str
    mutation: str
    arrays: Arrays
    content: bytes


def make(seed: int, index: int) -> MutatedWeights:
    """File number `index` of a seed, the same with the same versions of the libraries."""
    rng = np.random.default_rng((seed, index))
    form = str(rng.choice(list(FORMS)))
    mutation = str(rng.choice(list(MUTATIONS)))
    arrays = _arrays(rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        FORMS[form](path, arrays)
        content = path.read_bytes()
    change = MUTATIONS[mutation]
    if form.endswith("inside"):
        content = _inside(rng, content, change)
    else:
        content = change(rng, content)
    return MutatedWeights(form, mutation, arrays, content)


def describe(seed: int, index: int) -> tuple[str, str]:
    """Format and mutation of that file."""
    weights = make(seed, index)
    return weights.form, weights.mutation


def _arrays(rng: Rng) -> Arrays:
    """A few, or so many that their names alone are more than a page of memory."""
    arrays = {}
    for number in range(int(rng.choice([1, 2, 5, 40]))):
        shape = tuple(int(n) for n in rng.integers(1, 9, size=rng.integers(0, 4)))
        kind = _KINDS[rng.integers(len(_KINDS))]
        arrays[f"layer{number}/kernel"] = rng.integers(-99, 99, size=shape).astype(kind)
    return arrays


def _inside(rng: Rng, content: bytes, change: Callable[[Rng, bytes], bytes]) -> bytes:
    """One member changed: of PyTorch's mostly the pickle."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = next(iter(members)) if rng.random() < 0.5 else str(rng.choice(list(members)))
    # An empty array has no byte that could be another one.
    members[chosen] = change(rng, members[chosen] or b"\0")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return buffer.getvalue()


def _absurd_number(rng: Rng, content: bytes) -> bytes:
    """A number in text, of a header in JSON or Python, say, is another one, or none."""
    found = list(re.finditer(rb"\d+", content))
    if not found:
        return _extreme_anywhere(rng, content)
    number = found[rng.integers(len(found))]
    other = _NUMBERS[rng.integers(len(_NUMBERS))]
    return content[: number.start()] + other + content[number.end() :]


def _extreme_anywhere(rng: Rng, content: bytes) -> bytes:
    """A field of 4 or 8 bytes, as sizes and places are stored."""
    size, at = int(rng.choice([4, 8])), int(rng.integers(len(content)))
    value = int(rng.choice(EXTREMES)) << int(rng.choice([0, 32]))
    field = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return content[:at] + field + content[at + size :]


def _call(rng: Rng, content: bytes) -> bytes:
    """A call, which a pickle could make."""
    at = int(rng.integers(len(content) + 1))
    return content[:at] + _CALL + content[at:]


def _doubled(rng: Rng, content: bytes) -> bytes:
    return content + content


MUTATIONS: dict[str, Callable[[Rng, bytes], bytes]] = BYTE_MUTATIONS | {
    "absurd number": _absurd_number,
    "extreme anywhere": _extreme_anywhere,
    "a call": _call,
    "twice": _doubled,
}
