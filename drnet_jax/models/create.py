"""From a configuration to a model."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from drnet_jax.config import ConfigError
from drnet_jax.models.arguments import default_arguments, format_arguments, parse_arguments
from drnet_jax.models.backbone import Backbone, backbones
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.glance import GlanceHead
from drnet_jax.models.predictor import ResolutionPredictor


def create_model(config: ConfigDict, num_classes: int) -> DRNet:
    """Builds the DRNet that `config.model` and `config.predictor` describe.

    Raises:
      ConfigError: an unknown network, arguments or pruning rates that it does not take, or a
        resolution below its stride.
    """
    model = config.model
    resolutions = tuple(model.resolutions)
    dtype = jnp.dtype(model.dtype)
    classifier = _build("model", model, num_classes).clone(
        resolution_aware=model.resolution_aware,
        min_samples=model.min_samples,
        pruning_rates=tuple(model.pruning_rates),
        remat=model.remat,
        stock_operations=model.stock_operations,
        dtype=dtype,
    )
    _check_size("model.resolutions", min(resolutions), classifier)
    _check_rates(model.name, classifier)
    predictor = _predictor(config, dtype) if len(resolutions) > 1 else None
    return DRNet(classifier, predictor, resolutions, statistics=model.statistics)


def _predictor(config: ConfigDict, dtype: jnp.dtype) -> ResolutionPredictor | GlanceHead:
    model, small = config.model, config.predictor
    if small.kind == "glance":
        return GlanceHead(
            len(model.resolutions),
            tuple(small.inputs),
            probabilities=small.objective in ("correctness", "spend"),
            reuse=model.reuse == "logits",
        )
    network = _build("predictor", small, len(model.resolutions)).clone(
        resolution_aware=False, stock_operations=model.stock_operations, dtype=dtype
    )
    _check_size("predictor.size", small.size, network)
    return ResolutionPredictor(network, small.size)


def check_model(config: ConfigDict) -> None:
    """Checks what describes the model; nothing is computed, and no data are needed.

    Raises:
      ConfigError: see `create_model`.
    """
    create_model(config, num_classes=1)


def _build(section: str, described: ConfigDict, num_outputs: int) -> Backbone:
    known = backbones()
    name, text = described.name, described.args
    if name not in known:
        raise ConfigError(f"{section}.name={name!r} must be one of {', '.join(known)}")
    try:
        return known[name](num_outputs, **parse_arguments(text, known[name]))
    except ValueError as error:
        takes = format_arguments(default_arguments(known[name])) or "no arguments"
        raise ConfigError(
            f'{section}.args="{text}" does not fit {name}: {error}. It takes {takes}; give '
            f'--config.{section}.args="" for these defaults, or those that differ'
        ) from error


def _check_size(field: str, size: int, network: Backbone) -> None:
    if size < network.network_stride:
        raise ConfigError(
            f"{field}: {size} px is below the network's stride of {network.network_stride} px; "
            "use larger sizes, or arguments that make it smaller (fewer stages, a smaller stem)"
        )


def _check_rates(name: str, network: Backbone) -> None:
    rates, stages = network.pruning_rates, network.inner_channels
    if not rates:
        return
    if not stages:
        raise ConfigError(f"model.pruning_rates={rates}: {name} cannot be pruned; leave it empty")
    if len(rates) != len(stages):
        raise ConfigError(
            f"model.pruning_rates={rates} must have a rate for each of the {len(stages)} stages of "
            f"{name}"
        )
    for stage, (rate, blocks) in enumerate(zip(rates, stages, strict=True), 1):
        if rate and not blocks:
            raise ConfigError(
                f"model.pruning_rates={rates}: stage {stage} of {name} has no channels that can be "
                "pruned; its rate must be 0"
            )
