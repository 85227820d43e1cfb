"""Weights of other libraries' networks as variables of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax.numpy as jnp
import numpy as np

from drnet_jax.models.backbone import Backbone
from drnet_jax.models.variables import network_shapes
from drnet_jax.models.weight_names import HEAD, KERAS, WeightNames, weight_names
from drnet_jax.pretrained.arrays import read_arrays
from drnet_jax.pretrained.errors import WeightsError
from drnet_jax.pretrained.misfits import Misfits, Wanted

Tree = Any
# PyTorch counts a BatchNorm's batches, which only its running mean without momentum needs.
_COUNT = "num_batches_tracked"


def load_weights(
    path: str | Path, network: Backbone, resolutions: tuple[int, ...], *, head: bool = True
) -> Tree:
    """Reads a weight file of torchvision, timm, Keras or the like into variables of a network.

    Args:
      path: `.safetensors`, `.npz`, a file of `torch.save`, or Keras's `.h5`; see `read_arrays`.
      network: see `variables_from_arrays`, and for the rest.
      resolutions: sides in pixels that BatchNorm is kept for.
      head: the file's classifier is the network's own.

    Raises:
      WeightsError: the file cannot be read, or is not of this network; see `read_arrays` and
        `variables_from_arrays`.
    """
    return variables_from_arrays(network, read_arrays(path), resolutions, head=head, origin=path)


def variables_from_arrays(
    network: Backbone,
    arrays: Mapping[str, np.ndarray],
    resolutions: tuple[int, ...],
    *,
    head: bool = True,
    origin: str | Path = "the weights",
) -> Tree:
    """The variables of `network` with these weights, in float32.

    Every resolution starts with the same BatchNorm. Whose names the arrays have is found by them.

    Args:
      network: one that `weight_names` knows: a ResNet, MobileNetV2 or EfficientNet-Lite0.
      arrays: by name, in the shapes of the library that they are from; float16, bfloat16, float32
        or float64.
      resolutions: sides in pixels that BatchNorm is kept for.
      head: whether the last layer is taken too. Without, it is zero, so that all classes are alike,
        and that of `arrays`, if there is one, is not looked at.
      origin: what messages call the weights.

    Raises:
      WeightsError: arrays are missing, left over, of another shape or type, or have values that
        cannot be, or the network is not made for them, or no resolution is given. One message
        counts all, and names ten of each kind.
    """
    if not resolutions:
        raise WeightsError(f"{origin}: name at least one resolution that BatchNorm is kept for")
    wanted = _wanted(network, resolutions[0])
    names = _chosen(network, wanted, arrays, resolutions[0], origin)
    suffix = _suffix(network, resolutions[0])
    head_layer = _head_layer(names, arrays)
    misfits = Misfits(origin, names.library, head_layer + names.layout.separator)
    converted, used = {}, set()
    for path, leaf in wanted.items():
        if not head and path[1:-1] == HEAD:
            converted[path] = jnp.zeros(leaf.shape, leaf.dtype)
            continue
        name = names.array(path, suffix)
        if path[1:-1] == HEAD:
            name = name.replace(names.layer(HEAD), head_layer)
        used.add(name)
        axes = names.layout.axes(path[1:-1], len(leaf.shape))
        array = misfits.checked(name, arrays, Wanted.of(path, leaf.shape, axes))
        if array is not None:
            converted[path] = jnp.asarray(array.transpose(axes))
    for name in set(arrays) - used:
        if name.endswith(_COUNT) or (not head and name.startswith(misfits.head)):
            continue
        misfits.left_over.append(name)
    misfits.report()
    return flax.traverse_util.unflatten_dict(
        {
            _at(path, suffix, _suffix(network, resolution)): value
            for resolution in resolutions
            for path, value in converted.items()
        }
    )


def num_outputs(
    network: Backbone,
    arrays: Mapping[str, np.ndarray],
    resolution: int,
    *,
    origin: str | Path = "the weights",
) -> int | None:
    """Classes of the last layer of `arrays`; None where they have none.

    Args:
      network: the one that they are for, whatever its own number of classes.
      arrays: see `variables_from_arrays`.
      resolution: one that the network takes.
      origin: what messages call the weights.

    Raises:
      WeightsError: the network is not made for these arrays.
    """
    wanted = _wanted(network, resolution)
    names = _chosen(network, wanted, arrays, resolution, origin)
    path = next(path for path in wanted if path[1:-1] == HEAD and path[-1] == "bias")
    name = names.array(path, _suffix(network, resolution))
    bias = arrays.get(name.replace(names.layer(HEAD), _head_layer(names, arrays)))
    return None if bias is None or bias.ndim != 1 else len(bias)


def _wanted(network: Backbone, resolution: int) -> dict[tuple[str, ...], Any]:
    """Shapes of the variables by path."""
    return dict(flax.traverse_util.flatten_dict(network_shapes(network, resolution)))


def _chosen(
    network: Backbone,
    wanted: Mapping[tuple[str, ...], Any],
    arrays: Mapping[str, np.ndarray],
    resolution: int,
    origin: str | Path,
) -> WeightNames:
    """The names of which the arrays have most; of equals, the first."""
    known = weight_names(network)
    if not known:
        raise WeightsError(
            f"{origin}: no file beside {type(network).__name__} says what other libraries call its "
            "arrays; see drnet_jax/models/weight_names.py"
        )
    suffix = _suffix(network, resolution)
    hits = [sum(names.array(path, suffix) in arrays for path in wanted) for names in known]
    names = known[hits.index(max(hits))]
    # Of a few names in common, the message of what is missing says more.
    if names.unfit and max(hits) > len(wanted) / 2:
        raise WeightsError(f"{origin}: {names.unfit}")
    return names


def _head_layer(names: WeightNames, arrays: Mapping[str, np.ndarray]) -> str:
    """The library's name of the last layer: of Keras, which names it anew, the only dense one."""
    if names.layout is KERAS:
        dense = [name for name, array in arrays.items() if array.ndim == 2]
        if len(dense) == 1:
            return dense[0].rsplit("/", 1)[0]
    return names.layer(HEAD)


def _suffix(network: Backbone, resolution: int) -> str:
    return f"_{resolution}" if network.resolution_aware else ""


def _at(path: tuple[str, ...], first: str, suffix: str) -> tuple[str, ...]:
    """The path at another resolution: collection and array of a BatchNorm end with it."""
    if not first:
        return path
    collection, *layers, leaf = path
    renamed = [
        part.removesuffix(first) + suffix if part.endswith(first) else part
        for part in (collection, leaf)
    ]
    return (renamed[0], *layers, renamed[1])
