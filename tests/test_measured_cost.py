"""Choices by measured times: the same ones in training, evaluation, calibration and dispatch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from drnet_jax import train
from drnet_jax.budgets.calibration import Times
from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.measured_cost import measured_path, read_measured, write_measured
from drnet_jax.checkpoints.model_key import model_key
from drnet_jax.checkpoints.restore import find_model, restore_model
from drnet_jax.config import ConfigError
from drnet_jax.evaluate import with_lambda
from drnet_jax.evaluation.control_figures import control_figures
from drnet_jax.evaluation.curves import drnet_curve
from drnet_jax.evaluation.inputs import ModelOutputs, load_split
from drnet_jax.inference.create import array_classifier
from drnet_jax.inference.programs import CostTable
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import MeasuredCost, ModelCost
from drnet_jax.runtime.files import write_json
from drnet_jax.train import train_and_evaluate
from drnet_jax.training.measure_cost import choice_times, measure_cost
from tests.small_run import small_config
from tests.synthetic import synthetic_logits

# On this device the largest resolution is the fastest, so that MACs choose otherwise.
FAST_AT_LARGE = MeasuredCost((1.0, 3.0), 1.0, "some device")


@pytest.mark.parametrize(
    ("glances", "choice"),
    # The first look, at 2.5 ms without its upload, comes before every larger one; a predictor, at
    # 3 ms, does not count.
    [(False, (8.0, 5.0, 2.5)), (True, (10.5, 7.5, 2.5))],
)
def test_times_of_choices_are_those_of_the_best_buckets(
    glances: bool, choice: tuple[float, ...]
) -> None:
    first = {1: 0.004, 8: 0.024}
    classifiers = ({1: 0.009, 8: 0.064}, {1: 0.005, 8: 0.080}, {1: 0.003, 8: 0.020})
    found = choice_times(Times("here", CostTable(first, classifiers, glances)))
    np.testing.assert_allclose(found.choice, choice)
    assert found.largest == pytest.approx(8.0) and found.setting == "here"


@pytest.mark.parametrize("kind", ["pixels", "glance"])
def test_a_model_is_measured_before_it_is_trained(kind: str) -> None:
    config = small_config(**{"predictor.kind": kind})
    found = measure_cost(config, create_model(config, 10), (32, 32))
    assert len(found.choice) == 2 and min(*found.choice, found.largest) > 0
    assert "buckets 1/16, images 32x32, folded" in found.setting
    if kind == "glance":
        assert found.choice[0] == pytest.approx(found.choice[1] + found.largest)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "choice_ms.json is missing, which says what choices cost"),
        ({"choice": [1.0, 2.0], "largest": 2.0}, "it has no 'setting'"),
        ({"choice": [1.0], "largest": 2.0, "setting": ""}, "no times of 2 choices"),
        ({"choice": [1.0, 0.0], "largest": 2.0, "setting": ""}, "its times are none"),
        ({"choice": [1.0, 2.0], "largest": float("nan"), "setting": ""}, "its times are none"),
        ({"choice": [1.0, True], "largest": 2.0, "setting": ""}, "its times are none"),
    ],
)
def test_times_that_are_none(content: dict[str, Any] | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        write_json(measured_path(tmp_path), content)
    with pytest.raises(CheckpointError, match=words):
        read_measured(tmp_path, 2)
    write_measured(tmp_path, FAST_AT_LARGE)
    assert read_measured(tmp_path, 2) == FAST_AT_LARGE
    text = measured_path(tmp_path).read_text().replace("3.0", "4.0")
    measured_path(tmp_path).write_text(text)
    with pytest.raises(CheckpointError, match="not that of its checksum"):
        read_measured(tmp_path, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConfigDict, Path]:
    """A run in a single stage whose target is the largest resolution: it is the fastest."""
    fields = {"stages": ("single",), "joint.num_epochs": 1, "joint.cost": "ms"}
    config = small_config(**fields, **{"joint.alpha_fraction": 1.0, "eval.controls": False})
    workdir = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "measure_cost", lambda *_: FAST_AT_LARGE)
        train_and_evaluate(config, workdir)
    return config, workdir


def test_training_counts_ms(trained: tuple[ConfigDict, Path]) -> None:
    config, workdir = trained
    lines = list(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()))
    steps = [line for line in lines if "loss" in line]
    for line in steps:
        spent = float(np.dot(line["shares_sampled"], FAST_AT_LARGE.choice))
        assert line["ms_sampled"] == pytest.approx(spent)
        assert line["reg"] == pytest.approx((spent - 1.0) / 2.0, abs=1e-6)
    (epoch,) = (line for line in lines if "calibration_ms" in line)
    summary = json.loads((workdir / "eval.json").read_text())
    assert summary["choice_ms"] == {"choice": [1.0, 3.0], "largest": 1.0, "setting": "some device"}
    assert 1.0 <= epoch["calibration_ms"] <= 3.0
    # What is there is not measured again, and it is missed once it is gone.
    train_and_evaluate(config, workdir)
    assert read_measured(workdir, 2) == FAST_AT_LARGE
    kept = measured_path(workdir).read_bytes()
    measured_path(workdir).unlink()
    with pytest.raises(CheckpointError, match=r"choice_ms.json is missing"):
        train_and_evaluate(config, workdir)
    measured_path(workdir).write_bytes(kept)


def test_everything_that_chooses_counts_ms(trained: tuple[ConfigDict, Path]) -> None:
    """A high lambda sends all to the largest resolution, dense and by dispatch; MACs would not."""
    config, workdir = trained
    model = restore_model(config, workdir)
    assert model.cost.measured == FAST_AT_LARGE
    source = load_split(config, workdir, model, "calibration")
    records = ModelOutputs(config, workdir, model).of("calibration", source).records()
    assert (with_lambda(records, model.cost, 1e3).choice == 0).all()
    images = np.stack([source[index]["image"] for index in range(20)])
    engine = array_classifier(config, model, source.image_size)
    assert (engine.classify(images, lam=1e3).choices == 0).all()
    assert (engine.classify(images, lam=-1e3).choices == 1).all()
    points = restore_and_calibrate(config, workdir).points
    assert points[0].shares == (0.0, 1.0) and points[-1].shares == (1.0, 0.0)
    # GMACs are said as they are.
    gmacs = np.array(model.cost.classifier_gmacs) + model.cost.predictor_gmacs
    np.testing.assert_allclose([points[-1].gmacs, points[0].gmacs], gmacs)


def test_controls_choose_by_ms_and_cost_gmacs() -> None:
    """At a lambda that sends all to the largest resolution, which has more MACs and less ms."""
    records = synthetic_logits(200, 2, 10).records()
    macs = ModelCost(0, (4 * 10**9, 10**9))
    timed = replace(macs, measured=FAST_AT_LARGE)
    curve = drnet_curve(records, timed)
    assert curve.outcome(records, 1e3).gmacs == 4.0
    assert min(point[1] for point in curve.points(records)) < 1.1
    by_ms, by_macs = (
        control_figures(with_lambda(records, cost, 1e3), records, cost, 1e3, (32, 16))
        for cost in (timed, macs)
    )
    assert by_ms["gmacs"]["drnet"] == 4.0 and by_macs["gmacs"]["drnet"] == 1.0
    # The cascades may cost what DRNet does.
    assert by_macs["gmacs"]["cascade"] < 1.1 < 3.0 < by_ms["gmacs"]["cascade"] <= 4.0


def test_other_times_are_another_model(trained: tuple[ConfigDict, Path]) -> None:
    config, workdir = trained
    key = model_key(config, find_model(config, workdir))
    kept = measured_path(workdir).read_bytes()
    write_measured(workdir, MeasuredCost((1.0, 2.0), 1.0, "some device"))
    other = model_key(config, find_model(config, workdir))
    measured_path(workdir).write_bytes(kept)
    assert other != key == model_key(config, find_model(config, workdir))


def test_a_target_in_ms_outside_of_the_times(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(train, "measure_cost", lambda *_: FAST_AT_LARGE)
    config = small_config(**{"joint.cost": "ms", "joint.alpha_fraction": 0.5})
    with pytest.raises(ConfigError, match=r"a target of 0.5 ms, outside \[1, 3\]"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
