"""Fields of a configuration set on a command line: `--config.joint.eta=0.5`."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from drnet_jax.config import ConfigError, flatten, get_field

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(=.*)?", re.DOTALL)


def override(config: ConfigDict, arguments: Sequence[str]) -> list[str]:
    """Sets the fields that a command line names; the last value counts.

    `--config.<field>=<value>`, or the value as the next argument; `--config.<field>` and
    `--noconfig.<field>` of a bool. Fields that may be unset (`joint.alpha`) take None.

    Args:
      config: changed in place, and locked.
      arguments: of the program.

    Returns:
      The other arguments, in order.

    Raises:
      ConfigError: a field that there is not, no value, or one of another type.
    """
    known = flatten(config)
    values: list[tuple[str, str]] = []
    others = []
    left = iter(arguments)
    for argument in left:
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            others.append(argument)
            continue
        name = match[2]
        if name not in known:
            raise ConfigError(unknown_field(name, known))
        if match[3] is None and not isinstance(known[name], bool):
            argument += f"={_next(left, argument)}"
        if argument.endswith("=None") and _may_be_unset(config, name):
            config.update_from_flattened_dict({name: None})
            values = [(other, text) for other, text in values if other != name]
        else:
            values.append((name, argument))
    _parse(config, [text for _, text in values])
    return others


def _next(arguments: Iterable[str], name: str) -> str:
    for value in arguments:
        return value
    raise ConfigError(f"{name} has no value: {name}=...")


def unknown_field(name: str, known: Iterable[str]) -> str:
    """What to say of a field that there is not, with the one that may be meant."""
    known = sorted(known)
    if any(field.startswith(f"{name}.") for field in known):
        return f"config field {name!r} is a section: set the fields in it, one by one"
    close = difflib.get_close_matches(name, known, n=1)
    if not close:
        last = {field.split(".")[-1]: field for field in known}
        found = difflib.get_close_matches(name.split(".")[-1], last, n=1)
        close = [last[field] for field in found]
    hint = f"did you mean {close[0]!r}?" if close else "drnet_jax/config.py lists them all"
    return f"unknown config field {name!r}; {hint}"


def _may_be_unset(config: ConfigDict, name: str) -> bool:
    """Whether the field is a placeholder."""
    section, _, field = name.rpartition(".")
    holder: Any = get_field(config, section) if section else config
    return isinstance(dict(holder.items(preserve_field_references=True))[field], FieldReference)


def _parse(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Values by the types of the fields."""
    arguments = ["", *overrides]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
    except (flags.Error, ValueError, TypeError) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
