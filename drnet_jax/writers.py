"""Where training figures go: metrics.jsonl, TensorBoard and the terminal."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

Figures = dict[str, Any]


def say(text: str) -> None:
    """Prints a line, on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes the file whole or not at all, on the first process only."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """Writes the file whole or not at all, on the first process only, in UTF-8.

    File names that are no UTF-8 keep their bytes.
    """
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(content, encoding="utf-8", errors="surrogateescape", newline="\n")
    temporary.replace(path)


class MetricWriter:
    """Appends figures to `metrics.jsonl` and, if wanted, to TensorBoard events.

    Only the first process writes. What an earlier run wrote beyond `(stage, step)`, the point this
    one resumes at, is cut off.

    Args:
      workdir: where to write.
      stages: their names in running order.
      stage: the stage resumed in.
      step: steps of it that are done.
      tensorboard: write events too.
    """

    def __init__(
        self, workdir: Path, stages: tuple[str, ...], stage: str, step: int, *, tensorboard: bool
    ) -> None:
        self._file = None
        self._events = None
        if jax.process_index() != 0:
            return
        path = workdir / "metrics.jsonl"
        _cut_back(path, stages, stage, step)
        self._file = path.open("a")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(workdir / "tensorboard" / stage), purge_step=step + 1)

    def write(self, stage: str, step: int, figures: Figures) -> None:
        """Appends one line; figures are floats or lists of floats."""
        if self._file is None:
            return
        self._file.write(json.dumps({"stage": stage, "step": step, **figures}) + "\n")
        self._file.flush()
        if self._events is None:
            return
        for name, value in figures.items():
            values = value if isinstance(value, list) else [value]
            for index, scalar in enumerate(values):
                tag = f"{name}/{index}" if isinstance(value, list) else name
                self._events.add_scalar(tag, scalar, step)

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def _cut_back(path: Path, stages: tuple[str, ...], stage: str, step: int) -> None:
    if not path.exists():
        return
    kept = [
        json.dumps(entry) + "\n"
        for entry in read_metrics(path)
        if entry["stage"] in stages
        and (stages.index(entry["stage"]), entry["step"]) <= (stages.index(stage), step)
    ]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def read_metrics(path: Path) -> list[Figures]:
    """The lines of a `metrics.jsonl`; empty if there is none.

    A line that was being written when the run was killed is left out.
    """
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "stage" in entry and "step" in entry:
            entries.append(entry)
    return entries


class Progress:
    """A progress bar on a terminal, a line at every report elsewhere."""

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
            print(f"{self._stage} {step}/{self._num_steps} ETA {left:.0f} s {text}", flush=True)

    def message(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if not self._quiet:
            tqdm.write(text)

    def warn(self, text: str) -> None:
        """Prints a line that only this process knows, whichever it is."""
        tqdm.write(text, file=sys.stderr)

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


def average(metrics: list[dict[str, np.ndarray]]) -> Figures:
    """Means over steps, as floats and lists of floats."""
    return {
        name: np.mean([step[name] for step in metrics], axis=0).astype(float).tolist()
        for name in metrics[0]
    }
