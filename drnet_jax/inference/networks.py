"""The networks of a DRNet as functions of uint8 images, for inference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from drnet_jax.data.preprocess import normalise
from drnet_jax.inference.folding import fold_batch_norm
from drnet_jax.inference.programs import Apply
from drnet_jax.models.backbone import Backbone
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.layers import resize


@dataclass(frozen=True)
class InferenceNetwork:
    """A network at one resolution.

    Attributes:
      apply: maps variables and uint8 images `[n, h, w, 3]` to logits or scores `[n, k]`; images of
        another size than `size` are normalised and then resized on the device.
      variables: its first argument.
      size: side of what the network sees, in pixels.
    """

    apply: Apply
    variables: Any
    size: int


def predictor_network(
    model: DRNet, variables: Any, mean: Sequence[float], std: Sequence[float], *, fold: bool
) -> InferenceNetwork | None:
    """The resolution predictor; None if there is one resolution.

    Args:
      model: the DRNet.
      variables: its parameters and statistics.
      mean: of the channels, in 0..1.
      std: of the channels, in 0..1.
      fold: fold BatchNorm into the convolutions.
    """
    if model.predictor is None:
        return None
    part = {name: tree["predictor"]["network"] for name, tree in _with_part(variables, "predictor")}
    return _network(model.predictor.network, part, model.predictor.size, mean, std, fold)


def classifier_networks(
    model: DRNet, variables: Any, mean: Sequence[float], std: Sequence[float], *, fold: bool
) -> tuple[InferenceNetwork, ...]:
    """The classifier per resolution; arguments as of `predictor_network`."""
    part = {name: tree["classifier"] for name, tree in _with_part(variables, "classifier")}
    return tuple(
        _network(model.classifier, part, resolution, mean, std, fold)
        for resolution in model.resolutions
    )


def _with_part(variables: Any, part: str) -> list[tuple[str, Any]]:
    return [(name, tree) for name, tree in variables.items() if part in tree]


def _network(
    network: Backbone,
    variables: Any,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    fold: bool,
) -> InferenceNetwork:
    if fold:
        network, variables = fold_batch_norm(network, variables, size)

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        """Logits or scores `[n, k]` of uint8 images `[n, h, w, 3]`."""
        pixels = resize(normalise(images, mean, std), size)
        output: Any = network.apply(variables, pixels, resolution=size, train=False)
        return output

    return InferenceNetwork(apply, variables, size)
