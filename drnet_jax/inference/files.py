"""Adaptive inference on picture files."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drnet_jax.checkpoints.finite import first_few
from drnet_jax.data.eval_view import EvalView
from drnet_jax.inference.arguments import check_count
from drnet_jax.inference.encoded import EncodedImages
from drnet_jax.inference.engine import Classified, InferenceEngine
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost


class FileClassifier(InferenceEngine):
    """As `ArrayClassifier`, of picture files (of any format of `decode`) of any size.

    They are decoded and resized on the host; every network takes images of its own size.

    Args:
      model: the DRNet.
      variables: its parameters and statistics.
      mean: of the channels, in 0..1, that images are normalised with.
      std: of the channels, in 0..1.
      buckets: batch sizes to compile; groups of other sizes are split. None: what suits the device
        and each network, see `default_buckets`.
      view: what is classified of a picture: decoded so once, then resized for each network.
      threads: that decode; default: one per core.
      fold: fold BatchNorm into the convolutions, which is faster and rounds otherwise.
      device: where to run; default: the first.
      checkpoint: that the variables are from, for messages; None: unknown.
      cost: of the networks; default: their MACs, which choices are then made by.

    Raises:
      ValueError: mean, std, buckets or the number of threads are not what they should be.
    """

    def __init__(
        self,
        model: DRNet,
        variables: Any,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        buckets: Sequence[int] | None,
        view: EvalView,
        threads: int | None = None,
        fold: bool = True,
        device: jax.Device | None = None,
        checkpoint: Path | None = None,
        cost: ModelCost | None = None,
    ) -> None:
        if threads is not None:
            check_count("threads", threads, least=1)
        super().__init__(
            model,
            variables,
            mean=mean,
            std=std,
            buckets=buckets,
            image_size=None,
            fold=fold,
            device=device or jax.local_devices()[0],
            checkpoint=checkpoint,
            cost=cost,
        )
        self._view = view
        self._threads = threads or os.cpu_count() or 1

    def classify_batches(
        self, batches: Iterable[Sequence[Path]], *, lam: float = 0.0, max_waiting: int = 0
    ) -> Iterator[tuple[Sequence[Path], Classified]]:
        """Classifies batches of files, and gives each back with its result, in order.

        The `problems` of a result name the files that cannot be read.

        Args:
          batches: see `ArrayClassifier.classify_batches`.
          lam: lambda, see `choose`.
          max_waiting: see `ArrayClassifier.classify_batches`.

        Raises:
          ValueError: `max_waiting` below zero, or `lam` is no finite number.
          NotFiniteError: outputs are not finite; the files are named.
        """
        first = self.predictor or self.classifiers[0]
        sizes = [program.image_shape[0] for program in self.classifiers]
        with ThreadPoolExecutor(self._threads) as pool:
            images = EncodedImages(self._view, first.image_shape[0], sizes, pool)
            yield from self._dispatch(
                images, ((files, files) for files in batches), lam, max_waiting
            )

    def _name(self, batch: Any, rows: np.ndarray) -> str:
        """The files of these rows."""
        return first_few([batch[row] for row in rows])
