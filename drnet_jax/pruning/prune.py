"""Structured pruning: a narrower network with the filters of a trained one that matter most.

Weights alone decide, which all resolutions share, so that every resolution keeps its BatchNorm of
the same channels. The filters of each layer are judged as they were trained, whatever is pruned
before it (the independent pruning of Li et al. 2017, arXiv 1608.08710).
"""

from typing import Any

import flax
import numpy as np

from drnet_jax.models.backbone import Backbone
from drnet_jax.models.inner_channels import InnerChannels
from drnet_jax.models.variables import network_shapes
from drnet_jax.pruning.criteria import CRITERIA, Criterion

Tree = Any
Path = tuple[str, ...]


def prune(narrower: Backbone, variables: Tree, criterion: str, resolution: int) -> Tree:
    """The variables of a narrower network, from those of a wider one.

    Args:
      narrower: with `pruning_rates`; otherwise the network of `variables`.
      variables: with BatchNorm for any resolutions; that network may be a pruned one.
      criterion: a key of `CRITERIA`.
      resolution: side in pixels, one of those.

    Returns:
      NumPy arrays. Filters that are kept stay in their order.

    Raises:
      ValueError: `narrower` has more filters in some layer than the variables.
    """
    flat = flax.traverse_util.flatten_dict(variables)
    shapes = flax.traverse_util.flatten_dict(network_shapes(narrower, resolution))
    kept: dict[str, dict[InnerChannels, np.ndarray]] = {}
    for blocks in narrower.inner_channels:
        for block, inner in blocks.items():
            kept[block] = {}
            for channels in inner:
                path = ("params", block, channels.filters, "kernel")
                count = shapes[path].shape[-1]
                kept[block][channels] = _best(path, flat[path], count, CRITERIA[criterion])
    narrowed = {path: np.asarray(leaf) for path, leaf in flat.items()}
    for path in narrowed:
        for channels, where in kept.get(path[1], {}).items():
            narrowed[path] = _without_others(path, narrowed[path], channels, where)
    return flax.traverse_util.unflatten_dict(narrowed)


def _best(path: Path, kernel: Any, count: int, criterion: Criterion) -> np.ndarray:
    """Which filters of a kernel `[h, w, c, n]` matter most, ascending; of equal ones the first."""
    filters = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]).T
    if count > len(filters):
        raise ValueError(f"{'/'.join(path)} has {len(filters)} filters, and {count} are wanted")
    return np.sort(np.argsort(-criterion(filters), kind="stable")[:count])


def _without_others(
    path: Path, array: np.ndarray, channels: InnerChannels, kept: np.ndarray
) -> np.ndarray:
    """An array of a block, of these inner channels with the kept ones alone."""
    layer, leaf = path[2], path[-1]
    if layer in (channels.filters, *channels.between):
        return array[..., kept]
    if layer == channels.reader and leaf == "kernel":
        return array[:, :, kept]
    return array
