"""DRNet: forward values, routing and the straight-through gradient."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import special

from drnet_jax.models.drnet import DRNet, DRNetOutput
from drnet_jax.models.predictor import ResolutionPredictor
from drnet_jax.models.resnet import ResNet
from drnet_jax.training.losses import cross_entropy

RESOLUTIONS = (32, 24, 16)
TAU = 0.8
N = 16
KEY = jax.random.key(0)
LABELS = np.arange(N) % 10
SCORES = np.random.default_rng(2).normal(size=(N, 3)).astype(np.float32)
# Scores that leave no doubt: 6 samples to 32 px, 3 (below min_samples) to 24 px, 7 to 16 px.
ROUTES = np.array([0] * 6 + [1] * 3 + [2] * 7)
SURE_SCORES = 100.0 * np.eye(3, dtype=np.float32)[ROUTES]


class ScoreTable(nn.Module):
    """A predictor whose scores are a parameter, one row per image."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, sample_mask: Any = None) -> jax.Array:
        return self.param("scores", nn.initializers.zeros, (N, 3))


def tiny_classifier() -> ResNet:
    return ResNet(10, (1, 1), width=4, stem="small")


def real_drnet() -> DRNet:
    network = ResNet(3, (1,), width=4, stem="small", resolution_aware=False)
    return DRNet(tiny_classifier(), ResolutionPredictor(network, 16), RESOLUTIONS)


@functools.cache
def table_drnet(statistics: str = "all") -> DRNet:
    return DRNet(tiny_classifier(), ScoreTable(), RESOLUTIONS, statistics)


def images(n: int = N) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(n, 32, 32, 3)), jnp.float32)


def random_variables(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Variables of the module's shapes, no two alike, without compiling its initialisation."""
    rng = np.random.default_rng(4)
    shapes = jax.eval_shape(lambda *a: module.init(jax.random.key(0), *a, **kwargs), *args)

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name == "kernel":
            value = rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            value = rng.uniform(0.0, 0.3, leaf.shape) + float(name[:3] in ("var", "sca"))
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def table_variables(scores: np.ndarray) -> dict[str, Any]:
    variables = random_variables(table_drnet(), images())
    variables["params"]["predictor"] = {"scores": jnp.asarray(scores)}
    return variables


def collections(variables: dict[str, Any]) -> list[str]:
    return [name for name in variables if name != "params"]


@functools.cache
def compiled_step(statistics: str) -> Callable[..., Any]:
    """Gradient of the scores, output and state (with `conv1` outputs) of a loss on `sample`."""
    model = table_drnet(statistics)

    def loss(scores: Any, params: Any, rest: Any, x: Any, mask: Any, key: Any) -> Any:
        output, state = model.apply(
            {"params": {**params, "predictor": {"scores": scores}}, **rest},
            x,
            tau=TAU,
            train=True,
            sample_mask=mask,
            method="sample",
            rngs={"gumbel": key},
            mutable=[*rest, "intermediates"],
            capture_intermediates=lambda module, _: module.name == "conv1",
        )
        return cross_entropy(output.logits, jnp.asarray(LABELS)), (output, state)

    return jax.jit(jax.grad(loss, has_aux=True))


def step(
    statistics: str,
    scores: np.ndarray,
    mask: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], jax.Array, DRNetOutput, dict[str, Any]]:
    """Variables, gradient of the scores, output and updated state."""
    variables = table_variables(scores)
    rest = {name: variables[name] for name in collections(variables)}
    mask = np.ones(N, bool) if mask is None else mask
    gradient, (output, state) = compiled_step(statistics)(
        jnp.asarray(scores), variables["params"], rest, images(), mask, jax.random.key(seed)
    )
    return variables, gradient, output, state


@functools.cache
def compiled_look(resolution: int) -> Callable[..., Any]:
    model = table_drnet()

    def look(variables: Any, x: Any, mask: Any) -> Any:
        return model.apply(
            variables,
            x,
            resolution,
            train=True,
            sample_mask=mask,
            method="look",
            mutable=collections(variables),
        )

    return jax.jit(look)


