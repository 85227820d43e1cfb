"""Damaged checkpoints: every file of one, in every way, is named, or what is read is unchanged."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from drnet_jax.checkpoints import checkpoint, finite
from drnet_jax.checkpoints.checkpoint import (
    CheckpointError,
    StageCheckpoints,
    instead_of,
    steps,
)
from drnet_jax.checkpoints.finite import NotFiniteError
from tests.damage import flip, halve

NUMBERS = np.random.default_rng(0).normal(size=3000).astype(np.float32)
SUMS = "checksums.json"
OBJECTIVES = {1: 0.25, 2: 0.5, 3: 0.75}


def state(step: int) -> Any:
    return {"params": jax.numpy.asarray(NUMBERS * step), "collections": jax.numpy.ones(3)}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first checkpoint is the best; the last two are kept beside it."""
    directory = tmp_path_factory.mktemp("run") / "joint"
    with StageCheckpoints(directory, keep_latest=2) as checkpoints:
        for step, objective in OBJECTIVES.items():
            checkpoints.save(step, state(step), objective=objective)
    assert steps(directory) == [1, 2, 3]
    return directory


def best(directory: Path) -> Any:
    """As evaluation reads it."""
    with StageCheckpoints(directory, read_only=True) as checkpoints:
        step = checkpoints.best_step
        assert step is not None
        return checkpoints.load_partial(step, state(step))


