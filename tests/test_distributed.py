"""Several processes on this machine: what one does, and what happens when one of them stops.

Reference: one process with as many devices. The processes are those of the command line.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from drnet_jax.config import ConfigError
from drnet_jax.config_checks import check_several_processes
from drnet_jax.data import pipeline
from drnet_jax.data.sources import ArraySource, Source
from drnet_jax.runtime.distributed import _STARTED, start_processes
from drnet_jax.runtime.metric_writer import read_metrics
from drnet_jax.runtime.sharding import batch_sharding, create_mesh
from drnet_jax.train import train_and_evaluate
from drnet_jax.training.corrupt import CorruptImages
from tests.small_run import small_config
from tests.xla import QUICK_COMPILATION

ROOT = Path(__file__).parents[1]
DEVICES = 4
# Batches of 40, of which the last one of the test split is 30 images: with four processes one has
# none of them. Every checkpoint is kept, to go on from any.
FIELDS = {
    "data.train_images": 120,
    "checkpoint.every_steps": 2,
    "checkpoint.keep_latest": 9,
    "eval.controls": False,
}
NONE = {"coordinator": None, "num_processes": None, "process_id": None}
_SECONDS = 300


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process does."""
    assert jax.device_count() == DEVICES
    workdir = tmp_path_factory.mktemp("one")
    train_and_evaluate(small_config(**FIELDS), workdir)
    return workdir


class Processes:
    """Processes of one run, which end with the test; the last one may have a further argument."""

    def __init__(self, count: int, workdir: Path, folder: Path, last: str = "") -> None:
        config = folder / "config.py"
        config.write_text(
            "from tests.small_run import small_config\n"
            f"def get_config():\n    return small_config(**{FIELDS!r})\n"
        )
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        flags = f"--xla_force_host_platform_device_count={DEVICES // count} {QUICK_COMPILATION}"
        # The first by flags, the others by the environment.
        environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        self.logs = [folder / f"{count}-{number}.log" for number in range(count)]
        self.processes = []
        for number, log in enumerate(self.logs):
            place = {"coordinator": f"localhost:{port}", "num_processes": count}
            place["process_id"] = number
            names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
            given = dict(zip(names, map(str, place.values()), strict=True)) if number else {}
            command = [sys.executable, str(ROOT / "main.py")]
            command += [f"--config={config}", f"--workdir={workdir}"]
            command += [] if number else [f"--{name}={value}" for name, value in place.items()]
            command += [last] if last and number == count - 1 else []
            with log.open("w") as output:
                self.processes.append(
                    subprocess.Popen(
                        command, stdout=output, stderr=subprocess.STDOUT, env=environment | given
                    )
                )

    def wait_for(self, text: str) -> None:
        """Until the first process has printed it."""
        until = time.monotonic() + _SECONDS
        while text not in self.logs[0].read_text():
            assert self.processes[0].poll() is None and time.monotonic() < until, self.said()
            time.sleep(0.02)

    def end(self) -> list[int]:
        """The status of each, once all have ended."""
        return [process.wait(_SECONDS) for process in self.processes]

    def said(self) -> str:
        """By all of them."""
        return "\n".join(log.read_text() for log in self.logs)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def assert_same_run(workdir: Path, reference: Path) -> None:
    """Losses to 1e-5, and the evaluation image by image."""
    runs = [read_metrics(folder / "metrics.jsonl") for folder in (workdir, reference)]
    assert [(e["stage"], e["step"]) for e in runs[0]] == [(e["stage"], e["step"]) for e in runs[1]]
    for entry, expected in zip(*runs, strict=True):
        assert entry.keys() == expected.keys()
        figures = {"loss", "calibration_objective", "accuracy", "calibration_fixed_top1"}
        for name in figures & entry.keys():
            assert entry[name] == pytest.approx(expected[name], rel=1e-5)
    with np.load(workdir / "logits.npz") as found, np.load(reference / "logits.npz") as expected:
        for name in ("test/index", "test/label", "test/name"):
            np.testing.assert_array_equal(found[name], expected[name])
        np.testing.assert_allclose(found["test/logits"], expected["test/logits"], atol=1e-4)
        answers = [kept["test/logits"].argmax(axis=-1) for kept in (found, expected)]
        np.testing.assert_array_equal(*answers)
    kept = [json.loads((folder / "eval.json").read_text()) for folder in (workdir, reference)]
    for evaluation in kept:
        # What ran, and when.
        for name in ("environment", "crc32"):
            del evaluation[name]
    assert_close(kept[0], kept[1])


