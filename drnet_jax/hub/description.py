"""`config.json` of a folder: the network, the preprocessing, the classes, and its own version."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import CheckpointError, damaged, read_object
from drnet_jax.checkpoints.config_history import comparable
from drnet_jax.checkpoints.measured_cost import parse_measured
from drnet_jax.config import ConfigError, default_config, flatten
from drnet_jax.config_checks import check_config
from drnet_jax.config_fields import FIELDS
from drnet_jax.data.eval_view import EvalView
from drnet_jax.hub.saved_model import SavedModel
from drnet_jax.models.create import check_model
from drnet_jax.models.macs import MeasuredCost
from drnet_jax.runtime.environment import VERSION

NAME = "config.json"
FORMAT = "drnet_jax adaptive classifier"
# Of what is written; a reader takes lower ones too, and refuses a higher one. Since 2 a folder may
# name no buckets, which readers of 1 call damage.
FORMAT_VERSION = 2
# The fields that are kept, by the prefixes of their names. None of them is a path.
_KEPT = ("model.", "predictor.", "data.name", "data.mean", "data.std", "inference.")


@dataclass(frozen=True)
class Description:
    """What `config.json` says.

    Attributes:
      config: the kept fields; others are at their default.
      view: what is classified of a picture.
      classes: their names, in the order of the logits.
      measured: the times that choices are made by; None: they are made by multiply-adds.
      key: see `SavedModel`.
      weights: size and checksum of the weights in words; None: not known.
    """

    config: ConfigDict
    view: EvalView
    classes: tuple[str, ...]
    measured: MeasuredCost | None
    key: str
    weights: str | None


def describe(saved: SavedModel, weights: str) -> dict[str, Any]:
    """The content of the file.

    Args:
      saved: the model.
      weights: size and checksum of its weights in words.
    """
    fields = flatten(saved.config).items()
    measured = saved.cost.measured
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "drnet_jax": VERSION,
        "model": saved.key,
        "classes": list(saved.classes),
        "view": asdict(saved.view),
        "choice_ms": None if measured is None else asdict(measured),
        "fields": {name: value for name, value in fields if name.startswith(_KEPT)},
        "weights": weights,
    }


def read_description(folder: Path) -> Description:
    """Reads what `describe` gave.

    Raises:
      CheckpointError: the file is missing, damaged, of another program, or of a newer format.
    """
    path = folder / NAME
    content = _read(path)
    _check_format(path, content)
    try:
        config = _config(path, _object("fields", content))
        measured = None
        if content["choice_ms"] is not None:
            times = _object("choice_ms", content)
            measured = parse_measured(times, len(config.model.resolutions))
        return Description(
            config=config,
            view=_view(_object("view", content)),
            classes=_classes(content["classes"]),
            measured=measured,
            key=_text("model", content["model"]),
            weights=_text("weights", content["weights"]) if "weights" in content else None,
        )
    except KeyError as error:
        raise damaged(path, f"it has no {error}") from error
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: name a folder that save_pretrained wrote"
        ) from error


def _check_format(path: Path, content: Mapping[str, Any]) -> None:
    """Stops for a file of another program, and of a later version of this one."""
    if content.get("format") != FORMAT:
        hint = " (it is of a run: load_run opens that)" if "model.name" in content else ""
        raise CheckpointError(
            f"{path} is none of save_pretrained{hint}: its format is "
            f"{content.get('format')!r:.40}, not {FORMAT!r}"
        )
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise damaged(path, f"format_version={version!r:.40}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of format {version}, and this version of drnet_jax reads up to "
            f"{FORMAT_VERSION}: use {content.get('drnet_jax')!r:.40} or later, which wrote it"
        )


def _config(path: Path, fields: Mapping[str, Any]) -> ConfigDict:
    """The configuration with these fields; newer ones are at their default.

    Raises:
      CheckpointError: fields, a network or arguments that are unknown here.
      ValueError: a value that cannot be.
    """
    given = comparable(fields)
    unknown = [n for n in sorted(given) if n not in FIELDS or not n.startswith(_KEPT)]
    if unknown:
        raise CheckpointError(
            f"{path} has fields that are unknown here ({', '.join(unknown[:5])}): use the version "
            "of drnet_jax that wrote it"
        )
    for name, value in given.items():
        if complaint := FIELDS[name].complaint(value):
            raise ValueError(f"{name}={value!r} {complaint}")
    config = default_config()
    config.update_from_flattened_dict(
        {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    )
    try:
        check_config(config, 1)
        check_model(config)
    except ConfigError as error:
        raise CheckpointError(
            f"{path} describes no model that this version of drnet_jax has: {error}"
        ) from error
    return config


def _view(content: Mapping[str, Any]) -> EvalView:
    size, fraction = content["size"], content["fraction"]
    for name, field, value in (
        ("size", "predictor.size", size),
        ("fraction", "data.eval_crop", fraction),
    ):
        if complaint := FIELDS[field].complaint(value):
            raise ValueError(f"view.{name}={value!r} {complaint}")
    return EvalView(size, fraction)


def _classes(content: Any) -> tuple[str, ...]:
    if not isinstance(content, list) or not content:
        raise ValueError("it names no classes")
    return tuple(_text("classes", name) for name in content)


def _object(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(content[name], dict):
        raise ValueError(f"{name} is no object")
    found: dict[str, Any] = content[name]
    return found


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} has {value!r:.40}, which is no text")
    return value
