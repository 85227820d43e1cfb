"""BatchNorm statistics of another resolution, from images without labels."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax.models.backbone import Backbone
from drnet_jax.models.layers import SHARED_STATISTICS, ResolutionBatchNorm


def reestimate_statistics(
    network: Backbone, variables: Any, batches: Iterable[np.ndarray], resolution: int
) -> Any:
    """The variables with the statistics of these images at one resolution.

    As for slimmable networks (Yu and Huang 2019) and RS-Nets (Wang et al. 2020). Every batch is
    normalised with its own statistics; means and variances are pooled over all images.

    Args:
      network: with BatchNorm.
      variables: its parameters and statistics.
      batches: images `[n, r, r, 3]`, normalised as the network expects, at least one batch.
      resolution: r, whose statistics to take.

    Raises:
      ValueError: there is no batch.
    """
    suffix = f"_{resolution}" if network.resolution_aware else ""
    collection = SHARED_STATISTICS + suffix
    # From zero the running statistics of one step are a tenth of the batch's.
    empty = {**variables, collection: jax.tree.map(jnp.zeros_like, variables[collection])}

    @jax.jit
    def moments(images: jax.Array) -> Any:
        """Mean and mean square of every BatchNorm's input."""
        call: Any = {"resolution": resolution, "train": True, "mutable": [collection]}
        _, state = network.apply(empty, images, **call)
        scale = 1 / (1 - ResolutionBatchNorm.momentum)
        return jax.tree.map(
            lambda layer: {
                "mean": layer["mean"] * scale,
                "square": layer["var"] * scale + (layer["mean"] * scale) ** 2,
            },
            state[collection],
            is_leaf=_is_statistics,
        )

    count, total = 0, None
    for images in batches:
        weight = len(images)
        weighted = jax.tree.map(lambda value, weight=weight: weight * value, moments(images))
        total = weighted if total is None else jax.tree.map(jnp.add, total, weighted)
        count += weight
    if total is None:
        raise ValueError("reestimate_statistics needs at least one batch")
    pooled = jax.tree.map(
        lambda layer: {
            "mean": layer["mean"] / count,
            # Of a constant channel, rounding could leave it below zero.
            "var": jnp.maximum(0.0, layer["square"] / count - (layer["mean"] / count) ** 2),
        },
        total,
        is_leaf=_is_statistics,
    )
    return {**variables, collection: pooled}


def _is_statistics(tree: Any) -> bool:
    return isinstance(tree, dict) and "mean" in tree
