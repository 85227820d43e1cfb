"""From the splits that a data set comes with to train, calibration and test."""

from collections.abc import Collection

import numpy as np

# What the splits that come with data sets are called; of two candidates test takes the first.
_NAMES = {
    "train": ("train",),
    "test": ("test", "val", "validation", "valid"),
    "calibration": ("calibration", "val", "validation", "valid"),
}


def official_splits(names: Collection[str]) -> dict[str, str]:
    """Which of a data set's own splits serve as train, test and calibration, where it has them.

    A validation split is the test split if there is no other.
    """
    found: dict[str, str] = {}
    for split, candidates in _NAMES.items():
        for name in candidates:
            if name in names and name not in found.values():
                found[split] = name
                break
    return found


def split_by_class(
    labels: np.ndarray, fractions: dict[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Sorted indices of each part, every class divided alike.

    Args:
      labels: `[n]` class of each image, in an order that does not depend on the machine.
      fractions: of every class, by name of the part, rounded; `'train'` gets the rest.
      seed: which images go where.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*fractions, "train")}
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = np.random.default_rng((seed, int(label))).permutation(members)
        start = 0
        for name, fraction in fractions.items():
            count = round(fraction * len(members))
            parts[name].append(members[start : start + count])
            start += count
        parts["train"].append(members[start:])
    return {name: np.sort(np.concatenate(indices)) for name, indices in parts.items()}


def some_of_each_class(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sorted indices of `count` random images of every class (all of a smaller class)."""
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen.append(np.random.default_rng((seed, int(label))).permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


def some(num_images: int, count: int, seed: int) -> np.ndarray:
    """Sorted indices of `count` random images."""
    return np.sort(np.random.default_rng(seed).permutation(num_images)[:count])
