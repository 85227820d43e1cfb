"""Evaluation by dispatch, budgets and latency, on a model with random weights."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drnet_jax.benchmark import restore_and_benchmark
from drnet_jax.budgets.calibration import BudgetError
from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.finite import NotFiniteError
from drnet_jax.checkpoints.runs import load_run
from drnet_jax.config import ConfigError
from drnet_jax.config_checks import check_config
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.evaluate import restore_and_evaluate, restore_and_evaluate_bucketed
from drnet_jax.runtime.checked_json import read_json
from drnet_jax.train import prepare
from tests.random_model import write_overflowing, write_run
from tests.small_run import small_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained")
    write_run(small_config(), workdir, tuple("0123456789"))
    return workdir


@pytest.fixture(scope="module")
def calibrated(trained: Path) -> Path:
    restore_and_calibrate(small_config(), trained)
    return trained


def test_equal_to_the_dense_evaluation(trained: Path) -> None:
    dense = restore_and_evaluate(small_config(), trained)
    written = (trained / "eval.json").read_text()
    bucketed = restore_and_evaluate_bucketed(small_config(), trained)
    for name in ("num_images", "top1", "top5", "shares", "num_corrupt", "checkpoint_step"):
        assert bucketed[name] == dense[name], name
    assert bucketed["gmacs"] == pytest.approx(dense["gmacs"])
    assert "fixed" not in bucketed
    assert read_json(trained / "eval_bucketed.json") == bucketed
    assert (trained / "eval.json").read_text() == written


def test_budget(calibrated: Path) -> None:
    content = json.loads((calibrated / "calibration.json").read_text())
    costs = sorted(point["gmacs"] for point in content["points"])
    budget = float(np.median(costs))
    config = small_config(**{"budget.gmacs": budget, "eval.split": "calibration"})
    dense = restore_and_evaluate(config, calibrated)
    bucketed = restore_and_evaluate_bucketed(config, calibrated)
    # On the split it was calibrated on, the cost is that of the table.
    within = [point for point in content["points"] if point["gmacs"] <= budget]
    top1 = max(point["top1"] for point in within)
    expected = min(point["gmacs"] for point in within if point["top1"] == top1)
    assert dense["top1"] == pytest.approx(top1)
    assert dense["gmacs"] == pytest.approx(expected)
    assert bucketed["gmacs"] == pytest.approx(expected)
    assert bucketed["top1"] == dense["top1"] and bucketed["lambda"] == dense["lambda"]
    restore_and_evaluate(small_config(), calibrated)


def test_times_are_kept_by_a_calibration_without_them(calibrated: Path) -> None:
    restore_and_calibrate(small_config(**{"budget.ms": 1e6}), calibrated)
    first = json.loads((calibrated / "calibration.json").read_text())["times"]
    assert "buckets 1/16, images 64x64, folded" in first["setting"]
    assert all(min(times.values()) > 0 for times in first["table"]["classifiers"])
    restore_and_calibrate(small_config(), calibrated)
    assert json.loads((calibrated / "calibration.json").read_text())["times"] == first
    with pytest.raises(BudgetError, match="times were measured on .* folded, this is"):
        restore_and_evaluate(
            small_config(**{"budget.ms": 1e6, "inference.fold": False}), calibrated
        )
    with pytest.raises(BudgetError, match="and the model is joint/"):
        restore_and_evaluate(
            small_config(**{"budget.gmacs": 1.0, "data.eval_crop": 0.5}), calibrated
        )


def test_benchmark(trained: Path) -> None:
    benchmark = {"batch_sizes": (1, 5), "repeats": 5, "gmacs": (0.0015,)}
    overrides = {f"benchmark.{name}": value for name, value in benchmark.items()}
    config = small_config(**{"eval.split": "calibration"} | overrides)
    rows = restore_and_benchmark(config, trained)
    # The verdicts are over handwritten digits, which several images are drawn from.
    origin = compose("calibration", 70)["origin"]
    assert all(np.array_equal(row.origin, origin) for row in rows)
    (folder,) = (trained / "benchmark").iterdir()
    content = json.loads((folder / "table.json").read_text())
    names = ["fixed 32", "fixed 16", "adaptive", "adaptive 0.0015 GMACs", "dense"]
    assert [entry["method"] for entry in content["rows"]] == names * 4
    assert [(entry["input"], entry["batch_size"]) for entry in content["rows"][::5]] == [
        *(("pixels", 1), ("pixels", 5)),
        *(("jpeg", 1), ("jpeg", 5)),
    ]
    by_name = {entry["method"]: entry for entry in content["rows"]}
    evaluated = restore_and_evaluate(config, trained)
    for entry in evaluated["fixed"]:
        assert by_name[f"fixed {entry['resolution']}"]["top1"] == entry["top1"]
    assert by_name["adaptive"]["top1"] == by_name["dense"]["top1"] == evaluated["top1"]
    assert by_name["adaptive"]["gmacs"] == pytest.approx(evaluated["gmacs"])
    assert by_name["adaptive 0.0015 GMACs"]["gmacs"] <= 0.0015
    total = sum(entry["gmacs"] for entry in evaluated["fixed"])
    predictor = evaluated["gmacs"] - evaluated["gmacs_classifier"]
    assert by_name["dense"]["gmacs"] == pytest.approx(total + predictor)
    assert {len(entry.latency.seconds) for entry in rows} == {5}
    assert (folder / "throughput.png").exists()
    assert content["left_out"] == {"batch_sizes": [], "buckets": {}}
    assert "left out" not in (folder / "table.md").read_text()


def test_a_benchmark_without_time_says_what_it_left_out(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the smallest batch size, with one bucket, is all that there is time for."""
    fields = {"batch_sizes": (20, 5), "repeats": 5, "seconds": 0.0, "max_seconds": 0.0}
    config = small_config(
        **{"restore_from": str(trained), "inference.buckets": (16, 4, 1)},
        **{f"benchmark.{name}": value for name, value in fields.items()},
    )
    rows = restore_and_benchmark(config, tmp_path)
    assert {row.latency.batch_size for row in rows} == {5}
    assert [row.name for row in rows] == ["fixed 32", "fixed 16", "adaptive", "dense"] * 2
    (folder,) = (tmp_path / "benchmark").iterdir()
    content = read_json(folder / "table.json")
    assert content["left_out"] == {"batch_sizes": [20], "buckets": {"5": [1, 16]}}
    words = "left out, as benchmark.max_seconds=0 were over: batch 20, at batch 5 the buckets 1/16"
    assert words in (folder / "table.md").read_text() and words in capsys.readouterr().out