def latest(directory: Path) -> Any:
    """As a training that is resumed reads it."""
    with StageCheckpoints(directory) as checkpoints:
        step = checkpoints.latest_step
        assert step is not None
        return checkpoints.load(step, state(step))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("read", "step", "damage"),
    [*((best, 1, damage) for damage in (flip, halve, empty, Path.unlink)), (latest, 3, flip)],
)
def test_every_file_in_every_way(
    read: Callable[[Path], Any],
    step: int,
    damage: Callable[[Path], None],
    stage: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The error names the file and what is intact; that is read once the damaged one is removed."""
    # Of the others only what is looked at.
    paths = [*(stage / str(step)).rglob("*"), *stage.glob("2/metrics/metrics"), stage / "2" / SUMS]
    for path in paths:
        if not path.is_file():
            continue
        file = path.relative_to(stage)
        copy = tmp_path / str(file).replace("/", "-") / "joint"
        shutil.copytree(stage, copy)
        damage(copy / file)
        if not matters(file, step, removed=damage is Path.unlink):
            found = read(copy)
            np.testing.assert_array_equal(found["params"], NUMBERS * np.float32(step))
            np.testing.assert_array_equal(found["collections"], np.ones(3))
            without = file == Path(str(step), SUMS)
            assert ("has no checksums" in capsys.readouterr().out) == without
            continue
        with pytest.raises(CheckpointError) as error:
            read(copy)
        damaged, left = copy / file.parts[0], [n for n in (1, 2, 3) if f"{n}" != file.parts[0]]
        assert str(error.value).startswith(f"{copy / file} is damaged")
        assert f"remove {damaged} and run the same command" in str(error.value)
        assert str(error.value).endswith(f"of which step {left[0]} and step {left[1]} is intact")
        shutil.rmtree(damaged)
        wanted = left[0] if read is best else left[-1]
        np.testing.assert_array_equal(read(copy)["params"], NUMBERS * np.float32(wanted))


def matters(file: Path, step: int, *, removed: bool) -> bool:
    """Whether what is read at `step` depends on a file: of others, their objectives."""
    if len(file.parts) == 2:
        # Checkpoints of earlier versions have no checksums; nothing is restored from the others.
        return file.name == SUMS and not removed
    return file.parts[0] == str(step) or file.parts[1] == "metrics"


def test_a_checkpoint_of_an_earlier_version(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no checksums: it is read with a line, and what Orbax itself finds is not hidden."""
    copy = tmp_path / "joint"
    shutil.copytree(stage, copy)
    for path in copy.glob("*/checksums.json"):
        path.unlink()
    np.testing.assert_array_equal(best(copy)["params"], NUMBERS)
    assert f"{copy / '1'} has no checksums" in capsys.readouterr().out
    halve(copy / "1" / "state" / "manifest.ocdbt")
    with pytest.raises(CheckpointError, match="or it is damaged, which no checksums tell"):
        best(copy)
    (copy / "2" / "metrics" / "metrics").write_text('{"objective": NaN}')
    with pytest.raises(CheckpointError, match="2/metrics/metrics is damaged .*restore it from"):
        best(copy)


def test_the_only_checkpoint_is_damaged(stage: Path, tmp_path: Path) -> None:
    shutil.copytree(stage / "3", tmp_path / "joint" / "3")
    flip(tmp_path / "joint" / "3" / "state" / "_METADATA")
    with pytest.raises(CheckpointError, match="remove .*/joint and train the stage anew: no other"):
        latest(tmp_path / "joint")


@pytest.mark.parametrize("when", ["before", "while", "between"])
def test_a_checkpoint_is_removed_by_a_training_beside(
    when: str, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between finding it and reading it, or half way: that is said, and no damage.

    Or between a look for its checksums and their reading. It may take its time.
    """
    copy = tmp_path / "joint"
    monkeypatch.setattr(checkpoint, "other_training", {tmp_path: "another process"}.get)
    shutil.copytree(stage, copy)
    (copy / "9.orbax-checkpoint-tmp").mkdir()
    with StageCheckpoints(copy, read_only=True) as checkpoints:
        step = checkpoints.best_step
        assert step == 1
        if when == "before":
            shutil.rmtree(copy / "1")
        else:
            (copy / "1" / ("state/_METADATA" if when == "while" else SUMS)).unlink()
            monkeypatch.setattr(checkpoint, "has_checksums", lambda _: True)
            Timer(0.4, shutil.rmtree, [copy / "1"]).start()
        with pytest.raises(CheckpointError, match=r"joint/1 was removed .*: run the command again"):
            checkpoints.load_partial(step, state(step))
    monkeypatch.undo()
    # As the message says, half a save beside it or not.
    np.testing.assert_array_equal(best(copy)["params"], NUMBERS * np.float32(2))


def test_a_save_whose_files_are_not_found_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never one without checksums, whatever a later version of Orbax does."""
    checkpoints = StageCheckpoints(tmp_path / "joint")
    add = StageCheckpoints._add_checksums

    def renamed(self: StageCheckpoints) -> None:
        self._saving = 2
        add(self)

    monkeypatch.setattr(StageCheckpoints, "_add_checksums", renamed)
    with pytest.raises(RuntimeError, match="no checksums for step 2 in .*/joint: this version of"):
        checkpoints.save(1, state(1))
        checkpoints.close()
    assert steps(tmp_path / "joint") == []


def test_outputs_that_are_not_finite_name_what_is_intact_once(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints beside are read whole for it: only for a message that is shown."""
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return instead_of(path)

    monkeypatch.setattr(finite, "instead_of", counted)
    error = NotFiniteError("cat.png", stage / "3", np.array([0]))
    assert read == []
    words = f"outputs of {stage / '3'} are not finite for cat.png; restore .*step 1 and step 2 is i"
    for _ in range(2):
        assert re.search(words, str(error))
    assert read == [stage / "3"]
    assert str(NotFiniteError("a", None, np.array([0]))).endswith("the model are not finite for a")


def test_errors_that_follow_the_first_one_of_a_save_say_nothing(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a full disk, for each array that fails once Orbax has closed its event loop."""
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with StageCheckpoints(stage, read_only=True):
        assert sys.unraisablehook == said.append
    for _ in range(2):
        StageCheckpoints(tmp_path / "joint").close()
    others = [RuntimeError("a bug"), ValueError("Event loop is closed")]
    for error in (RuntimeError("Event loop is closed"), *others):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert [unraisable.exc_value for unraisable in said] == others


def test_extra_files_change_nothing(stage: Path, tmp_path: Path) -> None:
    copy = tmp_path / "joint"
    shutil.copytree(stage, copy)
    for name in ("1/empty", "1/state/empty", "1/state/d/empty", "empty"):
        (copy / name).touch()
    np.testing.assert_array_equal(best(copy)["params"], NUMBERS)
