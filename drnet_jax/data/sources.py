"""Where labelled images come from: one random-access source a split."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from drnet_jax.data import digits_on_photos

SPLITS = ("train", "calibration", "test")
# Data sets that configs name but this version cannot read yet.
PLANNED = ("imagenet100", "imagenet2012")


class DataError(ValueError):
    """A data set is missing or unusable; the message says what to do."""


@dataclass(frozen=True)
class ImageSource:
    """Images in memory.

    Attributes:
      images: `[n, h, w, 3]` uint8.
      labels: `[n]` int32.
      num_classes: labels lie in 0..num_classes-1.
      metadata: further facts about each image, `[n, ...]` arrays by name.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    metadata: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One sample: `image`, `label`, its `index`, and `mask` True (padding has False)."""
        return {
            "image": self.images[index],
            "label": self.labels[index],
            "index": np.int32(index),
            "mask": np.bool_(True),
        }


def num_classes(name: str) -> int:
    """Number of classes of a data set, without reading it."""
    return {"digits_on_photos": 10, "imagenet100": 100, "imagenet2012": 1000}[name]


def load_source(name: str, split: str, num_images: int | None = None) -> ImageSource:
    """Loads one split of a data set.

    Args:
      name: the data set.
      split: `'train'`, `'calibration'` or `'test'`.
      num_images: how many images, the first of the split; default: all.

    Raises:
      DataError: the data set is unknown, or cannot be read.
    """
    if name == "digits_on_photos":
        composed = digits_on_photos.compose(split, num_images)
        return ImageSource(
            composed["image"],
            composed["label"],
            num_classes(name),
            {"apparent_size": composed["apparent_size"]},
        )
    if name in PLANNED:
        raise DataError(
            f"data set {name!r} needs ImageNet-2012 (ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar, from image-net.org), and this version cannot read it yet; "
            "--config.data.name=digits_on_photos trains on the embedded data"
        )
    raise DataError(f"unknown data set {name!r}; there are: digits_on_photos, {', '.join(PLANNED)}")
