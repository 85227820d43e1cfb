"""What is frozen stays to the bit, has no optimiser state, and costs no backward pass."""

from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.data.preprocess import normalise
from drnet_jax.models.backbone import Backbone
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost
from drnet_jax.models.mobilenet import MobileNet
from drnet_jax.models.resnet import ResNet
from drnet_jax.models.variables import init_variables, split_classifier
from drnet_jax.training.create import create_loss, create_stage_step
from drnet_jax.training.train_state import TrainState, create_train_state
from drnet_jax.training.train_step import StepFn
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
    if what == "smaller_batch_norm":
        return name in ("scale_16", "bias_16")
    of_norm = name.startswith(("scale", "bias")) and layer != "fc"
    by_part = {
        "all": True,
        "last_two_stages": layer in ("layer2_0", "layer3_0"),
        "last_stage": layer == "layer3_0",
        "batch_norm": of_norm,
        "head": False,
    }
    return layer == "fc" or by_part[what]


@pytest.fixture(scope="module")
def start() -> Any:
    """The variables of a classifier, whose statistics are not those of its initialisation."""
    model = create_model(small_config(**CONFIG), 3)
    variables, _ = split_classifier(init_variables(model, jax.random.key(0)))
    params = variables.pop("params")
    statistics = jax.tree.map(lambda statistic: 1.5 * statistic + 0.05, variables)
    return jax.device_get({"params": params, **statistics})


def batch_of(count: int) -> dict[str, jax.Array]:
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(count) % 3}


@pytest.fixture(scope="module")
def evaluated(start: Any) -> float:
    """The loss of four images in evaluation, by hand from the logits."""
    config = small_config(**CONFIG)
    model, batch = create_model(config, 3), batch_of(4)
    classify = jax.jit(partial(model.apply, train=False, method="classify_all"))
    logits: Any = classify(start, normalise(batch["image"], config.data.mean, config.data.std))
    log_p = np.asarray(jax.nn.log_softmax(logits))[np.arange(4), :, np.array(batch["label"])]
    return -log_p.mean(axis=0).sum()


def training(start: Any, **fields: Any) -> tuple[TrainState, StepFn]:
    """Of stage 1, before its first step."""
    config = small_config(**CONFIG, **fields)
    model = create_model(config, 3)
    tx, train_step = create_stage_step(config, "pretrain", model, model_cost(model), None, 4)
    return create_train_state(start, tx, ema=config.pretrain.ema_decay > 0), train_step


def changes(before: Any, after: Any) -> dict[tuple[str, ...], bool]:
    """Whether the bits of each array are others."""
    old, new = map(flax.traverse_util.flatten_dict, jax.device_get((before, after)))
    return {path: not np.array_equal(leaf, old[path]) for path, leaf in new.items()}


PARTS = ("all", "last_two_stages", "last_stage", "batch_norm", "smaller_batch_norm", "head")


@pytest.mark.parametrize("what", PARTS)
def test_the_rest_stays_as_it_is(what: str, start: Any) -> None:
    """In the newest parameters and statistics, and in their moving averages."""
    fields = {"pretrain.optimizer": "adamw", "pretrain.ema_decay": 0.9}
    state, train_step = training(start, **{"pretrain.train": what}, **fields)
    trained = [
        leaf.size
        for path, leaf in flax.traverse_util.flatten_dict(state.params).items()
        if is_trained(what, path)
    ]
    # Adam's two moments of what is trained, and counts of steps.
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * sum(trained)
    before = jax.device_get((state.params, state.collections))
    for _ in range(3):
        state, metrics = train_step(state, batch_of(8), jax.random.key(1))
    assert metrics["grad_norm"] > 0
    ema: Any = state.ema
    for params, collections in (
        (state.params, state.collections),
        (ema["params"], ema["collections"]),
    ):
        moved = changes(before[0], params)
        assert moved == {path: is_trained(what, path) for path in moved}
        # Statistics move where the BatchNorm is trained.
        moved = changes(before[1], collections)
        assert moved == {
            path: is_trained(what, (*path[1:-1], path[0].replace("batch_stats", "scale")))
            for path in moved
        }


