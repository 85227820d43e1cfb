"""Where a pass gets its images from: gathered where they are, on a device or in memory."""

from collections.abc import Collection, Iterator, Mapping, Sequence, Sized
from copy import copy
from dataclasses import dataclass
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from drnet_jax.inference.programs import Array, compile_all


@dataclass(frozen=True)
class Part:
    """Some rows of a batch, padded to a bucket.

    Attributes:
      images: `[bucket, h, w, 3]` uint8.
      count: how many of them are real; the others come after them.
    """

    images: Array
    count: int


BatchT = TypeVar("BatchT", bound=Sized, contravariant=True)
PartT = TypeVar("PartT", bound=Part)
# By row of a batch, why its image cannot be read.
Problems = Mapping[int, str]
# Images of one batch, as its `Images` opened it, and rows of it `[k]`.
Rows = tuple[Sequence[PartT], np.ndarray]


class Images(Protocol[BatchT, PartT]):
    """How the predictor and the classifiers get the images of batches."""

    def open(self, batch: BatchT, buckets: Sequence[int]) -> tuple[Sequence[PartT], Problems]:
        """What the predictor sees of a batch, in buckets of these sizes, and what is unreadable."""

    def gather(self, choice: int, bucket: int, rows: Sequence[Rows[PartT]]) -> Array:
        """What the classifier sees at a resolution: `[bucket, h, w, 3]`, these rows first."""


class DeviceImages:
    """Images in memory: uploaded in chunks for the predictor, gathered there for the classifiers.

    Args:
      image_size: height and width.
      buckets: sizes of chunks and of what is gathered from them.
      device: where.
    """

    def __init__(
        self, image_size: tuple[int, int], buckets: Sequence[int], device: jax.Device
    ) -> None:
        self._shape = (*image_size, 3)
        self._device = device
        self._take: dict[tuple[int, int], jax.stages.Compiled] = {}
        self._blank: dict[int, jax.Array] = {}
        self._add(buckets)

    def extended(self, buckets: Sequence[int]) -> "DeviceImages":
        """The same for these buckets too."""
        other = copy(self)
        other._take, other._blank = dict(self._take), dict(self._blank)
        other._add({*self._blank, *buckets})
        return other

    def _add(self, buckets: Collection[int]) -> None:
        """Compiles what is missing for these buckets."""
        sharding = SingleDeviceSharding(self._device)

        def images(size: int) -> jax.ShapeDtypeStruct:
            """So many, for the compiler."""
            return jax.ShapeDtypeStruct((size, *self._shape), jnp.uint8, sharding=sharding)

        def lowered(chunk: int, bucket: int) -> jax.stages.Lowered:
            """What gathers a bucket from a chunk."""
            rows = jax.ShapeDtypeStruct((bucket,), jnp.int32)
            return jax.jit(_take).lower(images(chunk), rows, images(bucket))

        pairs = [(a, b) for a in buckets for b in buckets if (a, b) not in self._take]
        self._take |= compile_all((pair, lowered(*pair)) for pair in pairs)
        for bucket in buckets:
            if bucket not in self._blank:
                blank = np.zeros((bucket, *self._shape), np.uint8)
                self._blank[bucket] = jax.device_put(blank, self._device)

    def open(self, batch: np.ndarray, buckets: Sequence[int]) -> tuple[list[Part], Problems]:
        """Uploads a batch, without waiting for it; the last chunk is padded with black."""
        parts = [
            Part(jax.device_put(images, self._device), count)
            for images, count in _padded_parts(batch, buckets)
        ]
        return parts, {}

    def gather(self, choice: int, bucket: int, rows: Sequence[Rows[Part]]) -> Array:
        """Rows of any chunks, on the device, one small program per chunk; black after them."""
        del choice
        gathered = self._blank[bucket]
        for chunk, sources, places in _pieces(rows):
            source = np.full(bucket, -1, np.int32)
            source[places] = sources
            gathered = self._take[len(chunk.images), bucket](chunk.images, source, gathered)
        return gathered


class HostImages:
    """Images in memory, gathered there: for the CPU, where `DeviceImages` would copy byte by byte.

    Args:
      image_size: height and width.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        self._shape = (*image_size, 3)

    def extended(self, buckets: Sequence[int]) -> "HostImages":
        """Itself: buckets of any size are gathered."""
        del buckets
        return self

    def open(self, batch: np.ndarray, buckets: Sequence[int]) -> tuple[list[Part], Problems]:
        """Views of a batch; the last part is padded with black."""
        return [Part(images, count) for images, count in _padded_parts(batch, buckets)], {}

    def gather(self, choice: int, bucket: int, rows: Sequence[Rows[Part]]) -> Array:
        """Copies of rows; black after them."""
        del choice
        gathered = np.zeros((bucket, *self._shape), np.uint8)
        for part, sources, places in _pieces(rows):
            gathered[places] = part.images[sources]
        return gathered


def _padded_parts(batch: np.ndarray, buckets: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    """A batch in buckets of these sizes, and how many images of each are real."""
    done = 0
    for bucket in buckets:
        part = batch[done : done + bucket]
        done += len(part)
        padding = np.zeros((bucket - len(part), *batch.shape[1:]), np.uint8)
        yield (np.concatenate([part, padding]) if len(padding) else part), len(part)


def _pieces(rows: Sequence[Rows[Part]]) -> Iterator[tuple[Part, np.ndarray, np.ndarray]]:
    """What to copy: from which part, its rows, and their places among all that are gathered."""
    place = 0
    for parts, wanted in rows:
        start = 0
        for part in parts:
            here = np.flatnonzero((wanted >= start) & (wanted < start + part.count))
            if len(here):
                yield part, wanted[here] - start, place + here
            start += part.count
        place += len(wanted)


def _take(chunk: jax.Array, source: jax.Array, gathered: jax.Array) -> jax.Array:
    """Puts rows of a chunk where `source` names them; -1 leaves what is there."""
    found = jnp.take(chunk, source, axis=0, mode="clip")
    return jnp.where((source >= 0)[:, None, None, None], found, gathered)


MemoryImages = DeviceImages | HostImages


def memory_images(
    image_size: tuple[int, int], buckets: Sequence[int], device: jax.Device
) -> MemoryImages:
    """What is faster for images in memory and a device; arguments as of `DeviceImages`."""
    if device.platform == "cpu":
        return HostImages(image_size)
    return DeviceImages(image_size, buckets, device)
