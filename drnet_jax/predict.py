"""`--mode=predict`: labels, confidences and resolutions of the pictures in a folder."""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.special import softmax

from drnet_jax.budgets.solve import budget_lambda
from drnet_jax.checkpoints.restore import RestoredModel, restore_model
from drnet_jax.config import ConfigError, budget_name
from drnet_jax.data.datasets import eval_view
from drnet_jax.data.decode import CorruptImageError, resize_square
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.folder import SUFFIXES
from drnet_jax.data.settings import data_settings
from drnet_jax.data.sources import DataError
from drnet_jax.inference.adaptive import AdaptiveClassifier, Classified
from drnet_jax.inference.create import adaptive_classifier
from drnet_jax.inference.encoded import Picture
from drnet_jax.models.macs import GIGA, model_cost
from drnet_jax.reports.gallery import gallery
from drnet_jax.reports.predictions import (
    Prediction,
    Unreadable,
    write_predictions,
    write_unreadable,
)
from drnet_jax.runtime.files import write_text
from drnet_jax.runtime.progress import Progress, log

# Batches that may wait for full buckets.
_MAX_WAITING = 4


def restore_and_predict(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Restores a model and writes what it says of every picture under `predict.input`.

    `predictions.csv` (or `.jsonl`), `unreadable.csv` and `gallery.html`, in `predict.output` or in
    `predictions/<name of the input>` of the workdir. The data set is not needed.

    Returns:
      `num_images` with a prediction, `num_unreadable`, `shares` `[m]`, `gmacs` (mean of an image),
      `images_per_second` (input included), and `output`, the folder.

    Raises:
      ConfigError: no `predict.input`, several hosts, `predict.output` is not empty, or a budget of
        time, which is that of other programs.
      DataError: no such folder, no picture in it, or none that can be read.
      CheckpointError: no checkpoint, one of another model, or no trained predictor.
      BudgetError: nothing is calibrated for the budget, or it cannot be kept.
    """
    root, files = _input(config)
    output = _output(config, workdir, root)
    if config.budget.ms is not None:
        raise ConfigError(
            "budget.ms is the time of images in memory, and predictions decode and resize too: "
            "use budget.gmacs or budget.max_drop"
        )
    restored = restore_model(config, Path(config.restore_from) if config.restore_from else workdir)
    largest = restored.model.resolutions[0]
    lam = budget_lambda(config, restored, (largest, largest))
    # Now, not after hours of work.
    output.mkdir(parents=True, exist_ok=True)
    view = eval_view(data_settings(config, workdir))
    engine = adaptive_classifier(config, restored, None)
    size = config.eval.batch_size
    start = time.perf_counter()
    predictions, unreadable = classify_files(
        engine, root, files, restored.classes, crop=view.fraction, lam=lam, batch_size=size
    )
    rate = len(files) / (time.perf_counter() - start)
    write_unreadable(output / "unreadable.csv", unreadable)
    if not predictions:
        raise DataError(
            f"none of the {len(files)} pictures in {root} can be read; {output / 'unreadable.csv'} "
            "says why"
        )
    write_predictions(output / f"predictions.{config.predict.format}", predictions)
    if config.predict.gallery:
        page = _gallery(config, restored, predictions, unreadable, view, lam)
        write_text(output / "gallery.html", page)
    summary = {
        "num_images": len(predictions),
        "num_unreadable": len(unreadable),
        "shares": _shares(predictions, restored.model.resolutions),
        "gmacs": float(np.mean([prediction.gmacs for prediction in predictions])),
        "images_per_second": rate,
        "output": output,
    }
    _print(summary, restored.model.resolutions)
    return summary


def _input(config: ConfigDict) -> tuple[Path, list[Path]]:
    """The input folder, and its pictures by path; hidden files and folders do not count."""
    if not config.predict.input:
        raise ConfigError("predict.input is not set: --config.predict.input=FOLDER, of pictures")
    root = Path(config.predict.input)
    if not root.is_dir():
        raise DataError(f"predict.input={str(root)!r} is not a folder; set it to one of pictures")
    files = [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and not path.is_dir()
    ]
    if not files:
        raise DataError(
            f"predict.input={str(root)!r} has no picture ({', '.join(SUFFIXES)}) in it or in its "
            "folders"
        )
    return root, files


def _output(config: ConfigDict, workdir: Path, root: Path) -> Path:
    """Where the results go: a new folder, or an empty one."""
    output = Path(config.predict.output or workdir / "predictions" / root.resolve().name)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(
            f"{output} exists and is not overwritten: give another folder, "
            "--config.predict.output=..., or remove it"
        )
    return output


def classify_files(
    engine: AdaptiveClassifier,
    root: Path,
    files: Sequence[Path],
    classes: Sequence[str],
    *,
    crop: float,
    lam: float,
    batch_size: int,
) -> tuple[list[Prediction], list[Unreadable]]:
    """Streams files through a classifier, with a progress bar.

    Args:
      engine: compiled with `own_sizes`.
      root: that predictions name the files from.
      files: in this order.
      classes: their names, in the order of the logits.
      crop: see `AdaptiveClassifier.classify_pictures`.
      lam: lambda of `choose`.
      batch_size: files that are read at once.

    Returns:
      Every file once, in order: in the one list or in the other.
    """
    waiting: deque[list[Picture]] = deque()

    def batches() -> Iterator[list[Picture]]:
        """Files by batch; what is on its way is noted."""
        for start in range(0, len(files), batch_size):
            waiting.append([Picture(file.read_bytes) for file in files[start : start + batch_size]])
            yield waiting[-1]

    names = iter([file.relative_to(root).as_posix() for file in files])
    predictions: list[Prediction] = []
    unreadable: list[Unreadable] = []
    progress = Progress("predict", len(files), unit="image")
    start = time.perf_counter()
    results = engine.classify_pictures(
        batches(), crop=crop, threads=os.cpu_count() or 1, lam=lam, max_waiting=_MAX_WAITING
    )
    for result in results:
        probabilities = softmax(result.logits.astype(np.float64), axis=1)
        for row, picture in enumerate(waiting.popleft()):
            if picture.problem is None:
                found = _prediction(next(names), result, row, probabilities[row], classes)
                predictions.append(found)
            else:
                unreadable.append(Unreadable(next(names), picture.problem))
        done = len(predictions) + len(unreadable)
        progress.show(done, f"{done / (time.perf_counter() - start):.0f} images/s")
    progress.close()
    return predictions, unreadable


def _prediction(
    name: str, result: Classified, row: int, probabilities: np.ndarray, classes: Sequence[str]
) -> Prediction:
    best = int(probabilities.argmax())
    return Prediction(
        file=name,
        label=classes[best],
        class_index=best,
        confidence=round(float(probabilities[best]), 6),
        resolution=int(result.resolutions[row]),
        gmacs=float(result.macs[row]) / GIGA,
    )


def _shares(predictions: Sequence[Prediction], resolutions: Sequence[int]) -> list[float]:
    chosen = np.array([prediction.resolution for prediction in predictions])
    return [float((chosen == resolution).mean()) for resolution in resolutions]


def _gallery(
    config: ConfigDict,
    restored: RestoredModel,
    predictions: Sequence[Prediction],
    unreadable: Sequence[Unreadable],
    view: EvalView,
    lam: float,
) -> str:
    """The page of these predictions."""
    root = Path(config.predict.input)
    resolutions = restored.model.resolutions

    def pixels(prediction: Prediction) -> np.ndarray | None:
        """What the classifier saw."""
        try:
            encoded = (root / prediction.file).read_bytes()
            square = view.decode(encoded)
        except (CorruptImageError, OSError):
            return None
        return resize_square(square, prediction.resolution)

    name = budget_name(config)
    mean = np.mean([prediction.gmacs for prediction in predictions])
    largest = model_cost(restored.model).classifier_gmacs[0]
    return gallery(
        predictions,
        unreadable,
        resolutions=resolutions,
        shown=config.predict.gallery,
        title=root.resolve().name,
        facts={
            "Model": f"{config.model.name}, {restored.stage} step {restored.step}",
            "Run": str(restored.origin),
            "Input": str(root),
            "Budget": f"{name} {config.budget[name]:g} (lambda {lam:.4g})" if name else "none",
            "Pictures": f"{len(predictions):,}",
            "Mean cost": f"{mean:.4g} GMACs, {mean / largest:.2f} of {resolutions[0]} px alone",
        },
        pixels=pixels,
    )


def _print(summary: dict[str, Any], resolutions: Sequence[int]) -> None:
    log(
        f"\n{summary['num_images']} pictures, {summary['gmacs']:.5f} GMACs each, "
        f"{summary['images_per_second']:.0f} images/s, input included"
    )
    chosen = zip(resolutions, summary["shares"], strict=True)
    log("shares: " + ", ".join(f"{size} px {100 * share:.1f} %" for size, share in chosen))
    if summary["num_unreadable"]:
        listed = summary["output"] / "unreadable.csv"
        log(f"{summary['num_unreadable']} more cannot be read: {listed}")
    names = sorted(path.name for path in summary["output"].iterdir())
    log(f"wrote {summary['output']}: {', '.join(names)}")
