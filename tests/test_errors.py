"""What ends the program, as its user sees it: one line, and 2, or 75 where a signal did it."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import pytest

from drnet_jax import cli
from drnet_jax.benchmark import _new_folder, restore_and_benchmark
from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.checkpoints.checkpoint import CheckpointError, StageCheckpoints
from drnet_jax.cli import MODES, one_line_errors
from drnet_jax.config import ConfigError
from drnet_jax.evaluate import restore_and_evaluate, restore_and_evaluate_bucketed
from drnet_jax.report import compare_runs
from drnet_jax.runtime.command_line import INTERRUPTED
from drnet_jax.runtime.terminal import OutputError
from drnet_jax.sweep import main
from drnet_jax.train import train_and_evaluate
from drnet_jax.training.stops import TrainingError, TrainingInterrupted
from tests.small_disk import small_disk
from tests.small_run import small_config

MEMORY = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nBufferAssignment ..."
LOST = "stdout takes no more output (Broken pipe)"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of the tests, afterwards; as a program begins with, before."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("mode", "error", "words"),
    [
        (
            "train",
            jax.errors.JaxRuntimeError(MEMORY),
            "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.): lower "
            "<stage>.batch_size, eval.batch_size, benchmark.batch_sizes or inference.buckets; or "
            "keep a stage's batch, with model.remat=True, in parts (<stage>.accumulate) or in "
            "half the bytes (model.dtype=bfloat16)",
        ),
        ("eval", MemoryError(), "out of memory (MemoryError): lower <stage>.batch_size, eval."),
        ("train", OutputError(LOST), f"{LOST}; run the same command to resume"),
        ("eval", OutputError(LOST), f"{LOST}; what was written is kept"),
        (
            "predict",
            OSError(errno.ENOSPC, "No space left on device", "a.csv"),
            "a.csv: No space left on device; what was complete before is kept: free space, and "
            "run the same command again",
        ),
        ("train", PermissionError(errno.EROFS, "Read-only file system", "a"), "a: Read-only"),
        ("train", TrainingError("2 images cannot be read"), "2 images cannot be read"),
    ],
)
def test_one_line(
    mode: str, error: Exception, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors(mode):
        raise error
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith(f"error: {words}")


@pytest.mark.parametrize(
    ("mode", "error", "status", "words"),
    [
        ("train", TrainingInterrupted("interrupted after step 3"), 75, "interrupted after step 3"),
        ("train", KeyboardInterrupt(), 75, "interrupted; run the same command to resume"),
        ("convert", KeyboardInterrupt(), 75, "interrupted; run the same command to resume"),
        ("predict", KeyboardInterrupt(), 75, "interrupted; run the same command to resume"),
        ("eval", KeyboardInterrupt(), 2, "interrupted; nothing is kept"),
        ("export", KeyboardInterrupt(), 2, "interrupted; nothing is kept"),
    ],
)
def test_the_status_says_whether_the_same_command_resumes(
    mode: str,
    error: BaseException,
    status: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors(mode):
        raise error
    assert ended.value.code == status and status in (2, INTERRUPTED)
    assert capsys.readouterr().err == f"error: {words}\n"


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("INTERNAL: a bug"), ValueError("a bug"), AssertionError()]
)
def test_what_is_a_bug_is_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)), one_line_errors("train"):
        raise error


def test_a_device_without_memory_names_what_takes_less() -> None:
    """A real one: what XLA asks for is more than the process may have."""
    code = """
