"""The data sets that configs name, and their train, calibration and test splits."""

from pathlib import Path

import numpy as np

from drnet_jax.data import digits_on_photos
from drnet_jax.data.folder import Folder
from drnet_jax.data.imagenet100 import ClassSubset, imagenet100_classes
from drnet_jax.data.imagenet_tars import TRAIN_TAR, ImagenetTars
from drnet_jax.data.index_cache import digest
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import ArraySource, DataError, Dataset, EncodedSource, Reader, Source
from drnet_jax.data.splits import some, some_of_each_class, split_by_class
from drnet_jax.data.tfds_source import TfdsDataset


class DataSplits:
    """A data set, opened once, as train, calibration and test splits.

    Args:
      settings: which, where, how to split and how to crop.

    Raises:
      DataError: the data set is unknown, missing or unusable.
    """

    def __init__(self, settings: DataSettings) -> None:
        self._settings = settings
        self._dataset = None if settings.name == "digits_on_photos" else _open(settings)
        self._read: dict[str, tuple[Reader, np.ndarray]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the labels."""
        return tuple("0123456789") if self._dataset is None else self._dataset.classes

    def load(self, split: str) -> Source:
        """The images of `'train'`, `'calibration'` or `'test'`.

        Raises:
          DataError: the split lacks a class, or has too few images.
        """
        settings = self._settings
        wanted = settings.train_images if split == "train" else settings.eval_images
        if self._dataset is None:
            self.identity(split)
            composed = digits_on_photos.compose(split, wanted or None)
            metadata = {"apparent_size": composed["apparent_size"]}
            return ArraySource(composed["image"], composed["label"], split, metadata)
        reader, labels, chosen = self._part(self._dataset, split)
        _check_every_class(settings, split, labels[chosen], self.classes)
        identity = digest(reader.identity(), chosen.tobytes())
        if split == "train" and settings.images_per_class:
            count = settings.images_per_class
            chosen = chosen[some_of_each_class(labels[chosen], count, settings.split_seed)]
        _check_count(settings, split, wanted, len(chosen))
        if wanted:
            chosen = chosen[some(len(chosen), wanted, settings.split_seed)]
        return EncodedSource(
            reader,
            chosen,
            labels[chosen],
            identity,
            settings.size,
            settings.crop_scale,
            settings.eval_crop,
        )

    def identity(self, split: str) -> str:
        """That of the source which `load` gives, without composing an image.

        Raises:
          DataError: as `load`.
        """
        if self._dataset is not None:
            return self.load(split).identity
        wanted = self._settings.train_images if split == "train" else self._settings.eval_images
        _check_count(self._settings, split, wanted, digits_on_photos.IMAGES[split])
        return split

    def _part(self, dataset: Dataset, split: str) -> tuple[Reader, np.ndarray, np.ndarray]:
        """Reader and labels of one of the data set's own splits, and which of its images count."""
        settings = self._settings
        if split != "train" and split in dataset.official:
            reader, labels = self._read_once(dataset, split)
            return reader, labels, np.arange(len(labels))
        fractions = {}
        if "calibration" not in dataset.official:
            fractions["calibration"] = settings.calibration_fraction
        if "test" not in dataset.official:
            fractions["test"] = settings.test_fraction
        official = "train" if "train" in dataset.official else "all"
        reader, labels = self._read_once(dataset, official)
        return reader, labels, split_by_class(labels, fractions, settings.split_seed)[split]

    def _read_once(self, dataset: Dataset, official: str) -> tuple[Reader, np.ndarray]:
        if official not in self._read:
            self._read[official] = dataset.read_split(official)
        return self._read[official]


def _open(settings: DataSettings) -> Dataset:
    if settings.name == "folder":
        if not settings.dir:
            raise DataError("data.name='folder' needs data.dir: add --config.data.dir=PATH")
        return Folder(Path(settings.dir))
    name = "imagenet2012" if settings.name == "imagenet100" else settings.name
    classes = imagenet100_classes() if settings.name == "imagenet100" else None
    root = Path(settings.dir)
    if name == "imagenet2012" and (root / TRAIN_TAR).is_file():
        return ImagenetTars(root, settings.cache_dir, classes)
    dataset = TfdsDataset(name, settings.dir or None, settings.cache_dir)
    return ClassSubset(dataset, classes) if classes else dataset


def _check_every_class(
    settings: DataSettings, split: str, labels: np.ndarray, classes: tuple[str, ...]
) -> None:
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        names = ", ".join(classes[label] for label in empty[:5])
        raise DataError(
            f"the {split} split of {settings.name} in {settings.dir} has no image of {len(empty)} "
            f"of {len(classes)} classes ({names}); add images, or raise "
            "data.calibration_fraction or data.test_fraction"
        )


def _check_count(settings: DataSettings, split: str, wanted: int, found: int) -> None:
    if wanted > found:
        raise DataError(
            f"the {split} split of {settings.name} has {found} images, not {wanted}; lower "
            "data.train_images or data.eval_images"
        )
