"""Where labelled images come from: one random-access source a split."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from drnet_jax.data import digits_on_photos

# Number of classes of every data set that configs may name.
CLASSES = {"digits_on_photos": 10, "imagenet100": 100, "imagenet2012": 1000}


class DataError(ValueError):
    """A data set is missing or unusable; the message says what to do."""


@dataclass(frozen=True)
class ImageSource:
    """Images in memory.

    Attributes:
      images: `[n, h, w, 3]` uint8.
      labels: `[n]` int32.
      metadata: further facts about each image, `[n, ...]` arrays by name.
    """

    images: np.ndarray
    labels: np.ndarray
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
    """Number of classes of a data set, without reading it.

    Raises:
      DataError: the data set is unknown.
    """
    if name not in CLASSES:
        raise DataError(f"unknown data set {name!r}; there are: {', '.join(CLASSES)}")
    return CLASSES[name]


def load_source(name: str, split: str, num_images: int | None = None) -> ImageSource:
    """Loads one split of a data set.

    Args:
      name: the data set.
      split: `'train'`, `'calibration'` or `'test'`.
      num_images: how many images, the first of the split; default: all.

    Raises:
      DataError: the data set is unknown, cannot be read, or has fewer images.
    """
    if name != "digits_on_photos":
        num_classes(name)
        raise DataError(
            f"data set {name!r} needs ImageNet-2012 (ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar, from image-net.org), and this version cannot read it yet; "
            "--config.data.name=digits_on_photos trains on the embedded data"
        )
    if num_images is not None and num_images > digits_on_photos.IMAGES[split]:
        raise DataError(
            f"the {split} split of {name} has {digits_on_photos.IMAGES[split]} images, not "
            f"{num_images}; lower data.train_images or data.eval_images"
        )
    composed = digits_on_photos.compose(split, num_images)
    return ImageSource(
        composed["image"], composed["label"], {"apparent_size": composed["apparent_size"]}
    )
