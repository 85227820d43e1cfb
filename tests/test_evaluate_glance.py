"""Evaluation by dispatch, budgets and latency of a model that takes a first look."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drnet_jax.benchmark import restore_and_benchmark
from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.evaluate import (
    classify_source,
    restore_and_evaluate,
    restore_and_evaluate_bucketed,
)
from drnet_jax.evaluation.inputs import restore_and_load
from drnet_jax.inference.create import array_classifier
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost
from tests.random_model import write_run
from tests.small_run import GLANCE, small_config

# Of an image by its choice, in GMACs: the first look is at the smaller of the two.
COST = model_cost(create_model(small_config(**GLANCE), 10))
SPENT = np.array([sum(COST.classifier), COST.classifier[1]]) / 1e9 + COST.predictor / 1e9


def config_for(**further: Any) -> Any:
    return small_config(**(GLANCE | {"eval.split": "calibration"} | further))


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained")
    write_run(small_config(**GLANCE), workdir, tuple("0123456789"))
    restore_and_calibrate(config_for(**{"budget.ms": 1e6}), workdir)
    return workdir


def milliseconds(content: dict[str, Any]) -> list[float]:
    """Of an image by point: the first look, and the larger resolution where it is chosen."""
    table = content["times"]["table"]
    assert table["glances"] is True
    first, second = (
        min(seconds / int(bucket) for bucket, seconds in times.items())
        for times in (table["predictor"], table["classifiers"][0])
    )
    return [1000 * (first + point["shares"][0] * second) for point in content["points"]]


def lost_and_won(workdir: Path, lambdas: list[float]) -> list[tuple[int, int]]:
    """Images of the kept logits that the choices lose and win to the largest resolution alone."""
    with np.load(workdir / "logits.npz") as kept:
        names = ("logits", "scores", "weight", "label")
        logits, scores, weight, label = (kept[f"calibration/{name}"] for name in names)
    assert weight[0] != 0
    answers = np.stack([logits[:, 0] + weight[0] * logits[:, 1], logits[:, 1]], axis=1)
    correct, largest = answers.argmax(2) == label[:, None], logits[:, 0].argmax(1) == label
    assert (correct[:, 0] != largest).any()
    costs = np.array(COST.choice_gmacs)
    found = []
    for lam in lambdas:
        choice = (scores.astype(float) - lam * costs).argmax(1)
        chosen = correct[np.arange(len(label)), choice]
        found.append((int((largest & ~chosen).sum()), int((chosen & ~largest).sum())))
    return found


def test_streaming_keeps_first_looks(calibrated: Path) -> None:
    """Across batches: what each said, and of which images there was a second."""
    config = config_for()
    restored, source = restore_and_load(config, calibrated, "calibration")
    engine = array_classifier(config, restored, source.image_size)
    _, got, _ = classify_source(engine, source, 40, 0.0)
    with np.load(calibrated / "logits.npz") as kept:
        expected = kept["calibration/logits"][:, 1]
    assert got.first_logits is not None
    np.testing.assert_allclose(got.first_logits, expected, atol=1e-3)
    assert set(got.looks) == {1, 2}
    np.testing.assert_array_equal(got.looks == 2, got.choices == 0)


@pytest.mark.parametrize("budget", ["none", "gmacs", "ms", "max_drop"])
def test_budgets(calibrated: Path, budget: str) -> None:
    """By dispatch as by the dense model: the point that the table says, at the cost it says."""
    content = json.loads((calibrated / "calibration.json").read_text())
    points, times = content["points"], milliseconds(content)
    drops = lost_and_won(calibrated, [point["lam"] for point in points])
    for point, drop in zip(points, drops, strict=True):
        assert point["gmacs"] == pytest.approx(np.dot(point["shares"], SPENT))
        assert (point["lost"], point["won"]) == drop
    costs = {"gmacs": [point["gmacs"] for point in points], "ms": times}
    fields: dict[str, Any] = {}
    if budget == "none":
        (expected,) = [point for point in points if point["lam"] == 0]
    elif budget == "max_drop":
        fields = {"budget.max_drop": 1.0}
        kept = [p for p in points if 100 * (p["lost"] - p["won"]) / content["num_images"] <= 1]
        expected = min(kept, key=lambda point: point["gmacs"])
    else:
        limit = float(np.median(costs[budget]))
        fields = {f"budget.{budget}": limit}
        pairs = zip(points, costs[budget], strict=True)
        within = [(p["top1"], -cost, p) for p, cost in pairs if cost <= limit]
        expected = max(within, key=lambda entry: entry[:2])[2]
    dense = restore_and_evaluate(config_for(**fields), calibrated)
    bucketed = restore_and_evaluate_bucketed(config_for(**fields), calibrated)
    for found in (dense, bucketed):
        assert found["top1"] == pytest.approx(expected["top1"])
        assert found["gmacs"] == pytest.approx(expected["gmacs"])
        assert found["gmacs_classifier"] == pytest.approx(expected["gmacs"] - COST.predictor_gmacs)
        assert found["shares"] == pytest.approx(list(expected["shares"]))
        assert found["lambda"] == expected["lam"]
    assert bucketed["top5"] == dense["top5"]


def test_benchmark(calibrated: Path) -> None:
    budget = float(SPENT.mean())
    fields = {"benchmark.batch_sizes": (5,), "benchmark.repeats": 5, "benchmark.gmacs": (budget,)}
    rows = restore_and_benchmark(config_for(**fields), calibrated)
    (folder,) = (calibrated / "benchmark").iterdir()
    content = json.loads((folder / "table.json").read_text())
    assert "first look at 16 px" in content["setting"]
    evaluated = restore_and_evaluate(config_for(), calibrated)
    shares = np.array(evaluated["shares"])
    assert shares.min() > 0.1
    found = {row.name: row for row in rows}
    assert [*found] == ["fixed 32", "fixed 16", "adaptive", f"adaptive {budget:g} GMACs", "dense"]
    assert found["fixed 32"].gmacs == pytest.approx(COST.classifier[0] / 1e9)
    assert found["fixed 16"].gmacs == pytest.approx(COST.classifier[1] / 1e9)
    assert found["adaptive"].gmacs == pytest.approx(shares @ SPENT)
    # It computes every resolution once, and answers as the adaptive method does.
    assert found["dense"].gmacs == pytest.approx(SPENT[0])
    for name in ("adaptive", "dense"):
        assert found[name].correct.mean() == pytest.approx(evaluated["top1"])
    assert found[f"adaptive {budget:g} GMACs"].gmacs <= budget
