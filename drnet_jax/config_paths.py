"""Paths as a user gives them: `~` and `~user` are replaced, as a shell does after a space only."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.config import ConfigError, flatten
from drnet_jax.config_fields import FIELDS, Field, Items, Text

# Of the keyboard, of a web page, of a text processor.
_QUOTES = "'\"`‘’‚‛“”„‟«»‹›"


def _is_path(field: Field) -> bool:
    inner = field.item if isinstance(field, Items) else field
    return isinstance(inner, Text) and inner.path


# Fields that hold a path, or paths.
PATH_FIELDS = tuple(name for name, field in FIELDS.items() if _is_path(field))


def expand_path(path: str, name: str = "") -> str:
    """A path with the home directory that it begins with in full.

    Args:
      path: may be empty, or relative.
      name: of the field that holds it, for errors.

    Raises:
      ConfigError: it stands in quotes, says `None`, or names a user that there is not.
    """
    what = f"{name}={path!r}" if name else repr(path)
    if path[:1] in tuple(_QUOTES) or path[-1:] in tuple(_QUOTES):
        raise ConfigError(f"{what} begins or ends with a quote: leave the quotes out")
    if path == "None":
        raise ConfigError(f"{what} is no path: leave it empty, or write ./None")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError(f"{what} is in the home directory of nobody: write it in full")
    return expanded


def user_path(path: str) -> Path:
    """See `expand_path`; the empty one is refused too, which an unset variable of a shell gives."""
    if not path.strip():
        raise ConfigError(f"{path!r} is empty: name a path")
    return Path(expand_path(path))


def expand_paths(config: ConfigDict) -> None:
    """`expand_path` in every field that holds a path; values of another type are left as they are.

    Args:
      config: changed in place.

    Raises:
      ConfigError: see `expand_path`.
    """
    values = flatten(config)
    expanded = {n: _expanded(n, values[n]) for n in PATH_FIELDS if n in values}
    changed = {name: value for name, value in expanded.items() if value != values[name]}
    config.update_from_flattened_dict(changed)


def _expanded(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return expand_path(value, name)
    if isinstance(value, Iterable):
        return [expand_path(v, name) if isinstance(v, str) else v for v in value]
    return value
