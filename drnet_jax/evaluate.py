"""`--mode=eval`: every image at every resolution, or, by dispatch, at the chosen one only."""

import time
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from drnet_jax.budgets.solve import budget_lambda
from drnet_jax.checkpoints.answers import agreement
from drnet_jax.checkpoints.conversion import read_conversion
from drnet_jax.checkpoints.finite import NotFiniteError
from drnet_jax.checkpoints.model_key import model_key
from drnet_jax.checkpoints.restore import TrainedModel, check_predictor
from drnet_jax.checkpoints.runs import is_finished
from drnet_jax.data.pipeline import eval_host_batches
from drnet_jax.data.sources import DataError, Sample, Source
from drnet_jax.evaluation.control_figures import control_figures
from drnet_jax.evaluation.inputs import (
    ModelOutputs,
    evaluation_fields,
    find_and_load,
    load_split,
    missing,
    restore_and_load,
    with_origin,
)
from drnet_jax.evaluation.metrics import EvalRecords, by_class, by_resolution, by_size, summarise
from drnet_jax.evaluation.outputs import check_corrupt, name_images
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.inference.create import array_classifier
from drnet_jax.inference.decision import choose
from drnet_jax.inference.engine import Classified
from drnet_jax.models.macs import GIGA, ModelCost
from drnet_jax.reports.evaluation_report import pictures, write_report
from drnet_jax.reports.tables import print_tables
from drnet_jax.runtime.environment import environment
from drnet_jax.runtime.files import check_writable, write_json
from drnet_jax.runtime.progress import log

# Edges of the table by apparent size, in pixels.
_SIZE_EDGES = (10, 14, 20, 28, 40, 57)
# Batches that may wait for full buckets.
_MAX_WAITING = 16


