"""`--mode=predict`: labels, confidences and resolutions of the pictures in a folder."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from drnet_jax.budgets.solve import budget_lambda
from drnet_jax.checkpoints.model_key import model_key
from drnet_jax.checkpoints.restore import (
    TrainedModel,
    check_predictor,
    find_model,
    restore_variables,
)
from drnet_jax.config import ConfigError
from drnet_jax.data.datasets import eval_view
from drnet_jax.data.decode import SUFFIXES
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.files import describe, list_pictures
from drnet_jax.data.settings import check_outside, data_settings
from drnet_jax.data.sources import DataError
from drnet_jax.inference.create import file_classifier
from drnet_jax.inference.files import FileClassifier
from drnet_jax.inference.programs import CostTable
from drnet_jax.reports.prediction_batches import (
    Batch,
    ShardClassifier,
    classify_files,
    classify_on_workers,
)
from drnet_jax.reports.prediction_job import (
    JobDevice,
    JobState,
    PredictionTables,
    check_same,
    check_unchanged,
    locked_output,
    read_state,
    say_device,
    write_state,
)
from drnet_jax.reports.prediction_page import prediction_page
from drnet_jax.reports.predictions import (
    Prediction,
)
from drnet_jax.runtime.allocator import keep_freed_memory
from drnet_jax.runtime.compilation_cache import kept_programs
from drnet_jax.runtime.files import write_text
from drnet_jax.runtime.progress import Progress, log
from drnet_jax.runtime.ray_workers import check_ray


@dataclass(frozen=True)
class _PredictionJob:
    """One prediction of all pictures in a folder.

    Attributes:
      config: the configuration.
      trained: the model.
      root: the input folder.
      output: where the results go.
      view: what is seen of a picture.
      lam: lambda of `choose`.
      programs: where workers keep what they compile.
    """

    config: ConfigDict
    trained: TrainedModel
    root: Path
    output: Path
    view: EvalView
    lam: float
    programs: Path

    def facts(self) -> dict[str, Any]:
        """What the results depend on, but for the device and the pictures; JSON values."""
        config, model = self.config, self.trained.model
        facts = {
            "input": str(self.root.resolve()),
            "format": config.predict.format,
            "model": model_key(config, self.trained),
            "saved_at": self.trained.saved_at,
            "lambda": self.lam,
            "view": asdict(self.view),
            "resolutions": list(model.resolutions),
            "eval.batch_size": config.eval.batch_size,
            "inference.buckets": list(config.inference.buckets),
            "inference.fold": config.inference.fold,
            "inference.measure": config.inference.measure,
            "model.stock_operations": config.model.stock_operations,
        }
        return facts | ({"first_look": model.resolutions[-1]} if model.glances else {})

    def worker_engine(self) -> FileClassifier:
        """The compiled model of a worker, which has its process for itself."""
        if jax.default_backend() == "cpu":
            keep_freed_memory()
        with kept_programs(self.programs):
            return self.engine(None)

    def engine(self, times: CostTable | None) -> FileClassifier:
        """The compiled model; see `file_classifier`.

        Raises:
          ConfigError: it has other buckets than the times are of; or as there.
        """
        restored = restore_variables(self.trained)
        try:
            return file_classifier(self.config, restored, self.view, times)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(
                f"{self.output} holds an unfinished job of another kind of device ({error}): "
                "resume it there, give another folder, --config.predict.output=..., or remove it"
            ) from error


def restore_and_predict(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Restores a model and writes its results for every picture under `predict.input`.

    `predictions.csv` (or `.jsonl`), `unreadable.csv`, `predict.json` and `gallery.html`, in
    `predict.output` or in `predictions/<name of the input>` of the workdir. The data set is not
    needed. Rows are written batch by batch, and an unfinished job in the folder is resumed: on the
    same device the tables become what they would have been without the interruption.

    Returns:
      `num_images` with a prediction, `num_unreadable`, `shares` `[m]`, `gmacs` (mean per image),
      `images_per_second` of what was left to do (input included; None: nothing was), and `output`,
      the folder.

    Raises:
      ConfigError: no `predict.input`, several hosts, `predict.output` holds a finished job, another
        job, results of pictures that are replaced now or something else, it or the workdir lies in
        `predict.input`, or a budget of time, which is that of other programs.
      DataError: no such folder, no picture in it, or none that can be read.
      CheckpointError: no checkpoint, one of another model, or no trained predictor.
      BudgetError: nothing is calibrated for the budget, or it cannot be kept.
    """
    _check_workers(config)
    root = _input(config)
    output = Path(config.predict.output or workdir / "predictions" / root.resolve().name)
    # Now, not after hours of work.
    check_outside("predict.input", root, "--config.predict.output", output)
    check_outside("predict.input", root, "--workdir", workdir)
    state = read_state(output)
    pictures = state.pictures if state else _pictures(root)
    if config.budget.ms is not None:
        raise ConfigError(
            "budget.ms is the time of images in memory, and predictions decode and resize too: "
            "use budget.gmacs or budget.max_drop"
        )
    trained = find_model(config, Path(config.restore_from) if config.restore_from else workdir)
    check_predictor(trained)
    largest = trained.model.resolutions[0]
    lam = budget_lambda(config, trained, (largest, largest))
    view = eval_view(data_settings(config, workdir))
    programs = workdir.resolve() / "cache" / "programs"
    job = _PredictionJob(config, trained, root, output, view, lam, programs)
    if state:
        check_same(output, state, job.facts())
    with locked_output(output):
        if read_state(output) != state:
            raise ConfigError(f"another process has written to {output}: run the command again")
        return _predict(job, state, pictures)


