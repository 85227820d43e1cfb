"""From a source to batches on the devices (Grain)."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from drnet_jax.data.sources import ImageSource

Batch = dict[str, jax.Array]
# Batches that wait in host memory and on the devices, ahead of the step.
_HOST_BUFFER = 4
_DEVICE_BUFFER = 2


def train_batches(
    source: ImageSource,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    sharding: NamedSharding,
) -> Iterator[Batch]:
    """An endless stream of shuffled batches, placed on the devices ahead of time.

    The stream depends on `seed` alone; from `start_step` on it is the very same stream, so that a
    resumed run sees what the uninterrupted one would have seen. Every process reads its share.

    Args:
      source: the images.
      batch_size: samples in a batch, over all processes.
      seed: of the shuffling; every epoch has another order.
      start_step: batches to skip.
      sharding: where the batch axis goes.
    """
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    dataset = dataset[jax.process_index() :: jax.process_count()]
    dataset = dataset.batch(batch_size // jax.process_count())[start_step:]

    def place(batch: dict[str, np.ndarray]) -> Batch:
        return _place({"image": batch["image"], "label": batch["label"]}, sharding)

    iter_dataset = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=_HOST_BUFFER)
    )
    ahead = grain.experimental.ThreadPrefetchIterDataset(
        iter_dataset.map(place), prefetch_buffer_size=_DEVICE_BUFFER
    )
    return iter(ahead)


def eval_batches(
    source: ImageSource, *, batch_size: int, sharding: NamedSharding
) -> Iterator[Batch]:
    """Every image once, in order; the last batch is padded with samples whose `mask` is False.

    With several processes each reads every n-th image, and all yield equally many batches.
    """
    processes = jax.process_count()
    local_size = batch_size // processes
    num_batches = -(-len(source) // batch_size)
    dataset = grain.MapDataset.source(source)[jax.process_index() :: processes]
    pad = partial(grain.experimental.batch_and_pad, batch_size=local_size)
    dataset = dataset.batch(local_size, batch_fn=pad)
    for index in range(num_batches):
        batch = dataset[index] if index < len(dataset) else _empty(source, local_size)
        yield _place(batch, sharding)


def _empty(source: ImageSource, size: int) -> dict[str, np.ndarray]:
    return {name: np.stack([np.zeros_like(value)] * size) for name, value in source[0].items()}


def _place(batch: dict[str, Any], sharding: NamedSharding) -> Batch:
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }
