"""Stage 2 of a fitted objective, end to end: against NumPy on the outputs that were kept."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from drnet_jax.checkpoints.checkpoint import StageCheckpoints
from drnet_jax.checkpoints.runs import load_run
from drnet_jax.evaluation.metrics import objective, record
from drnet_jax.models.macs import model_cost
from drnet_jax.train import train_and_evaluate, train_stages
from drnet_jax.training.reuse import fit_weights
from tests.small_run import small_config

GLANCE = {
    "predictor.kind": "glance",
    "predictor.objective": "correctness",
    "predictor.inputs": ("margin", "logit_margin"),
    "model.reuse": "logits",
    "joint.alpha_fraction": 0.7,
}


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage 1."""
    workdir = tmp_path_factory.mktemp("stage_one")
    train_stages(small_config(stages=("pretrain",)), workdir)
    return workdir


def fitted(stage_one: Path, workdir: Path, **further: Any) -> dict[str, Any]:
    """The summary of stage 2."""
    stage_two = {"stages": ("joint",), "joint.init_from": str(stage_one)}
    return train_and_evaluate(small_config(**stage_two | GLANCE | further), workdir)


@pytest.fixture(scope="module")
def correct(stage_one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage 2."""
    workdir = tmp_path_factory.mktemp("correct")
    fitted(stage_one, workdir)
    return workdir


def kept(workdir: Path, split: str) -> dict[str, np.ndarray]:
    """The outputs of a split."""
    with np.load(workdir / "logits.npz") as arrays:
        names = ("logits", "scores", "weight", "label")
        return {name: arrays[f"{split}/{name}"] for name in names}


def test_correctness(stage_one: Path, correct: Path) -> None:
    summary = json.loads((correct / "eval.json").read_text())
    run, cost = load_run(correct), model_cost(load_run(correct).model)
    # The classifier is that of stage 1, bit for bit.
    with StageCheckpoints(stage_one / "pretrain", read_only=True) as checkpoints:
        step = checkpoints.latest_step
        assert step is not None
        before = checkpoints.load_partial(step, {"params": run.variables["params"]})
    trained = run.variables["params"]["classifier"]
    jax.tree.map(np.testing.assert_array_equal, before["params"]["classifier"], trained)

    head = run.variables["params"]["predictor"]["fc"]
    values = run.variables["fitted"]["predictor"]
    for split in ("calibration", "test"):
        found = kept(correct, split)
        first = np.sort(found["logits"][:, -1].astype(np.float64), axis=1)
        p = softmax(first, axis=1)
        inputs = np.stack([p[:, -1] - p[:, -2], first[:, -1] - first[:, -2]], axis=1)
        scores = expit(inputs @ head["kernel"] + head["bias"]) - values["offset"]
        np.testing.assert_allclose(found["scores"], scores, atol=1e-5)
        np.testing.assert_array_equal(found["weight"], values["weight"])

    expected = fit_weights(
        kept(correct, "calibration")["logits"], kept(correct, "calibration")["label"]
    )
    np.testing.assert_allclose(values["weight"], expected, atol=1e-3)

    # What it chooses costs no more than the target on the images that it is fitted to.
    spent = np.array([cost.classifier[1] + cost.classifier[0], cost.classifier[1]])
    choice = kept(correct, "calibration")["scores"].argmax(axis=1)
    assert spent[choice].mean() <= 0.7 * cost.classifier[0]
    # And what eval.json says is of the answers, the first look's logits in them.
    found = kept(correct, "test")
    answers = found["logits"] + found["weight"][:, None] * found["logits"][:, -1:]
    choice = found["scores"].argmax(axis=1)
    right = answers.argmax(axis=2) == found["label"][:, None]
    assert summary["top1"] == right[np.arange(len(choice)), choice].mean()
    expected = (spent[choice].mean() + cost.predictor) / 1e9
    assert summary["gmacs"] == pytest.approx(expected, rel=1e-6)
    last = json.loads((correct / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["stage"], last["step"]) == ("joint", 1)
    # So are what the log says and what checkpoints are chosen by.
    found = kept(correct, "calibration")
    answers = found["logits"] + found["weight"][:, None] * found["logits"][:, -1:]
    choice = found["scores"].argmax(axis=1)
    chosen = answers[np.arange(len(choice)), choice].astype(np.float64)
    own = np.take_along_axis(log_softmax(chosen, axis=1), found["label"][:, None], axis=1)
    assert last["calibration_objective"] == pytest.approx(-own.mean(), rel=1e-5)
    assert last["calibration_top1"] == (chosen.argmax(axis=1) == found["label"]).mean()
    # Also of second looks, of which so small a fit may choose none.
    second = answers[:, 0].astype(np.float64)
    own = np.take_along_axis(log_softmax(second, axis=1), found["label"][:, None], axis=1)
    looks = np.tile(np.float32([1, 0]), (len(second), 1))
    indices = np.arange(len(second))
    records = record(found["logits"], looks, found["weight"], found["label"], indices)
    assert found["weight"][0] > 0.01
    value = objective(records, cost, target=None, eta=0.3)
    assert value == pytest.approx(-own.mean(), rel=1e-5)


def test_a_finished_fit_is_not_repeated(
    stage_one: Path, correct: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = json.loads((correct / "eval.json").read_text())
    second = fitted(stage_one, correct)
    assert "joint: finished already" in capsys.readouterr().out
    assert (first["top1"], first["gmacs"]) == (second["top1"], second["gmacs"])


def test_fitted_to_training_images_with_a_moving_average(stage_one: Path, tmp_path: Path) -> None:
    further = {"joint.fit_split": "train", "joint.ema_decay": 0.9, "eval.split": "train"}
    fitted(stage_one, tmp_path, **further)
    found = kept(tmp_path, "train")
    expected = fit_weights(found["logits"], found["label"])
    np.testing.assert_allclose(found["weight"], expected, atol=1e-3)
    others = kept(tmp_path, "calibration")
    assert abs(fit_weights(others["logits"], others["label"]) - expected).max() > 0.01


def test_weights_come_before_the_steps_of_gumbel(
    stage_one: Path, correct: Path, tmp_path: Path
) -> None:
    fitted(stage_one, tmp_path, **{"predictor.objective": "gumbel", "joint.num_epochs": 1})
    expected = kept(correct, "test")["weight"]
    np.testing.assert_allclose(kept(tmp_path, "test")["weight"], expected, atol=1e-6)
