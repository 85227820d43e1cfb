"""Options of a network as a text in the syntax of a call: `"width=16, stem='small'"`.

Values are Python literals, and words without quotes are strings. Which options there are, their
types and their defaults is what the signature of the network's builder says.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin


def parse_arguments(text: str, builder: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments that `text` gives to a builder, in the types of its signature.

    Args:
      text: keyword arguments as in a call; empty: none.
      builder: a function of the number of classes and of options by keyword.

    Raises:
      ValueError: it is no list of keyword arguments, the builder does not take one of them, or its
        value is of another type; the message names the keyword.
    """
    given = _keywords(text)
    known = _options(builder)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"there is no {' and no '.join(unknown)}")
    return {name: _typed(name, value, known[name].annotation) for name, value in given.items()}


def canonical_arguments(text: str, builder: Callable[..., Any]) -> str:
    """The same arguments in the order of the signature, without those that are the default.

    Raises:
      ValueError: see `parse_arguments`.
    """
    given = parse_arguments(text, builder)
    known = _options(builder)
    return format_arguments(
        {
            name: given[name]
            for name in known
            if name in given and given[name] != known[name].default
        }
    )


def format_arguments(arguments: Mapping[str, Any]) -> str:
    """What `parse_arguments` reads."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def default_arguments(builder: Callable[..., Any]) -> dict[str, Any]:
    """All options of a builder with their defaults."""
    return {name: option.default for name, option in _options(builder).items()}


def check_signature(builder: Callable[..., Any]) -> None:
    """Checks that every option of a builder can be given as a text, or left out.

    Raises:
      TypeError: an option is not keyword-only, has no default, or a type that no literal has.
    """
    for name, option in _options(builder).items():
        if option.kind is not option.KEYWORD_ONLY or option.default is option.empty:
            raise TypeError(f"{name} of {builder} must be keyword-only, with a default")
        default = option.default
        try:
            typed = _typed(name, default, option.annotation)
        except ValueError as error:
            raise TypeError(f"the default of {builder}: {error}") from error
        # A list in the place of a tuple would make the network unhashable.
        if isinstance(default, list) or typed != default:
            raise TypeError(f"the default {default!r} of {name} of {builder} is of another type")


def _keywords(text: str) -> dict[str, Any]:
    if "#" in text:
        raise ValueError("cannot be read as keyword=value, keyword=value: it has a comment")
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"cannot be read as keyword=value, keyword=value: {error}") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError("cannot be read as keyword=value, keyword=value")
    if call.args:
        raise ValueError(f"{ast.unparse(call.args[0])} has no keyword")
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        name, value = keyword.arg, keyword.value
        if name is None:
            raise ValueError(f"**{ast.unparse(value)} has no keyword")
        if name in found:
            raise ValueError(f"{name} is given twice")
        try:
            found[name] = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(
                f"{name}={ast.unparse(value)} is neither a literal nor a word"
            ) from error
    return found


def _options(builder: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """All parameters but the first, the number of classes."""
    parameters = inspect.signature(builder, eval_str=True).parameters
    return dict(list(parameters.items())[1:])


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value in the type of an annotation: an int as a float, a list as a tuple.

    Raises:
      ValueError: it is of another type.
      TypeError: no literal has this type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{name} is too large") from error
    if kind in (bool, int, float, str):
        if type(value) is kind:
            return value
    elif origin is Literal:
        if value in inner:
            return value
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, inner))}")
    elif origin is tuple and inner[1:] == (...,):
        if isinstance(value, (tuple, list)):
            return tuple(_typed(name, item, inner[0]) for item in value)
    else:
        raise TypeError(f"{name} is a {kind}: use bool, int, float, str, Literal or tuple[_, ...]")
    wanted = kind.__name__ if isinstance(kind, type) else kind
    raise ValueError(f"{name}={value!r} must be of type {wanted}")
