"""What can have happened to any file, whatever is in it."""

from collections.abc import Callable

import numpy as np

EXTREMES = (0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
Rng = np.random.Generator


def unchanged(rng: Rng, content: bytes) -> bytes:
    """Nothing has happened."""
    return content


def bit_flips(rng: Rng, content: bytes) -> bytes:
    """One bit, or up to a hundred."""
    changed = bytearray(content)
    for _ in range(int(rng.choice([1, 1, 2, 5, 20, 100]))):
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def truncated(rng: Rng, content: bytes) -> bytes:
    """Anywhere, by its last byte, or after its first ones."""
    length = int(rng.integers(len(content)))
    return content[: int(rng.choice([length, len(content) - 1, 20]))]


def inserted(rng: Rng, content: bytes) -> bytes:
    """Up to 700 random bytes."""
    at = rng.integers(len(content) + 1)
    return content[:at] + rng.bytes(int(rng.choice([1, 2, 16, 700]))) + content[at:]


def removed(rng: Rng, content: bytes) -> bytes:
    """Up to 200 bytes."""
    at = rng.integers(len(content))
    return content[:at] + content[at + int(rng.choice([1, 2, 16, 200])) :]


def duplicated(rng: Rng, content: bytes) -> bytes:
    """A part, behind itself."""
    start, stop = sorted(rng.integers(len(content) + 1, size=2))
    return content[:stop] + content[start:stop] + content[stop:]


def zeroed(rng: Rng, content: bytes) -> bytes:
    """Up to a block of a disk."""
    at, length = rng.integers(len(content)), int(rng.choice([4, 64, 512, 4096]))
    zeros = bytes(len(content[at : at + length]))
    return content[:at] + zeros + content[at + length :]


def extreme_field(rng: Rng, content: bytes) -> bytes:
    """One field of the first 80 bytes."""
    size = int(rng.choice([1, 2, 4]))
    little = rng.choice(["little", "big"]) == "little"
    value = int(rng.choice(EXTREMES)) & ((1 << 8 * size) - 1)
    at = int(rng.integers(min(len(content), 80)))
    field = value.to_bytes(size, "little" if little else "big")
    return content[:at] + field + content[at + size :]


def emptied(rng: Rng, content: bytes) -> bytes:
    """Nothing is left."""
    return b""


BYTE_MUTATIONS: dict[str, Callable[[Rng, bytes], bytes]] = {
    "none": unchanged,
    "bit flips": bit_flips,
    "truncated": truncated,
    "bytes inserted": inserted,
    "bytes removed": removed,
    "bytes duplicated": duplicated,
    "block zeroed": zeroed,
    "extreme field": extreme_field,
    "empty": emptied,
}
