"""The networks of a DRNet as functions of uint8 images, for inference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from drnet_jax.data.preprocess import normalise
from drnet_jax.inference.dtypes import in_computed_dtype
from drnet_jax.inference.folding import fold_batch_norm
from drnet_jax.inference.programs import Apply
from drnet_jax.models.backbone import Backbone
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.glance import GlanceHead
from drnet_jax.models.layers import resize
from drnet_jax.models.variables import part_variables


@dataclass(frozen=True)
class InferenceNetwork:
    """A network at one resolution.

    Attributes:
      apply: maps variables and uint8 images `[n, h, w, 3]` to logits `[n, k]`, scores `[n, m]`, or
        both side by side; images of another size than `size` are resized on the device.
      variables: its first argument; weights are in the dtype of the computation.
      size: side of what the network sees, in pixels.
    """

    apply: Apply
    variables: Any
    size: int


def predictor_network(
    model: DRNet, variables: Any, mean: Sequence[float], std: Sequence[float], *, fold: bool
) -> InferenceNetwork | None:
    """What sees every image and scores the m resolutions; None if there is one resolution.

    Its outputs are the scores `[n, m]`. A first look has them after its logits: `[n, k + m]`.

    Args:
      model: the DRNet.
      variables: its parameters and statistics.
      mean: of the channels, in 0..1.
      std: of the channels, in 0..1.
      fold: fold BatchNorm into the convolutions.
    """
    if model.predictor is None:
        return None
    if isinstance(model.predictor, GlanceHead):
        return _first_look(model, model.predictor, variables, mean, std, fold)
    part = {name: tree["network"] for name, tree in part_variables(variables, "predictor").items()}
    return _network(model.predictor.network, part, model.predictor.size, mean, std, fold)


def classifier_networks(
    model: DRNet, variables: Any, mean: Sequence[float], std: Sequence[float], *, fold: bool
) -> tuple[InferenceNetwork, ...]:
    """The classifier per resolution; arguments as of `predictor_network`."""
    part = part_variables(variables, "classifier")
    return tuple(
        _network(model.classifier, part, resolution, mean, std, fold)
        for resolution in model.resolutions
    )


def _first_look(
    model: DRNet,
    head: GlanceHead,
    variables: Any,
    mean: Sequence[float],
    std: Sequence[float],
    fold: bool,
) -> InferenceNetwork:
    """The classifier at the smallest resolution, with the head that reads what it gives."""
    network, size = model.classifier, model.resolutions[-1]
    parts = {name: part_variables(variables, name) for name in ("classifier", "predictor")}
    if fold:
        network, parts["classifier"] = fold_batch_norm(network, parts["classifier"], size)
    parts["classifier"] = in_computed_dtype(network, parts["classifier"], size)

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        """Logits and scores `[n, k + m]` of uint8 images `[n, h, w, 3]`."""
        pixels = _seen(images, size, mean, std)
        look: Any = network.apply(
            variables["classifier"], pixels, resolution=size, train=False, method="look"
        )
        scores: Any = head.apply(variables["predictor"], look)
        return jnp.concatenate([look.logits, scores], axis=1)

    return InferenceNetwork(apply, parts, size)


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
    variables = in_computed_dtype(network, variables, size)

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        """Logits or scores `[n, k]` of uint8 images `[n, h, w, 3]`."""
        pixels = _seen(images, size, mean, std)
        output: Any = network.apply(variables, pixels, resolution=size, train=False)
        return output

    return InferenceNetwork(apply, variables, size)


def _seen(images: jax.Array, size: int, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """What a network sees of uint8 images: `[n, size, size, 3]`, normalised.

    Resized first, which is the same but for rounding, since each pixel's weights sum to one, and
    leaves less to normalise.
    """
    return normalise(resize(images.astype(jnp.float32), size), mean, std)