import resource
from pathlib import Path
import jax, jax.numpy as jnp
from drnet_jax.cli import one_line_errors
products = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x)
products(jnp.ones((8, 8))).block_until_ready()
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2_000_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
with one_line_errors("train"):
    products(jnp.ones((60_000, 100))).block_until_ready()
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    (line,) = process.stderr.splitlines()
    assert process.returncode == 2
    assert line.startswith("error: out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 14")
    for field in ("<stage>.batch_size", "<stage>.accumulate", "model.dtype=bfloat16"):
        assert field in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_as_ctrl_c_does(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """And where one is ignored, as by `nohup`, it stays so."""
    cli._interrupt_on_signals()
    with pytest.raises(SystemExit) as ended, one_line_errors("eval"):
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: interrupted; nothing is kept\n"
    signal.signal(number, signal.SIG_IGN)
    cli._interrupt_on_signals()
    with one_line_errors("eval"):
        os.kill(os.getpid(), number)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program in this process, of which it leaves memory and logging alone."""
    monkeypatch.setattr("drnet_jax.runtime.allocator.keep_freed_memory", lambda: None)
    monkeypatch.setattr(cli, "logging", Mock())


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("mode", MODES)
def test_a_bad_field_comes_before_places_are_compared(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path that is none, from a configuration file: in every mode, and from Python."""
    config = small_config(**{"data.name": "folder", "data.dir": "a\0b"})
    given = cli.parse_flags([f"--mode={mode}", f"--workdir={tmp_path / 'workdir'}"])
    with pytest.raises(SystemExit) as ended:
        cli._main(config, given)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: data.dir='a\\x00b'")
    with pytest.raises(ConfigError, match="^data.dir="):
        train_and_evaluate(config, tmp_path / "workdir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("during", "mode", "status"),
    [
        # Which mode it is, is not known yet.
        ("take_overrides", "train", 2),
        ("load_config", "train", 75),
        ("_start_jax", "predict", 75),
        ("_start_jax", "eval", 2),
        ("one_line_errors", "convert", 75),
    ],
)
def test_a_signal_while_the_program_starts(
    during: str,
    mode: str,
    status: int,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While it reads its configuration, starts JAX or imports the rest."""

    def signalled(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(cli, during, signalled)
    monkeypatch.setattr(sys, "argv", ["main.py", "--config=tiny", f"--mode={mode}"])
    with pytest.raises(SystemExit) as ended:
        cli.run()
    assert ended.value.code == status
    assert capsys.readouterr().err == "error: interrupted; nothing was begun\n"


@pytest.mark.parametrize(
    "program",
    [
        train_and_evaluate,
        restore_and_evaluate,
        restore_and_evaluate_bucketed,
        restore_and_calibrate,
        restore_and_benchmark,
        compare_runs,
    ],
)
def test_where_nothing_can_be_written_no_program_begins(
    program: Callable[[Any, Path], Any], tmp_path: Path
) -> None:
    """There is no run to read either, which each would say next."""
    (tmp_path / "file").touch()
    config = small_config(**{"report.runs": (str(tmp_path / "none"),)})
    for folder in (tmp_path / "file", tmp_path / "file" / "workdir"):
        with pytest.raises(NotADirectoryError) as error:
            program(config, folder)
        assert error.value.filename == str(tmp_path / "file")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder of a file system that takes nothing, whoever asks."""
    place = tmp_path / "mounted"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("mode", ["train", "eval", "calibrate", "benchmark", "report"])
def test_a_read_only_workdir(
    mode: str, read_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = cli.parse_flags([f"--mode={mode}", f"--workdir={read_only / 'run'}"])
    with pytest.raises(SystemExit) as ended:
        cli._main(small_config(**{"report.runs": ("none",)}), given)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {read_only}") and "Read-only file system" in line


def test_no_job_of_a_sweep_begins_where_its_table_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    sweep = Path(__file__).parents[1] / "configs" / "sweeps" / "digits.py"
    for place in (["--dir", "file"], ["--dir", "runs", "--results", "file"]):
        arguments = [str(tmp_path / name) if name[0] != "-" else name for name in place]
        with pytest.raises(SystemExit) as ended:
            main([str(sweep), *arguments])
        assert ended.value.code == 2
        problem = "no results can be written there (Not a directory)"
        assert capsys.readouterr().err == f"error: {tmp_path / 'file'}: {problem}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_that_does_not_fit_on_the_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Is an error of the operating system, without a log of its own; the one before is kept."""
    small, large = ({"a": jax.random.normal(jax.random.key(0), (size,))} for size in (9, 9999))
    with StageCheckpoints(tmp_path / "pretrain") as checkpoints:
        checkpoints.save(1, small)
        checkpoints.close()
    checkpoints = StageCheckpoints(tmp_path / "pretrain")
    with small_disk(20_000), pytest.raises(OSError) as error:
        checkpoints.save(2, large)
        checkpoints.close()
    assert error.value.filename == str(tmp_path / "pretrain")
    assert error.value.errno == errno.EFBIG
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    with StageCheckpoints(tmp_path / "pretrain") as checkpoints:
        assert checkpoints.latest_step == 1


def test_benchmarks_of_the_same_second_have_their_own_folders(tmp_path: Path) -> None:
    folders = {_new_folder(tmp_path / "benchmark") for _ in range(4)}
    assert len(folders) == 4 and set((tmp_path / "benchmark").iterdir()) == folders


def test_a_file_to_restore_from_is_named_by_its_field(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = small_config(restore_from=str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="no checkpoint in .*file/.*config.restore_from"):
        restore_and_calibrate(config, tmp_path)