def restore_and_evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Evaluates a trained model, prints tables and writes `eval.json` and `report.html`.

    The model runs once: its outputs are kept in `logits.npz`, from which other budgets follow.
    After stage 1 alone there is no trained predictor: only the fixed resolutions are given, and
    what would depend on its choices is null.

    Args:
      config: with the model the checkpoint was trained with.
      workdir: whose checkpoint is evaluated, unless `restore_from` names another; the results are
        written here.

    Raises:
      CheckpointError: no checkpoint, one of another model, or a damaged file beside it.
      DataError: the data cannot be read, or has other classes.
      BudgetError: nothing is calibrated for the budget, or it cannot be kept.
      OSError: `workdir` cannot be written to.
    """
    check_writable(workdir)
    split = config.eval.split
    trained, source = find_and_load(config, workdir, split)
    # Before the model runs: the file that says so may be damaged.
    finished = is_finished(trained.origin, trained.stage)
    lam = budget_lambda(config, trained, source.image_size)
    outputs = ModelOutputs(config, workdir, trained)
    logits = outputs.of(split, source)
    records = with_lambda(logits.records(), trained.cost, lam)
    records = with_origin(records, source)
    calibration = None
    if has_predictor(trained) and config.eval.controls:
        calibration = _calibration(config, workdir, trained, outputs, records)
    sizes = source.metadata.get("apparent_size")
    summary = evaluation(trained, records, calibration, lam, sizes)
    summary["num_corrupt"] = len(source) - len(records.index)
    summary |= {"stage": trained.stage, "checkpoint_step": trained.step, "finished": finished}
    summary |= {"split": split, "identities": trained.identities}
    summary["model"] = model_key(config, trained)
    if (conversion := read_conversion(trained.origin)) is not None:
        summary["conversion"] = conversion
    summary["config"] = trained.config | evaluation_fields(config)
    summary["environment"] = environment() | {"outputs": str(logits.device)}
    write_json(workdir / "eval.json", summary)
    report = workdir / "report.html"
    shown = pictures(source)
    gallery = config.eval.gallery
    write_report(report, summary, trained, logits, records, shown, gallery=gallery)
    # At last: nobody may read it any more.
    print_tables(summary)
    log(f"wrote {workdir / 'eval.json'} and {report}")
    return summary


def _calibration(
    config: ConfigDict,
    workdir: Path,
    trained: TrainedModel,
    outputs: ModelOutputs,
    records: EvalRecords,
) -> EvalRecords:
    """Records of the calibration split, without images that cannot be decoded; or `records`.

    Raises:
      DataError: more than `data.max_corrupt` of them cannot be decoded.
    """
    if config.eval.split == "calibration":
        return records
    log("controls: the calibration split too (--config.eval.controls=False: no) ...")
    source = load_split(config, workdir, trained, "calibration")
    found = outputs.of("calibration", source, skip_corrupt=True)
    corrupt, limit = missing(found, source), config.data.max_corrupt
    if len(corrupt):
        words = f"{len(corrupt)} calibration images cannot be read ({name_images(source, corrupt)})"
        if len(corrupt) > limit:
            raise DataError(
                f"{words}, more than data.max_corrupt={limit}: repair them, raise it, or do "
                "without the controls, --config.eval.controls=False"
            )
        log(f"{words}: the controls are computed without them")
    return found.records()


def has_predictor(trained: TrainedModel) -> bool:
    """Whether there is a trained predictor, which chooses."""
    return trained.stage != "pretrain" and len(trained.model.resolutions) > 1


def with_lambda(records: EvalRecords, cost: ModelCost, lam: float) -> EvalRecords:
    """The records with the choices at another lambda than 0."""
    costs = np.array(cost.choice_costs)
    return replace(records, choice=choose(records.scores, costs, lam)) if lam else records


def evaluation(
    trained: TrainedModel,
    records: EvalRecords,
    calibration: EvalRecords | None,
    lam: float,
    sizes: np.ndarray | None,
) -> dict[str, Any]:
    """Everything that `eval.json` says of the images.

    Args:
      trained: the model.
      records: of the evaluated split, with the choices at `lam`.
      calibration: of the calibration split; None: no controls.
      lam: lambda of `choose`.
      sizes: by index in the source, the apparent size in pixels, where it is known.
    """
    cost, resolutions = trained.cost, trained.model.resolutions
    summary = summarise(records, resolutions, cost)
    summary["lambda"] = lam
    if cost.measured is not None:
        # What lambda counts.
        summary["choice_ms"] = asdict(cost.measured)
    summary["resampled"] = resampled(records)
    if not has_predictor(trained) and len(resolutions) > 1:
        summary |= dict.fromkeys(("top1", "top5", "gmacs", "gmacs_classifier", "shares"))
        return summary
    if calibration is not None:
        summary["controls"] = control_figures(records, calibration, cost, lam, resolutions)
    summary["by_resolution"] = by_resolution(records, resolutions)
    summary["by_class"] = by_class(records, trained.classes)
    if sizes is not None:
        summary["by_apparent_size"] = by_size(records, sizes[records.index], _SIZE_EDGES)
    return summary


def resampled(records: EvalRecords) -> dict[str, Any]:
    """What was resampled for the intervals: images, or origins with all their images."""
    if records.origin is None:
        return {"by": "image", "count": len(records.index)}
    return {"by": "origin", "count": len(np.unique(records.origin))}


def restore_and_evaluate_bucketed(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Restores a model, evaluates it by dispatch and writes `eval_bucketed.json`.

    Without the fixed resolutions and what is compared with them: nothing but the chosen resolution
    is computed. On one device. Images that cannot be decoded are left out, and counted.

    Raises:
      ConfigError: several hosts.
      CheckpointError: no checkpoint, one of another model, or no trained predictor.
      DataError: the data cannot be read, or is other data; or, once the file is written, images
        cannot be decoded and `data.skip_corrupt` is not set.
      BudgetError: nothing is calibrated for the budget, or it cannot be kept.
      OSError: `workdir` cannot be written to.
    """
    check_writable(workdir)
    restored, source = restore_and_load(config, workdir, config.eval.split)
    check_predictor(restored)
    lam = budget_lambda(config, restored, source.image_size)
    engine = array_classifier(config, restored, source.image_size)
    start = time.perf_counter()
    labels, got, corrupt = classify_source(engine, source, config.eval.batch_size, lam)
    seconds = time.perf_counter() - start
    if not len(labels):
        raise DataError(f"no image of the {config.eval.split} split can be decoded")
    best = np.argsort(-got.logits, axis=1, kind="stable")[:, :5] == labels[:, None]
    counts = np.bincount(got.choices, minlength=len(engine.resolutions))
    gmacs = float(got.macs.mean()) / GIGA
    summary = {
        "num_images": len(labels),
        "top1": float(best[:, 0].mean()),
        "top5": float(best.any(axis=1).mean()),
        "gmacs": gmacs,
        "gmacs_classifier": gmacs - engine.cost.predictor_gmacs,
        "resolutions": engine.resolutions.tolist(),
        "shares": (counts / len(labels)).tolist(),
        "lambda": lam,
        "images_per_second": len(labels) / seconds,
        "num_corrupt": len(corrupt),
        "stage": restored.stage,
        "checkpoint_step": restored.step,
        "split": config.eval.split,
        "config": restored.config | evaluation_fields(config),
    }
    path = workdir / "eval_bucketed.json"
    write_json(path, summary)
    _print_bucketed(summary)
    log(f"wrote {path}")
    # After what was computed of the others is kept.
    check_corrupt(source, corrupt, skip=config.data.skip_corrupt)
    return summary


