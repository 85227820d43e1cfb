"""The images of a data set that an export is checked on, and made int8 by."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from drnet_jax.data.decode import CorruptImageError
from drnet_jax.data.eval_view import eval_image
from drnet_jax.data.sources import DataError, Source
from drnet_jax.runtime.progress import log

# On which the ranges of values are found for int8.
RANGES_SPLIT, _RANGES_IMAGES = "calibration", 256


def real_images(source: Source, split: str, side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `[n, side, side, 3]` from all over a split, with labels `[n]`; unreadable ones not.

    Args:
      source: the split.
      split: its name, for messages.
      side: in pixels.
      count: so many at most; 0: all.

    Raises:
      DataError: none can be read.
    """
    count = min(count or len(source), len(source))
    found, labels = [], []
    for index in np.linspace(0, len(source) - 1, count).round().astype(int):
        try:
            found.append(eval_image(source, int(index), side))
            labels.append(source.labels[index])
        except CorruptImageError as error:
            log(f"{source.name(int(index))} is left out: {error}")
    if not found:
        raise DataError(
            f"none of the images of the {split} split can be read, which an export needs"
        )
    return np.stack(found), np.array(labels)


@dataclass(frozen=True)
class ImagesForInt8:
    """Uint8 `[n, s, s, 3]`.

    Attributes:
      ranges: on which the ranges of values are found.
      compared: that accuracies are counted on.
      labels: `[n]` of those.
    """

    ranges: np.ndarray
    compared: np.ndarray
    labels: np.ndarray


def images_for_int8(
    config: ConfigDict, load: Callable[[str], Source], source: Source, side: int
) -> ImagesForInt8:
    """Reads them.

    Args:
      config: of the export.
      load: gives a split of the data.
      source: the split that accuracies are counted on, `export.split`.
      side: in pixels.

    Raises:
      DataError: there are none for the ranges, or none can be read.
    """
    ranges, _ = real_images(load(RANGES_SPLIT), RANGES_SPLIT, side, _RANGES_IMAGES)
    split, count = config.export.split, config.export.int8_images
    return ImagesForInt8(ranges, *real_images(source, split, side, count))
