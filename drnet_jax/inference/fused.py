"""Adaptive inference in one program a batch: no wait for the choices, and always the same time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from drnet_jax.checkpoints.finite import NotFiniteError, first_few, rows_not_finite
from drnet_jax.inference.arguments import (
    check_count,
    check_images,
    check_normalisation,
    checked_size,
)
from drnet_jax.inference.capacity import checked_capacities
from drnet_jax.inference.decision import check_lambda
from drnet_jax.inference.engine import Classified
from drnet_jax.inference.fused_program import FusedOutput, FusedProgram
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost, model_cost


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
        self._sharding = SingleDeviceSharding(device or jax.local_devices()[0])
        self._executable = _compiled(
            program, (self.batch_size, *self.image_size, 3), self._sharding
        )
        formats, _, _ = self._executable.input_formats[0]
        self._variables = jax.device_put(program.variables, formats)
        self._full = jax.device_put(np.int32(self.batch_size), self._sharding)

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
        images = check_images(images, self.image_size)
        n = len(images)
        if n > self.batch_size:
            raise ValueError(
                f"{n} images are more than batch_size={self.batch_size}: give them in batches"
            )
        count, padded = self._full, images
        if n < self.batch_size:
            count = jax.device_put(np.int32(n), self._sharding)
            padding = np.zeros((self.batch_size - n, *images.shape[1:]), np.uint8)
            padded = np.concatenate([images, padding])
        output = self.run(jax.device_put(padded, self._sharding), count)
        for leaf in jax.tree.leaves(output):
            leaf.copy_to_host_async()
        # What was not computed for an image is cut off.
        output = jax.tree.map(lambda leaf: np.asarray(leaf)[:n], output)
        self._check_finite(images, output)
        return Classified(
            output.logits,
            output.choices,
            output.scores,
            self.resolutions[output.choices],
            self.cost.predictor + np.array(self.cost.choice)[output.choices],
            first_logits=output.first_logits,
        )

    def run(self, images: jax.Array, count: jax.Array | None = None) -> FusedOutput:
        """Starts a batch that is on the device; its output there, not waited for.

        Args:
          images: `[batch_size, height, width, 3]` uint8.
          count: `[]` int32, how many of them are real; the others come after them. Default: all.
        """
        output: FusedOutput = self._executable(
            self._variables, images, self._full if count is None else count
        )
        return output

    def _check_finite(self, images: np.ndarray, output: FusedOutput) -> None:
        """Stops if outputs of a batch are not finite."""
        given = (output.scores, output.first_logits, output.logits)
        rows = rows_not_finite(*(np.asarray(values) for values in given if values is not None))
        if len(rows):
            named = f"images {first_few(rows.tolist())} of a batch"
            raise NotFiniteError(named, self.checkpoint, rows, images)


def _compiled(
    program: FusedProgram, shape: tuple[int, ...], sharding: SingleDeviceSharding
) -> jax.stages.Compiled:
    """The program for images of a shape; it asks for the layouts of its weights."""
    automatic = Format(Layout.AUTO, sharding)
    jitted = jax.jit(
        program.__call__, in_shardings=(automatic, sharding, sharding), keep_unused=True
    )
    weights = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), program.variables
    )
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return jitted.lower(weights, images, jax.ShapeDtypeStruct((), jnp.int32)).compile()