@dataclass(frozen=True)
class _Batch:
    """Images `[n, h, w, 3]`, labels and indices `[n]`, and the indices of corrupt images."""

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    corrupt: np.ndarray


def _without_padding(batch: Sample) -> _Batch:
    real = batch["mask"]
    index = batch["index"]
    return _Batch(batch["image"][real], batch["label"][real], index[real], index[batch["corrupt"]])


def classify_source(
    engine: ArrayClassifier, source: Source, batch_size: int, lam: float
) -> tuple[np.ndarray, Classified, np.ndarray]:
    """Streams every image of `source` through the classifier.

    Returns:
      Labels `[n]` of the images that can be decoded, what was found of them, in the order of the
      source, and the indices of the others.

    Raises:
      NotFiniteError: outputs are not finite; the images are named.
    """
    labels: list[np.ndarray] = []
    corrupt: list[np.ndarray] = []
    results: list[Classified] = []
    batches = map(_without_padding, eval_host_batches(source, batch_size=batch_size))
    try:
        for batch, result in engine.classify_batches(
            batches, images=attrgetter("images"), lam=lam, max_waiting=_MAX_WAITING
        ):
            labels.append(batch.labels)
            corrupt.append(batch.corrupt)
            results.append(result)
    except NotFiniteError as error:
        assert isinstance(error.batch, _Batch)
        named = name_images(source, error.batch.index[error.rows])
        raise NotFiniteError(named, engine.checkpoint, error.rows) from error
    names = ["logits", "choices", "scores", "resolutions", "macs"]
    if results[0].first_logits is not None:
        names.append("first_logits")
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(result, name) for result in results]) for name in names
    }
    return np.concatenate(labels), Classified(**joined), np.concatenate(corrupt)


def _print_bucketed(summary: dict[str, Any]) -> None:
    log(f"\n{summary['num_images']} images of the {summary['split']} split, by dispatch")
    if said := agreement(summary["config"]):
        log(said)
    log(
        f"DRNet: top-1 {100 * summary['top1']:.2f} %, {summary['gmacs']:.5f} GMACs, "
        f"{summary['images_per_second']:.0f} images/s, input included"
    )
    chosen = zip(summary["resolutions"], summary["shares"], strict=True)
    log("shares: " + ", ".join(f"{size} px {100 * share:.1f} %" for size, share in chosen))
    log(
        "the fixed resolutions, the hull and the random control are not computed: "
        "--config.eval.dispatch=dense has them"
    )
