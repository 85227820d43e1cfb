"""What a run says on the terminal."""

import sys
import time
from functools import cache

import jax
from tqdm import tqdm

from drnet_jax.runtime.metric_writer import Figures
from drnet_jax.runtime.terminal import print_line


def log(text: str) -> None:
    """Prints a line, on the first process only; see `print_line`."""
    if jax.process_index() == 0:
        print_line(text)


@cache
def log_once(text: str) -> None:
    """As `log`, the first time only: an evaluation opens the data of its training again."""
    log(text)


class Progress:
    """A progress bar on a terminal, a line at every report elsewhere.

    Its methods raise `OutputError` where what they print is lost.
    """

    def __init__(
        self, stage: str, num_steps: int, start_step: int = 0, *, unit: str = "step"
    ) -> None:
        self._stage = stage
        self._num_steps = num_steps
        self._start = start_step
        self._started = time.perf_counter()
        self._quiet = jax.process_index() != 0
        self._bar = None
        if sys.stderr.isatty() and not self._quiet:
            self._bar = tqdm(total=num_steps, initial=start_step, desc=stage, unit=unit)

    def report(self, step: int, figures: Figures) -> None:
        """Shows the figures after `step` steps."""
        self.show(step, _describe(figures))

    def show(self, step: int, text: str) -> None:
        """Shows a text after `step` steps."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif not self._quiet:
            elapsed = time.perf_counter() - self._started
            left = elapsed / max(step - self._start, 1) * (self._num_steps - step)
            print_line(f"{self._stage} {step}/{self._num_steps} ETA {left:.0f} s {text}")

    def message(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if not self._quiet:
            with tqdm.external_write_mode():
                print_line(text)

    def warn(self, text: str) -> None:
        """Prints a line that only this process knows, whichever it is."""
        with tqdm.external_write_mode(file=sys.stderr):
            print_line(text, sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _describe(figures: Figures) -> str:
    parts = [f"loss {figures['loss']:.3f}", f"acc {figures['accuracy']:.3f}"]
    if "gmacs_argmax" in figures:
        shares = "/".join(f"{100 * share:.0f}" for share in figures["shares"])
        parts.append(f"shares {shares} %")
        parts.append(f"GMACs {figures['gmacs_argmax']:.4g}")
    else:
        each = "/".join(f"{value:.3f}" for value in figures["accuracy_per_resolution"])
        parts.append(f"each {each}")
    parts.append(f"{figures['images_per_second']:.0f} img/s")
    # The share of the time that the step waited for its batch.
    parts.append(f"wait {100 * figures['input_wait']:.0f} %")
    return " ".join(parts)
