"""What a stage says of itself: the metrics of its steps and the figures of its epochs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from drnet_jax.runtime.metric_writer import MetricWriter, average
from drnet_jax.runtime.progress import Progress
from drnet_jax.runtime.terminal import OutputError
from drnet_jax.training.stage import Stage
from drnet_jax.training.stage_losses import Metrics
from drnet_jax.training.stops import check_metrics, diverged
from drnet_jax.training.validation import Validation

# A resolution whose share stays below this over an epoch is reported.
_MIN_SHARE = 0.02


class StageLog:
    """`metrics.jsonl`, TensorBoard and the terminal, in windows of steps.

    The metrics of a step stay on the devices until their window is written, so that the host does
    not wait for every step.

    Args:
      stage: which; what an earlier run wrote beyond its `start_step` is cut off.

    Attributes:
      output_lost: once a line could not be printed, why the training stops; the files are written
        all the same.
    """

    def __init__(self, stage: Stage) -> None:
        config = stage.run.config
        self._stage = stage
        self._progress = Progress(stage.name, stage.num_steps, stage.start_step)
        self._writer = MetricWriter(
            stage.run.workdir,
            tuple(config.stages),
            stage.name,
            stage.start_step,
            tensorboard=config.log.tensorboard,
        )
        self._window: list[Metrics] = []
        self._epoch: list[dict[str, np.ndarray]] = []
        self._since = time.perf_counter()
        self.output_lost = ""

    def add(self, metrics: Metrics) -> None:
        """Adds a step to the window."""
        self._window.append(metrics)

    def write(self, step: int, *, waited: float, corrupt: int) -> None:
        """Writes the means of the window, and begins another one; waits for its steps.

        Args:
          step: the last one of the window; without a step in it nothing is written.
          waited: seconds of the window that the device waited for batches.
          corrupt: images that could not be read or decoded so far.

        Raises:
          TrainingError: a loss or a gradient is not finite.
        """
        if not self._window:
            return
        metrics = jax.device_get(self._window)
        for number, figures in enumerate(metrics, step - len(metrics) + 1):
            check_metrics(self._stage, number, figures)
        elapsed = time.perf_counter() - self._since
        means: dict[str, Any] = average(metrics)
        means["epoch"] = step / self._stage.steps_per_epoch
        means["images_per_second"] = len(metrics) * self._stage.section.batch_size / elapsed
        means["input_wait"] = waited / elapsed
        means["corrupt"] = corrupt
        self._writer.write(self._stage.name, step, means)
        with self._printing():
            self._progress.report(step, means)
        self._epoch += metrics
        self._window = []
        self.begin_window()

    def begin_window(self) -> None:
        """Leaves the time since the last step out: it was for validating and saving."""
        self._since = time.perf_counter()

    def end_epoch(self, step: int, validation: Validation) -> None:
        """Writes the figures of the calibration split.

        Raises:
          TrainingError: the objective is not finite.
        """
        stage = self._stage
        if validation.left_out:
            self.warn(f"calibration leaves out {validation.left_out}")
        if stage.name != "pretrain":
            shares = average(self._epoch)["shares_sampled"]
            with self._printing():
                for warning in unused_warnings(stage.run.model.resolutions, shares):
                    self._progress.message(warning)
        if not np.isfinite(validation.objective):
            what = f"the objective on the calibration split is {validation.objective}"
            raise diverged(stage, step, what, self._epoch[-1] if self._epoch else None)
        self._writer.write(stage.name, step, validation.figures)
        epoch = step // stage.steps_per_epoch
        with self._printing():
            self._progress.message(f"{stage.name} epoch {epoch}: {validation.text}")
        self._epoch = []

    def warn(self, text: str) -> None:
        """Prints a line that only this process knows."""
        with self._printing():
            self._progress.warn(text)

    @contextmanager
    def _printing(self) -> Iterator[None]:
        """Lets the loop save before it stops; several processes, which would part, go on."""
        try:
            yield
        except OutputError as error:
            if jax.process_count() == 1:
                self.output_lost = f"{error}: stopped"

    def close(self) -> None:
        """Closes the files."""
        self._progress.close()
        self._writer.close()


def unused_warnings(resolutions: tuple[int, ...], shares: list[float]) -> list[str]:
    """A warning for every resolution whose share of an epoch's samples stayed below 2 %."""
    return [
        f"warning: only {100 * share:.1f} % of this epoch's samples went to {resolution} px; if it "
        "stays so, lower joint.eta, raise joint.tau, or use model.statistics='all'"
        for resolution, share in zip(resolutions, shares, strict=True)
        if share < _MIN_SHARE
    ]
