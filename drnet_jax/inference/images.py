"""Where a pass gets its images from: uploaded once, and gathered on the device."""

from collections.abc import Sequence, Sized
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
# Images of one batch, as its `Images` opened it, and rows of it `[k]`.
Rows = tuple[Sequence[PartT], np.ndarray]


class Images(Protocol[BatchT, PartT]):
    """How the predictor and the classifiers get the images of batches."""

    def open(self, batch: BatchT, buckets: Sequence[int]) -> Sequence[PartT]:
        """What the predictor sees of a batch, in buckets of these sizes."""

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
        sharding = SingleDeviceSharding(device)

        def images(size: int) -> jax.ShapeDtypeStruct:
            """So many, for the compiler."""
            return jax.ShapeDtypeStruct((size, *self._shape), jnp.uint8, sharding=sharding)

        pairs = [(chunk, bucket) for chunk in buckets for bucket in buckets]
        lowered = [
            jax.jit(_take).lower(
                images(chunk), jax.ShapeDtypeStruct((bucket,), jnp.int32), images(bucket)
            )
            for chunk, bucket in pairs
        ]
        self._take = dict(zip(pairs, compile_all(lowered), strict=True))
        self._blank = {
            bucket: jax.device_put(np.zeros((bucket, *self._shape), np.uint8), device)
            for bucket in buckets
        }

    def open(self, batch: np.ndarray, buckets: Sequence[int]) -> list[Part]:
        """Uploads a batch, without waiting for it; the last chunk is padded with black."""
        chunks = []
        done = 0
        for bucket in buckets:
            part = batch[done : done + bucket]
            done += len(part)
            padding = np.zeros((bucket - len(part), *self._shape), np.uint8)
            padded = np.concatenate([part, padding]) if len(padding) else part
            chunks.append(Part(jax.device_put(padded, self._device), len(part)))
        return chunks

    def gather(self, choice: int, bucket: int, rows: Sequence[Rows[Part]]) -> Array:
        """Rows of any chunks, on the device, one small program a chunk; black after them."""
        del choice
        gathered = self._blank[bucket]
        place = 0
        for chunks, wanted in rows:
            start = 0
            for chunk in chunks:
                here = np.flatnonzero((wanted >= start) & (wanted < start + chunk.count))
                if len(here):
                    source = np.full(bucket, -1, np.int32)
                    source[place + here] = wanted[here] - start
                    take = self._take[len(chunk.images), bucket]
                    gathered = take(chunk.images, source, gathered)
                start += chunk.count
            place += len(wanted)
        return gathered


def _take(chunk: jax.Array, source: jax.Array, gathered: jax.Array) -> jax.Array:
    """Puts rows of a chunk where `source` names them; -1 leaves what is there."""
    found = jnp.take(chunk, source, axis=0, mode="clip")
    return jnp.where((source >= 0)[:, None, None, None], found, gathered)
