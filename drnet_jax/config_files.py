"""Where configurations are: files of the user's, and those that the project ships in `configs/`."""

import re
import runpy
import traceback
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.config import ConfigError, flatten
from drnet_jax.config_fields import FIELDS, unknown_field
from drnet_jax.config_paths import expand_paths, user_path

_PACKAGE = Path(__file__).parent
# A path may have colons of its own before `.py`.
_NAME = re.compile(r"(.+?\.py|[^:]+)(?::(.*))?", re.DOTALL)


def shipped_configs() -> Path:
    """The directory `configs/`: beside the package in a checkout, inside of it once installed."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find_config(path: str | Path) -> Path:
    """The file of that name: from the working directory, else a shipped one (`configs/tiny.py`).

    Args:
      path: of a Python file; `~` is replaced.

    Raises:
      ConfigError: there is no such file, or it is no Python file.
    """
    found = user_path(str(path))
    if found.suffix != ".py":
        kind = "a folder" if found.is_dir() else "not a Python file"
        raise ConfigError(f"config file {path} is {kind}; {shipped_configs()} has the shipped ones")
    if found.is_file():
        return found
    shipped = shipped_configs().parent / found
    if found.parts[:1] == ("configs",) and shipped.is_file():
        return shipped
    raise ConfigError(
        f"config file {path} does not exist; {shipped_configs()} has the shipped ones"
    )


def split_name(name: str | Path) -> tuple[str, str | None]:
    """The file of `--config`, and what follows it after a colon: `my.py:large`."""
    match = _NAME.fullmatch(str(name))
    return (match[1], match[2]) if match else (str(name), None)


def load_config(name: str | Path) -> ConfigDict:
    """The configuration of a file, with `~` replaced in its paths.

    Args:
      name: of a file with `get_config()`, as for `find_config`; a word alone: of a shipped one in
        `configs/`. What follows a colon is given to `get_config` (`my.py:large`).

    Raises:
      ConfigError: there is no such file, it gives no configuration, or one with other fields.
    """
    path, argument = split_name(name)
    if re.fullmatch(r"\w+", path):
        path = str(shipped_configs() / f"{path}.py")
    config = call_file(find_config(path), "get_config", *([] if argument is None else [argument]))
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"get_config() of {path} gives {type(config).__name__}, no ConfigDict")
    # A field that does not exist cannot be set by mistake.
    config.lock()
    names = flatten(config).keys()
    for unknown in sorted(names - FIELDS.keys()):
        raise ConfigError(f"{path}: {unknown_field(unknown, FIELDS)}")
    for missing in sorted(FIELDS.keys() - names):
        raise ConfigError(f"{path}: {missing} is missing; start from default_config()")
    try:
        expand_paths(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def call_file(path: Path, function: str, *arguments: str) -> Any:
    """What a function of a Python file returns.

    Raises:
      ConfigError: there is no such file or function, or it fails.
    """
    try:
        found = runpy.run_path(str(path))
        if function in found:
            return found[function](*arguments)
    except ConfigError:
        raise
    # The file may raise anything, and may want to end the program.
    except (Exception, SystemExit) as error:
        text = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{_line(error, path)}: {type(error).__name__}: {text}") from error
    raise ConfigError(f"{path} has no function {function}(); see {shipped_configs()}")


def _line(error: BaseException, path: Path) -> str:
    """Where in the file an error came up."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f"{path}, line {lines[-1]}" if lines else str(path)
