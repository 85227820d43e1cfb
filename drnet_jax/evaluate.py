"""`--mode=eval`: every image once, at every resolution, and everything that follows from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from drnet_jax.control_figures import control_figures
from drnet_jax.environment import environment
from drnet_jax.eval_inputs import ModelOutputs, evaluation_fields, find_and_load, load_split
from drnet_jax.eval_tables import print_tables
from drnet_jax.inference.decision import choose
from drnet_jax.inference.load import budget_lambda
from drnet_jax.macs import ModelCost, model_cost
from drnet_jax.metrics import EvalRecords, by_class, by_resolution, by_size, summarise
from drnet_jax.report import pictures, write_report
from drnet_jax.restore import TrainedModel
from drnet_jax.writers import say, write_json

# Edges of the table by apparent size, in pixels.
_SIZE_EDGES = (10, 14, 20, 28, 40, 57)


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
      CheckpointError: no checkpoint, or one of another model.
      DataError: the data cannot be read, or has other classes.
      BudgetError: nothing is calibrated for the budget, or it cannot be kept.
    """
    split = config.eval.split
    trained, source = find_and_load(config, workdir, split)
    lam = budget_lambda(config, trained, source.image_size)
    outputs = ModelOutputs(config, workdir, trained)
    logits = outputs.of(split, source)
    records = with_lambda(logits.records(), model_cost(trained.model), lam)
    calibration = None
    if has_predictor(trained) and config.eval.controls:
        calibration = _calibration(config, workdir, trained, outputs, records)
    sizes = source.metadata.get("apparent_size")
    summary = evaluation(trained, records, calibration, lam, sizes)
    summary["num_corrupt"] = len(source) - len(records.index)
    summary |= {"stage": trained.stage, "checkpoint_step": trained.step}
    summary |= {"split": split, "config": trained.config | evaluation_fields(config)}
    summary["environment"] = environment() | {"outputs": str(logits.device)}
    write_json(workdir / "eval.json", summary)
    print_tables(summary)
    report = workdir / "report.html"
    write_report(report, config, summary, trained, logits, records, pictures(source))
    say(f"wrote {workdir / 'eval.json'} and {report}")
    return summary


def _calibration(
    config: ConfigDict,
    workdir: Path,
    trained: TrainedModel,
    outputs: ModelOutputs,
    records: EvalRecords,
) -> EvalRecords:
    """Records of the calibration split, without images that cannot be decoded; or `records`."""
    if config.eval.split == "calibration":
        return records
    say("controls: the calibration split too (--config.eval.controls=False: no) ...")
    source = load_split(config, workdir, trained, "calibration")
    return outputs.of("calibration", source, skip_corrupt=True).records()


def has_predictor(trained: TrainedModel) -> bool:
    """Whether there is a trained predictor, which chooses."""
    return trained.stage != "pretrain" and len(trained.model.resolutions) > 1


def with_lambda(records: EvalRecords, cost: ModelCost, lam: float) -> EvalRecords:
    """The records with the choices at another lambda than 0."""
    costs = np.array(cost.classifier_gmacs)
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
    cost, resolutions = model_cost(trained.model), trained.model.resolutions
    summary = summarise(records, resolutions, cost)
    summary["lambda"] = lam
    if not has_predictor(trained) and len(resolutions) > 1:
        summary |= dict.fromkeys(("top1", "top5", "gmacs", "gmacs_classifier", "shares"))
        return summary
    if calibration is not None:
        summary["controls"] = control_figures(records, calibration, cost, lam)
    summary["by_resolution"] = by_resolution(records, resolutions)
    summary["by_class"] = by_class(records, trained.classes)
    if sizes is not None:
        summary["by_apparent_size"] = by_size(records, sizes[records.index], _SIZE_EDGES)
    return summary
