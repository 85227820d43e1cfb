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
from drnet_jax.checkpoints.conversion import read_conversion
from drnet_jax.config import ConfigError
from drnet_jax.models.backbone import Backbone
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.weight_names import HEAD
from drnet_jax.pretrained.arrays import read_arrays
from drnet_jax.pretrained.weights import num_outputs, variables_from_arrays

Tree = Any
Arrays = Mapping[str, np.ndarray]
_SHOWN = 5
# What a start is read from; noted by its checksum.
_FILES = ("weights", "classes")


@dataclass(frozen=True)
class Imported:
    """An imported classifier.

    Attributes:
      variables: of the classifier, as `variables_from_arrays` gives them; a new head is zero.
      columns: which outputs of the file's own last layer it has, by the data's classes; None: none,
        its last layer has to be fitted to the data.
      outputs: classes of the file's own last layer; None: it has none.
      checksum: of the file.
    """

    variables: Tree
    columns: tuple[int, ...] | None
    outputs: int | None
    checksum: str

    @property
    def new_head(self) -> bool:
        """Whether no output of the file's is kept."""
        return self.columns is None


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
        kept = np.array(columns)
        whole = network.clone(num_classes=outputs)
        variables = variables_from_arrays(whole, arrays, sizes, origin=path)
        variables = with_head(variables, partial(jax.tree.map, lambda leaf: leaf[..., kept]))
    return Imported(variables, columns, outputs, file_checksum(path))


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


def checksums(config: ConfigDict) -> dict[str, str | None]:
    """Of `convert.weights` and `convert.classes`, by the field's last name; None: not given."""
    paths = {name: config.convert[name] for name in _FILES}
    return {name: file_checksum(Path(path)) if path else None for name, path in paths.items()}


def check_unchanged(config: ConfigDict, workdir: Path) -> None:
    """Stops where a file that the run in `workdir` began with is another one by now.

    The run goes on from its checkpoints, and would not see it. The file need not be there any more.

    Raises:
      ConfigError: naming the file.
      CheckpointError: `conversion.json` is damaged.
    """
    noted = read_conversion(workdir) or {}
    for name, found in checksums(config).items():
        path = config.convert[name]
        if path and Path(path).exists() and found != noted.get(name, found):
            raise ConfigError(
                f"convert.{name}={path!r} is not the file that the run in {workdir} began with "
                f"({found}, not {noted[name]}): restore it, or convert in another --workdir"
            )


def with_head(variables: Tree, change: Callable[[Tree], Tree]) -> Tree:
    """The variables of a classifier with its last layer, kernel and bias, changed."""
    (head,) = HEAD
    params = variables["params"]
    return {**variables, "params": {**params, head: change(params[head])}}


def _kept_columns(
    config: ConfigDict, outputs: int | None, classes: tuple[str, ...]
) -> tuple[int, ...] | None:
    """Which outputs of the file's head are the data's classes; None: none, the head is new."""
    wanted, path = config.convert.head, config.convert.weights
    if outputs is None and config.convert.classes:
        raise ConfigError(
            f"convert.classes={config.convert.classes!r} names outputs of a classifier, and {path} "
            "has none: leave it out"
        )
    names = () if outputs is None else _names(config, outputs)
    if wanted == "new" or (wanted == "auto" and outputs is None):
        return None
    if outputs is None:
        raise ConfigError(f"convert.head='keep', and {path} has no classifier: give 'new'")
    unknown = sorted(set(classes) - set(names)) if names else []
    if names and not unknown:
        return tuple(names.index(name) for name in classes)
    if not names and outputs == len(classes):
        return tuple(range(outputs))
    # Some known and some not are misspelt rather than new.
    if wanted == "auto" and len(unknown) in (0, len(classes)):
        return None
    if names:
        raise ConfigError(
            f"convert.head={wanted!r}, and {len(unknown)} of the data's {len(classes)} classes are "
            f"not in {config.convert.classes} ({', '.join(unknown[:_SHOWN])}): rename them, or "
            "give 'new'"
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
