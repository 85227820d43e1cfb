"""What a configuration makes of a stage's loss, learning rates and noise; nothing is compiled."""

from typing import Any

import jax
import numpy as np
import pytest

from drnet_jax.config import alpha_target
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import ModelCost
from drnet_jax.training import create
from drnet_jax.training.create import create_loss, create_stage_step, noise_key
from drnet_jax.training.stage_losses import JointLoss, PretrainLoss
from tests.small_run import small_config

COST = ModelCost(predictor=10**6, classifier=(4 * 10**9, 10**9))
FIELDS = {
    **{"pretrain.label_smoothing": 0.1, "joint.label_smoothing": 0.2},
    **{"joint.eta": 0.7, "joint.alpha_fraction": 0.5},
    **{"joint.tau": 2.0, "joint.tau_decay": 0.5, "joint.tau_min": 0.25},
}


def test_losses() -> None:
    """5 steps an epoch: the temperature is 2 at step 0, 0.5 at step 10 and 0.25 from then on."""
    config = small_config(**FIELDS)
    model = create_model(config, 10)
    target = alpha_target(config, COST.choice_gmacs, COST.classifier_gmacs[0])
    first = create_loss(config, "pretrain", model, COST, target, 5)
    assert isinstance(first, PretrainLoss)
    assert first.label_smoothing == 0.1 and first.model is model
    second = create_loss(config, "joint", model, COST, target, 5)
    assert isinstance(second, JointLoss)
    assert second.target == pytest.approx(2.0) and second.costs == (4.0, 1.0)
    assert (second.eta, second.label_smoothing, second.model) == (0.7, 0.2, model)
    temperatures = [float(second.tau_fn(step)) for step in (0, 10, 15, 40)]
    np.testing.assert_allclose(temperatures, [2.0, 0.5, 0.25, 0.25])
    free = create_loss(config, "joint", model, COST, None, 5)
    assert isinstance(free, JointLoss) and free.target is None


@pytest.mark.parametrize(
    ("stage", "resolutions", "scales"),
    [
        ("pretrain", (32, 16), {"classifier": 1.0}),
        ("joint", (32, 16), {"classifier": 1.0, "predictor": 3.0}),
        # Without a choice there is no predictor.
        ("joint", (32,), {"classifier": 1.0}),
    ],
)
def test_learning_rates_of_the_parts(
    stage: str,
    resolutions: tuple[int, ...],
    scales: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(create, "make_train_step", lambda *_, **further: given.update(further))
    config = small_config(**{"model.resolutions": resolutions, "joint.predictor_lr_scale": 3.0})
    section = config[stage]
    section.schedule, section.warmup_epochs, section.base_learning_rate = "constant", 0.0, 0.2
    section.ema_decay, section.accumulate = 0.9, 2
    create_stage_step(config, stage, create_model(config, 10), COST, None, 5)
    assert given["ema_decay"] == 0.9 and given["accumulate"] == 2
    rates = {part: float(rate(0)) for part, rate in given["learning_rate_fns"].items()}
    assert rates == pytest.approx({part: 0.2 * scale for part, scale in scales.items()})


@pytest.mark.parametrize(("stage", "number"), [("pretrain", 1), ("joint", 2)])
def test_every_stage_has_noise_of_its_own(stage: str, number: int) -> None:
    """Not that of the initial weights, which come from `key(seed)`."""
    want = jax.random.fold_in(jax.random.key(5), number)
    got = noise_key(5, stage)
    np.testing.assert_array_equal(jax.random.key_data(got), jax.random.key_data(want))
