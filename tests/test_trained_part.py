"""What is frozen stays to the bit, has no optimiser state, and costs no backward pass."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.models.backbone import Backbone
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost
from drnet_jax.models.mobilenet import MobileNet
from drnet_jax.models.resnet import ResNet
from drnet_jax.models.variables import init_variables, split_classifier
from drnet_jax.training.create import create_loss, create_stage_step
from drnet_jax.training.train_state import create_train_state
from drnet_jax.training.trained_part import PartLoss, TrainedPart, last_layers
from tests.small_run import small_config

CONFIG = {"model.args": "stage_sizes=(1, 1, 1), width=4, stem='small'"}
RESNET = ResNet(3, (1, 1, 1), width=4, stem="small")
MOBILENET = MobileNet(3, ((1, 8, 1, 1, 3), (2, 8, 1, 2, 3), (2, 16, 2, 1, 3)), head_features=24)
# By hand: what is behind the last convolution of stride 2, that one's block included; and behind
# the one before.
LAST = {
    RESNET: ({"layer3_0"}, {"layer2_0"}),
    MOBILENET: (
        {"stage1_0", "stage2_0", "stage2_1", "head_conv", "head_bn"},
        {"stem_conv", "stem_bn", "stage0_0"},
    ),
}


@pytest.mark.parametrize("network", LAST, ids=lambda network: type(network).__name__)
def test_last_layers(network: Backbone) -> None:
    layers = set[str]()
    for stages, more in enumerate(LAST[network], 1):
        layers |= more
        assert last_layers(network, 32, stages) == layers
        assert last_layers(network.clone(remat=True), 32, stages) == layers


def is_trained(what: str, path: tuple[str, ...]) -> bool:
    """By hand, for the parameters of the ResNet."""
    layer, name = path[1], path[-1]
    of_norm = name.startswith(("scale", "bias")) and layer != "fc"
    by_part = {
        "all": True,
        "last_two_stages": layer in ("layer2_0", "layer3_0"),
        "last_stage": layer == "layer3_0",
        "batch_norm": of_norm,
        "head": False,
    }
    return layer == "fc" or by_part[what]


@pytest.mark.parametrize("what", ["all", "last_two_stages", "last_stage", "batch_norm", "head"])
def test_the_rest_stays_as_it_is(what: str) -> None:
    config = small_config(**CONFIG, **{"pretrain.train": what, "pretrain.optimizer": "adamw"})
    model = create_model(config, 3)
    variables, _ = split_classifier(init_variables(model, jax.random.key(0)))
    tx, train_step = create_stage_step(config, "pretrain", model, model_cost(model), None, 4)
    state = create_train_state(variables, tx, ema=False)
    before = jax.device_get((state.params, state.collections))
    trained = [
        leaf.size
        for path, leaf in flax.traverse_util.flatten_dict(state.params).items()
        if is_trained(what, path)
    ]
    # Adam's two moments of what is trained, and counts of steps.
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * sum(trained)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (8, 32, 32, 3), np.uint8)),
        "label": jnp.asarray(rng.integers(0, 3, 8)),
    }
    for _ in range(2):
        state, metrics = train_step(state, batch, jax.random.key(1))
    assert metrics["grad_norm"] > 0
    params, collections = jax.device_get((state.params, state.collections))
    old = flax.traverse_util.flatten_dict(before[0])
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        assert np.array_equal(leaf, old[path]) != is_trained(what, path), path
    # Statistics move where the BatchNorm is trained.
    old = flax.traverse_util.flatten_dict(before[1])
    for path, leaf in flax.traverse_util.flatten_dict(collections).items():
        moves = is_trained(what, (*path[1:-1], "scale"))
        assert np.array_equal(leaf, old[path]) != moves, path


def test_frozen_layers_give_what_they_give_in_evaluation() -> None:
    """With the head alone, the loss of a training step is that of the evaluated network."""
    config = small_config(**CONFIG)
    model = create_model(config, 3)
    variables, _ = split_classifier(init_variables(model, jax.random.key(0)))
    params = variables.pop("params")
    collections = jax.tree.map(lambda statistic: statistic + 0.3, variables)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    batch = {"image": images, "label": jnp.array([0, 1, 2, 0])}
    loss = create_loss(config, "pretrain", model, model_cost(model), None, 1)
    part = PartLoss(loss, TrainedPart("head", last_layers(RESNET, 32, 1)))
    value, _ = part(params, collections, batch, jax.random.key(0), jnp.int32(0))
    everything = {"params": params, **collections}
    logits: Any = model.apply(everything, images, train=False, method="classify_all")
    log_p = np.asarray(jax.nn.log_softmax(logits))[np.arange(4), :, np.array(batch["label"])]
    np.testing.assert_allclose(value, -log_p.mean(axis=0).sum(), rtol=1e-5)


@pytest.mark.parametrize("what", ["all", "batch_norm", "last_stage"])
def test_imported_statistics_stay(what: str) -> None:
    """They normalise, as in evaluation; scale and bias of every BatchNorm that is trained move."""
    fields = {"pretrain.train": what, "pretrain.batch_statistics": False}
    config = small_config(**CONFIG, **fields)
    model = create_model(config, 3)
    variables, _ = split_classifier(init_variables(model, jax.random.key(0)))
    tx, train_step = create_stage_step(config, "pretrain", model, model_cost(model), None, 4)
    params = variables.pop("params")
    collections = jax.tree.map(lambda statistic: 1.5 * statistic, variables)
    everything = {"params": params, **collections}
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    mean, std = np.array(config.data.mean), np.array(config.data.std)
    logits: Any = model.apply(
        everything,
        jnp.asarray((images / 255 - mean) / std, jnp.float32),
        train=False,
        method="classify_all",
    )
    label = np.array([0, 1, 2, 0])
    log_p = np.asarray(jax.nn.log_softmax(logits))[np.arange(4), :, label]
    before = jax.tree.map(np.array, (params, collections))
    state = create_train_state(everything, tx, ema=False)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(label)}
    after, metrics = train_step(state, batch, jax.random.key(1))
    np.testing.assert_allclose(metrics["ce"], -log_p.mean(axis=0).sum(), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after.collections), before[1])
    old = flax.traverse_util.flatten_dict(before[0])
    for path, leaf in flax.traverse_util.flatten_dict(jax.device_get(after.params)).items():
        assert np.array_equal(leaf, old[path]) != is_trained(what, path), path


def test_moving_averages_of_what_is_frozen_keep_its_bits() -> None:
    fields = {"pretrain.train": "head", "pretrain.ema_decay": 0.9}
    config = small_config(**CONFIG, **fields)
    model = create_model(config, 3)
    variables, _ = split_classifier(init_variables(model, jax.random.key(0)))
    tx, train_step = create_stage_step(config, "pretrain", model, model_cost(model), None, 4)
    state = create_train_state(variables, tx, ema=True)
    before = jax.device_get(state.ema)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.array([0, 1, 2, 0])}
    for _ in range(3):
        state, _ = train_step(state, batch, jax.random.key(1))
    old = flax.traverse_util.flatten_dict(before)
    for path, leaf in flax.traverse_util.flatten_dict(jax.device_get(state.ema)).items():
        assert np.array_equal(leaf, old[path]) != ("fc" in path), path


@pytest.mark.parametrize("what", ["head", "last_stage"])
def test_frozen_statistics_stay_in_micro_batches_and_with_remat(what: str) -> None:
    fields = {"pretrain.train": what, "pretrain.accumulate": 2, "model.remat": True}
    config = small_config(**CONFIG, **fields)
    model = create_model(config, 3)
    variables, _ = split_classifier(init_variables(model, jax.random.key(0)))
    tx, train_step = create_stage_step(config, "pretrain", model, model_cost(model), None, 4)
    state = create_train_state(variables, tx, ema=False)
    old = flax.traverse_util.flatten_dict(jax.device_get(state.collections))
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.arange(8) % 3}
    state, _ = train_step(state, batch, jax.random.key(1))
    for path, leaf in flax.traverse_util.flatten_dict(jax.device_get(state.collections)).items():
        moves = what == "last_stage" and path[2] == "layer3_0"
        assert np.array_equal(leaf, old[path]) != moves, path


def gradient_flops(what: str) -> float:
    """Of loss and gradient, as XLA counts them in what JAX traced."""
    config = small_config(**CONFIG)
    model = create_model(config, 3)
    loss: Any = create_loss(config, "pretrain", model, model_cost(model), None, 1)
    if what != "all":
        loss = PartLoss(loss, TrainedPart(what, last_layers(RESNET, 32, 1)))
    variables, _ = split_classifier(init_variables(model, jax.random.key(0)))
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    batch = {"image": jnp.zeros((4, 32, 32, 3)), "label": jnp.zeros(4, jnp.int32)}
    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    arguments = (variables["params"], collections, batch, jax.random.key(0), jnp.int32(0))
    analysis: Any = grad.lower(*arguments).cost_analysis()
    return analysis["flops"]


def test_freezing_saves_the_backward_pass() -> None:
    """A forward pass is a third of a step: the gradients of inputs and of weights are the rest."""
    flops = {w: gradient_flops(w) for w in ("head", "last_stage", "batch_norm", "all")}
    assert flops["head"] < 0.45 * flops["all"]
    assert flops["head"] < flops["last_stage"] < 0.75 * flops["all"]
    assert flops["last_stage"] < flops["batch_norm"] < 0.85 * flops["all"]
