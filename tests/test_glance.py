"""A first look: scores, answers, gradients, statistics and costs, against NumPy and by hand."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from drnet_jax.config import GLANCE_INPUTS, GLANCE_SCORES, alpha_target
from drnet_jax.models.create import create_model
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.glance import SCORES, GlanceHead
from drnet_jax.models.macs import model_cost
from drnet_jax.models.resnet import ResNet
from drnet_jax.models.variables import init_variables
from drnet_jax.training.create import create_loss
from tests.random_model import randomised
from tests.small_run import small_config

RESOLUTIONS = (32, 24, 16)
N, CLASSES, WIDTH = 12, 10, 8
KEY = jax.random.key(0)
MASK = np.arange(N) % 5 != 1


def head(**further: Any) -> GlanceHead:
    return GlanceHead(len(RESOLUTIONS), GLANCE_INPUTS, **further)


@cache
def glancing(statistics: str = "all", *, probabilities: bool = False) -> DRNet:
    classifier = ResNet(CLASSES, (1, 1), width=4, stem="small", min_samples=1)
    own = head(reuse=True, probabilities=probabilities)
    return DRNet(classifier, own, RESOLUTIONS, statistics)


@cache
def variables() -> Any:
    """As after a training and a fit; the choices are spread."""
    found = randomised(init_variables(glancing(), KEY), 0)
    layer = found["params"]["predictor"]["fc"]
    layer["kernel"] = np.random.default_rng(3).normal(0, 1, layer["kernel"].shape)
    fitted = {"weight": np.array([0.25, 0.75, 0.0]), "offset": np.array([0.01, -0.02, 0.03])}
    found["fitted"]["predictor"] = fitted
    found = jax.tree.map(jnp.float32, found)
    scores = glancing().apply(found, images()).scores
    found["params"]["predictor"]["fc"]["bias"] -= scores.mean(axis=0)
    return found


def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, 32, 32, 3)).astype(np.float32)


def scores_of(logits: np.ndarray) -> dict[str, np.ndarray]:
    """By NumPy and SciPy, in double precision."""
    p, ordered = special.softmax(logits, axis=1), np.sort(logits, axis=1)
    best = np.sort(p, axis=1)
    centred = logits - logits.mean(1, keepdims=True)
    return {
        "margin": best[:, -1] - best[:, -2],
        "confidence": best[:, -1],
        "entropy": -stats.entropy(p, axis=1) / np.log(logits.shape[1]),
        "logit_margin": ordered[:, -1] - ordered[:, -2],
        "norm_logit": centred.max(1) / np.linalg.norm(centred, 4, axis=1),
    }


def test_scores_of_logits() -> None:
    """All of them, under the names of the configuration; of one class nothing is in doubt."""
    logits = np.random.default_rng(0).normal(0, 3, (50, CLASSES))
    want = scores_of(logits)
    assert tuple(want) == tuple(SCORES) == GLANCE_SCORES
    for name, score in SCORES.items():
        np.testing.assert_allclose(score(jnp.float32(logits)), want[name], rtol=1e-5, atol=1e-6)
        assert np.isfinite(score(jnp.ones((3, 1)))).all()


@pytest.mark.parametrize("probabilities", [False, True])
def test_scores_answers_and_choice(probabilities: bool) -> None:
    model, known = glancing(probabilities=probabilities), variables()
    output: Any = jax.jit(model.apply)(known, images())
    z = np.asarray(output.branch_logits, np.float64)
    first: Any = model.apply(known, images(), 16, train=False, method="look")
    dense = known["params"]["classifier"]["fc"]
    pooled = np.asarray(first.pooled, np.float64)
    assert pooled.shape == (N, WIDTH)
    np.testing.assert_allclose(z[:, -1], pooled @ dense["kernel"] + dense["bias"], rtol=1e-4)
    own = known["params"]["predictor"]["fc"]
    features = np.column_stack([*scores_of(z[:, -1]).values(), pooled])
    scores = features @ np.asarray(own["kernel"]) + own["bias"]
    if probabilities:
        scores = special.expit(scores)
    scores -= known["fitted"]["predictor"]["offset"]
    np.testing.assert_allclose(output.scores, scores, rtol=1e-4, atol=1e-5)
    choice = scores.argmax(1)
    assert len(set(choice.tolist())) > 1
    np.testing.assert_array_equal(output.one_hot, np.eye(3)[choice])
    answers = np.stack([z[:, 0] + 0.25 * z[:, 2], z[:, 1] + 0.75 * z[:, 2], z[:, 2]], axis=1)
    np.testing.assert_allclose(output.answers, answers, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(output.logits, answers[np.arange(N), choice], rtol=1e-5, atol=1e-5)


def test_without_reuse_an_answer_is_the_look_alone() -> None:
    branches = np.random.default_rng(0).normal(size=(4, 3, CLASSES)).astype(np.float32)
    fitted = {"offset": jnp.zeros(3)}
    answers = head().apply({"fitted": fitted}, branches, method="answers")
    np.testing.assert_array_equal(answers, branches)


def test_the_head_has_no_gradient_into_the_classifier() -> None:
    model, known = glancing(), variables()

    def loss(params: Any) -> jax.Array:
        output: Any = model.apply({**known, "params": params}, images())
        return (output.scores * jnp.arange(3)).sum()

    gradient = jax.jit(jax.grad(loss))(known["params"])
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient["classifier"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient["predictor"]))


@pytest.mark.parametrize("statistics", ["all", "routed"])
def test_every_image_is_in_the_statistics_of_the_first_look(statistics: str) -> None:
    """Those of a second look are of all images, or of the ones that are sent there."""
    model, known = glancing(statistics), variables()
    names = [name for name in known if name != "params"]

    @jax.jit
    def sampled(known: Any) -> Any:
        arguments: Any = {"tau": 1.0, "train": True, "sample_mask": MASK, "method": "sample"}
        return model.apply(known, images(), rngs={"gumbel": KEY}, mutable=names, **arguments)

    output, state = sampled(known)
    one_hot = np.asarray(output.one_hot, bool)
    answers = np.asarray(output.answers)[one_hot]
    np.testing.assert_allclose(output.logits, answers, rtol=1e-6)
    np.testing.assert_array_equal(state["fitted"]["predictor"]["weight"], [0.25, 0.75, 0.0])
    for index, size in enumerate(RESOLUTIONS):
        routed = statistics == "routed" and size != 16
        mask = MASK & one_hot[:, index] if routed else MASK
        assert mask.any()
        look, want = model.apply(
            known, images(), size, train=True, sample_mask=mask, method="look", mutable=names
        )
        got = state[f"batch_stats_{size}"]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            got,
            want[f"batch_stats_{size}"],
        )
        np.testing.assert_allclose(
            output.branch_logits[:, index], look.logits, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(("choice", "looks"), [(0, (0, 2)), (1, (1, 2)), (2, (2,))])
def test_the_regulariser_counts_both_looks(choice: int, looks: tuple[int, ...]) -> None:
    """A head that leaves no doubt; the target is the cost of the largest resolution alone."""
    fields = {"model.resolutions": RESOLUTIONS, "predictor.kind": "glance"}
    config = small_config(**fields, **{"joint.alpha_fraction": 1.0, "joint.eta": 0.5})
    model = create_model(config, CLASSES)
    cost = model_cost(model)
    fixed = cost.classifier_gmacs
    target = alpha_target(config, cost.choice_gmacs, fixed[0])
    assert target == fixed[0]
    loss = create_loss(config, "joint", model, cost, target, 5)
    known = init_variables(model, KEY)
    known["params"]["predictor"]["fc"]["bias"] = 100 * jnp.eye(3)[choice]
    rest = {name: tree for name, tree in known.items() if name != "params"}
    batch = {"image": jnp.asarray(images()), "label": jnp.zeros(N, int)}
    _, (_, metrics) = jax.jit(loss)(known["params"], rest, batch, KEY, jnp.int32(0))
    spent = sum(fixed[index] for index in looks)
    for name in ("gmacs_sampled", "gmacs_argmax"):
        assert float(metrics[name]) == pytest.approx(spent)
    excess = max(0.0, spent - fixed[0]) / fixed[0]
    assert float(metrics["reg"]) == pytest.approx(excess, rel=1e-5)