def assert_close(found: Any, expected: Any, name: str = "eval.json") -> None:
    """Numbers to 1e-5, all else alike; counts of images, by whole images, alike."""
    assert type(found) is type(expected), name
    if isinstance(found, dict):
        assert found.keys() == expected.keys(), name
        for key in found:
            assert_close(found[key], expected[key], f"{name}.{key}")
    elif isinstance(found, list):
        assert len(found) == len(expected), name
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_close(*pair, f"{name}[{index}]")
    elif isinstance(found, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), name
    else:
        assert found == expected, name


def test_a_signal_to_one_of_two_and_four_go_on(reference: Path, tmp_path: Path) -> None:
    """Both save the same step and end; four processes make of it what one makes of it all."""
    workdir = tmp_path / "run"
    with Processes(2, workdir, tmp_path) as two:
        two.wait_for("pretrain 1/")
        two.processes[1].send_signal(signal.SIGTERM)
        statuses = two.end()
        said = two.said()
        assert statuses[0] == statuses[1] != 0, said
        words = "interrupted after step"
        lines = [line.partition(words)[2] for line in said.splitlines() if words in line]
        assert len(lines) == 2 and len(set(lines)) == 1, said
        step = lines[0].split()[0]
        assert (workdir / "pretrain" / step / "checksums.json").exists()
        assert not (workdir / "eval.json").exists() and not (workdir / "train.lock").exists()
    with Processes(4, workdir, tmp_path) as four:
        assert four.end() == [0] * 4, four.said()
        assert f"pretrain: resuming after step {step} of" in four.said()
        # The first one speaks, and writes.
        assert all("pretrain" not in log.read_text() for log in four.logs[1:])
    assert_same_run(workdir, reference)


def test_one_of_two_is_killed_and_one_goes_on(reference: Path, tmp_path: Path) -> None:
    """Two go on from a step of one; what they saved, one finishes."""
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir, ignore=shutil.ignore_patterns("eval.json", "logits.npz"))
    shutil.rmtree(workdir / "joint")
    for name in ("pretrain_finished.json", "joint_finished.json"):
        (workdir / name).unlink()
    for path in (workdir / "pretrain").iterdir():
        if path.name != "2":
            shutil.rmtree(path)
    with Processes(2, workdir, tmp_path) as two:
        # Two have saved step 4 then, or are saving it.
        two.wait_for("pretrain 5/")
        two.processes[1].kill()
        assert two.end()[1] == -signal.SIGKILL
        said = two.logs[0].read_text()
        assert "pretrain: resuming after step 2 of" in said
        # In a background thread it may be JAX itself that notices, and aborts.
        ours = "process 0 of 2: the connection to another process is lost" in said
        assert ours or "another task died" in said, said
        assert two.processes[0].returncode == (2 if ours else -signal.SIGABRT)
    train_and_evaluate(small_config(**FIELDS), workdir)
    assert_same_run(workdir, reference)


def test_an_error_in_one_ends_the_others(tmp_path: Path) -> None:
    """Which would wait for it; each says in a line why it ends, and they have the same status."""
    with Processes(2, tmp_path / "run", tmp_path, last="--config.log.every_steps=0") as two:
        assert two.end() == [2, 2], two.said()
        lines = [
            [line for line in log.read_text().splitlines() if line.startswith("error: ")]
            for log in two.logs
        ]
    assert lines[0] == ["error: process 0 of 2: process 1 stopped, and says why: so does this one"]
    assert len(lines[1]) == 1
    assert lines[1][0].startswith("error: process 1 of 2: log.every_steps=0 ")


