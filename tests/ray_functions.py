"""Functions for workers of Ray, in a module that those can import."""

import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


class Fatal:
    """Doubles a number; `deadly` kills the process, where `once` is given only the first one."""

    def __init__(self, deadly: int, once: Path | None = None) -> None:
        self.deadly, self.once = deadly, once

    def __call__(self, value: int) -> int:
        if value == self.deadly and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * value


class Absent:
    """Lacks a module where it is unpickled, as on a machine with another environment."""

    def __call__(self, value: int) -> int:
        return value

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return import_module, ("no_such_module",)
