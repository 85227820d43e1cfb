"""Fields of a configuration set on a command line: `--config.joint.eta=0.5`."""

import ast
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.config import ConfigError, default_config, flatten
from drnet_jax.config_fields import FIELDS, Flag, Items, Number, Text, unknown_field
from drnet_jax.config_paths import expand_paths

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
# The beginning of another flag; -1 and -.5 are numbers.
_FLAG = re.compile(r"-+[^\W\d]")
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def set_fields(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets fields by their dotted names, and replaces `~` in paths.

    Args:
      config: changed in place.
      values: by name.

    Raises:
      ConfigError: `config` lacks a field or holds another type there, or a path is a bad one.
    """
    known = flatten(config)
    for name in values:
        if name not in known:
            raise ConfigError(unknown_field(name, known))
    try:
        config.update_from_flattened_dict(dict(values))
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    expand_paths(config)


def take_overrides(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The fields that a command line names, by the types that they are declared with.

    `--config.<field>=<value>`, or the value as the next argument; of a bool also `--config.<field>`
    alone and `--noconfig.<field>`. Fields that may be unset (`joint.alpha`) take None, tuples also
    a single element or elements with commas between them.

    Args:
      arguments: of the program.

    Returns:
      Values by dotted names, and the other arguments in order.

    Raises:
      ConfigError: a field that there is not, no value, one of another type, or two for one field.
    """
    values: dict[str, Any] = {}
    others = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            others.append(argument)
            continue
        negated, name, text = match.groups()
        if name not in FIELDS:
            raise ConfigError(unknown_field(name, FIELDS))
        if isinstance(FIELDS[name], Flag):
            value = _truth(name, negated, text, left)
        elif negated:
            raise ConfigError(f"{name} is not True or False: --config.{name}=<value>")
        else:
            value = _value(name, _next(name, left) if text is None else text)
        if name in values and values[name] != value:
            raise ConfigError(
                f"{name} is given twice, as {values[name]!r} and as {value!r}: leave out one"
            )
        values[name] = value
    return values, others


def _next(name: str, left: list[str]) -> str:
    """The value that follows as an argument of its own, taken from `left`."""
    if not left or _FLAG.match(left[0]) or left[0].startswith("="):
        raise ConfigError(f"--config.{name} has no value: --config.{name}=<value>")
    return left.pop(0)


def _truth(name: str, negated: str | None, text: str | None, left: list[str]) -> bool:
    if negated:
        if text is not None:
            raise ConfigError(f"--noconfig.{name} takes no value: --config.{name}=<True or False>")
        return False
    if text is None:
        follows = bool(left) and left[0].lower() in _TRUTHS
        return _TRUTHS[left.pop(0).lower()] if follows else True
    if text.lower() not in _TRUTHS:
        raise _mistyped(name, text)
    return _TRUTHS[text.lower()]


def _value(name: str, text: str) -> Any:
    """What `text` says in the type of the field."""
    match FIELDS[name]:
        case Number(optional=True) if text == "None":
            return None
        case Number(whole=whole):
            try:
                return int(text) if whole else float(text)
            except ValueError as error:
                raise _mistyped(name, text) from error
        case Items(item=Text()) if text and not re.search(r"[(\[,'\"\])]", text):
            return (text,)
        case Items():
            try:
                value = ast.literal_eval(text.strip())
            # Of source that is none, and of brackets in brackets without end.
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
                raise _mistyped(name, text) from error
            return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return text


def _mistyped(name: str, text: str) -> ConfigError:
    field = FIELDS[name]
    words = f"{name}={text!r} {field.complaint(text)}"
    if isinstance(field, Number) and field.optional:
        words += " or None"
    if isinstance(field, Items):
        usual: tuple[Any, ...] = ("a", "b") if isinstance(field.item, Text) else (1, 8)
        if field.complaint(usual):
            usual = (0.25, 0.5)
        example = flatten(default_config())[name] or usual
        words += f'; in quotes for the shell: --config.{name}="{tuple(example)}"'
    strange = next((c for c in text if not c.isascii()), "")
    if strange:
        words += f" (it has {strange!r}, {unicodedata.name(strange, 'unnamed').lower()})"
    return ConfigError(words)
