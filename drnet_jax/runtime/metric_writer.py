"""Where training figures go: metrics.jsonl and TensorBoard."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from drnet_jax.runtime.files import naming, write_text

if TYPE_CHECKING:
    from drnet_jax.runtime.events import Events

Figures = dict[str, Any]


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
        self._path = workdir / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        self._events: Events | None = None
        if not self._writes:
            return
        _cut_back(self._path, stages, stage, step)
        if tensorboard:
            # With it comes TensorBoard's format, which not every run needs.
            from drnet_jax.runtime import events

            self._events = events.Events(workdir / "tensorboard" / stage, first_step=step + 1)

    def write(self, stage: str, step: int, figures: Figures) -> None:
        """Appends one line; figures are floats or lists of floats.

        Raises:
          OSError: it cannot be written; the file is named.
        """
        if not self._writes:
            return
        with naming(self._path), self._path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **figures}) + "\n")
        if self._events is None:
            return
        scalars: dict[str, float] = {}
        for name, value in figures.items():
            if isinstance(value, list):
                scalars |= {f"{name}/{index}": scalar for index, scalar in enumerate(value)}
            else:
                scalars[name] = value
        self._events.write(step, scalars)

    def close(self) -> None:
        """Closes the files."""
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
    write_text(path, "".join(kept))


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


def average(metrics: list[dict[str, np.ndarray]]) -> Figures:
    """Means over steps, as floats and lists of floats."""
    return {
        name: np.mean([step[name] for step in metrics], axis=0).astype(float).tolist()
        for name in metrics[0]
    }
