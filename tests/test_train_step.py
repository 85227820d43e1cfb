"""The jitted steps: one trace, the losses they claim, averages, low precision, sharding."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import special

from drnet_jax.models.drnet import DRNet
from drnet_jax.models.predictor import ResolutionPredictor
from drnet_jax.models.resnet import ResNet
from drnet_jax.models.variables import init_variables
from drnet_jax.runtime.sharding import create_mesh
from drnet_jax.training.stage_losses import Batch, JointLoss, PretrainLoss
from drnet_jax.training.train_state import TrainState, create_train_state
from drnet_jax.training.train_step import StepFn, TrainPreprocess, make_train_step

COSTS = (4.0, 1.0)
KEY = jax.random.key(7)
_COMPILED: list[str] = []


def _note_compilation(event: str, duration: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(_note_compilation)


@cache
def tiny_model(dtype: str = "float32") -> DRNet:
    predictor = ResNet(
        2, (1,), width=4, stem="small", resolution_aware=False, dtype=jnp.dtype(dtype)
    )
    classifier = ResNet(10, (1,), width=4, stem="small", dtype=jnp.dtype(dtype))
    return DRNet(classifier, ResolutionPredictor(predictor, 16), (32, 16))


def joint_loss(model: DRNet) -> JointLoss:
    return JointLoss(model, COSTS, target=2.0, eta=0.5, tau_fn=optax.constant_schedule(1.0))


def make_step(
    loss: PretrainLoss | JointLoss,
    tx: optax.GradientTransformation,
    *,
    flip: bool = False,
    ema_decay: float = 0.0,
    accumulate: int = 1,
) -> StepFn:
    return make_train_step(
        loss,
        tx,
        TrainPreprocess((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), flip),
        learning_rate_fns={"classifier": optax.constant_schedule(0.1)},
        ema_decay=ema_decay,
        accumulate=accumulate,
    )


def make_batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.asarray(rng.integers(0, 10, 16))}


@cache
def initial_variables(model: DRNet) -> Any:
    return init_variables(model, jax.random.key(0))


def initial_state(model: DRNet, tx: optax.GradientTransformation, ema: bool = False) -> TrainState:
    # A copy: the step donates its state.
    variables = jax.tree.map(jnp.copy, initial_variables(model))
    return create_train_state(variables, tx, ema=ema)


def test_joint_step_is_compiled_once_and_adds_up() -> None:
    """loss = ce + eta * reg, reg and costs follow from the shares, and no step compiles again."""
    model, tx = tiny_model(), optax.sgd(0.1)
    step = make_step(joint_loss(model), tx)
    state = initial_state(model, tx)
    compiled = []
    for batch in [make_batch(seed) for seed in range(3)]:
        before = len(_COMPILED)
        state, metrics = step(state, batch, KEY)
        compiled.append(len(_COMPILED) - before)
        sampled = float(np.dot(metrics["shares_sampled"], COSTS))
        assert float(metrics["gmacs_sampled"]) == pytest.approx(sampled)
        assert float(metrics["gmacs_argmax"]) == pytest.approx(np.dot(metrics["shares"], COSTS))
        reg = max(0.0, sampled - 2.0) / 3.0
        assert float(metrics["reg"]) == pytest.approx(reg, abs=1e-6)
        assert float(metrics["loss"]) == pytest.approx(float(metrics["ce"]) + 0.5 * reg, rel=1e-5)
    assert compiled == [1, 0, 0]
    assert int(state.step) == 3


def test_noise_depends_on_key_and_step_alone() -> None:
    """The same key and state give the same step to the bit; another of them, another choice."""
    model, tx = tiny_model(), optax.sgd(0.0)
    step = make_step(joint_loss(model), tx)

    def choice(number: int, key: jax.Array = KEY) -> tuple[float, ...]:
        state = initial_state(model, tx).replace(step=jnp.int32(number))
        return tuple(np.asarray(step(state, make_batch(), key)[1]["shares_sampled"]))

    assert choice(0) == choice(0)
    assert len({choice(number) for number in range(4)}) > 1
    before = len(_COMPILED)
    assert len({choice(0, jax.random.key(seed)) for seed in range(4)}) > 1
    assert len(_COMPILED) == before


@pytest.mark.parametrize("stage", ["pretrain", "joint"])
def test_no_constant_of_the_step_lies_on_a_device(stage: str, monkeypatch: Any) -> None:
    """Tracing would fetch it, which the loop's transfer guard forbids on a GPU, not on a CPU."""
    model, tx = tiny_model(), optax.sgd(0.1)
    state, batch = initial_state(model, tx), make_batch()
    loss = PretrainLoss(model) if stage == "pretrain" else joint_loss(model)
    train_step = make_step(loss, tx, flip=True)
    fetched: list[Any] = []
    monkeypatch.setattr(
        type(batch["label"]), "_value", property(lambda array: fetched.append(array))
    )
    train_step.lower(state, batch, KEY)
    assert not fetched


