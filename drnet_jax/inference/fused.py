"""Adaptive inference in one program a batch: no wait for the choices, and always the same time."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from drnet_jax.checkpoints.finite import NotFiniteError, first_few, rows_not_finite
from drnet_jax.data.eval_view import EvalView
from drnet_jax.inference.arguments import (
    check_count,
    check_images,
    check_normalisation,
    checked_size,
)
from drnet_jax.inference.capacity import checked_capacities
from drnet_jax.inference.decision import check_lambda
from drnet_jax.inference.encoded import decode_into
from drnet_jax.inference.engine import Classified
from drnet_jax.inference.fused_program import FusedOutput, FusedProgram
from drnet_jax.inference.staging import Staging, piece_sizes, upload
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost, model_cost

# Batches on their way at once: one is written while the other computes.
_PLACES = 2
T = TypeVar("T")
# Puts the images of a batch into `[batch_size, h, w, 3]` uint8, and gives how many they are, and by
# row why one cannot be read.
Write = Callable[[T, np.ndarray], tuple[int, Mapping[int, str]]]


class FusedClassifier:
    """Scores a batch of images and classifies each at its own resolution, in one program.

    Beside `ArrayClassifier`, whose answers are exact: here every resolution has a fixed number of
    places in a batch (`capacities`), which images get by what they gain (`assign`), so that an
    image's resolution depends on the batch that it is in. Where the places are as many as the
    images that choose a resolution, or more, both give the same. A batch of one image always gets
    what it chooses.

    Everything is compiled here, nothing later, for one device; the weights stay there, in the
    layout that the program asks for. Any number of threads may use it.

    Args:
      model: the DRNet.
      variables: its parameters and statistics.
      mean: of the channels, in 0..1, that images are normalised with.
      std: of the channels, in 0..1.
      batch_size: images of a batch.
      capacities: `[m]` places a resolution, the largest first: `capacities_of(shares, batch_size)`,
        or more; none of a batch of one image.
      lam: lambda, see `choose`; a `Calibration` gives it, and the shares, for a budget. With two
        resolutions it changes nothing where the places are those of the images.
      image_size: height and width of the images; default: the largest resolution.
      fold: fold BatchNorm into the convolutions, which is faster and rounds otherwise.
      device: where to run; default: the first.
      checkpoint: that the variables are from, for messages; None: unknown.
      cost: of the networks; default: their MACs, which choices are then made by.

    Raises:
      ValueError: an argument that is not what it should be; it is named.
    """

    def __init__(
        self,
        model: DRNet,
        variables: Any,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        capacities: Sequence[int] | None = None,
        lam: float = 0.0,
        image_size: tuple[int, int] | None = None,
        fold: bool = True,
        device: jax.Device | None = None,
        checkpoint: Path | None = None,
        cost: ModelCost | None = None,
    ) -> None:
        check_normalisation(mean, std)
        check_count("batch_size", batch_size, least=1)
        check_lambda(lam)
        largest = model.resolutions[0]
        self.image_size = checked_size((largest, largest) if image_size is None else image_size)
        self.batch_size = int(batch_size)
        self.capacities = checked_capacities(capacities, self.batch_size, len(model.resolutions))
        self.resolutions = np.array(model.resolutions)
        self.cost = cost or model_cost(model)
        self.checkpoint = checkpoint
        program = FusedProgram(
            model,
            variables,
            mean=mean,
            std=std,
            capacities=self.capacities,
            lam=lam,
            fold=fold,
            cost=self.cost,
        )
        self.device = device or jax.local_devices()[0]
        self._shape = (self.batch_size, *self.image_size, 3)
        self._pieces = piece_sizes(self._shape, self.device.platform)
        self._executable = _compiled(program, self._pieces, self._shape[1:], self.device)
        formats, _, _ = self._executable.input_formats[0]
        # To the device first: those of a run lie on all of them, and no layout is set on the way.
        placed = jax.device_put(program.variables, SingleDeviceSharding(self.device))
        self._variables = jax.device_put(placed, formats)
        self._full = self._count(self.batch_size)
        # Of streams that have ended.
        self._free: list[Staging] = []

    def classify(self, images: np.ndarray) -> Classified:
        """Classifies one batch, and waits for it.

        A batch that is not full is padded. Padding takes no place from an image: of places that
        are not all needed, images get what they choose.

        Args:
          images: `[n, height, width, 3]` uint8 of `image_size`, n from 0 to `batch_size`.

        Raises:
          ValueError: images of another dtype, rank or shape, or more than a batch.
          NotFiniteError: outputs are not finite.
        """
        given = self._checked(images)
        n = len(given)
        if n < self.batch_size:
            padding = np.zeros((self.batch_size - n, *given.shape[1:]), np.uint8)
            images = np.concatenate([given, padding])
        return self._finished(given, self._started(images, n), n, {})

    def classify_batches(
        self, batches: Iterable[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, Classified]]:
        """Classifies batches, and gives each back with its result, in order.

        They are copied into two places in host memory by turns, pinned where the runtime can: one
        is written and uploaded while the program runs on the other.

        Args:
          batches: as of `classify`; two are read before the first result comes.

        Raises:
          ValueError: as `classify`; earlier batches whose result has not come are then lost.
          NotFiniteError: outputs are not finite.
        """

        def write(batch: np.ndarray, out: np.ndarray) -> tuple[int, Mapping[int, str]]:
            """Copies."""
            images = self._checked(batch)
            out[: len(images)] = images
            return len(images), {}

        return self._stream(batches, write)

    def classify_files(
        self, batches: Iterable[Sequence[Path]], view: EvalView, threads: int | None = None
    ) -> Iterator[tuple[Sequence[Path], Classified]]:
        """As `classify_batches`, of picture files, which are decoded straight into these places.

        The `problems` of a result name the files that cannot be read. Black stands for them, and
        has a place as any image.

        Args:
          batches: of files, up to `batch_size` each.
          view: what is classified of a picture, of the side of the images.
          threads: that decode; default: one per core.

        Raises:
          ValueError: more than a batch, a view of another size, or no number of threads; earlier
            batches whose result has not come are then lost.
          NotFiniteError: outputs are not finite; the files are named.
        """
        if (view.size, view.size) != self.image_size:
            raise ValueError(
                f"view: its pictures of {view.size} px are no images of "
                f"image_size={self.image_size}; make the classifier with "
                f"image_size={(view.size, view.size)}"
            )
        if threads is not None:
            check_count("threads", threads, least=1)
        return self._stream_files(batches, view, threads)

    def upload(self, images: np.ndarray) -> tuple[jax.Array, ...]:
        """Starts the upload of a batch `[batch_size, height, width, 3]` uint8, for `run`.

        It is not waited for: the images must not be changed before the batch has run.

        Raises:
          ValueError: they are no such images.
        """
        if len(check_images(images, self.image_size)) != self.batch_size:
            raise ValueError(f"{len(images)} images are no batch of batch_size={self.batch_size}")
        return upload(images, self._pieces, self.device)

    def run(self, pieces: Sequence[jax.Array], count: jax.Array | None = None) -> FusedOutput:
        """Starts a batch that is on the device; its output there, not waited for.

        Args:
          pieces: the batch as `upload` gives it.
          count: `[]` int32, how many of its images are real; the others come after them. Default:
            all.
        """
        output: FusedOutput = self._executable(
            self._variables, tuple(pieces), self._full if count is None else count
        )
        return output

    def _stream_files(
        self, batches: Iterable[Sequence[Path]], view: EvalView, threads: int | None
    ) -> Iterator[tuple[Sequence[Path], Classified]]:
        """As `classify_files`."""
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:

            def write(files: Sequence[Path], out: np.ndarray) -> tuple[int, Mapping[int, str]]:
                """Decodes."""
                self._check_fits(len(files))
                return len(files), decode_into(out, files, view, pool)

            yield from self._stream(batches, write)

    def _stream(self, batches: Iterable[T], write: Write[T]) -> Iterator[tuple[T, Classified]]:
        """Writes, uploads and starts batches, each while the one before it computes."""
        places = [self._place() for _ in range(_PLACES)]
        free = deque(places)
        waiting: deque[tuple[T, Staging, int, Mapping[int, str], FusedOutput]] = deque()

        def next_result() -> tuple[T, Classified]:
            """Waits for the first of them; its place is free then."""
            batch, place, n, problems, output = waiting.popleft()
            result = self._finished(batch, output, n, problems)
            free.append(place)
            return batch, result

        try:
            for batch in batches:
                place = free.popleft()
                n, problems = write(batch, place.images)
                waiting.append((batch, place, n, problems, self._started(place.images, n)))
                if not free:
                    yield next_result()
            while waiting:
                yield next_result()
        finally:
            # The device reads the places until then.
            jax.block_until_ready([output for *_, output in waiting])
            self._free += places

    def _place(self) -> Staging:
        """One that no stream has; in as many threads as there are."""
        try:
            return self._free.pop()
        except IndexError:
            return Staging(self._shape, self.device)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        """Images that fit into a batch."""
        images = check_images(images, self.image_size)
        self._check_fits(len(images))
        return images

    def _check_fits(self, n: int) -> None:
        if n > self.batch_size:
            raise ValueError(
                f"{n} images are more than batch_size={self.batch_size}: give them in batches"
            )

    def _count(self, n: int) -> jax.Array:
        """A number of images on the device."""
        return jax.device_put(np.int32(n), SingleDeviceSharding(self.device))

    def _started(self, images: np.ndarray, n: int) -> FusedOutput:
        """A whole batch, of which n images are real, on its way to the host."""
        count = self._full if n == self.batch_size else self._count(n)
        output = self.run(self.upload(images), count)
        for leaf in jax.tree.leaves(output):
            leaf.copy_to_host_async()
        return output

    def _finished(
        self, batch: Any, output: FusedOutput, n: int, problems: Mapping[int, str]
    ) -> Classified:
        """Waits for the result of the n real images of a batch."""
        # What was not computed for an image is cut off.
        host: Any = jax.tree.map(lambda leaf: np.array(leaf)[:n], output)
        choices = host.choices.astype(np.int64)
        self._check_finite(batch, host, problems)
        return Classified(
            host.logits,
            choices,
            host.scores,
            self.resolutions[choices],
            self.cost.predictor + np.array(self.cost.choice)[choices],
            problems,
            host.first_logits,
        )

    def _check_finite(self, batch: Any, output: FusedOutput, problems: Mapping[int, str]) -> None:
        """Stops if outputs of a batch are not finite, but for unreadable images."""
        given = (output.scores, output.first_logits, output.logits)
        found = rows_not_finite(*(np.asarray(values) for values in given if values is not None))
        rows = np.setdiff1d(found, list(problems))
        if len(rows):
            named = f"images {first_few(rows.tolist())} of a batch"
            if not isinstance(batch, np.ndarray):
                named = first_few([batch[row] for row in rows])
            raise NotFiniteError(named, self.checkpoint, rows, batch)


def _compiled(
    program: FusedProgram,
    pieces: Sequence[int],
    image_shape: tuple[int, ...],
    device: jax.Device,
) -> jax.stages.Compiled:
    """The program for pieces of so many images; it asks for the layouts of its weights."""
    sharding = SingleDeviceSharding(device)
    automatic = Format(Layout.AUTO, sharding)
    jitted = jax.jit(
        program.__call__, in_shardings=(automatic, sharding, sharding), keep_unused=True
    )
    weights = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), program.variables
    )
    images = tuple(jax.ShapeDtypeStruct((size, *image_shape), jnp.uint8) for size in pieces)
    return jitted.lower(weights, images, jax.ShapeDtypeStruct((), jnp.int32)).compile()
