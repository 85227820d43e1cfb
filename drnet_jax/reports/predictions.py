"""What is said of every picture, and the tables that it is written to."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from drnet_jax.runtime.files import write_text


@dataclass(frozen=True, slots=True)
class Prediction:
    """A line of the table.

    Attributes:
      file: path from the input folder, with slashes.
      label: the class's name.
      class_index: its place among the classes, from 0.
      confidence: softmax of its logit, at the chosen resolution.
      resolution: the chosen one, in pixels.
      gmacs: spent on the picture, predictor included.
    """

    file: str
    label: str
    class_index: int
    confidence: float
    resolution: int
    gmacs: float


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A picture without a prediction.

    Attributes:
      file: path from the input folder, with slashes.
      reason: in words.
    """

    file: str
    reason: str


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Writes a line each: JSON objects if the file is named `.jsonl`, else CSV with a header."""
    names = [field.name for field in fields(Prediction)]
    rows = [astuple(prediction) for prediction in predictions]
    if path.suffix == ".jsonl":
        lines = (json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
        write_text(path, "".join(lines))
    else:
        write_text(path, _csv(names, rows))


def write_unreadable(path: Path, unreadable: Sequence[Unreadable]) -> None:
    """Writes CSV with a header."""
    names = [field.name for field in fields(Unreadable)]
    write_text(path, _csv(names, map(astuple, unreadable)))


def _csv(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()
