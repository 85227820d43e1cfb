"""`model.safetensors`: all variables of a model by flat names, `params/classifier/fc/bias`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from drnet_jax.checkpoints.checkpoint import CheckpointError, damaged
from drnet_jax.checkpoints.finite import find_not_finite, first_few
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.variables import abstract_variables
from drnet_jax.runtime.files import naming

# With one entry: the package writes several in any order.
_METADATA = {"format": "flax"}


def write_weights(variables: Any, path: Path) -> None:
    """Writes the variables of a model: the same bytes for the same variables.

    Raises:
      CheckpointError: an array holds NaN or infinity.
      OSError: naming the file.
    """
    found = find_not_finite(variables)
    if found:
        raise CheckpointError(f"the model holds values that are not finite ({found})")
    # The package writes the memory of an array as it lies there.
    arrays = {
        name: np.array(leaf, order="C") for name, leaf in flatten_dict(variables, sep="/").items()
    }
    with naming(path):
        save_file(arrays, path, metadata=_METADATA)


def read_weights(model: DRNet, path: Path) -> Any:
    """The variables of a model.

    Raises:
      CheckpointError: the file is missing, damaged or no safetensors, arrays are missing, left
        over, or of another shape or type than the model's, or values are not finite.
    """
    try:
        arrays = load_file(path)
    # The package raises whatever a header leads to: KeyError for a type that NumPy has not.
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise damaged(path, error) from error
    expected = flatten_dict(abstract_variables(model), sep="/")
    if problems := _problems(arrays, expected):
        raise CheckpointError(
            f"{path} is not of the network that config.json describes: {'; '.join(problems)}"
        )
    variables = unflatten_dict(arrays, sep="/")
    if found := find_not_finite(variables):
        raise CheckpointError(
            f"{path} holds values that are not finite ({found}): its training diverged; use "
            "another one"
        )
    return jax.device_put(variables)


def _problems(
    arrays: dict[str, np.ndarray], expected: dict[str, jax.ShapeDtypeStruct]
) -> list[str]:
    """What differs, in words: each kind with how many arrays and the first few of them."""
    others = [
        f"{name} {_kind(arrays[name])} in the place of {_kind(wanted)}"
        for name, wanted in expected.items()
        if name in arrays and _kind(arrays[name]) != _kind(wanted)
    ]
    found = {
        "missing": sorted(expected.keys() - arrays.keys()),
        "left over": sorted(arrays.keys() - expected.keys()),
        "of another shape or type": sorted(others),
    }
    return [
        f"{len(names)} arrays are {what} ({first_few(names)})"
        for what, names in found.items()
        if names
    ]


def _kind(array: np.ndarray | jax.ShapeDtypeStruct) -> str:
    return f"{array.dtype}{list(array.shape)}"
