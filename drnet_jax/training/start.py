"""What a stage starts from: stage 1, another run, or its own last checkpoint."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import CheckpointError, ContentError, StageCheckpoints
from drnet_jax.checkpoints.finite import check_restored
from drnet_jax.checkpoints.restore import load_variables, trained_config
from drnet_jax.checkpoints.runs import is_finished
from drnet_jax.checkpoints.training_lock import other_training
from drnet_jax.config import STAGE_ONE_FIELDS, STAGES, ConfigError
from drnet_jax.models.create import create_model
from drnet_jax.models.variables import init_variables, part_variables
from drnet_jax.pruning.prune import prune
from drnet_jax.runtime.progress import log
from drnet_jax.runtime.sharding import replicated_sharding
from drnet_jax.training.stage import Run
from drnet_jax.training.train_state import TrainState


def has_checkpoints(workdir: Path) -> bool:
    """Whether there is one, of any stage."""
    return any(has_checkpoint(workdir / stage) for stage in STAGES)


def has_checkpoint(directory: Path) -> bool:
    """Of the stage in a directory, which may not exist."""
    return latest_step(directory) is not None


def latest_step(directory: Path) -> int | None:
    """Of the checkpoints of a stage; None without any."""
    if not directory.is_dir():
        return None
    with StageCheckpoints(directory, read_only=True) as checkpoints:
        return checkpoints.latest_step


def load_state(checkpoints: StageCheckpoints, step: int, like: TrainState) -> TrainState:
    """The training state of a checkpoint, with structure and placement of `like`.

    Raises:
      CheckpointError: it is damaged, not finite, or of another optimiser or model.
    """
    try:
        state = checkpoints.load(step, like)
    except ContentError as error:
        raise CheckpointError(
            f"the training in {checkpoints.directory} cannot be resumed: step {step} does not hold "
            "the state of the configured optimiser (RMSProp's was another in earlier versions); "
            f"train in another --workdir, or evaluate this one as it is ({error})"
        ) from error
    check_restored(state, checkpoints.directory / str(step))
    return state


def stage_two_variables(run: Run, fresh: Any) -> Any:
    """What stage 2 starts from: stage 1 and a fresh predictor.

    Its end, but imported weights themselves where no epoch had as few wrong answers. Among epochs,
    what few calibration pictures tell would cost accuracy (docs/convert.md).
    """
    config = run.config
    if config.joint.init_from:
        origin = Path(config.joint.init_from)
    elif "pretrain" in config.stages:
        origin = run.workdir
    else:
        log("joint: no stage 1 and no joint.init_from, starting from random weights")
        return fresh
    trained, step = check_stage_one(config, origin)
    with StageCheckpoints(origin / "pretrain", read_only=True) as checkpoints:
        log(f"joint: starting from step {step} of {checkpoints.directory}")
        ema = trained["pretrain.ema_decay"] > 0
        return load_variables(checkpoints, step, fresh, stage="pretrain", ema=ema)


def stage_one_variables(run: Run) -> Any:
    """What stage 1 starts from: the classifier of `pretrain.init_from`, pruned as is configured."""
    config = run.config
    origin = Path(config.pretrain.init_from)
    trained, step = check_wider(config, origin)
    wider = config.copy_and_resolve_references()
    wider.model.pruning_rates = tuple(trained["model.pruning_rates"])
    model = create_model(wider, run.model.classifier.num_classes)
    fresh = jax.device_put(
        init_variables(model, jax.random.key(config.seed)), replicated_sharding(run.mesh)
    )
    with StageCheckpoints(origin / "pretrain", read_only=True) as checkpoints:
        log(f"pretrain: starting from step {step} of {checkpoints.directory}")
        ema = trained["pretrain.ema_decay"] > 0
        variables = load_variables(checkpoints, step, fresh, stage="pretrain", ema=ema)
    pruned = prune(
        run.model.classifier,
        part_variables(variables, "classifier"),
        config.pretrain.pruning_criterion,
        run.model.resolutions[0],
    )
    return {name: {"classifier": tree} for name, tree in pruned.items()}


def check_wider(config: ConfigDict, origin: Path) -> tuple[dict[str, Any], int]:
    """As `check_stage_one`, for a network that may have been pruned less.

    Raises:
      CheckpointError: as there.
      ConfigError: it has been pruned more.
    """
    same = tuple(name for name in STAGE_ONE_FIELDS if name != "model.pruning_rates")
    trained, step = check_stage_one(config, origin, fields=same)
    theirs = tuple(trained["model.pruning_rates"])
    rates = tuple(config.model.pruning_rates) or (0.0,) * len(theirs)
    if any(rate < their for rate, their in zip(rates, theirs, strict=bool(theirs))):
        raise ConfigError(
            f"model.pruning_rates={tuple(config.model.pruning_rates)} wants filters that {origin} "
            f"lacks, which was trained with {theirs}: raise them, or name another run in "
            "pretrain.init_from"
        )
    return trained, step


def check_stage_one(
    config: ConfigDict, origin: Path, *, fields: tuple[str, ...] = STAGE_ONE_FIELDS
) -> tuple[dict[str, Any], int]:
    """The flattened configuration of the finished stage 1 in `origin`, and the step to start from.

    Args:
      config: the present one.
      origin: the workdir of the run.
      fields: prefixes of the names that have to agree.

    Raises:
      CheckpointError: there is none, it is not finished, or it is of another model.
    """
    step = latest_step(origin / "pretrain")
    if step is None or not is_finished(origin, "pretrain"):
        other = other_training(origin)
        raise CheckpointError(
            f"no finished stage 1 in {origin}: "
            + (f"{other}; wait until it is" if other else "finish it, or name another run")
        )
    trained = trained_config(config, origin, fields=fields)
    if trained["convert.weights"]:
        with StageCheckpoints(origin / "pretrain", read_only=True) as checkpoints:
            step = 0 if checkpoints.best_step == 0 else step
    return trained, step