def reference_basic_resnet(
    variables: dict[str, Any], x: jax.Array, resolution: int | None, stages: int
) -> np.ndarray:
    """The tiny ResNet in evaluation, written out once more in functions; no max-pool."""
    suffix = "" if resolution is None else f"_{resolution}"
    params, stats = variables["params"], variables[f"batch_stats{suffix}"]

    def conv(x: Any, kernel: Any, stride: int) -> jax.Array:
        pad = kernel.shape[0] // 2
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def norm(x: Any, p: Any, s: Any) -> np.ndarray:
        x, mean, var = (np.asarray(v, np.float64) for v in (x, s["mean"], s["var"]))
        y = (x - mean) / np.sqrt(var + 1e-5)
        y = y * np.asarray(p[f"scale{suffix}"]) + np.asarray(p[f"bias{suffix}"])
        return y.astype(np.float32)

    x = conv(x, params["conv1"]["kernel"], 2)
    x = np.maximum(norm(x, params["bn1"], stats["bn1"]), 0)
    for stage in range(stages):
        p, s = params[f"layer{stage + 1}_0"], stats[f"layer{stage + 1}_0"]
        stride = 1 if stage == 0 else 2
        y = norm(conv(x, p["conv1"]["kernel"], stride), p["bn1"], s["bn1"])
        y = norm(conv(np.maximum(y, 0), p["conv2"]["kernel"], 1), p["bn2"], s["bn2"])
        if stage > 0:
            x = norm(
                conv(x, p["shortcut_conv"]["kernel"], stride), p["shortcut_bn"], s["shortcut_bn"]
            )
        x = np.maximum(x + y, 0)
    features = np.asarray(x, np.float64).mean(axis=(1, 2))
    return features @ np.asarray(params["fc"]["kernel"]) + np.asarray(params["fc"]["bias"])


@pytest.mark.parametrize("statistics", ["all", "routed"])
def test_sample_picks_the_branch_logits_of_the_choice(statistics: str) -> None:
    _, _, output, _ = step(statistics, SCORES)
    one_hot = np.asarray(output.one_hot)
    assert set(np.unique(one_hot)) == {0.0, 1.0}
    np.testing.assert_array_equal(one_hot.sum(axis=1), 1.0)
    assert (one_hot.sum(axis=0) > 0).sum() > 1  # more than one resolution is in use
    picked = np.asarray(output.branch_logits)[np.arange(N), one_hot.argmax(axis=1)]
    np.testing.assert_array_equal(output.logits, picked)


