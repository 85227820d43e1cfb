"""Adaptive inference: every image is classified at its own resolution, and at no other."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from drnet_jax.inference.dispatch import Dispatch
from drnet_jax.inference.encoded import EncodedImages, Picture
from drnet_jax.inference.images import BatchT, Images, MemoryImages, PartT, memory_images
from drnet_jax.inference.networks import InferenceNetwork, classifier_networks, predictor_network
from drnet_jax.inference.programs import CostTable, Program
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost, model_cost


@dataclass(frozen=True)
class Classified:
    """What an `AdaptiveClassifier` says of n images, m resolutions and k classes.

    Attributes:
      logits: `[n, k]` float32, at the chosen resolution.
      choices: `[n]` index of the chosen resolution.
      scores: `[n, m]`, the predictor's.
      resolutions: `[n]`, the chosen ones, in pixels.
      macs: `[n]`, multiply-adds spent on each image, the predictor's included.
    """

    logits: np.ndarray
    choices: np.ndarray
    scores: np.ndarray
    resolutions: np.ndarray
    macs: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """`[n]` the best class."""
        return self.logits.argmax(axis=1)


class AdaptiveClassifier:
    """Scores images, groups them by the chosen resolution and classifies each group in buckets.

    Results are those of the dense model, up to rounding. Calls share nothing that changes: any
    number of threads may use one classifier, and a call that fails leaves it as it was. Everything
    is compiled here, nothing later.

    Args:
      model: the DRNet.
      variables: its parameters and statistics.
      mean: of the channels, in 0..1, that images are normalised with.
      std: of the channels, in 0..1.
      buckets: batch sizes to compile; groups of other sizes are split.
      image_size: height and width of the images; default: the largest resolution.
      own_sizes: every network takes images of its own size instead, for `classify_pictures`.
      fold: fold BatchNorm into the convolutions, which is faster and rounds otherwise.
      device: where to run; default: the first.
    """

    def __init__(
        self,
        model: DRNet,
        variables: Any,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        buckets: Sequence[int],
        image_size: tuple[int, int] | None = None,
        own_sizes: bool = False,
        fold: bool = True,
        device: jax.Device | None = None,
    ) -> None:
        largest = model.resolutions[0]
        self.image_size = image_size or (largest, largest)
        self.resolutions = np.array(model.resolutions)
        self.cost = model_cost(model)
        self.num_classes = model.classifier.num_classes
        self.times: CostTable | None = None
        device = device or jax.local_devices()[0]

        def compiled(network: InferenceNetwork) -> Program:
            """The network's program."""
            image_size = (network.size, network.size) if own_sizes else self.image_size
            return Program(network.apply, network.variables, image_size, buckets, device)

        small = predictor_network(model, variables, mean, std, fold=fold)
        self.predictor = None if small is None else compiled(small)
        networks = classifier_networks(model, variables, mean, std, fold=fold)
        self.classifiers = tuple(compiled(network) for network in networks)
        self._images: MemoryImages | None = None
        if not own_sizes:
            sizes = self.classifiers[0].buckets
            self._images = memory_images(self.image_size, sizes, device)

    def measure(self, repeats: int = 5) -> CostTable:
        """Seconds of every bucket of every network, on this device."""
        predictor = None
        if self.predictor is not None:
            predictor = self.predictor.measure(repeats, upload=True)
        # Without images of their own on the device, the classifiers' are uploaded too.
        upload = self._images is None
        classifiers = (program.measure(repeats, upload=upload) for program in self.classifiers)
        return CostTable(predictor, tuple(classifiers))

    def with_times(self, table: CostTable) -> "AdaptiveClassifier":
        """The same classifier, which splits groups as is cheapest by measured times.

        Raises:
          ValueError: the table is of other buckets or other networks.
        """
        if len(table.classifiers) != len(self.classifiers):
            raise ValueError(
                f"times of {len(table.classifiers)} resolutions, compiled are "
                f"{len(self.classifiers)}"
            )
        if (table.predictor is None) != (self.predictor is None):
            raise ValueError("the table and the classifier differ in whether there is a predictor")
        other = copy(self)
        other.times = table
        programs = zip(self.classifiers, table.classifiers, strict=True)
        other.classifiers = tuple(program.replan(times) for program, times in programs)
        if self.predictor is not None and table.predictor is not None:
            other.predictor = self.predictor.replan(table.predictor)
        return other

    def fixed(self, choice: int) -> "AdaptiveClassifier":
        """The same classifier at one of the resolutions, given by its index, without predictor."""
        other = copy(self)
        other.predictor = None
        other.classifiers = (self.classifiers[choice],)
        other.resolutions = self.resolutions[[choice]]
        other.cost = ModelCost(0, (self.cost.classifier[choice],))
        other.times = None
        return other

    def classify(self, images: np.ndarray, *, lam: float = 0.0) -> Classified:
        """Classifies one batch, and waits for it.

        Args:
          images: `[n, height, width, 3]` uint8 of `image_size`; n may be 0. All of them are on the
            device at once: give many in batches, to `classify_batches`.
          lam: lambda of `choose`, in nats a GMAC; a `Calibration` gives it for a budget.

        Raises:
          ValueError: images of another dtype, rank or shape.
        """
        return next(self.classify_batches([images], lam=lam))

    def classify_everywhere(self, images: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """The predictor, and the classifier at every resolution: what a dense model computes.

        Args:
          images: as of `classify`, at least one.

        Returns:
          Scores `[n, m]`, None without a predictor, and logits `[n, m, k]`.

        Raises:
          ValueError: as `classify`.
        """
        programs = [*([self.predictor] if self.predictor else []), *self.classifiers]
        images = self._checked(images)
        parts = self._in_memory.open(images, programs[0].plan.split(len(images)))
        started = [[program.run(part.images) for part in parts] for program in programs]
        outputs = [
            np.concatenate([np.asarray(out)[: p.count] for out, p in zip(outs, parts, strict=True)])
            for outs in started
        ]
        scores = outputs.pop(0) if self.predictor else None
        return scores, np.stack(outputs, axis=1)

    def classify_batches(
        self, batches: Iterable[np.ndarray], *, lam: float = 0.0, max_waiting: int = 0
    ) -> Iterator[Classified]:
        """Classifies batches of any sizes, and gives each its result, in order.

        The next batch's predictor runs while this batch is classified. A batch must not be changed
        before its result has come.

        Args:
          batches: as `images` of `classify`; three are read before the first
            result comes, `max_waiting` + 2 with waiting. `classify` has no such delay.
          lam: see `classify`.
          max_waiting: 0: every batch is classified as soon as its choices are known. Else images
            wait, each resolution's in a queue, until a bucket is full, and at most so many batches
            wait: for the highest throughput.

        Raises:
          ValueError: as `classify`; earlier batches whose result has not come are then lost. Or
            `max_waiting` below zero, or compiled with `own_sizes`.
        """
        checked = (self._checked(batch) for batch in batches)
        yield from self._dispatch(self._in_memory, checked, lam, max_waiting)

    @property
    def _in_memory(self) -> MemoryImages:
        """Images in memory, if the networks take them."""
        if self._images is None:
            raise ValueError("compiled with own_sizes, for classify_pictures")
        return self._images

    def classify_pictures(
        self,
        batches: Iterable[Sequence[Picture]],
        *,
        crop: float,
        threads: int,
        lam: float = 0.0,
        max_waiting: int = 0,
    ) -> Iterator[Classified]:
        """Classifies encoded pictures, decoded and resized on the host.

        A picture that cannot be read gets its `problem` set, and results that mean nothing.

        Args:
          batches: of any sizes; see `classify_batches`.
          crop: side of the centred square that is classified, as a fraction of the shorter side.
          threads: that decode.
          lam: see `classify`.
          max_waiting: see `classify_batches`.

        Raises:
          ValueError: `max_waiting` below zero, or compiled without `own_sizes`.
        """
        if self._images is not None:
            raise ValueError("compiled without own_sizes, for classify_batches")
        first = self.predictor or self.classifiers[0]
        sizes = [program.image_shape[0] for program in self.classifiers]
        with ThreadPoolExecutor(threads) as pool:
            images = EncodedImages(self.image_size[0], first.image_shape[0], sizes, crop, pool)
            yield from self._dispatch(images, batches, lam, max_waiting)

    def _dispatch(
        self,
        images: Images[BatchT, PartT],
        batches: Iterable[BatchT],
        lam: float,
        max_waiting: int,
    ) -> Iterator[Classified]:
        """One pass, whose results come in the order of the batches."""
        if max_waiting < 0:
            raise ValueError(f"max_waiting={max_waiting} must be zero or more")
        dispatch = Dispatch(
            images,
            self.predictor,
            self.classifiers,
            num_classes=self.num_classes,
            gmacs=np.array(self.cost.classifier_gmacs),
            lam=lam,
            max_waiting=max_waiting,
        )
        for done in dispatch.run(batches):
            yield Classified(
                done.logits,
                done.choices,
                done.scores,
                self.resolutions[done.choices],
                self.cost.predictor + np.array(self.cost.classifier)[done.choices],
            )

    def _checked(self, batch: np.ndarray) -> np.ndarray:
        """The batch, if its programs take it."""
        height, width = self.image_size
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != (height, width, 3):
            raise ValueError(
                f"expected uint8 images [n, {height}, {width}, 3], got {batch.dtype} "
                f"{list(batch.shape)}"
            )
        return batch