def test_moving_average_covers_weights_and_statistics() -> None:
    """Its decay grows from 1/10 to 2/11, below the 0.15 it is capped at only in the first step."""
    model, tx = tiny_model(), optax.sgd(0.1)
    step = make_step(joint_loss(model), tx, ema_decay=0.15)
    state = initial_state(model, tx, ema=True)
    want = jax.tree.map(np.asarray, state.variables)
    for decay in (0.1, 0.15):
        state, _ = step(state, make_batch(), KEY)
        want = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * np.asarray(new),
            want,
            state.variables,
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        state.eval_variables,
        want,
    )


def test_bfloat16_keeps_float32_state() -> None:
    """Parameters and statistics stay float32, and the loss is near that of float32."""
    tx = optax.sgd(0.1)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        model = tiny_model(dtype)
        step = make_step(PretrainLoss(model), tx)
        state, metrics = step(initial_state(model, tx), make_batch(), KEY)
        leaves = jax.tree.leaves((state.params, state.collections))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
        losses[dtype] = float(metrics["loss"])
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
    assert losses["bfloat16"] != losses["float32"]


def assert_close(left: Any, right: Any, rtol: float = 1e-5) -> None:
    """Every array to `rtol` of its own largest value."""

    def compare(a: Any, b: Any) -> None:
        b = np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())

    jax.tree.map(compare, left, right)


def gradient(before: TrainState, after: TrainState) -> Any:
    """What a step of SGD with learning rate 1 took."""
    return jax.tree.map(
        lambda old, new: np.asarray(old) - np.asarray(new), before.params, after.params
    )


def test_four_devices_have_the_gradients_of_one() -> None:
    """In float32, loss and every gradient array to 1e-5 of its largest entry."""
    model, tx = tiny_model(), optax.sgd(1.0)
    step = make_step(PretrainLoss(model), tx)
    want, alone = step(initial_state(model, tx), make_batch(), KEY)
    mesh = create_mesh()
    state = jax.device_put(initial_state(model, tx), NamedSharding(mesh, PartitionSpec()))
    batch = jax.device_put(make_batch(), NamedSharding(mesh, PartitionSpec("data")))
    got, together = step(state, batch, KEY)
    assert float(together["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-5)
    before = initial_state(model, tx)
    assert_close(gradient(before, got), gradient(before, want))
    assert_close(got.collections, want.collections)


def test_four_devices_follow_one_for_twenty_steps_in_float64() -> None:
    """The joint stage, momentum and statistics included: every loss to 1e-9, compiled once."""
    with jax.enable_x64(True):
        model, tx = tiny_model("float64"), optax.sgd(0.05, momentum=0.9)
        step = make_step(joint_loss(model), tx)
        variables = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64), initial_variables(tiny_model())
        )
        mesh = create_mesh()
        assert mesh.size == 4
        losses: dict[str, list[float]] = {"one": [], "four": []}
        for devices in losses:
            state = create_train_state(jax.tree.map(jnp.copy, variables), tx, ema=False)
            if devices == "four":
                state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
            for seed in range(20):
                batch = make_batch(seed % 4)
                if devices == "four":
                    batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
                before = len(_COMPILED)
                state, metrics = step(state, batch, KEY)
                assert seed == 0 or len(_COMPILED) == before
                assert metrics["loss"].dtype == jnp.float64
                losses[devices].append(float(metrics["loss"]))
        assert losses["one"][-1] < losses["one"][0]
        np.testing.assert_allclose(losses["four"], losses["one"], rtol=1e-9)