@pytest.mark.parametrize(
    "mode",
    [
        restore_and_evaluate,
        restore_and_evaluate_bucketed,
        restore_and_calibrate,
        restore_and_benchmark,
    ],
)
def test_outputs_that_are_not_finite(mode: Any, trained: Path, tmp_path: Path) -> None:
    """Stop every mode; the images and what to use instead are named, and nothing is written."""
    copy = tmp_path / "run"
    shutil.copytree(trained / "joint", copy / "joint")
    for name in ("config.json", "data.json"):
        shutil.copy(trained / name, copy)
    broken = write_overflowing(load_run(trained), copy)
    there = sorted(copy.iterdir())
    with pytest.raises(NotFiniteError) as error:
        mode(small_config(), copy)
    remedy = (
        f"restore it from a copy, or remove {broken} and run the same command: it goes on from "
        "what is left, of which step 1 is intact"
    )
    named = rf"the outputs of {broken} are not finite for image \d+, image \d+, .*; {remedy}"
    assert re.fullmatch(named, str(error.value))
    assert sorted(copy.iterdir()) == there


def test_what_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"calibration.json is missing: run --mode=calibrate"):
        config = small_config(**{"budget.gmacs": 1.0, "restore_from": str(trained)})
        (trained / "calibration.json").unlink(missing_ok=True)
        restore_and_evaluate_bucketed(config, tmp_path)
    for field in ({"budget.gmacs": 1.0}, {"eval.dispatch": "bucketed"}):
        with pytest.raises(ConfigError, match="belong to --mode=eval, after the training"):
            prepare(small_config(**field), tmp_path / "new")
    for fields, words in [
        ({"budget.gmacs": 1.0, "budget.ms": 1.0}, "budget.gmacs and budget.ms both set"),
        ({"budget.gmacs": 1.0, "budget.confidence": 0.9}, "needs budget.max_drop"),
        ({"budget.ms": -1.0}, "budget.ms=-1.0 must be zero or more"),
        ({"inference.buckets": (0,)}, "inference.buckets="),
        ({"budget.batch_size": -1}, r"budget.batch_size=-1 must lie in \[0, 16384\]"),
        ({"benchmark.batch_sizes": (0,)}, "benchmark.batch_sizes=.* above zero"),
        ({"benchmark.repeats": 4}, "benchmark.repeats=4 must be 5 or more"),
        ({"benchmark.seconds": -1.0}, "benchmark.seconds=-1.0 must be zero or more"),
        ({"benchmark.max_seconds": -1.0}, "benchmark.max_seconds=-1.0 must be zero or more"),
    ]:
        with pytest.raises(ConfigError, match=words):
            check_config(small_config(**fields), 1)


def test_an_unreachable_budget_is_refused_before_the_timing(trained: Path) -> None:
    with pytest.raises(BudgetError, match="0.0001 GMACs cannot be kept"):
        restore_and_benchmark(small_config(**{"benchmark.gmacs": (0.0001,)}), trained)


def test_stage_one_has_no_predictor(tmp_path: Path) -> None:
    config = small_config(stages=("pretrain",))
    write_run(config, tmp_path, tuple("0123456789"), stage="pretrain")
    for run in (restore_and_evaluate_bucketed, restore_and_calibrate):
        with pytest.raises(CheckpointError, match="holds stage 1 only"):
            run(config, tmp_path)
