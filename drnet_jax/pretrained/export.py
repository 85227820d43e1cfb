"""Variables of ours at one resolution as a weight file for PyTorch."""

from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from safetensors.numpy import save

from drnet_jax.models.backbone import Backbone
from drnet_jax.models.layers import SHARED_STATISTICS
from drnet_jax.models.weight_names import WeightNames, weight_names
from drnet_jax.pretrained.errors import WeightsError
from drnet_jax.runtime.files import replacing

Tree = Any


def export_weights(
    path: str | Path,
    network: Backbone,
    variables: Tree,
    resolution: int,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a network's weights at one resolution as `.safetensors`, on the first process only.

    Names and shapes are torchvision's (EfficientNet-Lite0: timm's), so that
    `model.load_state_dict(safetensors.torch.load_file(path))` takes the file. Reading it again with
    `load_weights` gives the same bits. A pruned network's are for a model that is as narrow.

    Args:
      path: of the file.
      network: as `variables_from_arrays`.
      variables: of `network`, with BatchNorm for `resolution`.
      resolution: side in pixels whose BatchNorm is written.
      overwrite: whether a file that is there already may be replaced.

    Raises:
      WeightsError: there is such a file, the variables have no such resolution or are not finite,
        or PyTorch's libraries have no such network.
      OSError: the file cannot be written, naming it.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: give the file a name that ends in .safetensors")
    if path.exists() and not overwrite:
        raise WeightsError(f"{path} is there already: give another name, or overwrite=True")
    arrays = arrays_from_variables(network, variables, resolution)
    if jax.process_index() == 0:
        with replacing(path) as temporary:
            # Without it, PyTorch's libraries take the file for another framework's.
            temporary.write_bytes(save(arrays, metadata={"format": "pt"}))


def arrays_from_variables(
    network: Backbone, variables: Tree, resolution: int
) -> dict[str, np.ndarray]:
    """What `export_weights` writes: float32 arrays by PyTorch's names; arguments as of it.

    Raises:
      WeightsError: see `export_weights`.
    """
    names = _names(network)
    suffix = f"_{resolution}" if network.resolution_aware else ""
    statistics = SHARED_STATISTICS + suffix
    if statistics not in variables:
        kept = sorted(name for name in variables if name.startswith(SHARED_STATISTICS))
        raise WeightsError(f"there is no BatchNorm for {resolution} px, only {', '.join(kept)}")
    part = {"params": variables["params"], statistics: variables[statistics]}
    found = {}
    for place, value in flax.traverse_util.flatten_dict(part).items():
        # Scales and biases of the other resolutions.
        if place[0] == "params" and "bn" in place[-2] and not place[-1].endswith(suffix):
            continue
        array = np.asarray(value, np.float32)
        name = names.array(place, suffix)
        if not np.isfinite(array).all():
            raise WeightsError(f"{'/'.join(place)} is not finite: the training diverged")
        axes = np.argsort(names.layout.axes(place[1:-1], array.ndim))
        found[name] = np.ascontiguousarray(array.transpose(axes))
    return found


def _names(network: Backbone) -> WeightNames:
    known = weight_names(network)
    if not known:
        raise WeightsError(
            f"no file beside {type(network).__name__} says what PyTorch calls its arrays; see "
            "drnet_jax/models/weight_names.py"
        )
    if known[0].unfit:
        raise WeightsError(
            f"{known[0].library} has no such network: with these weights, its own would compute "
            "something else, by another padding and epsilon"
        )
    return known[0]
