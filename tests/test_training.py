"""The main job: resuming after kill -9, one trace a step, exact evaluation, clear stops."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from configs.tiny import get_config
from drnet_jax.build import create_mesh, create_model
from drnet_jax.config import ConfigError
from drnet_jax.data.sources import load_source
from drnet_jax.evaluate import evaluate, make_eval_step, restore_and_evaluate
from drnet_jax.metrics import EvalRecords
from drnet_jax.stage_loop import TrainingError
from drnet_jax.train import initial_variables, prepare, train_and_evaluate
from drnet_jax.train_state import init_variables

ROOT = Path(__file__).parents[1]
OVERRIDES = {
    "model.width": 4,
    "model.resolutions": (32, 16),
    "predictor.stage_sizes": (1,),
    "data.train_images": 320,
    "data.eval_images": 70,
    "pretrain.batch_size": 40,
    "joint.batch_size": 40,
    "eval.batch_size": 40,
    "checkpoint.every_steps": 3,
    "log.every_steps": 1,
    "log.tensorboard": False,
}


def small_config(**further: Any) -> ConfigDict:
    config = get_config()
    config.update_from_flattened_dict(OVERRIDES | further)
    return config


def command(workdir: Path, **further: Any) -> list[str]:
    flags = [f"--config.{name}={value}" for name, value in (OVERRIDES | further).items()]
    config = f"--config={ROOT / 'configs/tiny.py'}"
    return [sys.executable, str(ROOT / "main.py"), config, f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One device, and compiled programs shared between the processes of this file."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return os.environ | {"XLA_FLAGS": ""} | cache


def final_state(workdir: Path, stage: str, num_steps: int = 16) -> Any:
    last = max(int(path.name) for path in (workdir / stage).iterdir() if path.name.isdigit())
    assert last == num_steps
    return ocp.load((workdir / stage / str(last)).resolve())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A run that nothing interrupted, in a process of its own like the others."""
    workdir = tmp_path_factory.mktemp("finished")
    subprocess.run(command(workdir), check=True, env=environment, capture_output=True)
    return workdir


def run_and_kill(arguments: list[str], environment: dict[str, str], ready: Any) -> None:
    """Starts the command and sends SIGKILL as soon as `ready()`."""
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_in_each_stage_ends_at_the_same_parameters(
    finished: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """kill -9 in stage 1 and in stage 2; the end is equal to the bit, and so is the log."""
    run_and_kill(command(tmp_path), environment, lambda: (tmp_path / "pretrain" / "3").is_dir())
    assert not (tmp_path / "joint").exists()
    run_and_kill(command(tmp_path), environment, lambda: (tmp_path / "joint" / "6").is_dir())
    assert not (tmp_path / "eval.json").exists()
    subprocess.run(command(tmp_path), check=True, env=environment, capture_output=True)
    for stage in ("pretrain", "joint"):
        jax.tree.map(
            np.testing.assert_array_equal,
            final_state(tmp_path, stage),
            final_state(finished, stage),
        )

    def log(workdir: Path) -> list[tuple[str, int, float]]:
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return [(line["stage"], line["step"], line["loss"]) for line in lines if "loss" in line]

    assert log(tmp_path) == log(finished)
    assert len(log(finished)) == 32


def test_killed_while_a_checkpoint_is_written(environment: dict[str, str], tmp_path: Path) -> None:
    """The half-written checkpoint of 59 MB is not used, and the end is the same to the bit."""
    large = {"model.width": 64, "model.resolutions": (16,), "stages": ("pretrain",)}
    large |= {"pretrain.num_epochs": 1}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, **large), check=True, env=environment, capture_output=True)

    def half_written() -> bool:
        return any((killed / "pretrain").glob("6.*tmp*"))

    run_and_kill(command(killed, **large), environment, half_written)
    assert half_written() and not (killed / "pretrain" / "6").exists()
    assert (killed / "pretrain" / "3").is_dir()
    subprocess.run(command(killed, **large), check=True, env=environment, capture_output=True)
    assert not half_written()
    want = final_state(whole, "pretrain", 8)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(want)) > 50e6
    jax.tree.map(np.testing.assert_array_equal, final_state(killed, "pretrain", 8), want)


def test_the_checkpoint_of_the_lowest_objective_is_evaluated(finished: Path) -> None:
    lines = map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    scores = {
        line["step"]: line["calibration_objective"]
        for line in lines
        if line["stage"] == "joint" and "calibration_objective" in line
    }
    assert sorted(scores) == [8, 16]
    best = min(scores, key=scores.__getitem__)
    assert json.loads((finished / "eval.json").read_text())["checkpoint_step"] == best
    steps = {int(path.name) for path in (finished / "joint").iterdir() if path.name.isdigit()}
    assert steps == {best, 16}


def test_finished_run_evaluates_again_and_refuses_other_values(finished: Path) -> None:
    first = json.loads((finished / "eval.json").read_text())
    assert first["num_images"] == 70
    again = restore_and_evaluate(small_config(**{"eval.batch_size": 32}), finished)
    for name in ("top1", "top5", "gmacs", "shares", "fixed", "checkpoint_step"):
        assert again[name] == first[name], name
    with pytest.raises(ConfigError, match="joint.eta: 0.3 -> 0.9"):
        train_and_evaluate(small_config(**{"joint.eta": 0.9}), finished)


def test_stage_two_starts_from_another_runs_stage_one(finished: Path, tmp_path: Path) -> None:
    """Its classifier, statistics included, is that of the other run's last step to the bit."""
    config = small_config(**{"stages": ("joint",), "joint.init_from": str(finished)})
    variables = initial_variables(prepare(config, tmp_path), "joint")
    saved = final_state(finished, "pretrain")
    for collection, tree in ({"params": saved["params"]} | saved["collections"]).items():
        jax.tree.map(
            np.testing.assert_array_equal, tree["classifier"], variables[collection]["classifier"]
        )
    assert "predictor" in variables["params"]


def test_non_finite_loss_stops(tmp_path: Path) -> None:
    config = small_config(**{"pretrain.base_learning_rate": 1e30, "pretrain.optimizer": "sgd"})
    config.model.resolutions = (16,)
    with pytest.raises(TrainingError, match=r"at step \d+ of pretrain .*checkpoint"):
        train_and_evaluate(config, tmp_path)


@pytest.mark.parametrize("batch_size", [32, 52])
def test_every_image_counts_once(batch_size: int) -> None:
    """Records equal those of a plain loop over the images, whatever the batch size."""
    config = small_config()
    model = create_model(config, 10)
    variables = init_variables(model, jax.random.key(0))
    source = load_source("digits_on_photos", "test", 50)
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    step = make_eval_step(model, mean, std)
    records = evaluate(step, variables, source, batch_size=batch_size, mesh=create_mesh())
    assert isinstance(records, EvalRecords) and records.ce.shape == (50, 2)
    images = (source.images.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    output = model.apply(variables, images)
    logits = np.asarray(output.branch_logits, np.float64)
    log_norm = np.log(np.exp(logits).sum(-1))
    picked = np.take_along_axis(logits, source.labels[:, None, None], axis=2)[..., 0]
    np.testing.assert_allclose(records.ce, log_norm - picked, atol=1e-4)
    np.testing.assert_array_equal(records.top1, logits.argmax(-1) == source.labels[:, None])
