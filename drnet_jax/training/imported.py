"""Stage 1 from imported weights: which head, what the network says of the data, and the start."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from drnet_jax.checkpoints.checksums import file_checksum
from drnet_jax.config import ConfigError
from drnet_jax.models.backbone import Backbone
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.weight_names import HEAD
from drnet_jax.pretrained.arrays import read_arrays
from drnet_jax.pretrained.weights import num_outputs, variables_from_arrays

Tree = Any
Arrays = Mapping[str, np.ndarray]
_SHOWN = 5


@dataclass(frozen=True)
class Imported:
    """An imported classifier.

    Attributes:
      variables: of the classifier, as `variables_from_arrays` gives them; a new head is zero.
      new_head: its last layer has to be fitted to the data.
      outputs: classes of the file's own last layer; None: it has none.
      checksum: of the file.
    """

    variables: Tree
    new_head: bool
    outputs: int | None
    checksum: str


def read_imported(config: ConfigDict, model: DRNet, classes: tuple[str, ...]) -> Imported:
    """Reads `convert.weights` into the model's classifier.

    A kept head of more classes than the data have loses the others, so that all figures are among
    the data's.

    Args:
      config: the whole configuration.
      model: with as many outputs as there are classes.
      classes: of the data.

    Raises:
      WeightsError: the file cannot be read, or is of another network.
      ConfigError: the head cannot be kept, or the file of its classes does not fit it.
    """
    path, network, sizes = Path(config.convert.weights), model.classifier, model.resolutions
    arrays = read_arrays(path)
    outputs = num_outputs(network, arrays, sizes[0], origin=path)
    columns = _kept_columns(config, outputs, classes)
    if columns is None:
        variables = variables_from_arrays(network, arrays, sizes, head=False, origin=path)
    else:
        whole = network.clone(num_classes=outputs)
        variables = variables_from_arrays(whole, arrays, sizes, origin=path)
        variables = with_head(variables, partial(jax.tree.map, lambda leaf: leaf[..., columns]))
    return Imported(variables, columns is None, outputs, file_checksum(path))


def weights_classes(config: ConfigDict, network: Backbone) -> tuple[str, ...]:
    """The classes of the weights' own head: of `convert.classes`, else numbered.

    Args:
      config: the whole configuration.
      network: the classifier, whatever its number of classes.

    Raises:
      WeightsError: the file cannot be read, or is of another network.
      ConfigError: it has no head, or `convert.classes` does not fit it.
    """
    path = Path(config.convert.weights)
    largest = max(config.model.resolutions)
    outputs = num_outputs(network, read_arrays(path), largest, origin=path)
    if outputs is None:
        raise ConfigError(
            f"convert.labels=False takes what {path} says of pictures for their labels, and it has "
            "no classifier: give weights with one"
        )
    names = _names(config, outputs)
    digits = len(str(outputs - 1))
    return names or tuple(f"class {index:0{digits}d}" for index in range(outputs))


def with_head(variables: Tree, change: Callable[[Tree], Tree]) -> Tree:
    """The variables of a classifier with its last layer, kernel and bias, changed."""
    (head,) = HEAD
    params = variables["params"]
    return {**variables, "params": {**params, head: change(params[head])}}


def _kept_columns(
    config: ConfigDict, outputs: int | None, classes: tuple[str, ...]
) -> np.ndarray | None:
    """Which outputs of the file's head are the data's classes; None: none, the head is new."""
    wanted, path = config.convert.head, config.convert.weights
    names = () if outputs is None else _names(config, outputs)
    if wanted == "new" or (wanted == "auto" and outputs is None):
        return None
    if outputs is None:
        raise ConfigError(f"convert.head='keep', and {path} has no classifier: give 'new'")
    unknown = sorted(set(classes) - set(names)) if names else []
    if names and not unknown:
        return np.array([names.index(name) for name in classes])
    if not names and outputs == len(classes):
        return np.arange(outputs)
    if wanted == "auto":
        return None
    if names:
        raise ConfigError(
            f"convert.head='keep', and {len(unknown)} classes of the data are none of "
            f"{config.convert.classes} ({', '.join(unknown[:_SHOWN])}): give 'new'"
        )
    raise ConfigError(
        f"convert.head='keep', and the classifier in {path} has {outputs} classes, the data "
        f"{len(classes)}: name its classes in a file (convert.classes), or give 'new'"
    )


def _names(config: ConfigDict, outputs: int) -> tuple[str, ...]:
    """The lines of `convert.classes`; none without it."""
    if not config.convert.classes:
        return ()
    path = Path(config.convert.classes)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"convert.classes={str(path)!r} is no text in UTF-8 ({error})") from error
    except OSError as error:
        raise ConfigError(f"convert.classes={str(path)!r}: {error.strerror}") from error
    names = tuple(line.strip() for line in lines)
    twice = sorted({name for name in names if names.count(name) > 1})
    if len(names) != outputs or "" in names or twice:
        what = f"names {twice[0]!r} twice" if twice else f"has {len(names)} lines"
        raise ConfigError(
            f"convert.classes={str(path)!r} {what}: it must have a name in every line, one for "
            f"each of the {outputs} classes of {config.convert.weights}"
        )
    return names
