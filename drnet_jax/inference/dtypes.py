"""Weights in the dtype that their layers compute in, converted once and not in every call."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from drnet_jax.models.backbone import Backbone

Tree = Any


def in_computed_dtype(network: Backbone, variables: Tree, resolution: int) -> Tree:
    """The variables with every convolution's and dense layer's weights as the layer casts them.

    The network gives the same, to the bit. BatchNorm that is not folded stays in float32.

    Args:
      network: that they are of.
      variables: parameters, and statistics if there are any.
      resolution: at which the network runs.
    """
    if jnp.dtype(network.dtype) == jnp.float32:
        return variables
    dtypes: dict[tuple[str, ...], Any] = {}

    def note(
        next_fun: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        """Runs a method and keeps its layer's dtype; one without computes in its weights'."""
        layer = context.module
        if isinstance(layer, (nn.Conv, nn.Dense)) and layer.dtype is not None:
            dtypes[tuple(layer.path)] = layer.dtype
        return next_fun(*args, **kwargs)

    def run(variables: Tree, images: jax.Array) -> Any:
        """Visits every layer."""
        with nn.intercept_methods(note):
            return network.apply(variables, images, resolution=resolution, train=False)

    images = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
    jax.eval_shape(run, variables, images)
    params = flax.traverse_util.flatten_dict(variables["params"])
    converted = {
        path: leaf.astype(dtypes.get(path[:-1], leaf.dtype)) for path, leaf in params.items()
    }
    return {**variables, "params": flax.traverse_util.unflatten_dict(converted)}
