"""On what and by which command figures were made, to stand beside them."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import jax

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(command: str | None = None) -> dict[str, str]:
    """Device, versions and command.

    Args:
      command: None: the one that this process runs.
    """
    arguments = [Path(sys.argv[0]).name, *sys.argv[1:]]
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {
        "command": command or shlex.join(["python", *arguments]),
        "device": f"{device}, {os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }
