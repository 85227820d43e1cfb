"""What is fitted for an objective, on made-up outputs: the head, and what stops the fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.budgets.calibration import BudgetError
from drnet_jax.config import FITTED_OBJECTIVES
from drnet_jax.data.sources import ArraySource, DataError
from drnet_jax.evaluation.logits import Logits
from drnet_jax.models.create import create_model
from drnet_jax.models.glance import Look
from drnet_jax.models.macs import model_cost
from drnet_jax.models.variables import init_variables
from drnet_jax.runtime.sharding import create_mesh
from drnet_jax.training import fit_stage
from drnet_jax.training.fit_stage import FITS, fit_head, held_out_outputs
from drnet_jax.training.stage import Run
from tests.small_run import small_config
from tests.synthetic import synthetic_logits

COUNT, CLASSES = 120, 10


def run_of(tmp_path: Path, *, target_share: float = 0.6, **further: Any) -> Run:
    """A run of two resolutions with a first look; its images are never looked at."""
    fields = {"predictor.kind": "glance", "predictor.inputs": ("logit_margin",)}
    config = small_config(**fields | further)
    model = create_model(config, CLASSES)
    cost = model_cost(model)
    images = np.zeros((COUNT, 32, 32, 3), np.uint8)
    source = ArraySource(images, np.zeros(COUNT, np.int32), "made up")
    target = target_share * cost.largest_cost
    return Run(config, tmp_path, model, cost, target, create_mesh(), source, source, {})


def outputs(images: np.ndarray) -> Logits:
    """For some of the images; what the head reads in the place of its scores."""
    made = synthetic_logits(COUNT, 2, CLASSES)
    best = np.sort(made.logits[:, -1], axis=1)
    rows = {name: getattr(made, name)[images] for name in ("logits", "label", "index", "name")}
    margin = (best[:, -1:] - best[:, -2:-1])[images]
    return replace(made, **rows, scores=margin, version=np.full(len(images), ""))


def test_every_fitted_objective_has_its_fit() -> None:
    assert tuple(FITS) == FITTED_OBJECTIVES


def test_a_threshold_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One threshold of the score, which stays as it is: no logistic function is between."""
    run, found = run_of(tmp_path, **{"predictor.objective": "threshold"}), outputs(np.arange(COUNT))
    monkeypatch.setattr(fit_stage, "held_out_outputs", lambda *_: found)
    variables = init_variables(run.model, jax.random.key(0))
    fitted = fit_head(run, variables)
    head: Any = run.model.predictor
    own = {name: tree["predictor"] for name, tree in fitted.items() if "predictor" in tree}
    look = Look(jnp.asarray(found.logits[:, -1]), jnp.zeros((COUNT, 1)))
    scores = np.asarray(head.apply(own, look))
    step, score = scores[:, 1] - scores[:, 0], found.scores[:, 0]
    threshold = float(np.mean(score - step))
    np.testing.assert_allclose(step, score - threshold, atol=1e-5)
    # The most accurate of all thresholds that spend as much, first look included.
    first, large = run.cost.classifier[1], run.cost.classifier[0]
    right = found.logits.argmax(axis=2) == found.label[:, None]

    def outcome(threshold: float) -> tuple[int, float]:
        second = score <= threshold
        return int(np.where(second, right[:, 0], right[:, 1]).sum()), float(
            first + large * second.mean()
        )

    correct, spent = outcome(threshold)
    assert run.target is not None and spent / 1e9 <= run.target
    others = map(outcome, [-1.0, *score.tolist()])
    assert correct == max(count for count, cost in others if cost <= spent)
    assert 0 < (score <= threshold).sum() < COUNT


@pytest.mark.parametrize("objective", FITTED_OBJECTIVES)
def test_a_target_below_every_choice_names_the_field(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, target_share=0.01, **{"predictor.objective": objective})
    monkeypatch.setattr(fit_stage, "held_out_outputs", lambda *_: outputs(np.arange(COUNT)))
    with pytest.raises(BudgetError, match=r"alpha_fraction is a target of .* GMACs, .*: raise it"):
        fit_head(run, init_variables(run.model, jax.random.key(0)))


def test_corrupt_images_are_left_out_of_a_fit_and_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all images but two."""
    known = outputs(np.setdiff1d(np.arange(COUNT), [1, 2]))
    monkeypatch.setattr(fit_stage, "evaluate_logits", lambda *_, **__: known)
    found = held_out_outputs(run_of(tmp_path, **{"data.max_corrupt": 2}), None)
    assert found is known
    words = "2 images cannot be read"
    assert words in capsys.readouterr().out
    with pytest.raises(DataError, match=rf"{words} .*, more than data.max_corrupt=1: repair them"):
        held_out_outputs(run_of(tmp_path, **{"data.max_corrupt": 1}), None)
