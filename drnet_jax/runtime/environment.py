"""On what and by which command figures were made, to stand beside them."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import jax

# Of this package, which may run without being installed.
VERSION = "0.1.0"
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(command: str | None = None) -> dict[str, str]:
    """Device, versions and command.

    Args:
      command: None: the one that this process runs.
    """
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {
        "command": command or command_line(),
        "device": f"{device}, {os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }


def command_line() -> str:
    """The command that this process runs, as it was typed; the interpreter is called `python`."""
    arguments = sys.orig_argv[1:]
    script = arguments[0] if arguments else ""
    if script == sys.argv[0] and not script.startswith("-") and not script.endswith(".py"):
        # `drnet-jax`, say: the interpreter comes from its first line.
        return shlex.join([Path(script).name, *arguments[1:]])
    return shlex.join(["python", *arguments])
