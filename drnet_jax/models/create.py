"""From a configuration to a model."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from drnet_jax.config import ConfigError
from drnet_jax.models.backbone import Backbone, BackboneOptions, backbones
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.predictor import ResolutionPredictor


def create_model(config: ConfigDict, num_classes: int) -> DRNet:
    """Builds the DRNet that `config.model` and `config.predictor` describe.

    Raises:
      ConfigError: an unknown network, or a resolution below the network's stride.
    """
    model, small = config.model, config.predictor
    resolutions = tuple(model.resolutions)
    dtype = jnp.dtype(model.dtype)
    options = BackboneOptions(
        width=model.width,
        width_multiplier=model.width_multiplier,
        stem=model.stem,
        resolution_aware=model.resolution_aware,
        zero_init_residual=model.zero_init_residual,
        min_samples=model.min_samples,
        remat=model.remat,
        stock_operations=model.stock_operations,
        dtype=dtype,
    )
    classifier = _build("model.name", model.name, num_classes, options)
    _check_size("model.resolutions", min(resolutions), classifier)
    predictor = None
    if len(resolutions) > 1:
        options = BackboneOptions(
            width=small.width,
            width_multiplier=small.width_multiplier,
            stem=small.stem,
            stage_sizes=tuple(small.stage_sizes),
            resolution_aware=False,
            stock_operations=model.stock_operations,
            dtype=dtype,
        )
        network = _build("predictor.name", small.name, len(resolutions), options)
        _check_size("predictor.size", small.size, network)
        predictor = ResolutionPredictor(network, small.size)
    return DRNet(classifier, predictor, resolutions, statistics=model.statistics)


def _build(field: str, name: str, num_classes: int, options: BackboneOptions) -> Backbone:
    known = backbones()
    if name not in known:
        raise ConfigError(f"{field}={name!r} must be one of {', '.join(known)}")
    return known[name](num_classes, options)


def _check_size(field: str, size: int, network: Backbone) -> None:
    if size < network.network_stride:
        raise ConfigError(
            f"{field}: {size} px is below the network's stride of {network.network_stride} px; "
            "use larger sizes or fewer stages"
        )
