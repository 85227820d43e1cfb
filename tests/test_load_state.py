"""The state of a training is resumed with the optimiser it is of, and with no other."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drnet_jax.checkpoints.checkpoint import CheckpointError, StageCheckpoints
from drnet_jax.training.optim import create_optimizer
from drnet_jax.training.start import load_state
from drnet_jax.training.train_state import create_train_state
from tests.small_run import small_config


def test_another_optimisers_state_is_one_clear_error(tmp_path: Path) -> None:
    params = {"params": {"classifier": jnp.ones((2, 2))}}
    sgd = create_train_state(params, optax.sgd(0.1, momentum=0.9), ema=False)
    with StageCheckpoints(tmp_path / "joint") as checkpoints:
        checkpoints.save(1, sgd)
    adam = create_train_state(params, optax.adam(0.1), ema=False)
    with StageCheckpoints(tmp_path / "joint") as checkpoints:
        with pytest.raises(CheckpointError, match="joint cannot be resumed: step 1 does not"):
            load_state(checkpoints, 1, adam)
        same = load_state(checkpoints, 1, sgd)
    np.testing.assert_array_equal(same.params["classifier"], np.ones((2, 2)))


def test_a_state_that_is_not_finite_is_not_resumed(tmp_path: Path) -> None:
    """Of the optimiser too, whose loss is finite for a step still."""
    good = create_train_state({"params": {"w": jnp.ones(2)}}, optax.sgd(0.1, 0.9), ema=False)
    bad = good.replace(opt_state=jax.tree.map(lambda leaf: leaf * jnp.inf, good.opt_state))
    with StageCheckpoints(tmp_path / "joint", keep_latest=2) as checkpoints:
        checkpoints.save(1, good)
        checkpoints.save(2, bad)
    with StageCheckpoints(tmp_path / "joint") as checkpoints:
        words = r"joint/2 holds values that are not finite \(1 arrays, .opt_state.*step 1 is intact"
        with pytest.raises(CheckpointError, match=words):
            load_state(checkpoints, 2, good)
        load_state(checkpoints, 1, good)


def test_rmsprop_of_earlier_versions_cannot_be_resumed(tmp_path: Path) -> None:
    """Its rate was outside the momentum, and its state one chain with the decay."""
    section = small_config(**{"joint.optimizer": "rmsprop"}).joint
    schedule = optax.constant_schedule(0.1)
    former = optax.chain(
        optax.add_decayed_weights(section.weight_decay),
        optax.scale_by_rms(decay=0.9, eps=1.0, initial_scale=1.0, eps_in_sqrt=True),
        optax.trace(decay=section.momentum),
        optax.scale_by_learning_rate(schedule),
    )
    labels = {"classifier": "classifier"}
    params = {"params": {"classifier": jnp.ones((2, 2))}}
    old = create_train_state(params, optax.partition({"classifier": former}, labels), ema=False)
    today = create_optimizer(section, {"classifier": schedule})
    with StageCheckpoints(tmp_path / "joint") as checkpoints:
        checkpoints.save(1, old)
    with StageCheckpoints(tmp_path / "joint") as checkpoints:
        with pytest.raises(
            CheckpointError, match=r"RMSProp's was another .* as it is \(.*opt_state.*\)$"
        ):
            load_state(checkpoints, 1, create_train_state(params, today, ema=False))
        load_state(checkpoints, 1, old)
