"""Adaptive inference on images in memory: each is classified at its own resolution only."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import numpy as np

from drnet_jax.inference.arguments import check_images, checked_size
from drnet_jax.inference.engine import Classified, InferenceEngine
from drnet_jax.inference.images import memory_images
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost

T = TypeVar("T")


class ArrayClassifier(InferenceEngine):
    """Scores images, groups them by the chosen resolution and classifies each group in buckets.

    Of images in memory; `FileClassifier` takes picture files. Results are those of the dense model,
    up to rounding.

    Args:
      model: the DRNet.
      variables: its parameters and statistics.
      mean: of the channels, in 0..1, that images are normalised with.
      std: of the channels, in 0..1.
      buckets: batch sizes to compile; groups of other sizes are split. None: what suits the device
        and each network, see `default_buckets`.
      image_size: height and width of the images; default: the largest resolution.
      fold: fold BatchNorm into the convolutions, which is faster and rounds otherwise.
      device: where to run; default: the first.
      checkpoint: that the variables are from, for messages; None: unknown.
      cost: of the networks; default: their MACs, which choices are then made by.
      up_to: compile only what groups of up to so many images need, and more by `extended`; None:
        all buckets.
      until: see `InferenceEngine`.

    Raises:
      ValueError: mean, std, buckets or the image size are not what they should be.
    """

    def __init__(
        self,
        model: DRNet,
        variables: Any,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        buckets: Sequence[int] | None,
        image_size: tuple[int, int] | None = None,
        fold: bool = True,
        device: jax.Device | None = None,
        checkpoint: Path | None = None,
        cost: ModelCost | None = None,
        up_to: int | None = None,
        until: float = math.inf,
    ) -> None:
        largest = model.resolutions[0]
        self.image_size = checked_size((largest, largest) if image_size is None else image_size)
        device = device or jax.local_devices()[0]
        super().__init__(
            model,
            variables,
            mean=mean,
            std=std,
            buckets=buckets,
            image_size=self.image_size,
            fold=fold,
            device=device,
            checkpoint=checkpoint,
            cost=cost,
            up_to=up_to,
            until=until,
        )
        self._images = memory_images(self.image_size, self._sizes(), device)

    def _sizes(self) -> list[int]:
        """Of all buckets that are compiled."""
        return sorted({size for program in self.programs for size in program.buckets})

    def extended(self, up_to: int, until: float = math.inf) -> Self:
        """See `InferenceEngine.extended`."""
        other = super().extended(up_to, until)
        other._images = self._images.extended(other._sizes())
        return other

    def classify(self, images: np.ndarray, *, lam: float = 0.0) -> Classified:
        """Classifies one batch, and waits for it.

        Args:
          images: `[n, height, width, 3]` uint8 of `image_size`; n may be 0. All of them are on the
            device at once: give many in batches, to `classify_batches`.
          lam: lambda, see `choose`; a `Calibration` gives it for a budget.

        Raises:
          ValueError: images of another dtype, rank or shape, or `lam` is no finite number.
          NotFiniteError: outputs are not finite.
        """
        ((_, result),) = self.classify_batches([images], lam=lam)
        return result

    def classify_everywhere(self, images: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """The predictor, and the classifier at every resolution: what a dense model computes.

        Args:
          images: as of `classify`, at least one.

        Returns:
          Scores `[n, m]`, None without a predictor, and logits `[n, m, k]`, each resolution's
          by itself.

        Raises:
          ValueError: as `classify`, or no images.
          NotFiniteError: outputs are not finite.
        """
        images = check_images(images, self.image_size)
        if not len(images):
            raise ValueError("no images are given, and one or more are expected")
        parts, _ = self._images.open(images, self._everywhere.split(len(images)))
        started = [[program.run(part.images) for part in parts] for program in self.programs]
        outputs = [
            np.concatenate([np.asarray(out)[: p.count] for out, p in zip(outs, parts, strict=True)])
            for outs in started
        ]
        for output in outputs:
            self._check_finite(images, output, {})
        scores = None
        if self.predictor:
            first = outputs.pop(0)
            scores = first[:, -len(self.resolutions) :]
            if self.cost.glances:
                outputs.append(first)
        return scores, np.stack([out[:, : self.num_classes] for out in outputs], axis=1)

    def classify_batches(
        self,
        batches: Iterable[T],
        *,
        images: Callable[[T], np.ndarray] | None = None,
        lam: float = 0.0,
        max_waiting: int = 0,
    ) -> Iterator[tuple[T, Classified]]:
        """Classifies batches of any sizes, and gives each back with its result, in order.

        The next batch's predictor runs while this batch is classified. The images of a batch must
        not be changed before its result has come.

        Args:
          batches: the images, as of `classify`, or whatever `images` takes; three are read before
            the first result comes, `max_waiting` + 2 with waiting. `classify` has no such delay.
          images: gives the images of a batch; None: a batch is its images.
          lam: see `classify`.
          max_waiting: 0: every batch is classified as soon as its choices are known. Else images
            wait, each resolution's in a queue, until a bucket is full, and at most so many batches
            wait: for the highest throughput.

        Raises:
          ValueError: as `classify`; earlier batches whose result has not come are then lost. Or
            `max_waiting` below zero.
          NotFiniteError: outputs are not finite; it has the batch and which of its images.
        """
        pairs = (
            (batch, check_images(batch if images is None else images(batch), self.image_size))
            for batch in batches
        )
        yield from self._dispatch(self._images, pairs, lam, max_waiting)