def test_a_coordinator_that_is_not_there_is_one_line() -> None:
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    place = {"coordinator": f"localhost:{port}", "num_processes": 2, "process_id": 1}
    code = f"from drnet_jax.runtime.distributed import *; start_processes({place}, within=0.5)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"error: not all processes have reached the coordinator localhost:{port}"
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"coordinator": "a:1"}, "--coordinator without --num_processes/JAX_NUM_PROCESSES and "),
        ({"num_processes": 2, "process_id": 0}, "without --coordinator/JAX_COORDINATOR_ADDRESS"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id=2 must be 0"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": -1}, "--process_id=-1 must be"),
        ({"coordinator": "a:1", "num_processes": 0, "process_id": 0}, "--num_processes=0 must be"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "a must be HOST:PORT"),
        ({"coordinator": "a:99999", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
    ],
)
def test_bad_values(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        start_processes(NONE | given)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        place = {"coordinator": f"localhost:{port}", "num_processes": 2, "process_id": 0}
        with pytest.raises(ConfigError, match=f"cannot listen on port {port}"):
            start_processes(place)


def test_a_number_in_the_environment_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(ConfigError, match="^JAX_PROCESS_ID='first' must be a whole number$"):
        start_processes(NONE)


@pytest.mark.parametrize(
    ("variables", "given", "started"),
    [
        ({}, {}, None),
        ({}, {"num_processes": 1}, None),
        ({"SLURM_NTASKS": "1"}, {}, None),
        ({"SLURM_NTASKS": "2"}, {}, {}),
        ({"SLURM_NTASKS": "2"}, {"num_processes": 1}, None),
        ({"SLURM_NTASKS": "2"}, {"coordinator": "b:7"}, {"coordinator_address": "b:7"}),
        ({}, {"coordinator": "auto"}, {}),
    ],
)
def test_where_a_launcher_starts_several(
    variables: dict[str, str],
    given: dict[str, Any],
    started: dict[str, Any] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One task of SLURM is one process, and so is what asks to be alone."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **values: calls.append(values))
    # Else it stays off for the tests of this process.
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    start_processes(NONE | given)
    _STARTED.clear()
    limits = ("initialization_timeout", "heartbeat_timeout_seconds")
    found = [{n: v for n, v in call.items() if n not in limits} for call in calls]
    assert found == ([] if started is None else [started])


@pytest.mark.parametrize(
    ("mode", "fields", "words"),
    [
        ("train", {}, ""),
        ("eval", {}, ""),
        ("calibrate", {}, ""),
        ("predict", {}, "--mode=predict is for one process"),
        ("benchmark", {}, "--mode=benchmark is for one process"),
        ("eval", {"eval.dispatch": "bucketed"}, "eval.dispatch='bucketed' is for one process"),
        ("calibrate", {"budget.ms": 1.0}, "budget.ms is for one process"),
        ("train", {"convert.weights": "w.pth"}, "convert.weights is for one process"),
    ],
)
def test_what_several_processes_do(mode: str, fields: dict[str, Any], words: str) -> None:
    config = small_config(**fields)
    if not words:
        check_several_processes(config, mode)
        return
    with pytest.raises(ConfigError, match=f"^{words}: start one"):
        check_several_processes(config, mode)


def images(count: int) -> Source:
    pixels = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    return ArraySource(pixels, np.arange(count, dtype=np.int32), "numbered")


def as_process(number: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: number)
    monkeypatch.setattr(jax, "process_count", lambda: count)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("size", [1, 7, 16, 21])
def test_parts_of_evaluation_batches_are_those_of_one_process(
    size: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same places, whatever is left for the last batch."""
    whole = list(pipeline.eval_host_batches(images(size), batch_size=8))
    parts = []
    for number in range(count):
        as_process(number, count, monkeypatch)
        parts.append(list(pipeline.eval_host_batches(images(size), batch_size=8)))
    for expected, *found in zip(whole, *parts, strict=True):
        real = expected["mask"]
        joined = {name: np.concatenate([part[name] for part in found]) for name in expected}
        np.testing.assert_array_equal(joined["mask"], real)
        for name in ("image", "label", "index"):
            np.testing.assert_array_equal(joined[name][real], expected[name][real])


def test_parts_of_training_batches_are_those_of_one_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a step on that is not the first, so that the noise of every image is the same."""
    monkeypatch.setattr(pipeline, "_place", lambda batch, _: batch)
    sharding = batch_sharding(create_mesh())

    def take() -> list[np.ndarray]:
        batches = pipeline.train_batches(
            images(20), batch_size=8, seed=3, start_step=2, sharding=sharding, num_workers=0
        )
        taken: list[Any] = [next(batches).arrays["label"] for _ in range(4)]
        batches.close()
        return taken

    whole, parts = take(), []
    for number in range(4):
        as_process(number, 4, monkeypatch)
        parts.append(take())
    for expected, *found in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(found), expected)


def test_a_corrupt_image_that_several_processes_find_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other process has found 3 and 5; this one 3 in an epoch before."""
    others = iter([np.int32(2), np.array([3, 5])])

    def gather(own: Any) -> np.ndarray:
        return np.stack([own, next(others)])

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    as_process(0, 2, monkeypatch)
    said: list[str] = []
    corrupt = CorruptImages(images(8), 1, said.append)
    corrupt.add(np.array([3]))
    assert corrupt.excess() == "" and len(said) == 1
    assert corrupt.count() == 2
    assert corrupt.excess().startswith("2 training images cannot be read (")
    # What another process has named is not named again.
    corrupt.add(np.array([5]))
    assert len(said) == 1