def test_accumulation_is_the_mean_over_micro_batches() -> None:
    """Against two plain steps from the same parameters, the second with the first's statistics."""
    model, tx = tiny_model(), optax.sgd(1.0)
    plain = make_step(PretrainLoss(model), tx)
    start = initial_state(model, tx)
    collections, grads, losses = start.collections, [], []
    for part in range(2):
        state = initial_state(model, tx).replace(collections=jax.tree.map(jnp.copy, collections))
        batch = {name: values[part::2] for name, values in make_batch().items()}
        state, metrics = plain(state, batch, KEY)
        collections = state.collections
        grads.append(gradient(start, state))
        losses.append(float(metrics["loss"]))
    step = make_step(PretrainLoss(model), tx, accumulate=2)
    state, metrics = step(initial_state(model, tx), make_batch(), KEY)
    assert_close(gradient(start, state), jax.tree.map(lambda a, b: (a + b) / 2, *grads))
    assert_close(state.collections, collections)
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_accumulated_noise_differs_between_micro_batches() -> None:
    """Copies of one image: with one noise for all, the eight micro-batches would choose alike."""
    model, tx = tiny_model(), optax.sgd(0.0)
    step = make_step(joint_loss(model), tx, accumulate=8)
    batch = {name: jnp.repeat(values[:1], 16, axis=0) for name, values in make_batch().items()}
    shares = [float(step(initial_state(model, tx), batch, KEY)[1]["shares_sampled"][0])]
    assert shares[0] * 16 % 8 != 0


def test_remat_changes_no_gradient() -> None:
    model, tx = tiny_model(), optax.sgd(1.0)
    again = model.clone(classifier=model.classifier.clone(remat=True))
    results = [
        make_step(PretrainLoss(network), tx)(initial_state(model, tx), make_batch(), KEY)
        for network in (model, again)
    ]
    assert float(results[0][1]["loss"]) == pytest.approx(float(results[1][1]["loss"]), rel=1e-6)
    start = initial_state(model, tx)
    assert_close(gradient(start, results[1][0]), gradient(start, results[0][0]))
    assert_close(results[1][0].collections, results[0][0].collections)


def test_remat_saves_what_goes_between_blocks_only() -> None:
    """Bytes that the backward pass of the classifier keeps, as JAX's own vjp says."""
    kept = []
    for remat in (False, True):
        network = ResNet(10, (2, 2), width=8, stem="small", remat=remat)
        images = jnp.zeros((4, 32, 32, 3))
        init = partial(network.init, resolution=32, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), images)
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def logits(params: Any, rest: Any, network: ResNet = network) -> jax.Array:
            return network.apply(
                {"params": params, **rest},
                jnp.zeros((4, 32, 32, 3)),
                resolution=32,
                train=True,
                mutable=list(rest),
            )[0]

        def keeps(params: Any, rest: Any, logits: Any = logits) -> Any:
            return jax.vjp(lambda params: logits(params, rest), params)[1]

        saved = jax.eval_shape(keeps, variables["params"], rest)
        kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved)))
    assert kept[1] < 0.5 * kept[0]


def test_accumulation_weighs_micro_batches_by_their_samples() -> None:
    """Without BatchNorm between the samples: the step of the batch without the masked ones."""
    model, tx = tiny_model(), optax.sgd(1.0)
    model = model.clone(classifier=model.classifier.clone(min_samples=1000))
    plain = make_step(PretrainLoss(model), tx)
    parts = make_step(PretrainLoss(model), tx, accumulate=4)
    # The second micro-batch has no sample left, the third one.
    keep = (np.arange(16) % 4 != 1) & ((np.arange(16) % 4 != 2) | (np.arange(16) == 2))
    batch = make_batch() | {"mask": jnp.asarray(keep)}
    want, alone = plain(initial_state(model, tx), batch, KEY)
    got, metrics = parts(initial_state(model, tx), batch, KEY)
    start = initial_state(model, tx)
    assert_close(gradient(start, got), gradient(start, want), rtol=1e-4)
    for name in ("loss", "accuracy"):
        assert float(metrics[name]) == pytest.approx(float(alone[name]), rel=1e-5)


def test_masked_samples_change_nothing() -> None:
    """A batch with corrupt (black, masked) images takes the step of the batch without them."""
    model, tx = tiny_model(), optax.sgd(1.0)
    step = make_step(PretrainLoss(model), tx)
    keep = np.arange(16) % 4 != 1
    without = {name: values[keep] for name, values in make_batch().items()}
    want, alone = step(initial_state(model, tx), without, KEY)
    masked = make_batch() | {"mask": jnp.asarray(keep)}
    masked["image"] = jnp.where(keep[:, None, None, None], masked["image"], 0)
    got, metrics = step(initial_state(model, tx), masked, KEY)
    start = initial_state(model, tx)
    assert_close(gradient(start, got), gradient(start, want))
    assert_close(got.collections, want.collections)
    assert float(metrics["accuracy"]) == pytest.approx(float(alone["accuracy"]))


