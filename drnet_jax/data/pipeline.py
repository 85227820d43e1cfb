"""From a source to batches on the devices (Grain)."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from drnet_jax.data.crops import EvalCrop, TrainCrop
from drnet_jax.data.eval_view import view_of
from drnet_jax.data.sources import EncodedSource, Sample, Source
from drnet_jax.data.workers import end_with_parent, signals_withheld

Batch = dict[str, jax.Array]
AbstractBatch = dict[str, jax.ShapeDtypeStruct]
# Batches that wait in host memory and on the devices, ahead of the step.
_HOST_BUFFER = 4
_DEVICE_BUFFER = 2


@dataclass(frozen=True)
class TrainBatch:
    """A batch for a training step.

    Attributes:
      arrays: `image`, `label` and, of encoded images, `mask`, on the devices.
      corrupt: indices of this process's images in it that could not be decoded; their mask is
        False.
    """

    arrays: Batch
    corrupt: np.ndarray


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    sharding: NamedSharding,
    num_workers: int,
) -> grain.DatasetIterator[TrainBatch]:
    """An endless stream of shuffled batches, placed on the devices ahead of time; to be closed.

    The stream, random crops included, depends on `seed` alone; from `start_step` on it is the very
    same stream, so that a resumed run sees what the uninterrupted one would have seen. Every
    process reads its share.

    Args:
      source: the images.
      batch_size: samples in a batch, over all processes.
      seed: of shuffling and crops; every epoch has another order.
      start_step: batches to skip.
      sharding: where the batch axis goes.
      num_workers: processes that read and decode; 0: threads of this process.
    """
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    if isinstance(source, EncodedSource):
        dataset = dataset.random_map(TrainCrop(source.size, source.crop_scale))
    # Without a remainder, which the endless stream does not have: else Grain rounds the number of
    # batches up, and one more than all indices is too many for batches of one.
    dataset = dataset.batch(batch_size // jax.process_count(), drop_remainder=True)
    # Parts of batches, in turns: together the processes have every batch in the order that one
    # alone would have it in, by which each image has its noise.
    first = start_step * jax.process_count() + jax.process_index()
    dataset = dataset[first :: jax.process_count()]

    def place(batch: Sample) -> TrainBatch:
        """What the step needs, on the devices; the rest stays on the host."""
        if num_workers:
            # Else devices that use the host's memory would keep what is shared with the workers.
            batch = {name: np.array(value) for name, value in batch.items()}
        arrays = _place({name: batch[name] for name in _train_names(source)}, sharding)
        return TrainBatch(arrays, batch["index"][batch["corrupt"]])

    ahead = grain.experimental.ThreadPrefetchIterDataset(
        _parallel(dataset, source, num_workers).map(place), prefetch_buffer_size=_DEVICE_BUFFER
    )
    if not num_workers:
        return iter(ahead)
    with ExitStack() as stack:
        with signals_withheld():
            batches = stack.enter_context(closing(iter(ahead)))
            batches.start_prefetch()
        # A signal at the end of that block closes them: no caller could.
        stack.pop_all()
    return batches


def _train_names(source: Source) -> tuple[str, ...]:
    """What a training step takes of a sample."""
    return ("image", "label", "mask") if isinstance(source, EncodedSource) else ("image", "label")


def abstract_train_batch(source: Source, batch_size: int, sharding: NamedSharding) -> AbstractBatch:
    """Shapes, dtypes and placement of the `arrays` of `train_batches`; nothing is decoded."""
    batch = abstract_eval_batch(source, batch_size, sharding)
    return {name: batch[name] for name in _train_names(source)}


def abstract_eval_batch(source: Source, batch_size: int, sharding: NamedSharding) -> AbstractBatch:
    """Shapes, dtypes and placement of a batch of `eval_batches`; nothing is decoded."""
    flag, number = np.dtype(bool), np.dtype(np.int32)
    shapes = {
        "image": ((*source.image_size, 3), np.dtype(np.uint8)),
        **{"label": ((), number), "index": ((), number)},
        **{"mask": ((), flag), "corrupt": ((), flag)},
    }
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def eval_batches(source: Source, *, batch_size: int, sharding: NamedSharding) -> Iterator[Batch]:
    """`eval_host_batches`, on the devices."""
    for batch in eval_host_batches(source, batch_size=batch_size):
        yield _place(batch, sharding)


def eval_host_batches(source: Source, *, batch_size: int) -> Iterator[Sample]:
    """Every image once, in order, with its `index` and whether it is `corrupt`; decoded by threads.

    `mask` is False for corrupt images and for the padding of the last batch. With several
    processes each reads its part of every batch, and all yield equally many.
    """
    processes = jax.process_count()
    local_size = batch_size // processes
    num_batches = -(-len(source) // batch_size)
    images = grain.MapDataset.source(source)
    if isinstance(source, EncodedSource):
        images = images.map(EvalCrop(view_of(source)))
    pad = partial(grain.experimental.batch_and_pad, batch_size=local_size)
    dataset = images.batch(local_size, batch_fn=pad)[jax.process_index() :: processes]
    with closing(iter(_parallel(dataset, source))) as batches:
        for index in range(num_batches):
            yield next(batches) if index < len(dataset) else _empty(images[0], local_size)


def _parallel(dataset: grain.MapDataset, source: Source, num_workers: int = 0) -> grain.IterDataset:
    """Whole batches, in order, made by threads or by processes."""
    # Images in memory are only stacked: more threads would wait for each other.
    threads = 1
    if isinstance(source, EncodedSource) and num_workers == 0:
        threads = os.cpu_count() or 1
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(_HOST_BUFFER, threads)
    )
    batches = dataset.to_iter_dataset(options)
    if num_workers:
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=_DEVICE_BUFFER),
            worker_init_fn=end_with_parent,
        )
    return batches


def _empty(sample: Sample, size: int) -> Sample:
    """A batch of padding, for a process that has no part of the last batch."""
    return {name: np.stack([np.zeros_like(value)] * size) for name, value in sample.items()}


def _place(batch: dict[str, Any], sharding: NamedSharding) -> Batch:
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }
