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

from drnet_jax.checkpoints.finite import NotFiniteError
from drnet_jax.data.folder import FileReader
from drnet_jax.data.sources import DataError, EncodedSource
from drnet_jax.runtime import progress
from drnet_jax.runtime.terminal import OutputError
from drnet_jax.training import stage_log, train_loop
from drnet_jax.training.stops import TrainingError
from drnet_jax.training.train_loop import run_stage
from drnet_jax.training.train_state import TrainState
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

    directory = Path("pretrain")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.saved: list[int] = []
        self.objectives: dict[int, float | None] = {}

    @property
    def latest_step(self) -> int | None:
        return max(self.saved, default=None)

    def save(self, step: int, _: Any, *, objective: float | None = None) -> None:
        self._clock.now += 100
        self.saved.append(step)
        self.objectives[step] = objective

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
    diverges: str = "",
    objective: float = 1.0,
    excess: str = "",
    objectives: dict[int, float | None] | None = None,
    **fields: Any,
) -> Checkpoints:
    """Two epochs of four steps of two seconds each, saved after every third too.

    What is saved with the checkpoints is added to `objectives`, however the run ends.
    From step 3 on what is called `diverges` is not finite: `loss`, `grad_norm` or `w`, a parameter.
    """
    good: dict[str, Any] = {"loss": jnp.zeros(()), "grad_norm": 1.0, "w": np.zeros(2)}
    bad = good | {diverges: jnp.float32(np.nan) if diverges == "loss" else np.array([0, -np.inf])}
    bad["grad_norm"] = np.inf if diverges == "grad_norm" else 1.0
    config = small_config(**{"stages": ("pretrain",), "log.every_steps": 2} | fields)
    checkpoints = Checkpoints(clock)
    if objectives is not None:
        checkpoints.objectives = objectives
    whole = SimpleNamespace(config=config, workdir=workdir, train=GONE)
    stage: Any = SimpleNamespace(run=whole, name="pretrain", section=config.pretrain)
    stage.key, stage.checkpoints = jax.random.key(0), checkpoints
    stage.start_step, stage.num_steps, stage.steps_per_epoch = 0, 8, 4
    stage.starts_imported = False
    validated = []

    def validate(_: Any) -> Validation:
        clock.now += 1000
        validated.append(True)
        while_validating(len(validated))
        return Validation(objective, {"calibration_objective": objective}, "", "", excess)

    def train_step(state: TrainState, *_: Any) -> Any:
        clock.now += 2
        metrics = dict(good if state.step < 2 else bad)
        metrics |= {"accuracy": 0.5, "accuracy_per_resolution": np.ones(1)}
        metrics["learning_rate_classifier"] = 0.1
        params = {"w": metrics.pop("w")}
        return state.replace(step=state.step + 1, params=params), metrics

    monkeypatch.setattr(train_loop, "Validator", lambda _: validate)
    monkeypatch.setattr(train_loop, "_batches", lambda _: batches or Batches())
    try:
        run_stage(stage, TrainState(np.zeros(()), {}, {}, {}), train_step)
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


@pytest.fixture
def hangup() -> Iterator[Callable[[Any], None]]:
    """Sets what SIGHUP does."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("epoch", "step"), [(1, 5), (2, 8)])
def test_a_signal_while_an_epoch_is_validated(
    epoch: int,
    step: int,
    number: signal.Signals,
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    hangup: Callable[[Any], None],
) -> None:
    """After the first one the next step is the last; after the last one nothing is left to do.

    A shell and the system may both send it.
    """
    hangup(signal.SIG_DFL)

    def signalled(validated: int) -> None:
        if validated == epoch:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    with pytest.raises(TrainingError, match=rf"^interrupted after step {step} .* {step}\]$"):
        run(tmp_path, clock, monkeypatch, while_validating=signalled)


def test_a_hangup_that_is_ignored_stays_so(
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    hangup: Callable[[Any], None],
) -> None:
    """By `nohup`."""
    hangup(signal.SIG_IGN)
    checkpoints = run(
        tmp_path,
        clock,
        monkeypatch,
        while_validating=lambda _: os.kill(os.getpid(), signal.SIGHUP),
    )
    assert checkpoints.saved == [3, 4, 6, 8]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_training_whose_output_is_lost_saves_and_stops(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `| head`; the files have what the terminal has not."""

    def lost(*_: Any) -> None:
        raise OutputError("stdout takes no more output (Broken pipe)")

    monkeypatch.setattr(progress, "print_line", lost)
    words = r"^stdout takes .*pipe\): stopped after step 2 of pretrain, which is saved; .* \[2\]$"
    with pytest.raises(TrainingError, match=words):
        run(tmp_path, clock, monkeypatch)
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == 2


def test_a_signal_before_the_first_step(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise DataError("a worker died")

    words = r"^interrupted before the first step of pretrain; run the same command to resume \[\]$"
    with pytest.raises(TrainingError, match=words):
        run(tmp_path, clock, monkeypatch, batches=Batches(signalled))


@pytest.mark.parametrize(
    ("diverges", "words"),
    [
        ("loss", "loss is nan with a gradient of norm 1.0 at step 3 .*classifier 0.1"),
        ("grad_norm", "loss is 0.0 with a gradient of norm inf at step 3 .*classifier 0.1"),
        ("w", r"state is not finite \(1 arrays, .params\['w'\] first\) at step [34] "),
    ],
)
@pytest.mark.parametrize("every", [1, 2])
def test_what_diverged_is_not_saved(
    every: int, diverges: str, words: str, tmp_path: Path, clock: Clock, monkeypatch: Any
) -> None:
    """At step 3, which is not logged: the last good checkpoint is the one before, and stays."""
    fields = {"checkpoint.every_steps": every, "log.every_steps": 100}
    saved = r"\[1, 2\]" if every == 1 else r"\[2\]"
    with pytest.raises(TrainingError, match=rf"{words}.*good checkpoint: step 2 .* {saved}$"):
        run(tmp_path, clock, monkeypatch, diverges=diverges, **fields)


def test_outputs_and_objectives_that_are_not_finite(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of an epoch: of finite parameters, whose products overflow."""

    def overflows(_: int) -> None:
        raise NotFiniteError("cat.png", None, np.array([0]))

    words = "outputs of the model are not finite for cat.png at step 4 of pretrain; last good"
    with pytest.raises(TrainingError, match=rf"{words} checkpoint: step 3 .* \[3\]$"):
        run(tmp_path, clock, monkeypatch, while_validating=overflows)
    words = (
        r"objective on the calibration split is nan at step 4 .*\(learning rate: classifier 0.1\)"
    )
    with pytest.raises(TrainingError, match=rf"{words}; .* step 3 .* \[3\]$"):
        run(tmp_path, clock, monkeypatch, objective=np.nan)


def test_too_many_unreadable_images_stop_a_training_saved(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """At the very step, which may be of nothing but them; each is named, with the reason."""
    run(tmp_path, clock, monkeypatch, batches=Batches(corrupt=20))
    assert capsys.readouterr().err.count("left out: gone.jpg: No such file") == 20
    words = r"^21 training images cannot be read \(gone.jpg, .* step 1 .*\[1\]$"
    with pytest.raises(TrainingError, match=words):
        run(tmp_path, clock, monkeypatch, batches=Batches(corrupt=21))
    # Of the calibration split, once the epoch is saved: what is left of it, or nothing, is no
    # measure for the choice of the best checkpoint.
    found: dict[int, float | None] = {}
    words = r"this epoch has no objective, .*: stopped after step 4 of pretrain, which is saved; .*"
    with pytest.raises(TrainingError, match=rf"^too many; {words}\[3, 4\]$"):
        run(tmp_path, clock, monkeypatch, excess="too many", objectives=found)
    assert found == {3: None, 4: None}

    def unreadable(validated: int) -> None:
        if validated == 2:
            raise DataError("none of the 70 images can be read: repair them")

    found.clear()
    words = words.replace("step 4", "step 8")
    with pytest.raises(TrainingError, match=rf"^calibration: none of .* them; {words}6, 8\]$"):
        run(tmp_path, clock, monkeypatch, while_validating=unreadable, objectives=found)
    assert found == {3: None, 4: 1.0, 6: None, 8: None}
