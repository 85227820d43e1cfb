"""Training: stage 1 `pretrain`, stage 2 `joint`, or both as `single`, resuming what is done."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import StageCheckpoints, steps
from drnet_jax.checkpoints.config_history import comparable
from drnet_jax.checkpoints.conversion import timed
from drnet_jax.checkpoints.measured_cost import is_measured, read_measured, write_measured
from drnet_jax.checkpoints.picture_sizes import check_sizes, write_sizes
from drnet_jax.checkpoints.restore import check_data, read_classes, read_config, write_data
from drnet_jax.checkpoints.runs import finished_path, is_finished
from drnet_jax.checkpoints.set_aside import set_damaged_aside
from drnet_jax.checkpoints.training_lock import training_lock
from drnet_jax.config import (
    SPLITS,
    STAGES,
    ConfigError,
    alpha_target,
    budget_name,
    changed_fields,
    flatten,
    is_fitted,
    section_name,
)
from drnet_jax.config_checks import check_config, check_training
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import data_settings
from drnet_jax.data.sources import DataError
from drnet_jax.evaluate import restore_and_evaluate
from drnet_jax.models.create import check_model, create_model
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost, model_cost
from drnet_jax.models.variables import init_variables, merge_variables, split_classifier
from drnet_jax.runtime.distributed import wait_for_all
from drnet_jax.runtime.files import remove_file, write_json
from drnet_jax.runtime.progress import log
from drnet_jax.runtime.sharding import create_mesh, replicated_sharding
from drnet_jax.training.create import StageStep, create_stage_step, noise_key
from drnet_jax.training.fit_stage import fit_reuse, fit_stage
from drnet_jax.training.import_weights import import_weights, with_labels
from drnet_jax.training.imported import check_unchanged, read_imported, weights_classes
from drnet_jax.training.measure_cost import measure_cost
from drnet_jax.training.stage import Run, Stage
from drnet_jax.training.start import (
    check_stage_one,
    check_wider,
    has_checkpoint,
    has_checkpoints,
    load_state,
    stage_one_variables,
    stage_two_variables,
)
from drnet_jax.training.tracing import trace_stages
from drnet_jax.training.train_loop import run_stage
from drnet_jax.training.train_state import create_train_state

# The training state counts them in 32 bits.
_MAX_STEPS = 2**31 - 1


def train_and_evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains the configured stages, resuming from `workdir`, and evaluates the best checkpoint.

    Returns:
      What was written to `<workdir>/eval.json`.

    Raises:
      ConfigError: a bad field, one that differs from the run that `workdir` holds, or another
        process trains there.
      DataError: the data cannot be read.
      WeightsError: `convert.weights` cannot be read, or are of another network.
      CheckpointError: `joint.init_from` or `pretrain.init_from` has no checkpoint of stage 1 of
        this model, or a file beside checkpoints is missing or damaged.
      TrainingError: a non-finite loss, or an interruption by a signal.
      OSError: the workdir cannot be written to.
    """
    # Before there is a lock file.
    check_config(config, jax.device_count())
    with training_lock(workdir):
        train_stages(config, workdir)
        return restore_and_evaluate(config, workdir)


def train_stages(config: ConfigDict, workdir: Path) -> None:
    """Trains what is left of the configured stages; raises as `train_and_evaluate` does.

    No other process may train there meanwhile: `training_lock`.

    Args:
      config: that `check_config` lets pass.
      workdir: of the run.
    """
    run = prepare(config, workdir)
    imports, num_images = bool(config.convert.weights), len(run.train)
    if imports and not has_checkpoints(workdir):
        run = import_weights(run)
    elif imports and not config.convert.labels:
        run = with_labels(run)
    elif _begins_elsewhere(config, workdir):
        run = replace(run, start=stage_one_variables(run))
    if len(run.train) != num_images:
        # Pictures without a label are left out: an epoch has fewer steps.
        run = replace(run, stage_steps=_stage_steps(run))
    for index, stage in enumerate(config.stages):
        if any(has_checkpoint(workdir / name) for name in config.stages[index + 1 :]):
            continue
        with timed(workdir, stage) if imports else nullcontext():
            train_stage(run, stage)