def test_frozen_layers_give_what_they_give_in_evaluation(start: Any, evaluated: float) -> None:
    """With the head alone, the loss of a training step is that of the evaluated network."""
    config = small_config(**CONFIG)
    model, batch = create_model(config, 3), batch_of(4)
    batch["image"] = normalise(batch["image"], config.data.mean, config.data.std)
    loss = create_loss(config, "pretrain", model, model_cost(model), None, 1)
    part = jax.jit(PartLoss(loss, TrainedPart("head", 32, last_layers(RESNET, 32, 1))))
    params, collections = start["params"], {n: t for n, t in start.items() if n != "params"}
    value, _ = part(params, collections, batch, jax.random.key(0), jnp.int32(0))
    np.testing.assert_allclose(value, evaluated, rtol=1e-5)


@pytest.mark.parametrize("what", ["all", "batch_norm", "smaller_batch_norm", "last_stage"])
def test_imported_statistics_stay(what: str, start: Any, evaluated: float) -> None:
    """They normalise, as in evaluation; scale and bias of every BatchNorm that is trained move."""
    fields = {"pretrain.train": what, "pretrain.batch_statistics": False}
    state, train_step = training(start, **fields)
    before = jax.device_get((state.params, state.collections))
    state, metrics = train_step(state, batch_of(4), jax.random.key(1))
    np.testing.assert_allclose(metrics["ce"], evaluated, rtol=1e-4)
    assert not any(changes(before[1], state.collections).values())
    moved = changes(before[0], state.params)
    assert moved == {path: is_trained(what, path) for path in moved}


@pytest.mark.parametrize("what", ["head", "last_stage"])
def test_frozen_statistics_stay_in_micro_batches_and_with_remat(what: str, start: Any) -> None:
    fields = {"pretrain.train": what, "pretrain.accumulate": 2, "model.remat": True}
    state, train_step = training(start, **fields)
    before = jax.device_get(state.collections)
    state, _ = train_step(state, batch_of(8), jax.random.key(1))
    moved = changes(before, state.collections)
    assert moved == {path: what == "last_stage" and path[2] == "layer3_0" for path in moved}


def gradient_flops(what: str, start: Any) -> float:
    """Of loss and gradient, as XLA counts them in what JAX traced."""
    config = small_config(**CONFIG)
    model = create_model(config, 3)
    loss: Any = create_loss(config, "pretrain", model, model_cost(model), None, 1)
    if what != "all":
        loss = PartLoss(loss, TrainedPart(what, 32, last_layers(RESNET, 32, 1)))
    collections = {name: tree for name, tree in start.items() if name != "params"}
    batch = {"image": jnp.zeros((4, 32, 32, 3)), "label": jnp.zeros(4, jnp.int32)}
    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    arguments = (start["params"], collections, batch, jax.random.key(0), jnp.int32(0))
    analysis: Any = grad.lower(*arguments).cost_analysis()
    return analysis["flops"]


def test_freezing_saves_the_backward_pass(start: Any) -> None:
    """A forward pass is a third of a step: the gradients of inputs and of weights are the rest."""
    parts = ("head", "last_stage", "smaller_batch_norm", "batch_norm", "all")
    flops = {what: gradient_flops(what, start) for what in parts}
    assert flops["head"] < 0.45 * flops["all"]
    assert flops["head"] < flops["last_stage"] < 0.75 * flops["all"]
    assert flops["last_stage"] < flops["batch_norm"] < 0.85 * flops["all"]
    # At 16 px, a quarter of the pixels of 32.
    assert flops["head"] < flops["smaller_batch_norm"] < flops["batch_norm"]
