"""BatchNorm folded into the convolutions before it: y = (w * x - mean) * g + b is w*g * x + b'."""

from typing import Any

from jax import lax

from drnet_jax.models.backbone import Backbone
from drnet_jax.models.layers import SHARED_STATISTICS

Tree = Any


def fold_batch_norm(network: Backbone, variables: Tree, resolution: int) -> tuple[Backbone, Tree]:
    """The network without BatchNorm that computes the same at one resolution.

    Args:
      network: with BatchNorm.
      variables: its parameters and statistics.
      resolution: whose statistics, scales and biases to fold.

    Returns:
      The network with biases in its convolutions, and its variables `{'params': ...}`.

    Raises:
      ValueError: a BatchNorm that does not follow a convolution (`conv1` and `bn1`, say).
    """
    suffix = f"_{resolution}" if network.resolution_aware else ""
    statistics = variables[SHARED_STATISTICS + suffix]
    params = _fold(variables["params"], statistics, suffix, network.epsilon)
    return network.clone(folded=True), {"params": params}


def _fold(params: Tree, statistics: Tree, suffix: str, epsilon: float) -> Tree:
    """Folds the layers of one module, and of the modules in it."""
    folded = {}
    norms = {name for name, layer in params.items() if f"scale{suffix}" in layer}
    for name, layer in params.items():
        norm = name.replace("conv", "bn")
        if name in norms:
            continue
        if norm in norms:
            folded[name] = _fold_layer(layer, params[norm], statistics[norm], suffix, epsilon)
        elif name in statistics:
            folded[name] = _fold(layer, statistics[name], suffix, epsilon)
        else:
            folded[name] = layer
    unmatched = norms - {name.replace("conv", "bn") for name in params if name not in norms}
    if unmatched:
        raise ValueError(f"no convolution before {', '.join(sorted(unmatched))}: cannot fold them")
    return folded


def _fold_layer(conv: Tree, norm: Tree, statistics: Tree, suffix: str, epsilon: float) -> Tree:
    """Kernel `[h, w, in, out]` and bias `[out]` of a convolution with its BatchNorm."""
    gain = norm[f"scale{suffix}"] * lax.rsqrt(statistics["var"] + epsilon)
    bias = norm[f"bias{suffix}"] - statistics["mean"] * gain
    return {"kernel": conv["kernel"] * gain, "bias": bias}
