"""The loop over the steps: what its log times, and signals at its two ends; nothing is compiled."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.data.folder import FileReader
from drnet_jax.data.sources import DataError, EncodedSource
from drnet_jax.training import stage_log, train_loop
from drnet_jax.training.stops import TrainingError
from drnet_jax.training.train_loop import run_stage
from drnet_jax.training.validation import Validation
from tests.small_run import small_config

GONE = EncodedSource(
    FileReader((Path("gone.jpg"),) * 30), np.arange(30), np.zeros(30), "", 16, (0.1, 1.0), 1.0
)


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Checkpoints:
    """Notes what is saved; a save takes 100 seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.saved: list[int] = []

    def save(self, step: int, *_: Any, **__: Any) -> None:
        self._clock.now += 100
        self.saved.append(step)

    def close(self) -> None:
        """Nothing is left to wait for."""


class Batches:
    """Empty batches; `failing` is raised instead of the first, `corrupt` are in each."""

    def __init__(self, failing: Callable[[], None] | None = None, corrupt: int = 0) -> None:
        self._failing = failing
        self._corrupt = np.arange(corrupt)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._failing is not None:
            self._failing()
        return SimpleNamespace(corrupt=self._corrupt, arrays={})

    def close(self) -> None:
        """It has no workers."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stage_log, "time", clock)
    return clock


def run(
    workdir: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    *,
    batches: Batches | None = None,
    while_validating: Callable[[int], None] = lambda _: None,
    excess: str = "",
) -> Checkpoints:
    """Two epochs of four steps of two seconds each, saved after every third too."""
    metrics = {"loss": jnp.zeros(()), "accuracy": 0.5, "accuracy_per_resolution": np.ones(1)}
    metrics |= {"grad_norm": 1.0}
    config = small_config(stages=("pretrain",))
    config.log.every_steps = 2
    checkpoints = Checkpoints(clock)
    whole = SimpleNamespace(config=config, workdir=workdir, train=GONE)
    stage: Any = SimpleNamespace(run=whole, name="pretrain", section=config.pretrain)
    stage.key, stage.checkpoints = jax.random.key(0), checkpoints
    stage.start_step, stage.num_steps, stage.steps_per_epoch = 0, 8, 4
    validated = []

    def validate(_: Any) -> Validation:
        clock.now += 1000
        validated.append(True)
        while_validating(len(validated))
        return Validation(1.0, {"calibration_objective": 1.0}, "", "", excess)

    def train_step(state: Any, *_: Any) -> Any:
        clock.now += 2
        return state, metrics

    monkeypatch.setattr(train_loop, "Validator", lambda _: validate)
    monkeypatch.setattr(train_loop, "_batches", lambda _: batches or Batches())
    try:
        run_stage(stage, SimpleNamespace(eval_variables={}), train_step)
    except TrainingError as error:
        raise TrainingError(f"{error} {checkpoints.saved}") from error
    return checkpoints


def test_speed_is_of_the_steps_alone(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 images in 2 s, whatever the checks of an epoch and the saves take."""
    checkpoints = run(tmp_path, clock, monkeypatch)
    assert checkpoints.saved == [3, 4, 6, 8]
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    speeds = {line["step"]: line["images_per_second"] for line in lines if "loss" in line}
    assert speeds == {step: 20.0 for step in (2, 3, 4, 6, 8)}


@pytest.mark.parametrize(("epoch", "step"), [(1, 5), (2, 8)])
def test_a_signal_while_an_epoch_is_validated(
    epoch: int, step: int, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first one the next step is the last; after the last one nothing is left to do."""

    def signalled(validated: int) -> None:
        if validated == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingError, match=rf"^interrupted after step {step} .* {step}\]$"):
        run(tmp_path, clock, monkeypatch, while_validating=signalled)


def test_a_signal_before_the_first_step(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise DataError("a worker died")

    words = r"^interrupted before the first step of pretrain; run the same command to resume \[\]$"
    with pytest.raises(TrainingError, match=words):
        run(tmp_path, clock, monkeypatch, batches=Batches(signalled))


def test_too_many_unreadable_images_stop_a_training_saved(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """At the very step, which may be of nothing but them; each is named, with the reason."""
    run(tmp_path, clock, monkeypatch, batches=Batches(corrupt=20))
    assert capsys.readouterr().err.count("left out: gone.jpg: No such file") == 20
    words = r"^21 training images cannot be read \(gone.jpg, .* step 1 .*\[1\]$"
    with pytest.raises(TrainingError, match=words):
        run(tmp_path, clock, monkeypatch, batches=Batches(corrupt=21))
    # Of the calibration split, once the epoch is saved.
    with pytest.raises(TrainingError, match=r"^too many after step 4 .*\[3, 4\]$"):
        run(tmp_path, clock, monkeypatch, excess="too many")