def prepare(config: ConfigDict, workdir: Path) -> Run:
    """Checks everything that can be checked, loads the data and claims the workdir.

    No other process may train there meanwhile: `training_lock`.

    Args:
      config: that `check_config` lets pass.
      workdir: of the run.
    """
    check_training(config, config.stages)
    check_model(config)
    _check_other_modes(config)
    _check_workdir(config, workdir)
    for stage in [stage for stage in config.stages if steps(workdir / stage)][-1:]:
        set_damaged_aside(workdir / stage)
    splits = DataSplits(data_settings(config, workdir))
    classes = _classes(config, workdir, splits)
    if config.data.num_classes not in (0, len(classes)):
        raise DataError(
            f"{config.data.name} in {config.data.dir} has {len(classes)} classes, not "
            f"data.num_classes={config.data.num_classes}; correct one of them"
        )
    model = create_model(config, len(classes))
    if config.joint.init_from and not has_checkpoint(workdir / "joint"):
        check_stage_one(config, Path(config.joint.init_from))
    if _begins_elsewhere(config, workdir):
        check_wider(config, Path(config.pretrain.init_from))
    if config.convert.weights:
        if has_checkpoints(workdir):
            check_unchanged(config, workdir)
        else:
            read_imported(config, model, classes)
    _check_images(config, workdir, splits, classes)
    train, calibration = splits.load("train"), splits.load("calibration")
    cost = _cost(config, workdir, model, calibration.image_size)
    target = alpha_target(config, cost.choice_costs, cost.largest_cost, cost.unit)
    run = Run(config, workdir, model, cost, target, create_mesh(), train, calibration, {})
    run = replace(run, stage_steps=_stage_steps(run))
    trace_stages(run, [stage for stage in _unfinished(config, workdir) if stage in run.stage_steps])
    _describe_run(run, splits, classes)
    return run


def _begins_elsewhere(config: ConfigDict, workdir: Path) -> bool:
    """Whether stage 1 has yet to start from another run's."""
    starts = bool(config.pretrain.init_from) and "pretrain" in config.stages
    return starts and not has_checkpoints(workdir)


def _classes(config: ConfigDict, workdir: Path, splits: DataSplits) -> tuple[str, ...]:
    """Of the data; of pictures without labels those of the imported network."""
    if config.convert.labels:
        return splits.classes
    if has_checkpoints(workdir):
        return read_classes(workdir)
    return weights_classes(config, create_model(config, num_classes=1).classifier)


def _check_other_modes(config: ConfigDict) -> None:
    """Stops for fields that no training uses."""
    if config.restore_from:
        raise ConfigError(
            "restore_from belongs to --mode=eval; joint.init_from starts stage 2 from another run"
        )
    if config.eval.dispatch != "dense" or budget_name(config):
        raise ConfigError(
            "eval.dispatch='bucketed' and budgets belong to --mode=eval, after the training: leave "
            "them out"
        )
    if config.predict.input:
        raise ConfigError("predict.input belongs to --mode=predict, after the training")


def _cost(
    config: ConfigDict, workdir: Path, model: DRNet, image_size: tuple[int, int]
) -> ModelCost:
    """Of the networks; with times, if choices are made by those: of one measurement a run."""
    cost = model_cost(model)
    if not is_measured(config.joint.cost, config.stages[-1], model):
        return cost
    if has_checkpoints(workdir):
        measured = read_measured(workdir, len(model.resolutions))
    else:
        measured = measure_cost(config, model, image_size)
    each = " / ".join(f"{ms:.4g}" for ms in measured.choice)
    log(f"choices take {each} ms an image ({measured.setting})")
    return replace(cost, measured=measured)


def _stage_steps(run: Run) -> dict[str, StageStep]:
    """How every stage that takes steps is trained on the run's images."""
    config, num_images = run.config, len(run.train)
    found = {}
    for stage in config.stages:
        if is_fitted(config, stage):
            continue
        _check_steps(config, stage, num_images)
        steps_per_epoch = num_images // config[section_name(stage)].batch_size
        found[stage] = create_stage_step(
            config, stage, run.model, run.cost, run.target, steps_per_epoch
        )
    return found