def test_sample_follows_the_rng_stream() -> None:
    choices = [np.asarray(step("all", SCORES, seed=seed)[2].one_hot) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(choices[0], choices[1])
    assert not np.array_equal(choices[0], choices[2])


@pytest.mark.parametrize("statistics", ["all", "routed"])
def test_gradient_of_the_scores_is_the_straight_through_formula(statistics: str) -> None:
    """dL/dh_j = <softmax(y) - label, F_j> / n, then through the soft sample's softmax."""
    variables, gradient, output, _ = step(statistics, SCORES)
    key = table_drnet().apply(
        variables,
        method=lambda module: module.make_rng("gumbel"),
        rngs={"gumbel": jax.random.key(0)},
    )
    noise = np.asarray(jax.random.gumbel(key, SCORES.shape), np.float64)
    soft = special.softmax((SCORES + noise) / TAU, axis=-1)
    np.testing.assert_array_equal(np.asarray(output.one_hot).argmax(-1), soft.argmax(-1))

    branch_logits = np.asarray(output.branch_logits, np.float64)
    logits = branch_logits[np.arange(N), soft.argmax(-1)]
    residual = special.softmax(logits, axis=-1) - np.eye(10)[LABELS]
    wrt_choice = np.einsum("nk,nmk->nm", residual, branch_logits) / N
    inner = (soft * wrt_choice).sum(axis=-1, keepdims=True)
    expected = soft * (wrt_choice - inner) / TAU
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_routed_statistics_are_those_of_the_routed_samples(masked: bool) -> None:
    """NumPy on the first convolution's output; 24 px has too few samples and stays."""
    mask = np.arange(N) != 0 if masked else np.ones(N, bool)
    variables, _, output, state = step("routed", SURE_SCORES, mask)
    np.testing.assert_array_equal(np.asarray(output.one_hot).argmax(-1), ROUTES)
    features = state["intermediates"]["classifier"]["conv1"]["__call__"]
    assert len(features) == 3
    jax.tree.map(
        np.testing.assert_array_equal, state["batch_stats_24"], variables["batch_stats_24"]
    )
    for index, resolution in ((0, 32), (2, 16)):
        old, new = (v[f"batch_stats_{resolution}"]["classifier"]["bn1"] for v in (variables, state))
        mine = np.asarray(features[index], np.float64)[(ROUTES == index) & mask]
        for name, batch in (("mean", mine.mean((0, 1, 2))), ("var", mine.var((0, 1, 2)))):
            expected = 0.9 * np.asarray(old[name], np.float64) + 0.1 * batch
            np.testing.assert_allclose(new[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("statistics", ["all", "routed"])
def test_sample_is_a_look_with_the_mask_of_its_statistics(statistics: str) -> None:
    mask = np.arange(N) % 5 != 1
    variables, _, output, state = step(statistics, SURE_SCORES, mask)
    for index, resolution in enumerate(RESOLUTIONS):
        masks = {"all": mask, "routed": mask & (ROUTES == index)}
        look, expected = compiled_look(resolution)(variables, images(), masks[statistics])
        np.testing.assert_allclose(
            output.branch_logits[:, index], look.logits, rtol=1e-4, atol=1e-5
        )
        name = f"batch_stats_{resolution}"
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            state[name],
            expected[name],
        )
        # The other choice of statistics would show.
        other = masks["routed" if statistics == "all" else "all"]
        unlike, _ = compiled_look(resolution)(variables, images(), other)
        assert not np.allclose(output.branch_logits[:, index], unlike.logits, rtol=1e-3, atol=1e-3)


def test_one_resolution_without_predictor_is_a_plain_classifier() -> None:
    model, x = DRNet(tiny_classifier(), None, (16,)), images()
    variables = random_variables(model, x)

    @jax.jit
    def everything(variables: Any, x: jax.Array) -> Any:
        sampled = model.apply(
            variables,
            x,
            tau=TAU,
            train=True,
            method="sample",
            rngs={"gumbel": KEY},
            mutable=["batch_stats_16"],
        )
        return sampled, model.apply(variables, x)

    (output, state), tested = everything(variables, x)
    plain = table_variables(SCORES)
    plain["params"]["classifier"] = variables["params"]["classifier"]
    plain["batch_stats_16"] = variables["batch_stats_16"]
    look, expected = compiled_look(16)(plain, x, np.ones(N, bool))
    np.testing.assert_array_equal(output.one_hot, np.ones((N, 1)))
    np.testing.assert_allclose(output.logits, look.logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        state["batch_stats_16"],
        expected["batch_stats_16"],
    )
    own = {name: tree["classifier"] for name, tree in variables.items()}
    small = jax.image.resize(x, (N, 16, 16, 3), "bilinear", antialias=True)
    reference = reference_basic_resnet(own, small, 16, stages=2)
    np.testing.assert_allclose(tested.logits, reference, rtol=1e-4, atol=1e-4)


def test_call_takes_the_argmax_and_is_deterministic() -> None:
    """The largest branch's logits are those of a ResNet that is written out once more."""
    variables, x = table_variables(SCORES), images()
    call = jax.jit(table_drnet().apply)
    output, again = call(variables, x), call(variables, x)
    jax.tree.map(np.testing.assert_array_equal, output, again)
    np.testing.assert_array_equal(output.scores, SCORES)
    np.testing.assert_array_equal(output.one_hot, np.eye(3)[SCORES.argmax(-1)])
    picked = np.asarray(output.branch_logits)[np.arange(N), SCORES.argmax(-1)]
    np.testing.assert_array_equal(output.logits, picked)

    own = {name: tree["classifier"] for name, tree in variables.items()}
    expected = reference_basic_resnet(own, x, 32, stages=2)
    np.testing.assert_allclose(output.branch_logits[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_scores_are_the_predictor_network_at_its_own_size() -> None:
    model, x = real_drnet(), images()
    variables = random_variables(model, x)
    small = jax.image.resize(x, (N, 16, 16, 3), "bilinear", antialias=True)
    own = {name: variables[name]["predictor"]["network"] for name in ("params", "batch_stats")}
    expected = reference_basic_resnet(own, small, None, stages=1)
    scores = jax.jit(lambda v, x: model.apply(v, x, None, train=False, method="predict_scores"))(
        variables, x
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
