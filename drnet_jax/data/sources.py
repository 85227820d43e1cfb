"""One split of a data set: labelled images by index, in memory or encoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from drnet_jax.data.index_cache import digest

Sample = dict[str, Any]


class DataError(ValueError):
    """A data set is missing or unusable; the message says what to do."""


@dataclass(frozen=True)
class ArraySource:
    """Images in memory.

    Attributes:
      images: `[n, h, w, 3]` uint8.
      labels: `[n]` int32.
      identity: another value for another split of other images, whatever part of it this is.
      metadata: further facts about each image, `[n, ...]` arrays by name.
    """

    images: np.ndarray
    labels: np.ndarray
    identity: str
    metadata: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[1], self.images.shape[2]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        """One sample: `image`, `label`, its `index`, and `mask` True (padding has False)."""
        return {
            "image": self.images[index],
            "label": self.labels[index],
            "index": np.int32(index),
            "mask": np.bool_(True),
            "corrupt": np.bool_(False),
        }

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        return f"image {index}"

    def version(self, index: int) -> str:
        """Another value for another image of the same name."""
        return digest(self.images[index].tobytes())


class Reader(Protocol):
    """Encoded images by position; it travels to worker processes by pickling."""

    def read(self, position: int) -> bytes:
        """The encoded image.

        Raises:
          OSError: it cannot be read.
        """

    def name(self, position: int) -> str:
        """What to call an image in a message: a path, say."""

    def version(self, position: int) -> str:
        """Another value once there is another image under the same name, without reading it."""


@dataclass(frozen=True)
class LabelledImages:
    """Encoded images of a split that a data set comes with, in the same order on every machine.

    Attributes:
      reader: where the bytes are.
      positions: `[n]` of the images in the reader.
      labels: `[n]` int32.
      identity: which images these are, by name or version: another value for other images.
      sizes: `[n]` int64, of each in bytes: others where images were replaced under their names.
    """

    reader: Reader
    positions: np.ndarray
    labels: np.ndarray
    identity: str
    sizes: np.ndarray


class EncodedDataset(Protocol):
    """Encoded images in the splits they come in: of train, test and calibration; or `'all'`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the labels."""

    @property
    def official(self) -> tuple[str, ...]:
        """The names of its splits."""

    def read_split(self, split: str) -> LabelledImages:
        """The images of one of them.

        Raises:
          DataError: unusable data.
        """


@dataclass(frozen=True)
class EncodedSource:
    """Encoded images of any format of `decode`, decoded and cropped by the pipeline's workers.

    Attributes:
      reader: where the bytes are.
      positions: `[n]` of the images in the reader.
      labels: `[n]` int32.
      identity: another value for another split of other images, whatever part of it this is.
      size: side in pixels that images are cropped and resized to.
      crop_scale: area of a training crop, smallest and largest fraction of the picture's.
      eval_crop: side of the centred test crop, as a fraction of the picture's shorter side.
      metadata: further facts about each image, `[n, ...]` arrays by name.
    """

    reader: Reader
    positions: np.ndarray
    labels: np.ndarray
    identity: str
    size: int
    crop_scale: tuple[float, float]
    eval_crop: float
    metadata: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels, once cropped."""
        return self.size, self.size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        """One sample as `ArraySource`'s, with bytes `encoded` in the place of `image`.

        No bytes, which are no picture, where they cannot be read: that is one picture's fault.
        """
        try:
            encoded = self.read(index)
        except OSError:
            encoded = b""
        return {
            "encoded": encoded,
            "label": self.labels[index],
            "index": np.int32(index),
            "mask": np.bool_(True),
            "corrupt": np.bool_(False),
        }

    def read(self, index: int) -> bytes:
        """An encoded image.

        Raises:
          OSError: it cannot be read.
        """
        return self.reader.read(int(self.positions[index]))

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        return self.reader.name(int(self.positions[index]))

    def version(self, index: int) -> str:
        """Another value for another image of the same name."""
        return self.reader.version(int(self.positions[index]))


Source = ArraySource | EncodedSource


def part(source: Source, indices: Sequence[int]) -> Source:
    """A source of some of the images, whose indices begin at 0 again; without metadata."""
    labels = source.labels[indices]
    if isinstance(source, EncodedSource):
        return replace(source, positions=source.positions[indices], labels=labels, metadata={})
    return replace(source, images=source.images[indices], labels=labels, metadata={})


class Dataset(Protocol):
    """A data set as `'train'`, `'calibration'` and `'test'` splits."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the labels."""

    def count(self, split: str) -> int:
        """Images of a split.

        Raises:
          DataError: unusable data.
        """

    def identity(self, split: str) -> str:
        """That of a split's source, however many of its images are loaded.

        Raises:
          DataError: unusable data.
        """

    def sizes(self, split: str) -> np.ndarray:
        """Of each image that `identity` is of, `[n]` int64 in bytes.

        Raises:
          DataError: unusable data.
        """

    def load(self, split: str, count: int) -> Source:
        """So many of a split's images.

        Raises:
          DataError: unusable data.
        """
