"""The data sets that configs name, and their train, calibration and test splits."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from drnet_jax.data.digits_on_photos import IMAGE_SIZE, DigitsOnPhotos
from drnet_jax.data.encoded_splits import EncodedSplits
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.folder import Folder
from drnet_jax.data.imagenet100 import ClassSubset, imagenet100_classes
from drnet_jax.data.imagenet_tars import TRAIN_TAR, ImagenetTars
from drnet_jax.data.pictures import Pictures
from drnet_jax.data.settings import DataSettings, check_outside
from drnet_jax.data.sources import DataError, Dataset, EncodedDataset, Source
from drnet_jax.data.tfds_source import TfdsDataset

# Composed at `IMAGE_SIZE` and shown whole: nothing is cropped or resized for the data set.
_EMBEDDED: Mapping[str, Callable[[], Dataset]] = {"digits_on_photos": DigitsOnPhotos}


class DataSplits:
    """A data set, opened once, as train, calibration and test splits.

    Args:
      settings: which, where, how to split and how to crop.

    Raises:
      DataError: the data set is unknown, missing or unusable.
      ConfigError: the workdir is in a folder of pictures.
    """

    def __init__(self, settings: DataSettings) -> None:
        self._settings = settings
        self._dataset = _open(settings)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the labels; none of pictures without labels."""
        return self._dataset.classes

    def load(self, split: str) -> Source:
        """The images of `'train'`, `'calibration'` or `'test'`.

        Raises:
          DataError: the split lacks a class, or has too few images.
        """
        return self._dataset.load(split, self._count(split))

    def identity(self, split: str) -> str:
        """That of the source which `load` gives, without loading it.

        Raises:
          DataError: as `load`.
        """
        self._count(split)
        return self._dataset.identity(split)

    def sizes(self, split: str) -> np.ndarray:
        """Of the images that `identity` is of, `[n]` int64 in bytes.

        Raises:
          DataError: as `load`.
        """
        return self._dataset.sizes(split)

    def _count(self, split: str) -> int:
        """How many images of a split are wanted."""
        settings = self._settings
        wanted = settings.train_images if split == "train" else settings.eval_images
        found = self._dataset.count(split)
        if wanted > found:
            raise DataError(
                f"the {split} split of {settings.name} has {found} images, not {wanted}; lower "
                "data.train_images or data.eval_images"
            )
        return wanted or found


def eval_view(settings: DataSettings) -> EvalView:
    """How evaluation sees pictures, without opening the data set that the settings name."""
    if settings.name in _EMBEDDED:
        return EvalView(IMAGE_SIZE, 1.0)
    return EvalView(settings.size, settings.eval_crop)


def _open(settings: DataSettings) -> Dataset:
    if settings.name not in _EMBEDDED:
        return EncodedSplits(_open_encoded(settings), settings)
    if settings.images_per_class:
        raise DataError(
            f"data.images_per_class is not for {settings.name}, which has no fixed number of "
            "images per class: set data.train_images instead"
        )
    return _EMBEDDED[settings.name]()


def _open_encoded(settings: DataSettings) -> EncodedDataset:
    if settings.name == "folder":
        if not settings.dir:
            raise DataError("data.name='folder' needs data.dir: add --config.data.dir=PATH")
        root = Path(settings.dir)
        check_outside("data.dir", root, "--workdir", settings.cache_dir)
        return Folder(root) if settings.labelled else Pictures(root)
    name = "imagenet2012" if settings.name == "imagenet100" else settings.name
    classes = imagenet100_classes() if settings.name == "imagenet100" else None
    root = Path(settings.dir)
    if name == "imagenet2012" and (root / TRAIN_TAR).is_file():
        return ImagenetTars(root, settings.cache_dir, classes)
    dataset = TfdsDataset(name, settings.dir or None, settings.cache_dir)
    return ClassSubset(dataset, classes) if classes else dataset
