"""The loop over the steps of a stage."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import grain
import jax

from drnet_jax.checkpoints.finite import NotFiniteError
from drnet_jax.data.pipeline import TrainBatch, train_batches
from drnet_jax.data.sources import DataError
from drnet_jax.runtime.sharding import batch_sharding
from drnet_jax.training.corrupt import CorruptImages
from drnet_jax.training.feed import BatchFeed
from drnet_jax.training.interruptions import asked_of_any, interruptions
from drnet_jax.training.stage import Stage
from drnet_jax.training.stage_log import StageLog
from drnet_jax.training.stops import BY_SIGNAL, check_state, diverged, stopped
from drnet_jax.training.train_state import TrainState
from drnet_jax.training.train_step import StepFn
from drnet_jax.training.validation import Validation, Validator

_NO_OBJECTIVE = "; this epoch has no objective, by which the best checkpoint is chosen: stopped"


def run_stage(stage: Stage, state: TrainState, train_step: StepFn) -> None:
    """Runs the steps that are left; every epoch ends with a validation and a checkpoint.

    Imported weights are validated and saved before the first step too.

    Raises:
      TrainingError: figures that are not finite, too many corrupt images, a signal, or an output
        that takes no more; of all but the first the last step is saved. So it is where the
        calibration split is not read whole, but without an objective.
    """
    config, checkpoints = stage.run.config, stage.checkpoints
    validate = Validator(stage)
    with (
        closing(StageLog(stage)) as log,
        closing(_batches(stage)) as batches,
        interruptions() as received,
    ):
        feed = BatchFeed(batches)
        corrupt = CorruptImages(stage.run.train, config.data.max_corrupt, log.warn)

        def write_log(step: int) -> None:
            """Writes the steps since the last time."""
            log.write(step, waited=feed.take_waited(), corrupt=corrupt.count())

        if stage.starts_imported:
            reason = _end_epoch(stage, 0, state, validate, log)
            if reason:
                raise stopped(stage, 0, reason)
        for step in range(stage.start_step + 1, stage.num_steps + 1):
            with _saving_if_none_comes(stage, step - 1, state, write_log, received):
                batch = feed.next()
            corrupt.add(batch.corrupt)
            # Every value the step needs is on the devices already; a hidden copy would be a bug.
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, batch.arrays, stage.key)
            feed.started(metrics["loss"])
            log.add(metrics)
            ends_epoch = step % stage.steps_per_epoch == 0
            logs = ends_epoch or step % config.log.every_steps == 0
            if logs:
                write_log(step)
            reason = ""
            # Several processes have to ask together.
            if logs or jax.process_count() == 1:
                reason = BY_SIGNAL if asked_of_any(received) else log.output_lost
                reason = reason or corrupt.excess()
            if ends_epoch:
                reason = _end_epoch(stage, step, state, validate, log) or reason
            elif reason or _is_due(step, config.checkpoint.every_steps):
                write_log(step)
                check_state(stage, step, state)
                checkpoints.save(step, state)
                log.begin_window()
            if reason:
                raise stopped(stage, step, reason)
        # In the last validation.
        if asked_of_any(received):
            raise stopped(stage, stage.num_steps, BY_SIGNAL)


def _batches(stage: Stage) -> grain.DatasetIterator[TrainBatch]:
    config = stage.run.config
    return train_batches(
        stage.run.train,
        batch_size=stage.section.batch_size,
        # Another order for stage 1 and for what trains the choice, and for every seed.
        seed=2 * config.seed + (stage.name != "pretrain"),
        start_step=stage.start_step,
        sharding=batch_sharding(stage.run.mesh),
        num_workers=config.data.num_workers,
    )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _end_epoch(
    stage: Stage,
    step: int,
    state: TrainState,
    validate: Callable[[Any], Validation],
    log: StageLog,
) -> str:
    """Validates a state and saves it; why to stop, or nothing.

    Raises:
      TrainingError: the state, its outputs or its objective are not finite: nothing is saved.
    """
    check_state(stage, step, state)
    try:
        validation = validate(state.eval_variables)
    except NotFiniteError as error:
        raise diverged(stage, step, str(error)) from error
    except DataError as error:
        stage.checkpoints.save(step, state)
        return f"calibration: {error}{_NO_OBJECTIVE}"
    log.end_epoch(step, validation)
    # Without that many images an objective compares with no other.
    objective = None if validation.excess else validation.objective
    stage.checkpoints.save(step, state, objective=objective)
    log.begin_window()
    return validation.excess and validation.excess + _NO_OBJECTIVE


@contextmanager
def _saving_if_none_comes(
    stage: Stage,
    step: int,
    state: TrainState,
    write_log: Callable[[int], None],
    received: Sequence[int],
) -> Iterator[None]:
    """Saves where no batch came: a worker was killed, say, or a second Ctrl-C ended the wait."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        # Saving takes all processes, and only this one may be stopping.
        if jax.process_count() > 1:
            raise
        if step > stage.start_step:
            write_log(step)
            check_state(stage, step, state)
            stage.checkpoints.save(step, state)
        stage.checkpoints.close()
        if received:
            raise stopped(stage, step, BY_SIGNAL) from None
        raise
