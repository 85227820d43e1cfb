"""The main job: resuming after kill -9, one trace a step, exact evaluation, clear stops."""

import json
import os
import re
import shutil
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
from PIL import Image

from drnet_jax import train
from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.restore import check_data, restore_model
from drnet_jax.checkpoints.runs import finished_path
from drnet_jax.config import TWO_STAGES, ConfigError, flatten
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import DataSettings, data_settings
from drnet_jax.data.sources import DataError
from drnet_jax.evaluate import restore_and_evaluate, restore_and_evaluate_bucketed
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.evaluation.outputs import evaluate, make_eval_step
from drnet_jax.models.create import create_model
from drnet_jax.models.variables import init_variables
from drnet_jax.runtime.command_line import INTERRUPTED
from drnet_jax.runtime.files import write_json
from drnet_jax.runtime.sharding import create_mesh
from drnet_jax.train import prepare, train_and_evaluate, train_stages
from drnet_jax.training import create
from drnet_jax.training.start import check_stage_one, stage_two_variables
from drnet_jax.training.stops import TrainingError, TrainingInterrupted
from tests.small_run import OVERRIDES, small_config
from tests.xla import QUICK_COMPILATION

ROOT = Path(__file__).parents[1]


def command(workdir: Path, **further: Any) -> list[str]:
    flags = [f"--config.{name}={value}" for name, value in (OVERRIDES | further).items()]
    config = f"--config={ROOT / 'configs/tiny.py'}"
    return [sys.executable, str(ROOT / "main.py"), config, f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """For the processes of this file: one device, where this process has four."""
    return os.environ | {"XLA_FLAGS": QUICK_COMPILATION}


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
    arguments = command(tmp_path, **{"eval.controls": False})
    run_and_kill(arguments, environment, lambda: (tmp_path / "pretrain" / "3").is_dir())
    assert not (tmp_path / "joint").exists()
    run_and_kill(arguments, environment, lambda: (tmp_path / "joint" / "6").is_dir())
    assert not (tmp_path / "eval.json").exists()
    subprocess.run(arguments, check=True, env=environment, capture_output=True)
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


def test_a_single_stage_is_resumed_and_is_like_a_finished_stage_two(tmp_path: Path) -> None:
    """From an earlier step the end is equal to the bit; it is evaluated and calibrated as such."""
    fields = {"stages": ("single",), "joint.num_epochs": 1, "eval.controls": False}
    config = small_config(**fields, **{"checkpoint.keep_latest": 9})
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    summary = train_and_evaluate(config, whole)
    shutil.copytree(whole, resumed)
    for name in ("single/6", "single/8"):
        shutil.rmtree(resumed / name)
    train_stages(config, resumed)
    want = final_state(whole, "single", 8)
    jax.tree.map(np.testing.assert_array_equal, final_state(resumed, "single", 8), want)
    params = restore_model(config, whole).variables["params"]
    assert set(params) == {"classifier", "predictor"}
    jax.tree.map(np.testing.assert_array_equal, params, want["params"])
    lines = map(json.loads, (resumed / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if "branch_ce" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    for line in steps:
        terms = line["ce"] + 0.3 * line["reg"] + line["branch_ce"]
        assert line["loss"] == pytest.approx(terms, rel=1e-5)
    assert (summary["stage"], summary["finished"]) == ("single", True)
    assert sum(summary["shares"]) == pytest.approx(1.0) and summary["top1"] is not None
    assert restore_and_calibrate(config, whole).model.startswith("single/8 ")
    with pytest.raises(ConfigError, match=r"stages: \['single'\] -> \['pretrain', 'joint'\]"):
        train_and_evaluate(small_config(**fields | {"stages": TWO_STAGES}), whole)


def test_killed_while_a_checkpoint_is_written(environment: dict[str, str], tmp_path: Path) -> None:
    """The half-written checkpoint of 51 MB is not used, and the end is the same to the bit."""
    large = {
        "model.args": "stage_sizes=(1, 1), width=240",
        "model.resolutions": (16,),
        "stages": ("pretrain",),
    }
    large |= {"pretrain.num_epochs": 1, "data.train_images": 64, "pretrain.batch_size": 8}
    large |= {"data.eval_images": 10, "eval.batch_size": 8}
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
    # The latest two, of which one is of the last save before the end.
    assert steps == {best, 15, 16}


def test_finished_run_evaluates_again_and_refuses_other_values(finished: Path) -> None:
    first = json.loads((finished / "eval.json").read_text())
    assert first["num_images"] == 70 and first["finished"] is True
    assert list(first) == [
        *("num_images", "top1", "top5", "gmacs", "gmacs_classifier", "resolutions", "shares"),
        *(
            "choice_top1",
            "fixed",
            "lambda",
            "resampled",
            "controls",
            "by_resolution",
            "by_class",
            "by_apparent_size",
            "num_corrupt",
            "stage",
            "checkpoint_step",
            "finished",
            "split",
            "identities",
            "model",
            "config",
            "environment",
            "crc32",
        ),
    ]
    (finished / "logits.npz").unlink()
    again = restore_and_evaluate(small_config(**{"eval.batch_size": 32}), finished)
    for name in ("top1", "top5", "gmacs", "shares", "fixed", "checkpoint_step"):
        assert again[name] == first[name], name
    with pytest.raises(ConfigError, match="joint.eta: 0.3 -> 0.9"):
        train_and_evaluate(small_config(**{"joint.eta": 0.9}), finished)


def test_stage_two_starts_from_another_runs_stage_one(finished: Path, tmp_path: Path) -> None:
    """Its classifier, statistics included, is that of the other run's last step to the bit.

    Its predictor and the statistics of stage 2 may be others.
    """
    further = {"predictor.args": "width=6, stage_sizes=(1,)", "model.statistics": "routed"}
    config = small_config(stages=("joint",), **{"joint.init_from": str(finished)} | further)
    run = prepare(config, tmp_path)
    fresh = init_variables(run.model, jax.random.key(5))
    variables = stage_two_variables(run, fresh)
    saved = final_state(finished, "pretrain")
    for collection, tree in ({"params": saved["params"]} | saved["collections"]).items():
        jax.tree.map(
            np.testing.assert_array_equal, tree["classifier"], variables[collection]["classifier"]
        )
    jax.tree.map(
        np.testing.assert_array_equal,
        variables["params"]["predictor"],
        fresh["params"]["predictor"],
    )


def test_stage_two_needs_a_finished_stage_one(tmp_path: Path) -> None:
    config = small_config(**{"stages": ("joint",), "joint.init_from": str(tmp_path / "none")})
    with pytest.raises(CheckpointError, match="no finished stage 1 in .*none"):
        train_and_evaluate(config, tmp_path / "here")
    assert not (tmp_path / "here").exists()
    # Finished it was, but its checkpoints were removed.
    write_json(finished_path(tmp_path / "none", "pretrain"), {"num_steps": 16})
    write_json(tmp_path / "none" / "config.json", flatten(small_config()))
    for kept in (False, True):
        if kept:
            (tmp_path / "none" / "pretrain").mkdir()
        with pytest.raises(CheckpointError, match="no finished stage 1 in .*none"):
            check_stage_one(config, tmp_path / "none")


@pytest.mark.parametrize("stage", ["pretrain", "joint"])
def test_batches_of_every_stage_are_checked_before_the_first(stage: str, tmp_path: Path) -> None:
    config = small_config(**{f"{stage}.batch_size": 324})
    with pytest.raises(ConfigError, match=f"{stage}.batch_size=324 exceeds the 320 training"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of forty pictures of noise: 28 to train, 4 for calibration, 8 for the test."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(40):
            path = tmp_path / "data" / name / f"{number:02}.jpg"
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return tmp_path / "data"


def picture_config(pictures: Path, **further: Any) -> ConfigDict:
    fields = {"data.name": "folder", "data.dir": str(pictures), "data.train_images": 0}
    fields |= {"data.eval_images": 0, "model.resolutions": (32,), "stages": ("pretrain",)}
    fields |= {"pretrain.batch_size": 20, "eval.batch_size": 12}
    return small_config(**fields | further)


def test_corrupt_images(pictures: Path, tmp_path: Path) -> None:
    """Too many stop the run, saved; calibration leaves them out; evaluation wants skip_corrupt."""
    config = picture_config(pictures, **{"data.max_corrupt": 1})
    run = prepare(config, tmp_path / "run")
    for index in (3, 4):
        Path(run.train.name(index)).write_bytes(b"no picture")
    Path(run.calibration.name(0)).write_bytes(b"no picture")
    test = DataSplits(data_settings(config, tmp_path)).load("test")
    Path(test.name(5)).write_bytes(Path(test.name(5)).read_bytes()[:-50])
    with pytest.raises(TrainingError, match="2 training images cannot be read .*max_corrupt=1"):
        train_and_evaluate(config, tmp_path / "run")
    saved = [path.name for path in (tmp_path / "run" / "pretrain").iterdir()]
    assert any(name.isdigit() for name in saved)
    config.data.max_corrupt = 2
    with pytest.raises(DataError, match="1 images cannot be read: .*data.skip_corrupt=True"):
        train_and_evaluate(config, tmp_path / "run")
    lines = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    assert max(line["corrupt"] for line in lines if "corrupt" in line) == 2
    assert any("calibration_objective" in line for line in lines)
    config.data.skip_corrupt = True
    summary = restore_and_evaluate(config, tmp_path / "run")
    assert summary["num_images"] == 15 and summary["num_corrupt"] == 1
    config.data.skip_corrupt = False
    with pytest.raises(DataError, match="1 images cannot be read: .*data.skip_corrupt=True"):
        restore_and_evaluate_bucketed(config, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "eval_bucketed.json").read_text())
    assert kept["num_images"] == 15 and kept["num_corrupt"] == 1


def test_skipped_images_leave_the_records_of_the_others_alone(pictures: Path) -> None:
    config = picture_config(pictures)
    model = create_model(config, 2)
    variables = init_variables(model, jax.random.key(0))
    step = make_eval_step(model, tuple(config.data.mean), tuple(config.data.std))
    source = DataSplits(data_settings(config, pictures.parent)).load("test")
    options = {"batch_size": 12, "mesh": create_mesh(), "skip_corrupt": True}
    whole = evaluate(step, variables, source, **options)
    Path(source.name(5)).write_bytes(b"no picture")
    rest = evaluate(step, variables, source, **options)
    assert rest.index.tolist() == [0, 1, 2, 3, 4, *range(6, 16)]
    np.testing.assert_array_equal(rest.ce, whole.ce[rest.index])


def test_other_images_and_classes_are_refused(pictures: Path, tmp_path: Path) -> None:
    """A picture less draws the split anew; so does another seed of the split."""
    config = picture_config(pictures, **{"pretrain.num_epochs": 1})
    workdir = tmp_path / "run"
    train_stages(config, workdir)
    other = picture_config(pictures, **{"data.split_seed": 1})
    with pytest.raises(DataError, match="the images of test are not those"):
        restore_and_evaluate(other, workdir)
    # Copied without their times they are the same; one that is replaced may have been repaired.
    copy = shutil.copytree(pictures, tmp_path / "copy", copy_function=shutil.copyfile)
    prepare(picture_config(copy, **{"pretrain.num_epochs": 1}), workdir)
    Image.new("RGB", (40, 40)).save(copy / "ant" / "07.jpg")
    prepare(picture_config(copy, **{"pretrain.num_epochs": 1}), workdir)
    strict = picture_config(copy, **{"pretrain.num_epochs": 1, "data.max_corrupt": 0})
    with pytest.raises(DataError, match="replaced under the same names since .*1 of "):
        train_and_evaluate(strict, workdir)
    (pictures / "ant" / "07.jpg").unlink()
    with pytest.raises(DataError, match="the images of train and .* pictures came or went"):
        train_and_evaluate(config, workdir)
    with pytest.raises(DataError, match="has 2 classes, not data.num_classes=3"):
        prepare(picture_config(pictures, **{"data.num_classes": 3}), tmp_path / "new")
    with pytest.raises(DataError, match="2 classes, and the data set has 1, not the same"):
        check_data(workdir, ("ant",), {})


def test_a_closed_terminal_with_workers_saves_first(pictures: Path, tmp_path: Path) -> None:
    """It sends SIGHUP to the workers too, and twice; they end with what they were asked for.

    One line says it, without tracebacks and warnings of memory that was shared with them.
    """
    flags = picture_config(pictures, **{"data.num_workers": 2, "pretrain.num_epochs": 1000})
    names = (*OVERRIDES, "data.name", "data.dir", "data.num_workers", "stages")
    further = {name: flatten(flags)[name] for name in names}
    further["model.resolutions"], further["stages"] = (32,), ("pretrain",)
    workdir = tmp_path / "run"
    # Whoever started the tests may ignore it, and processes inherit that.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen(
        command(workdir, **further, **{"pretrain.num_epochs": 1000}),
        env=os.environ | {"XLA_FLAGS": QUICK_COMPILATION},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGHUP, before)
    deadline = time.monotonic() + 120
    while not (workdir / "pretrain" / "6").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGHUP)
    errors = process.communicate(timeout=60)[1]
    line = r"error: interrupted after step (\d+) of pretrain, which is saved; .* to resume\n"
    found = re.fullmatch(line, errors)
    assert found is not None, errors
    assert process.returncode == INTERRUPTED and not (workdir / "train.lock").exists()
    assert (workdir / "pretrain" / found[1]).is_dir()


def test_another_model_is_refused(finished: Path, tmp_path: Path) -> None:
    """By its fields, and by what its arrays lack where the fields were tampered with."""
    with pytest.raises(CheckpointError, match=r"predictor.size: 32 -> 16"):
        restore_model(small_config(**{"predictor.size": 16}), finished)
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    config = small_config(**{"model.resolutions": (48, 32)})
    (copy / "config.json").write_text(json.dumps(flatten(config)))
    with pytest.raises(CheckpointError, match="it lacks"):
        restore_model(config, copy)


def test_stage_one_alone_reports_fixed_resolutions_only(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "joint")
    summary = restore_and_evaluate(small_config(), copy)
    assert summary["stage"] == "pretrain" and summary["top1"] is None
    assert summary["shares"] is None and "by_apparent_size" not in summary
    assert [entry["resolution"] for entry in summary["fixed"]] == [32, 16]
    lines = map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    assert summary["checkpoint_step"] in {
        line["step"]
        for line in lines
        if line["stage"] == "pretrain" and "calibration_objective" in line
    }


@pytest.mark.parametrize("event", ["nan gradient", "SIGTERM"])
def test_stops_keep_what_is_good(
    event: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At step 5, after a checkpoint at step 3: a broken update is not saved, a good one is."""

    def fake_step(state: Any, *_: Any) -> Any:
        state = state.replace(step=jax.jit(lambda step: step + 1)(state.step))
        broken = event == "nan gradient" and int(jax.device_get(state.step)) == 5
        if event == "SIGTERM" and int(jax.device_get(state.step)) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = jax.jit(lambda step: 0.0 * step + 1.0)(state.step)
        metrics = {"loss": loss, "accuracy": 0.5, "accuracy_per_resolution": np.ones(1)}
        return state, metrics | {"grad_norm": np.nan if broken else 1.0}

    monkeypatch.setattr(create, "make_train_step", lambda *_, **__: fake_step)
    # It is not for tracing.
    monkeypatch.setattr(train, "trace_stages", lambda *_: None)
    config = small_config(**{"model.resolutions": (16,), "log.every_steps": 100})
    words = {
        "nan gradient": "gradient of norm nan at step 5 of pretrain; last good checkpoint: step 3",
        "SIGTERM": "interrupted after step 5 of pretrain, which is saved",
    }
    kind = TrainingInterrupted if event == "SIGTERM" else TrainingError
    with pytest.raises(TrainingError, match=words[event]) as error:
        train_and_evaluate(config, tmp_path)
    assert error.type is kind
    steps = {path.name for path in (tmp_path / "pretrain").iterdir() if path.is_dir()}
    assert steps == ({"3"} if event == "nan gradient" else {"3", "5"})


@pytest.mark.parametrize("batch_size", [32, 52])
def test_every_image_counts_once(batch_size: int) -> None:
    """Records equal those of a plain loop over the images, whatever the batch size."""
    config = small_config()
    model = create_model(config, 10)
    variables = init_variables(model, jax.random.key(0))
    source = DataSplits(DataSettings("digits_on_photos", eval_images=50)).load("test")
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
