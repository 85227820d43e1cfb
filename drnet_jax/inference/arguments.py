"""Checks of what a program gives a classifier: one clear error, before anything is compiled."""

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np


def check_count(name: str, value: float, *, least: int = 0) -> None:
    """Stops for what is no integer, or one that is too small.

    Raises:
      ValueError: naming it.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer, {least} or more")


def checked_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """The batch sizes as integers of Python.

    Raises:
      ValueError: there is none, or one is no integer above zero.
    """
    found = _elements("buckets", buckets, "one or more batch sizes")
    for bucket in found:
        check_count("a bucket", bucket, least=1)
    return tuple(int(bucket) for bucket in found)


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width as integers of Python.

    Raises:
      ValueError: they are no two integers above zero.
    """
    found = _elements("image_size", size, "height and width")
    if len(found) != 2:
        raise ValueError(f"image_size={size!r} must be height and width")
    for side in found:
        check_count("a side of image_size", side, least=1)
    return int(found[0]), int(found[1])


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Stops for what images cannot be normalised with.

    Raises:
      ValueError: they are no three finite numbers, or a deviation is not above zero.
    """
    for name, values in (("mean", mean), ("std", std)):
        found = _elements(name, values, "a number for each channel")
        good = all(isinstance(v, Real) and np.isfinite(float(v)) for v in found)
        if len(found) != 3 or not good or (name == "std" and min(found) <= 0):
            above = " above zero" if name == "std" else ""
            raise ValueError(f"{name}={values!r} must be three finite numbers{above}")


def check_images(images: object, size: tuple[int, int]) -> np.ndarray:
    """The images, if they are `[n, height, width, 3]` uint8 of a size.

    Raises:
      ValueError: they are not.
    """
    height, width = size
    wanted = f"expected uint8 images [n, {height}, {width}, 3]"
    if not isinstance(images, np.ndarray):
        raise ValueError(f"{wanted}, got {type(images).__name__}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, 3):
        raise ValueError(f"{wanted}, got {images.dtype} {list(images.shape)}")
    return images


def _elements(name: str, values: Sequence[float], what: str) -> list[float]:
    """The elements of a sequence, which must have some."""
    if isinstance(values, str) or not hasattr(values, "__iter__") or not len(values):
        raise ValueError(f"{name}={values!r} must be {what}")
    return list(values)
