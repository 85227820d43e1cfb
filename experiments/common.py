"""What the experiments share: on what they ran, and their tables."""

import os
import platform

import jax


def setup(command: str) -> dict[str, str]:
    """Device and versions, beside the command that makes the figures."""
    return {
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "command": command,
    }


def table(names: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(fraction: float) -> str:
    """Of a fraction, with one decimal and without the sign."""
    return f"{100 * fraction:.1f}"
