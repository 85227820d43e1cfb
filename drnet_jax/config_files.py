"""Where configurations are: files of the user's, and those that the project ships in `configs/`."""

import importlib.util
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


def load_config(name: str) -> ConfigDict:
    """The configuration of a shipped file, for another one that builds on it.

    Args:
      name: of the file in `configs/`, without `.py`.

    Raises:
      ConfigError: there is no such file.
    """
    config = call_file(shipped_configs() / f"{name}.py", "get_config")
    assert isinstance(config, ConfigDict)
    return config


def call_file(path: Path, function: str) -> Any:
    """What a function of a Python file returns.

    Raises:
      ConfigError: there is no such file or function.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; {shipped_configs()} has the shipped ones")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ConfigError(f"{path} has no function {function}(); see {shipped_configs()}")
    return getattr(module, function)()
