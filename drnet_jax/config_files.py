"""Where configurations are: files of the user's, and those that the project ships in `configs/`."""

import runpy
import traceback
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.config import ConfigError

_PACKAGE = Path(__file__).parent


def shipped_configs() -> Path:
    """The directory `configs/`: beside the package in a checkout, inside of it once installed."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find_config(path: str | Path) -> Path:
    """The file of that name: from the working directory, else a shipped one (`configs/tiny.py`).

    Raises:
      ConfigError: there is no such file.
    """
    found = Path(path)
    if found.is_file():
        return found
    shipped = shipped_configs().parent / found
    if found.parts[:1] == ("configs",) and shipped.is_file():
        return shipped
    raise ConfigError(
        f"config file {path} does not exist; {shipped_configs()} has the shipped ones"
    )


def load_config(name: str | Path) -> ConfigDict:
    """The configuration of a file.

    Args:
      name: of a file with `get_config()`, as for `find_config`; without `.py`: of a shipped one in
        `configs/`. What follows a colon is given to `get_config` (`my.py:large`).

    Raises:
      ConfigError: there is no such file, or it gives no configuration.
    """
    path, colon, argument = str(name).partition(":")
    if not path.endswith(".py"):
        path = str(shipped_configs() / f"{path}.py")
    config = call_file(find_config(path), "get_config", *([argument] if colon else []))
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"get_config() of {path} gives {type(config).__name__}, no ConfigDict")
    return config


def call_file(path: Path, function: str, *arguments: str) -> Any:
    """What a function of a Python file returns.

    Raises:
      ConfigError: there is no such file or function, or it fails.
    """
    if not path.is_file() or path.suffix != ".py":
        raise ConfigError(f"{path} is not a Python file; {shipped_configs()} has the shipped ones")
    try:
        found = runpy.run_path(str(path))
        if function in found:
            return found[function](*arguments)
    except ConfigError:
        raise
    # The file may raise anything.
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{_line(error, path)}: {type(error).__name__}: {text}") from error
    raise ConfigError(f"{path} has no function {function}(); see {shipped_configs()}")


def _line(error: Exception, path: Path) -> str:
    """Where in the file an error came up."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f"{path}, line {lines[-1]}" if lines else str(path)
