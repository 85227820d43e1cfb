"""The ways to give a second look more of the first, of `experiments/first_look_features.py`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from drnet_jax.models.drnet import DRNet
from drnet_jax.models.resnet import ResNet
from drnet_jax.models.variables import init_variables
from drnet_jax.training.stage_losses import PretrainLoss
from experiments.first_look_features import CONTROL, MIXED, WAYS, DoubtLoss

SIZES = (32, 16)
MIXED_WAY = "trained for the mixed logits"
PLAIN = DRNet(ResNet(3, (1, 1), width=4, stem="small"), None, SIZES)
IMAGES = jax.random.normal(jax.random.key(1), (6, 32, 32, 3))


@pytest.fixture(scope="module")
def variables() -> Any:
    return init_variables(PLAIN, jax.random.key(0))


def extended(model: DRNet, variables: Any) -> Any:
    """With the layers that a way adds."""
    fresh = flatten_dict(init_variables(model, jax.random.key(2)))
    return unflatten_dict(fresh | flatten_dict(variables))


def logits(model: DRNet, variables: Any) -> Any:
    return model.apply(variables, IMAGES, train=False, method="classify_all")


@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_begins_as_stage_1_ended(way: str, variables: Any) -> None:
    model = WAYS[way][0](PLAIN)
    before = np.array(logits(PLAIN, variables))
    after = logits(model, extended(model, variables))
    if way == MIXED_WAY:
        before[:, 0] += MIXED * before[:, 1]
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize(
    "way", ["pooled features of the first look", "its last maps and pooled features"]
)
def test_the_second_look_depends_on_the_first_without_a_gradient_into_it(
    way: str, variables: Any
) -> None:
    model = WAYS[way][0](PLAIN)
    before = extended(model, variables)
    flat = flatten_dict(before)
    added = set(flat) - set(flatten_dict(variables))
    assert added
    flat |= {path: jnp.ones_like(flat[path]) for path in added}
    moved = logits(model, unflatten_dict(flat))
    np.testing.assert_array_equal(moved[:, 1], logits(model, before)[:, 1])
    assert float(jnp.abs(moved[:, 0] - logits(model, before)[:, 0]).max()) > 1e-3

    def second(tree: Any) -> jax.Array:
        return logits(model, tree)[:, 0].sum()

    # BatchNorm keeps parameters a size: those of the small one matter to the first look alone.
    gradients = flatten_dict(jax.grad(second)(unflatten_dict(flat))["params"])
    small = [leaf for path, leaf in gradients.items() if path[-1].endswith("_16")]
    large = [leaf for path, leaf in gradients.items() if path[-1].endswith("_32")]
    assert small and all(not np.any(leaf) for leaf in small)
    assert any(np.any(leaf) for leaf in large)


def test_doubt_weighs_the_second_look_and_not_the_first(variables: Any) -> None:
    label = np.array([0, 1, 2, 0, 1, 2])
    model = WAYS[CONTROL][0](PLAIN)
    params = variables["params"]
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    arguments = ({"image": IMAGES, "label": jnp.asarray(label)}, jax.random.key(0), jnp.zeros(()))
    loss, _ = DoubtLoss(model)(params, collections, *arguments)
    found, _ = model.apply(
        variables, IMAGES, train=True, method="classify_all", mutable=list(collections)
    )
    p = np.exp(np.array(found, float))
    p /= p.sum(axis=2, keepdims=True)
    right = p[np.arange(6), :, label]
    weight = 1.1 - right[:, 1]
    second = -np.log(right[:, 0])
    expected = (weight * second).sum() / weight.sum() - np.log(right[:, 1]).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    plain, _ = PretrainLoss(model)(params, collections, *arguments)
    assert abs(float(plain) - expected) > 1e-3