def _check_steps(config: ConfigDict, stage: str, num_images: int) -> None:
    name = section_name(stage)
    section = config[name]
    if num_images < section.batch_size:
        raise ConfigError(
            f"{name}.batch_size={section.batch_size} exceeds the {num_images} training images"
        )
    num_steps = section.num_epochs * (num_images // section.batch_size)
    if num_steps > _MAX_STEPS:
        raise ConfigError(
            f"{name}.num_epochs={section.num_epochs} of {num_images // section.batch_size} steps "
            f"each are more than {_MAX_STEPS} steps; lower it"
        )


def _check_images(
    config: ConfigDict, workdir: Path, splits: DataSplits, classes: tuple[str, ...]
) -> None:
    """Compares the images with those of the run in `workdir` and of those it starts from.

    Those of the test split too: missing ones would else be noticed only after the training. So it
    is with those of `pretrain.init_from`, until its weights are in `workdir`.
    """
    identities = {split: splits.identity(split) for split in SPLITS}
    sizes = {split: splits.sizes(split) for split in SPLITS}
    origins = [workdir] if has_checkpoints(workdir) else []
    origins += [Path(config.joint.init_from)] if config.joint.init_from else []
    origins += [Path(config.pretrain.init_from)] if _begins_elsewhere(config, workdir) else []
    for origin in origins:
        check_data(origin, classes, identities)
        check_sizes(origin, sizes, config.data.max_corrupt)


def _describe_run(run: Run, splits: DataSplits, classes: tuple[str, ...]) -> None:
    """Writes the files that say of what the checkpoints beside them are."""
    config, workdir = run.config, run.workdir
    # A finished run was trained with what the file says already.
    if not is_finished(workdir, config.stages[-1]):
        write_json(workdir / "config.json", flatten(config))
    if run.cost.measured is not None:
        write_measured(workdir, run.cost.measured)
    write_data(workdir, classes, {split: splits.identity(split) for split in SPLITS})
    # The sizes that it began with.
    if not has_checkpoints(workdir):
        write_sizes(workdir, {split: splits.sizes(split) for split in SPLITS})


def _check_workdir(config: ConfigDict, workdir: Path) -> None:
    # Not by opening them: damaged ones are seen to after this.
    if not any(steps(workdir / stage) for stage in STAGES):
        return
    changed = changed_fields(read_config(workdir), comparable(flatten(config)))
    if changed:
        hint = ""
        if any(change.startswith("stages") for change in changed):
            hint = f"; stage 2 alone: another --workdir, --config.joint.init_from={workdir}"
        raise ConfigError(
            f"{workdir} holds a run with another configuration ({'; '.join(changed)}); use "
            f"another --workdir, or the same values to resume it{hint}"
        )


def _unfinished(config: ConfigDict, workdir: Path) -> list[str]:
    """The stages of which something is left to train."""
    last = [stage for stage in config.stages if has_checkpoint(workdir / stage)][-1:]
    first = config.stages.index(last[0]) if last else 0
    return [stage for stage in config.stages[first:] if not is_finished(workdir, stage)]


def train_stage(run: Run, name: str) -> None:
    """Trains one stage to its end, from its last checkpoint if there is one."""
    section, fitted = run.config[section_name(name)], is_fitted(run.config, name)
    steps_per_epoch = 1 if fitted else len(run.train) // section.batch_size
    num_steps = 1 if fitted else section.num_epochs * steps_per_epoch
    keep_latest = run.config.checkpoint.keep_latest
    # From here on there is a folder of the stage: none may still be looking for one.
    wait_for_all(f"{name} begins")
    with StageCheckpoints(run.workdir / name, keep_latest=keep_latest) as checkpoints:
        start = checkpoints.latest_step or 0
        if start == num_steps:
            log(f"{name}: finished already ({num_steps} steps)")
            _note_finished(run, name, num_steps)
            return
        # Its checkpoints were removed: it is trained anew.
        remove_file(finished_path(run.workdir, name))
        replicated = replicated_sharding(run.mesh)
        fresh = init_variables(run.model, jax.random.key(run.config.seed))
        fresh = jax.device_put(fresh, replicated)
        initial = fresh
        if name == "pretrain" and run.start is not None:
            # Copies: resolutions share their arrays, and a buffer cannot be donated twice.
            imported = jax.tree.map(np.array, run.start)
            initial = merge_variables(fresh, jax.device_put(imported, replicated))
        if name == "joint" and not start:
            initial = stage_two_variables(run, fresh)
            if run.model.reuses and not fitted:
                initial = fit_reuse(run, initial)
        # Evaluation visits the predictor too, which stage 1 does not train.
        untrained: Any = {}
        if name == "pretrain":
            initial, untrained = split_classifier(initial)
        key = noise_key(run.config.seed, name, replicated)
        stage = Stage(run, name, key, untrained, steps_per_epoch, num_steps, start, checkpoints)
        (fit_stage if fitted else _run_steps)(stage, initial)
    _note_finished(run, name, num_steps)


def _note_finished(run: Run, name: str, num_steps: int) -> None:
    """Writes the file that says so; on what it says all processes go on."""
    write_json(finished_path(run.workdir, name), {"num_steps": num_steps})
    wait_for_all(f"{name} is finished")


def _run_steps(stage: Stage, initial: Any) -> None:
    """Trains by gradients, from initial variables or from the last checkpoint."""
    tx, train_step = stage.run.stage_steps[stage.name]
    state = create_train_state(initial, tx, ema=stage.section.ema_decay > 0)
    state = jax.device_put(state, replicated_sharding(stage.run.mesh))
    # Imported weights are saved as step 0.
    if stage.checkpoints.latest_step is not None:
        log(f"{stage.name}: resuming after step {stage.start_step} of {stage.num_steps}")
        state = load_state(stage.checkpoints, stage.start_step, state)
    run_stage(stage, state, train_step)
