"""Where training figures go: metrics.jsonl and TensorBoard."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

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


def average(metrics: list[dict[str, np.ndarray]]) -> Figures:
    """Means over steps, as floats and lists of floats."""
    return {
        name: np.mean([step[name] for step in metrics], axis=0).astype(float).tolist()
        for name in metrics[0]
    }