def test_one_resolution_is_a_plain_classifier() -> None:
    """No predictor, no regulariser: the loss is the cross-entropy of the only branch."""
    model, tx = DRNet(ResNet(10, (1, 1), width=4, stem="small"), None, (32,)), optax.sgd(0.1)
    step = make_step(replace(joint_loss(model), costs=(4.0,), target=1.0), tx)
    state = initial_state(model, tx)
    images = (np.asarray(make_batch()["image"], np.float32) / 255 - 0.5) / 0.25
    logits, _ = model.apply(
        state.variables, images, train=True, method="classify_all", mutable=["batch_stats_32"]
    )
    want = optax.softmax_cross_entropy_with_integer_labels(logits[:, 0], make_batch()["label"])
    state, metrics = step(state, make_batch(), KEY)
    assert set(state.params) == {"classifier"}
    assert float(metrics["loss"]) == pytest.approx(float(want.mean()), rel=1e-5)
    assert float(metrics["reg"]) == 0.0 and float(metrics["shares"][0]) == 1.0


def mean_cross_entropies(logits: Any, labels: Any) -> np.ndarray:
    """Of logits `[n, ..., k]`, by NumPy."""
    log_p = special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    rows = np.asarray(labels).reshape(-1, *[1] * (log_p.ndim - 1))
    return -np.take_along_axis(log_p, rows, axis=-1)[..., 0].mean(axis=0)


def normalised_batch() -> Batch:
    batch = make_batch()
    return batch | {"image": (batch["image"].astype(jnp.float32) / 255 - 0.5) / 0.25}


def loss_and_metrics(loss: PretrainLoss | JointLoss) -> tuple[float, dict[str, Any]]:
    variables = initial_variables(loss.model)
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    step = jnp.int32(0)
    value, (_, metrics) = loss(variables["params"], collections, normalised_batch(), KEY, step)
    return float(value), metrics


def test_distillation_adds_its_part_to_stage_one() -> None:
    """The divergence of every resolution from the ensemble by NumPy; with weight 0 nothing."""
    model, variables = tiny_model(), initial_variables(tiny_model())
    loss, metrics = loss_and_metrics(PretrainLoss(model, distillation=0.0))
    assert set(metrics) == {"loss", "ce", "accuracy", "accuracy_per_resolution"}
    distilled, more = loss_and_metrics(PretrainLoss(model, distillation=2.5))
    logits, _ = model.apply(
        variables,
        normalised_batch()["image"],
        train=True,
        method="classify_all",
        mutable=[name for name in variables if name != "params"],
    )
    log_q = special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    log_p = special.log_softmax(np.asarray(logits, np.float64).mean(axis=1, keepdims=True), axis=-1)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean(axis=0).sum()
    assert divergence > 1e-3
    labels = make_batch()["label"]
    assert loss == pytest.approx(mean_cross_entropies(logits, labels).sum(), rel=1e-5)
    assert float(more["distillation"]) == pytest.approx(divergence, rel=1e-4)
    assert distilled == pytest.approx(loss + 2.5 * divergence, rel=1e-5)
    for name in ("ce", "accuracy", "accuracy_per_resolution"):
        np.testing.assert_array_equal(more[name], metrics[name])


def test_a_single_stage_adds_the_loss_of_every_resolution() -> None:
    """L_ce + eta L_reg + weight * sum_j CE_j, by NumPy from the same noise."""
    model, variables = tiny_model(), initial_variables(tiny_model())
    loss, metrics = loss_and_metrics(joint_loss(model))
    assert "branch_ce" not in metrics
    single, more = loss_and_metrics(replace(joint_loss(model), branch_weight=0.7))
    output, _ = model.apply(
        variables,
        normalised_batch()["image"],
        tau=1.0,
        train=True,
        method="sample",
        rngs={"gumbel": KEY},
        mutable=[name for name in variables if name != "params"],
    )
    labels = make_batch()["label"]
    branches = mean_cross_entropies(output.branch_logits, labels)
    spent = float((np.asarray(output.one_hot) @ np.array(COSTS)).mean())
    want = mean_cross_entropies(output.logits, labels) + 0.5 * max(0.0, spent - 2.0) / 3.0
    assert loss == pytest.approx(want, rel=1e-5)
    assert float(more["branch_ce"]) == pytest.approx(branches.sum(), rel=1e-5)
    assert single == pytest.approx(want + 0.7 * branches.sum(), rel=1e-5)
