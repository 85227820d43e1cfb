"""Data sets of encoded images as train, calibration and test splits."""

import numpy as np

from drnet_jax.data.index_cache import digest
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import DataError, EncodedDataset, EncodedSource, LabelledImages
from drnet_jax.data.splits import some, some_of_each_class, split_by_class


class EncodedSplits:
    """A `Dataset` of encoded images; splits that it does not come with are made by class and seed.

    Args:
      dataset: with the splits it comes with.
      settings: how to split and how to crop.
    """

    def __init__(self, dataset: EncodedDataset, settings: DataSettings) -> None:
        self.classes = dataset.classes
        self._dataset = dataset
        self._settings = settings
        self._read: dict[str, LabelledImages] = {}
        self._indices: dict[str, np.ndarray] = {}

    def count(self, split: str) -> int:
        """Images of a split, `data.images_per_class` regarded.

        Raises:
          DataError: the split lacks a class.
        """
        return len(self._usable(split))

    def identity(self, split: str) -> str:
        """Which images a split has, whatever part of them is used.

        Raises:
          DataError: the split lacks a class.
        """
        return digest(self._images(split).identity, self._part(split).tobytes())

    def sizes(self, split: str) -> np.ndarray:
        """Of the images of a split in bytes, `[n]`, whatever part of them is used.

        Raises:
          DataError: the split lacks a class.
        """
        return self._images(split).sizes[self._part(split)]

    def load(self, split: str, count: int) -> EncodedSource:
        """So many random images of a split, in their order.

        Raises:
          DataError: the split lacks a class.
        """
        settings = self._settings
        images, chosen = self._images(split), self._usable(split)
        if count < len(chosen):
            chosen = chosen[some(len(chosen), count, settings.split_seed)]
        return EncodedSource(
            images.reader,
            images.positions[chosen],
            images.labels[chosen],
            self.identity(split),
            settings.size,
            settings.crop_scale,
            settings.eval_crop,
        )

    def _usable(self, split: str) -> np.ndarray:
        """Indices in the data set's own split of those that training and evaluation may use."""
        part, most = self._part(split), self._settings.images_per_class
        if split != "train" or not most:
            return part
        labels = self._images(split).labels[part]
        return part[some_of_each_class(labels, most, self._settings.split_seed)]

    def _part(self, split: str) -> np.ndarray:
        """Indices in the data set's own split of a split's images."""
        if split not in self._indices:
            labels = self._images(split).labels
            part = self._divide(split, labels)
            _check_every_class(self._settings, split, labels[part], self.classes)
            self._indices[split] = part
        return self._indices[split]

    def _divide(self, split: str, labels: np.ndarray) -> np.ndarray:
        official, settings = self._dataset.official, self._settings
        if split != "train" and split in official:
            return np.arange(len(labels))
        fractions = {}
        if "calibration" not in official:
            fractions["calibration"] = settings.calibration_fraction
        if "test" not in official:
            fractions["test"] = settings.test_fraction
        return split_by_class(labels, fractions, settings.split_seed)[split]

    def _images(self, split: str) -> LabelledImages:
        """The data set's own split that the images of a split come from."""
        candidates = (split, "train", "all")
        own = next(name for name in candidates if name in self._dataset.official)
        if own not in self._read:
            self._read[own] = self._dataset.read_split(own)
        return self._read[own]


def _check_every_class(
    settings: DataSettings, split: str, labels: np.ndarray, classes: tuple[str, ...]
) -> None:
    where = f"the {split} split of {settings.name} in {settings.dir}"
    change = "lower" if split == "train" else "raise"
    remedy = f"add images, or {change} data.calibration_fraction or data.test_fraction"
    if not len(labels):
        raise DataError(f"{where} has no image: {remedy}")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        names = ", ".join(classes[label] for label in empty[:5])
        raise DataError(
            f"{where} has no image of {len(empty)} of {len(classes)} classes ({names}); {remedy}"
        )
