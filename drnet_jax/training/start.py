"""What a stage starts from: stage 1, another run, or its own last checkpoint."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import CheckpointError, ContentError, StageCheckpoints
from drnet_jax.checkpoints.finite import check_restored
from drnet_jax.checkpoints.restore import load_variables, trained_config
from drnet_jax.checkpoints.runs import is_finished
from drnet_jax.checkpoints.training_lock import other_training
from drnet_jax.config import STAGE_ONE_FIELDS, STAGES
from drnet_jax.runtime.progress import log
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


def check_stage_one(config: ConfigDict, origin: Path) -> tuple[dict[str, Any], int]:
    """The flattened configuration of the finished stage 1 in `origin`, and the step to start from.

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
    trained = trained_config(config, origin, fields=STAGE_ONE_FIELDS)
    if trained["convert.weights"]:
        with StageCheckpoints(origin / "pretrain", read_only=True) as checkpoints:
            step = 0 if checkpoints.best_step == 0 else step
    return trained, step