def _predict(
    job: _PredictionJob, state: JobState | None, pictures: dict[str, str]
) -> dict[str, Any]:
    """Begins a job or resumes it, and finishes it; the summary."""
    workers, engine = job.config.predict.workers, None
    if state is None:
        times = device = None
        # Of workers the first to answer says what it runs on.
        if not workers:
            engine = job.engine(None)
            times, device = engine.times, JobDevice.of(engine.programs)
        state = JobState(job.facts(), times, pictures, device)
        write_state(job.output, state, finished=False)
    else:
        log(f"{job.output} holds an unfinished job, which is resumed")
    tables = PredictionTables(job.output, state, job.config.eval.batch_size)
    check_unchanged(job.output, job.root, state, tables.kept)
    rate = None
    left = [*pictures][tables.done :]
    if left and workers:
        devices: list[JobDevice] = []
        rate = _append(tables, len(pictures), _from_workers(job, state, left, devices))
        state = replace(state, device=state.device or devices[0])
    elif left:
        if engine is None:
            engine = job.engine(state.times)
            say_device(state, JobDevice.of(engine.programs))
        batches = classify_files(
            engine,
            job.root,
            left,
            job.trained.classes,
            lam=job.lam,
            batch_size=job.config.eval.batch_size,
        )
        rate = _append(tables, len(pictures), batches)
    predictions, unreadable = tables.read()
    if not predictions:
        write_state(job.output, state, finished=True)
        raise DataError(
            f"none of the {len(pictures)} pictures in {job.root} can be read; "
            f"{job.output / 'unreadable.csv'} says why"
        )
    if job.config.predict.gallery:
        page = prediction_page(
            job.config,
            job.trained,
            job.root,
            job.view,
            job.lam,
            predictions,
            unreadable,
            pictures,
        )
        write_text(job.output / "gallery.html", page)
    write_state(job.output, state, finished=True)
    resolutions = job.trained.model.resolutions
    summary = {
        "num_images": len(predictions),
        "num_unreadable": len(unreadable),
        "shares": _shares(predictions, resolutions),
        "gmacs": float(np.mean([prediction.gmacs for prediction in predictions])),
        "images_per_second": rate,
        "output": job.output,
    }
    _print(summary, resolutions)
    return summary


def _check_workers(config: ConfigDict) -> None:
    """Stops where several workers cannot give what one process does."""
    workers = config.predict.workers
    if workers and config.inference.measure:
        raise ConfigError(
            f"predict.workers={workers}: each worker would measure other times, and split batches "
            "by them: --config.inference.measure=False"
        )
    if workers:
        check_ray(workers)


def _input(config: ConfigDict) -> Path:
    """The input folder."""
    if not config.predict.input:
        raise ConfigError("predict.input is not set: --config.predict.input=FOLDER, of pictures")
    root = Path(config.predict.input)
    if not root.is_dir():
        raise DataError(f"predict.input={str(root)!r} is not a folder; set it to one of pictures")
    return root


def _pictures(root: Path) -> dict[str, str]:
    """The version of every picture in a folder, by path from there; the other files are named."""
    found = list_pictures(root)
    if found.left_out:
        log(describe(found.left_out, root))
    if not found.pictures:
        raise DataError(
            f"predict.input={str(root)!r} has no picture ({', '.join(SUFFIXES)}) in it or in its "
            "folders"
        )
    return {picture.name: picture.version for picture in found.pictures}


def _from_workers(
    job: _PredictionJob, state: JobState, names: Sequence[str], devices: list[JobDevice]
) -> Iterator[Batch]:
    """The rows of files that several workers classify, as one process would have them.

    Args:
      job: which.
      state: of the job; one without a device gets that of the first answer.
      names: of the files.
      devices: to which those of the workers are added.
    """
    classifier = ShardClassifier(
        job.worker_engine, job.root, job.trained.classes, job.lam, job.config.eval.batch_size
    )
    workers = job.config.predict.workers
    log(f"{workers} workers of Ray compile every resolution and bucket ...")
    for rows in classify_on_workers(classifier, names, workers):
        if rows.device not in devices:
            devices.append(rows.device)
            if state.device is None:
                state = replace(state, device=rows.device)
                write_state(job.output, state, finished=False)
            say_device(state, rows.device)
        yield from rows.batches


def _append(tables: PredictionTables, total: int, batches: Iterable[Batch]) -> float:
    """Appends batches to the tables, with a progress bar; returns pictures per second."""
    done = tables.done
    progress = Progress("predict", total, done, unit="image")
    start = time.perf_counter()
    rate = 0.0
    for predictions, unreadable in batches:
        tables.append(predictions, unreadable)
        done += len(predictions) + len(unreadable)
        rate = (done - tables.done) / (time.perf_counter() - start)
        progress.show(done, f"{rate:.0f} images/s")
    progress.close()
    return rate


def _shares(predictions: Sequence[Prediction], resolutions: Sequence[int]) -> list[float]:
    chosen = np.array([prediction.resolution for prediction in predictions])
    return [float((chosen == resolution).mean()) for resolution in resolutions]


def _print(summary: dict[str, Any], resolutions: Sequence[int]) -> None:
    rate = summary["images_per_second"]
    log(
        f"\n{summary['num_images']} pictures, {summary['gmacs']:.5f} GMACs each"
        + ("" if rate is None else f", {rate:.0f} images/s, input included")
    )
    chosen = zip(resolutions, summary["shares"], strict=True)
    log("shares: " + ", ".join(f"{size} px {100 * share:.1f} %" for size, share in chosen))
    if summary["num_unreadable"]:
        listed = summary["output"] / "unreadable.csv"
        log(f"{summary['num_unreadable']} more cannot be read: {listed}")
    names = sorted(path.name for path in summary["output"].iterdir() if path.suffix != ".lock")
    log(f"wrote {summary['output']}: {', '.join(names)}")
