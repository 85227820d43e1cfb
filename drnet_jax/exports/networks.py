"""The networks of a model as they are exported: functions of uint8 images, with names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from drnet_jax.inference.networks import (
    InferenceNetwork,
    classifier_networks,
    predictor_network,
)
from drnet_jax.models.backbone import Backbone
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost
from drnet_jax.models.predictor import ResolutionPredictor

LOGITS, SCORES = "logits", "scores"


@dataclass(frozen=True)
class ExportedNetwork:
    """A network at one resolution, with its weights in it and BatchNorm folded.

    Attributes:
      role: `'predictor'`, `'first_look'` or `'classifier'`.
      resolution: side of what it sees, in pixels.
      macs: multiply-adds of an image.
      apply: maps uint8 images `[n, h, w, 3]` to `'logits'` `[n, k]`, `'scores'` `[n, m]`, or both.
    """

    role: str
    resolution: int
    macs: int
    apply: Callable[[jax.Array], Mapping[str, jax.Array]]

    @property
    def name(self) -> str:
        """Of its file, without the ending."""
        return f"{self.role}_{self.resolution}"


def in_float32(model: DRNet) -> DRNet:
    """The model as exports compute, whatever `model.dtype` it was trained with."""
    return _clone(model, dtype=jnp.float32, remat=False)


def in_stock_operations(model: DRNet) -> DRNet:
    """As `in_float32`, with XLA's own convolutions: the CPU's forms are no operators of ONNX."""
    return _clone(in_float32(model), stock_operations=True)


def exported_networks(
    model: DRNet,
    variables: Any,
    cost: ModelCost,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> list[ExportedNetwork]:
    """The predictor, if there is one, and the classifier per resolution, the largest first.

    A first look is the predictor and the classifier at the smallest resolution.

    Args:
      model: the DRNet, as `in_float32` or `in_stock_operations` gives it.
      variables: its parameters and statistics.
      cost: of its networks.
      mean: of the channels, in 0..1.
      std: of the channels, in 0..1.
    """
    num_classes, num_options = model.classifier.num_classes, len(model.resolutions)
    first = predictor_network(model, variables, mean, std, fold=True)
    classifiers = classifier_networks(model, variables, mean, std, fold=True)
    found = []
    if first is not None and model.glances:
        macs = cost.predictor + cost.classifier[-1]
        outputs = {LOGITS: (0, num_classes), SCORES: (num_classes, num_classes + num_options)}
        found.append(_exported("first_look", first, macs, outputs))
        classifiers = classifiers[:-1]
    elif first is not None:
        found.append(_exported("predictor", first, cost.predictor, {SCORES: (0, num_options)}))
    every = {LOGITS: (0, num_classes)}
    pairs = zip(classifiers, cost.classifier, strict=False)
    return found + [_exported("classifier", network, macs, every) for network, macs in pairs]


def _exported(
    role: str, network: InferenceNetwork, macs: int, outputs: Mapping[str, tuple[int, int]]
) -> ExportedNetwork:
    def apply(images: jax.Array) -> Mapping[str, jax.Array]:
        """The outputs by their names."""
        found = network.apply(network.variables, images)
        # A slice in brackets is a gather where the number of images is not known.
        return {name: lax.slice_in_dim(found, *ends, axis=1) for name, ends in outputs.items()}

    return ExportedNetwork(role, network.size, macs, apply)


def _clone(model: DRNet, **fields: Any) -> DRNet:
    """The model with other fields of its networks."""
    classifier: Backbone = model.classifier.clone(**fields)
    predictor = model.predictor
    if isinstance(predictor, ResolutionPredictor):
        predictor = predictor.clone(network=predictor.network.clone(**fields))
    return model.clone(classifier=classifier, predictor=predictor)
