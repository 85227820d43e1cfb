"""The rows of picture files, batch by batch: from one classifier here, or from several workers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drnet_jax.checkpoints.finite import NotFiniteError
from drnet_jax.config import ConfigError
from drnet_jax.inference.files import FileClassifier
from drnet_jax.reports.prediction_job import JobDevice
from drnet_jax.reports.predictions import Prediction, Unreadable, as_predictions
from drnet_jax.runtime.ray_workers import map_on_workers

Batch = tuple[list[Prediction], list[Unreadable]]
# Of a shard: a worker decodes the next one while the device is busy with this one.
_BATCHES = 4


def classify_files(
    engine: FileClassifier,
    root: Path,
    names: Sequence[str],
    classes: Sequence[str],
    *,
    lam: float,
    batch_size: int,
) -> Iterator[Batch]:
    """Classifies files in batches that do not depend on each other.

    No image waits for those of a later batch: how a batch is split into buckets, on which the last
    bits of its results depend, is the same wherever a job is resumed.

    Args:
      engine: the model.
      root: of the names.
      names: of the files, in this order.
      classes: their names, in the order of the logits.
      lam: lambda of `choose`.
      batch_size: files that are read at once.

    Yields:
      Of every batch, in order: each file in the one list or in the other.
    """
    batches = (
        [root / name for name in names[start : start + batch_size]]
        for start in range(0, len(names), batch_size)
    )
    for files, result in engine.classify_batches(batches, lam=lam):
        listed = [file.relative_to(root).as_posix() for file in files]
        rows = as_predictions(listed, result, classes)
        yield (
            [row for row in rows if isinstance(row, Prediction)],
            [row for row in rows if isinstance(row, Unreadable)],
        )


@dataclass
class ShardClassifier:
    """Classifies shards of files in a worker, whose model is read and compiled at the first one.

    Attributes:
      make: the model, of which every worker makes one.
      root: of the names.
      classes: their names, in the order of the logits.
      lam: lambda of `choose`.
      batch_size: files that are read at once.
    """

    make: Callable[[], FileClassifier]
    root: Path
    classes: Sequence[str]
    lam: float
    batch_size: int
    _engine: FileClassifier | None = None

    def __call__(self, names: Sequence[str]) -> "ShardRows | str":
        """The rows of a shard, or why there are none, which no other attempt would mend."""
        try:
            engine = self._engine = self._engine or self.make()
            batches = classify_files(
                engine, self.root, names, self.classes, lam=self.lam, batch_size=self.batch_size
            )
            return ShardRows(JobDevice.of(engine.programs), [*batches])
        except (ConfigError, NotFiniteError) as error:
            return str(error)


@dataclass(frozen=True)
class ShardRows:
    """What a worker gives of a shard.

    Attributes:
      device: that it ran on.
      batches: of its files, in order.
    """

    device: JobDevice
    batches: list[Batch]


def classify_on_workers(
    classifier: ShardClassifier, names: Sequence[str], workers: int
) -> Iterator[ShardRows]:
    """As `classify_files`, on several workers: the same batches, in the same order.

    Args:
      classifier: what each of them runs.
      names: of the files.
      workers: how many.

    Raises:
      ConfigError: see `map_on_workers`; or what a worker says of its model or of a shard.
    """
    size = _BATCHES * classifier.batch_size
    shards = [names[start : start + size] for start in range(0, len(names), size)]
    for rows in map_on_workers(classifier, shards, workers):
        if isinstance(rows, str):
            raise ConfigError(rows)
        yield rows
