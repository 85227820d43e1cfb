"""Training a part of a classifier: the rest keeps its values, and has no backward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from drnet_jax.config import SMALLER_NORMS
from drnet_jax.models.backbone import Backbone
from drnet_jax.models.layers import ResolutionBatchNorm
from drnet_jax.models.weight_names import HEAD
from drnet_jax.training.stage_losses import Batch, Loss, Metrics

Path = tuple[Any, ...]

# How many stages are trained.
TRAINED_STAGES = {"last_stage": 1, "last_two_stages": 2}


@dataclass(frozen=True)
class TrainedPart:
    """Which parameters of a classifier are trained, and which BatchNorms see their batches.

    Attributes:
      what: `'all'`, a key of `TRAINED_STAGES`, `'batch_norm'` or `'head'`, and the head in any
        case; or `SMALLER_NORMS`, without it.
      largest: resolution in pixels.
      layers: the outermost layers that are in the trained stages, see `last_layers`.
      batch_statistics: False: no BatchNorm does.
    """

    what: str
    largest: int
    layers: frozenset[str]
    batch_statistics: bool = True

    def trains(self, path: Path) -> bool:
        """Whether a parameter of the model is trained, by the names that lead to it."""
        _, *layers, name = path
        if self.what == SMALLER_NORMS:
            # Those of a resolution are named by it.
            return name.startswith(("scale_", "bias_")) and not name.endswith(f"_{self.largest}")
        if self.what == "all" or layers[:1] == list(HEAD):
            return True
        # Convolutions have no bias: all but kernels is of BatchNorms.
        return self._has(layers[0]) and (self.what in TRAINED_STAGES or name != "kernel")

    def normalises(self, layer: str, resolution: int) -> bool:
        """Whether BatchNorms in an outermost layer use their batch's statistics, and update theirs.

        Those of frozen layers stay as they are: what the layers above get is what it was.
        """
        frozen = self.what == SMALLER_NORMS and resolution == self.largest
        return self.batch_statistics and self._has(layer) and not frozen

    def _has(self, layer: str) -> bool:
        """Whether BatchNorms in an outermost layer are trained."""
        if self.what in TRAINED_STAGES:
            return layer in self.layers
        return self.what != "head"


def last_layers(network: Backbone, resolution: int, stages: int) -> frozenset[str]:
    """The outermost layers and blocks of a network that give its last, smallest feature maps.

    Args:
      network: a classifier.
      resolution: side in pixels of its images.
      stages: how many sizes of the feature map these are.
    """
    sides: dict[str, int] = {}

    def note(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        """Keeps the side of what an outermost layer gives."""
        output = next_fun(*args, **kwargs)
        if len(context.module.path) == 1 and getattr(output, "ndim", 0) == 4:
            sides[context.module.path[0]] = output.shape[1]
        return output

    def initialise(images: jax.Array) -> Any:
        """Visits every layer."""
        with nn.intercept_methods(note):
            return network.init(jax.random.key(0), images, resolution=resolution, train=False)

    jax.eval_shape(initialise, jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32))
    last = sorted(set(sides.values()))[:stages]
    return frozenset(name for name, side in sides.items() if side in last)


@dataclass(frozen=True)
class PartLoss:
    """A loss of which a part of the classifier's parameters is trained.

    Gradients of the others are zero, and nothing is computed for them.

    Attributes:
      loss: of all parameters.
      part: which are trained.
    """

    loss: Loss
    part: TrainedPart

    def __call__(
        self, params: Any, collections: Any, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """See `Loss`."""
        stopped = flax.traverse_util.path_aware_map(
            lambda path, leaf: leaf if self.part.trains(path) else jax.lax.stop_gradient(leaf),
            params,
        )
        with nn.intercept_methods(self._keep_statistics):
            return self.loss(stopped, collections, batch, key, step)

    def _keep_statistics(
        self, next_fun: Callable[..., Any], args: Any, kwargs: dict[str, Any], context: Any
    ) -> Any:
        """Runs a BatchNorm that keeps its statistics as in evaluation."""
        part, *layers = context.module.path or ("",)
        norm = isinstance(context.module, ResolutionBatchNorm)
        if (
            norm
            and part == "classifier"
            and not self.part.normalises(layers[0], kwargs["resolution"])
        ):
            kwargs = kwargs | {"train": False}
        return next_fun(*args, **kwargs)
