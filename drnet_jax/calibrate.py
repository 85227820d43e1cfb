"""`--mode=calibrate`: what each lambda costs and gets right, and the one for a budget."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from drnet_jax.budgets import calibration_file
from drnet_jax.budgets.calibration import Calibration, Point, Times, calibrate
from drnet_jax.budgets.solve import calibration_path, solve, times_setting
from drnet_jax.checkpoints.answers import agreement
from drnet_jax.checkpoints.model_key import model_key
from drnet_jax.checkpoints.restore import (
    RestoredModel,
    check_predictor,
    find_stage,
    restore_variables,
)
from drnet_jax.config import budget_name
from drnet_jax.evaluation.inputs import ModelOutputs, find_and_load
from drnet_jax.inference.create import array_classifier
from drnet_jax.runtime.files import check_writable
from drnet_jax.runtime.progress import log

_SHOWN = 11


def restore_and_calibrate(config: ConfigDict, workdir: Path) -> Calibration:
    """Evaluates the calibration split and writes `calibration.json` beside the checkpoint.

    Args:
      config: with the model the checkpoint was trained with; `budget.ms` has the times measured.
      workdir: of the run, unless `restore_from` names another.

    Raises:
      CheckpointError: no checkpoint, one of another model, or no trained predictor.
      DataError: the data cannot be read, or is other data.
      BudgetError: the budget cannot be kept; the table is written all the same.
      OSError: the folder of the checkpoint cannot be written to.
    """
    if config.restore_from:
        # What is no run is said of the field, before it is said that nothing can be written there.
        find_stage(Path(config.restore_from))
    check_writable(Path(config.restore_from or workdir))
    trained, source = find_and_load(config, workdir, "calibration")
    check_predictor(trained)
    path, model = calibration_path(trained), model_key(config, trained)
    times = None
    if config.budget.ms is not None:
        trained = restored = restore_variables(trained)
        times = measure(config, restored, source.image_size)
    elif path.exists():
        times = known_times(path, model)
    records = ModelOutputs(config, workdir, trained).of("calibration", source).records()
    cost = trained.cost
    found = calibrate(
        records.scores,
        records.answer_top1,
        records.top1[:, 0],
        np.array(cost.choice_gmacs),
        cost.predictor_gmacs,
        model,
        times,
        costs=np.array(cost.choice_costs),
    )
    calibration_file.save(found, path)
    unit = "GMAC" if cost.measured is None else "ms"
    size = found.num_images
    log(f"{size} images of the calibration split, lambda in units of the scores a {unit}")
    if said := agreement(trained.config):
        log(said)
    picked = np.linspace(0, len(found.points) - 1, _SHOWN).round().astype(int)
    shown = {found.points[index] for index in picked}
    shown |= {point for point in found.points if point.lam == 0}
    batch_size = config.budget.batch_size
    _print(found, sorted(shown, key=lambda point: point.lam), batch_size)
    if budget_name(config):
        log("for the budget:")
        _print(found, [solve(config, found, source.image_size)], batch_size)
    log(f"wrote {path}")
    return found


def known_times(path: Path, model: str) -> Times | None:
    """Those of an earlier calibration of the same model."""
    try:
        return calibration_file.read(path, model).times
    except ValueError as error:
        log(f"the times of the last calibration are not taken over: {error}")
        return None


def measure(config: ConfigDict, restored: RestoredModel, image_size: tuple[int, int]) -> Times:
    """Times of every bucket of every network."""
    engine = array_classifier(config, restored, image_size)
    return Times(times_setting(config, image_size), engine.times or engine.measure())


def _print(found: Calibration, points: list[Point], batch_size: int) -> None:
    times = ["" for _ in points]
    if found.times:
        shares = np.array([point.shares for point in points])
        times = [f"{ms:>9.3f}" for ms in found.times.milliseconds(shares, batch_size)]
    title = f"{'ms':>9}" if found.times else ""
    log(f"{'lambda':>12}{'GMACs':>10}{title}{'top-1 %':>9}   shares %")
    for point, time in zip(points, times, strict=True):
        chosen = " / ".join(f"{100 * share:.1f}" for share in point.shares)
        log(f"{point.lam:>12.4g}{point.gmacs:>10.5f}{time}{100 * point.top1:>9.2f}   {chosen}")
