"""Locks: one process at a time, which the others name; real processes hold them."""

import errno
import fcntl
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.restore import find_model
from drnet_jax.checkpoints.training_lock import other_training, training_lock
from drnet_jax.config import ConfigError
from drnet_jax.report import _summary
from drnet_jax.runtime.locks import locked, other_holder
from drnet_jax.train import train_and_evaluate
from drnet_jax.training.start import check_stage_one
from tests.random_model import write_run
from tests.small_run import small_config
from tests.test_summaries import evaluated

HOLDER = "process 7 on host a trains in /runs/x since 2026-01-01 10:00 UTC"
CODE = f"""
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("{HOLDER}", file=file, flush=True)
print("held", flush=True)
time.sleep(60)
"""
Hold = Callable[[Path], subprocess.Popen[str]]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Starts a process that holds a lock file."""
    started = []

    def start(path: Path) -> subprocess.Popen[str]:
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", CODE, str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_holder_is_named_and_a_killed_one_holds_nothing(hold: Hold, tmp_path: Path) -> None:
    path = tmp_path / "train.lock"
    process = hold(path)
    assert other_holder(path) == HOLDER
    with pytest.raises(ConfigError) as error:
        locked(path, "trains", "wait").__enter__()
    assert str(error.value) == f"{HOLDER}: wait"
    process.kill()
    process.wait()
    assert path.exists() and other_holder(path) == ""
    with locked(path, "trains in x", "wait"):
        text = path.read_text()
        assert text.startswith(f"process {os.getpid()} on host {platform.node()} trains in x since")
        # This process is no other one; a second lock is refused all the same.
        assert other_holder(path) == ""
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on host"):
            locked(path, "trains in x", "wait").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_made_folders_go_unless_something_was_written(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / ".." / "b" / "x.lock", "works", "wait"):
        assert (tmp_path / "b" / "x.lock").exists()
    assert list(tmp_path.iterdir()) == []
    for name in ("", "kept"):
        with locked(tmp_path / "a" / "b" / "x.lock", "works", "wait"):
            if name:
                (tmp_path / "a" / name).touch()
        assert [path.name for path in tmp_path.rglob("*")] == (["a", "kept"] if name else [])


def test_a_lock_file_that_its_holder_removes_meanwhile_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two processes would hold locks of the same name, on two files."""
    path, flock, calls = tmp_path / "x.lock", fcntl.flock, []

    def late(file: Any, how: int) -> None:
        if not calls:
            path.unlink()
        calls.append(how)
        flock(file, how)

    monkeypatch.setattr("fcntl.flock", late)
    with locked(path, "works", "wait"):
        monkeypatch.undo()
        assert len(calls) == 2
        with pytest.raises(ConfigError, match="works since"):
            locked(path, "works", "wait").__enter__()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is open for writing, as network file systems want it."""

    def flock(file: Any, _: int) -> None:
        assert file.writable()
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(tmp_path / "x.lock", "works", "wait"):
        (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: the file system of {tmp_path} has no locks (")


def test_other_processes_of_the_same_run_are_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path / "x.lock", "works", "wait"):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with locked(tmp_path / "x.lock", "works", "wait"):
            pass


@pytest.mark.parametrize("failed", [True, False])
@pytest.mark.parametrize("process", [0, 1])
def test_all_processes_of_a_run_stop_where_the_first_one_gets_no_lock(
    process: int, failed: bool, hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process alone asks nobody."""
    told: list[int] = []

    def gather(own: np.ndarray) -> np.ndarray:
        told.append(int(own))
        return np.array([failed, 0])

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    if failed:
        hold(tmp_path / "train.lock")
    if process == 0:
        words = f"^{HOLDER}: wait until it ends"
    else:
        words = f"^the first process could not lock {tmp_path}, and says why$"
    for count in (2, 1):
        monkeypatch.setattr(jax, "process_count", lambda count=count: count)
        fails = failed and (process == 0 or count == 2)
        with pytest.raises(ConfigError, match=words) if fails else nullcontext():
            with training_lock(tmp_path):
                assert not fails
        assert told == [int(failed and process == 0)]


def test_a_second_training_is_refused_before_any_work(hold: Hold, tmp_path: Path) -> None:
    """Whatever its configuration; and one that starts from a stage 1 in training waits for it."""
    hold(tmp_path / "train.lock")
    with pytest.raises(ConfigError, match=f"^{HOLDER}: wait until it ends, or give another --work"):
        # It would be refused for this field too, after the lock.
        train_and_evaluate(small_config(restore_from="elsewhere"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train.lock"]
    with pytest.raises(CheckpointError, match=f"no finished stage 1 in .*: {HOLDER}; wait until"):
        check_stage_one(small_config(), tmp_path)


def test_a_reader_beside_a_training_says_what_it_reads(
    hold: Hold, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(small_config(), tmp_path, tuple("0123456789"))
    evaluated(tmp_path, checkpoint_step=1)
    # Its own training evaluates at the end.
    with training_lock(tmp_path):
        find_model(small_config(), tmp_path)
        assert other_training(tmp_path) == ""
    assert capsys.readouterr().out == ""
    hold(tmp_path / "train.lock")
    assert find_model(small_config(), tmp_path).step == 1
    assert capsys.readouterr().out == f"{HOLDER}: what is read is step 1 of joint\n"
    _summary(tmp_path)
    assert capsys.readouterr().out == f"{HOLDER}: its eval.json is of step 1 of joint\n"
