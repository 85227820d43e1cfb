"""The steps of one stage, with their log, calibration and checkpoints."""

import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import StageCheckpoints
from drnet_jax.config import STAGES
from drnet_jax.data.pipeline import TrainBatch, train_batches
from drnet_jax.data.sources import Source
from drnet_jax.evaluation.metrics import objective, summarise
from drnet_jax.evaluation.outputs import evaluate, make_eval_step, name_images
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost
from drnet_jax.models.variables import merge_variables
from drnet_jax.runtime.metric_writer import MetricWriter, average
from drnet_jax.runtime.progress import Progress
from drnet_jax.runtime.sharding import batch_sharding
from drnet_jax.training.train_state import TrainState

# A resolution whose share stays below this over an epoch is reported.
_MIN_SHARE = 0.02
# Steps that are handed to the device before the host waits for them.
_IN_FLIGHT = 2


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and what is saved."""


@dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    config: ConfigDict
    workdir: Path
    model: DRNet
    cost: ModelCost
    target: float | None
    mesh: Mesh
    train: Source
    calibration: Source


class StageLoop:
    """The steps of one stage, with its log, its calibration and its checkpoints."""

    def __init__(
        self,
        run: Run,
        stage: str,
        untrained: Any,
        steps_per_epoch: int,
        num_steps: int,
        checkpoints: StageCheckpoints,
        start_step: int,
    ) -> None:
        self._config = run.config
        self._run = run
        self._stage = stage
        self._untrained = untrained
        self._steps_per_epoch = steps_per_epoch
        self._num_steps = num_steps
        self._checkpoints = checkpoints
        self._start = start_step
        self._corrupt: set[int] = set()
        self._pending: list[dict[str, Any]] = []
        self._epoch: list[dict[str, np.ndarray]] = []
        self._waited = 0.0
        self._since = time.perf_counter()
        mean, std = tuple(run.config.data.mean), tuple(run.config.data.std)
        self._eval_step = make_eval_step(run.model, mean, std)
        self._progress = Progress(stage, num_steps, start_step)
        self._writer = MetricWriter(
            run.workdir,
            tuple(run.config.stages),
            stage,
            start_step,
            tensorboard=run.config.log.tensorboard,
        )

    def run(self, state: TrainState, step_fn: Any) -> TrainState:
        """Runs the steps that are left, and saves at the end of every epoch."""
        section = self._config[self._stage]
        batches = train_batches(
            self._run.train,
            batch_size=section.batch_size,
            # Another order for every stage and every seed.
            seed=len(STAGES) * self._config.seed + STAGES.index(self._stage),
            start_step=self._start,
            sharding=batch_sharding(self._run.mesh),
            num_workers=self._config.data.num_workers,
        )
        every = self._config.checkpoint.every_steps
        with closing(batches), _interruptions() as interrupted:
            for step in range(self._start + 1, self._num_steps + 1):
                try:
                    batch = self._next(batches)
                except (Exception, KeyboardInterrupt) as error:
                    self._save_before_stop(step - 1, state, error, interrupted)
                state = self._step(state, step_fn, batch)
                at_epoch = step % self._steps_per_epoch == 0
                logging = at_epoch or step % self._config.log.every_steps == 0
                if logging:
                    self._log(step)
                reason = "interrupted" if interrupted else ""
                if logging and not reason:
                    reason = self._too_many_corrupt()
                if at_epoch:
                    self._end_epoch(step, state)
                elif (every and step % every == 0) or reason:
                    self._log(step)
                    self._checkpoints.save(step, state)
                if reason:
                    self.close()
                    raise self._stopped(reason, step)
        self.close()
        return state

    def _save_before_stop(
        self, step: int, state: TrainState, error: BaseException, interrupted: list[int]
    ) -> NoReturn:
        """No batch came: Ctrl-C reaches the workers too, and a disk may fail."""
        # Saving takes all processes, and only this one may be stopping.
        if step > self._start and jax.process_count() == 1:
            self._log(step)
            self._checkpoints.save(step, state)
        self.close()
        if interrupted:
            raise self._stopped("interrupted", step) from None
        raise error

    def _stopped(self, reason: str, step: int) -> TrainingError:
        return TrainingError(
            f"{reason} after step {step} of {self._stage}, which is saved; run the same command "
            "to resume"
        )

    def close(self) -> None:
        """Waits for what is being saved, and closes the files."""
        self._checkpoints.close()
        self._progress.close()
        self._writer.close()

    def _next(self, batches: Iterator[TrainBatch]) -> TrainBatch:
        if len(self._pending) >= _IN_FLIGHT:
            # Else batches would pile up on the device, ahead of the steps.
            jax.block_until_ready(self._pending[-_IN_FLIGHT]["loss"])
        asked = time.perf_counter()
        batch = next(batches)
        # Only if the device had nothing left to do meanwhile did it wait for this.
        if self._pending and self._pending[-1]["loss"].is_ready():
            self._waited += time.perf_counter() - asked
        if len(batch.corrupt):
            self._note_corrupt(batch.corrupt)
        return batch

    def _step(self, state: TrainState, step_fn: Any, batch: TrainBatch) -> TrainState:
        # Every value the step needs is on the devices already; a hidden copy would be a bug.
        with jax.transfer_guard("disallow"):
            state, metrics = step_fn(state, batch.arrays)
        self._pending.append(metrics)
        return state

    def _note_corrupt(self, indices: np.ndarray) -> None:
        new = sorted(set(indices.tolist()) - self._corrupt)
        self._corrupt |= set(new)
        for index in new:
            self._progress.warn(f"left out, cannot be decoded: {self._run.train.name(index)}")

    def _too_many_corrupt(self) -> str:
        """Why to stop, or nothing; all processes decide alike."""
        counts = multihost_utils.process_allgather(np.int32(len(self._corrupt)))
        limit = self._config.data.max_corrupt
        if counts.sum() <= limit:
            return ""
        named = name_images(self._run.train, np.array(sorted(self._corrupt), int))
        return (
            f"{counts.sum()} training images cannot be decoded ({named}), more than "
            f"data.max_corrupt={limit}: repair them or raise it; stopped"
        )

    def _log(self, step: int) -> None:
        if not self._pending:
            return
        metrics = jax.device_get(self._pending)
        first = step - len(metrics) + 1
        for offset, figures in enumerate(metrics):
            # A loss is computed before its own update: the gradient tells what that did.
            if not np.isfinite(figures["loss"]) or not np.isfinite(figures["grad_norm"]):
                self._stop_at(first + offset, figures)
        elapsed = time.perf_counter() - self._since
        figures = average(metrics)
        batch_size = self._config[self._stage].batch_size
        figures["epoch"] = step / self._steps_per_epoch
        figures["images_per_second"] = len(metrics) * batch_size / elapsed
        figures["input_wait"] = self._waited / elapsed
        figures["corrupt"] = len(self._corrupt)
        self._writer.write(self._stage, step, figures)
        self._progress.report(step, figures)
        self._epoch += metrics
        self._pending, self._waited, self._since = [], 0.0, time.perf_counter()

    def _stop_at(self, step: int, figures: dict[str, np.ndarray]) -> NoReturn:
        self.close()
        saved = self._checkpoints.latest_step
        rates = ", ".join(
            f"{name.removeprefix('learning_rate_')} {float(value):.3g}"
            for name, value in figures.items()
            if name.startswith("learning_rate_")
        )
        where = f"step {saved} in {self._checkpoints.directory}" if saved else "none"
        raise TrainingError(
            f"loss is {float(figures['loss'])} with a gradient of norm "
            f"{float(figures['grad_norm'])} at step {step} of {self._stage} (learning rate: "
            f"{rates}); last good checkpoint: {where}. Lower "
            f"{self._stage}.base_learning_rate or set {self._stage}.clip_norm"
        )

    def _end_epoch(self, step: int, state: TrainState) -> None:
        run, config = self._run, self._config
        records = evaluate(
            self._eval_step,
            merge_variables(self._untrained, state.eval_variables),
            run.calibration,
            batch_size=config.eval.batch_size,
            mesh=run.mesh,
            # As in training they are left out and named; the evaluation proper is stricter.
            skip_corrupt=True,
        )
        left_out = np.setdiff1d(np.arange(len(run.calibration)), records.index)
        if len(left_out):
            named = name_images(run.calibration, left_out)
            self._progress.warn(f"calibration leaves out {len(left_out)} corrupt images: {named}")
        summary = summarise(records, run.model.resolutions, run.cost)
        if self._stage == "pretrain":
            score = float(records.ce.mean(axis=0).sum())
        else:
            score = objective(records, run.cost, target=run.target, eta=config.joint.eta)
            shares = average(self._epoch)["shares_sampled"]
            for warning in unused_warnings(run.model.resolutions, shares):
                self._progress.message(warning)
        if not np.isfinite(score):
            self._stop_at(step, self._epoch[-1])
        fixed = [entry["top1"] for entry in summary["fixed"]]
        figures = {"calibration_objective": score, "calibration_fixed_top1": fixed}
        text = f"{self._stage} epoch {step // self._steps_per_epoch}: calibration top-1 "
        text += "/".join(f"{top1:.3f}" for top1 in fixed)
        if self._stage == "joint":
            figures["calibration_top1"] = summary["top1"]
            figures["calibration_gmacs"] = summary["gmacs"]
            text += f", DRNet {summary['top1']:.3f} at {summary['gmacs']:.4g} GMACs"
        self._writer.write(self._stage, step, figures)
        self._progress.message(text)
        self._checkpoints.save(step, state, objective=score)
        self._epoch, self._since = [], time.perf_counter()


def unused_warnings(resolutions: tuple[int, ...], shares: list[float]) -> list[str]:
    """A warning for every resolution whose share of an epoch's samples stayed below 2 %."""
    return [
        f"warning: only {100 * share:.1f} % of this epoch's samples went to {resolution} px; if it "
        "stays so, lower joint.eta, raise joint.tau, or use model.statistics='all'"
        for resolution, share in zip(resolutions, shares, strict=True)
        if share < _MIN_SHARE
    ]


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list, so that the loop can save before it stops.

    With several processes it does nothing: they would have to stop at the same step.
    """
    received: list[int] = []
    if jax.process_count() > 1:
        yield received
        return

    def note(number: int, _: FrameType | None) -> None:
        """Keeps the first signal; the second one stops at once."""
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
