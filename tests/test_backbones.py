"""Every registered backbone, and a new one: what all of them have to do."""

import hashlib
import re
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np
import pytest

from drnet_jax.config import ConfigError
from drnet_jax.inference.folding import fold_batch_norm
from drnet_jax.models import backbone
from drnet_jax.models.backbone import Backbone, backbones, check_positive, register
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import count_macs, model_cost
from tests.networks import image, narrow, shapes, short
from tests.random_model import randomised
from tests.small_run import small_config

FAMILIES = ("resnet", "mobilenetv2", "mobilenetv2_one_block", "efficientnet_lite0")


@pytest.mark.parametrize("name", list(backbones()))
def test_every_backbone(name: str) -> None:
    network = narrow(name, 7)
    size = 2 * network.network_stride
    variables, seen = shapes(network, size)
    assert set(variables) == {"params", f"batch_stats_{size}"}
    assert variables["params"]["fc"]["kernel"].shape == (network.feature_width, 7)
    maps = [shape for layer, shape in seen.items() if layer and len(shape) == 4]
    assert maps[-1][1:3] == (2, 2), "network_stride is another one"
    assert seen[""] == (1, 7)
    # Every BatchNorm has its own statistics and parameters at every resolution.
    flat = flax.traverse_util.flatten_dict(variables["params"])
    norms = [path for path in flat if flat[path].ndim == 1 and "bn" in path[-2]]
    assert norms and all(path[-1].endswith(f"_{size}") for path in norms)
    assert count_macs(network, image(size), resolution=size, train=False) > 0
    shared = network.clone(resolution_aware=False)
    assert set(shapes(shared, size)[0]) == {"params", "batch_stats"}
    folded = shapes(network.clone(folded=True), size)[0]
    assert set(folded) == {"params"}
    # Every BatchNorm can be folded into the convolution before it.
    weights = jax.eval_shape(lambda v: fold_batch_norm(network, v, size)[1], variables)
    assert jax.tree.map(np.shape, weights) == jax.tree.map(np.shape, folded)


@pytest.mark.parametrize("name", FAMILIES)
def test_statistics_folding_and_remat(name: str) -> None:
    """Folded it computes the same; a training pass moves every statistic; remat changes nothing."""
    size, network = 17, short(name)
    x = np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(np.float32)
    call = {"resolution": size, "train": False}
    variables = jax.jit(lambda x: network.init(jax.random.key(0), x, **call))(x)
    variables = randomised(variables, 0)
    logits = jax.jit(lambda v, x: network.apply(v, x, **call))(variables, x)
    folded, weights = fold_batch_norm(network, variables, size)
    np.testing.assert_allclose(
        jax.jit(lambda v, x: folded.apply(v, x, **call))(weights, x),
        logits,
        atol=1e-4 * np.abs(logits).max(),
    )
    collection = f"batch_stats_{size}"

    def train(network: Any) -> Any:
        """Output and statistics of a training pass."""
        call = {"resolution": size, "train": True, "mutable": [collection]}
        return jax.jit(lambda v, x: network.apply(v, x, **call))(variables, x)

    output, state = train(network)
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), state[collection], variables[collection]
    )
    assert all(jax.tree.leaves(moved))
    again, _ = train(network.clone(remat=True))
    np.testing.assert_allclose(again, output, atol=1e-5 * float(np.abs(output).max()))


@pytest.mark.parametrize("classifier", FAMILIES)
@pytest.mark.parametrize("predictor", FAMILIES)
def test_any_predictor_goes_with_any_classifier(classifier: str, predictor: str) -> None:
    def args(name: str) -> str:
        return "width=4" if name == "resnet" else "width_multiplier=0.25"

    config = small_config(
        **{
            "model.name": classifier,
            "model.args": args(classifier),
            "model.resolutions": (64, 32),
            "predictor.name": predictor,
            "predictor.args": args(predictor),
        }
    )
    model = create_model(config, 10)

    def forward(x: jax.Array) -> Any:
        return model.init_with_output(jax.random.key(0), x)[0]

    output = jax.eval_shape(forward, image(64, 2))
    assert output.logits.shape == (2, 10) and output.scores.shape == (2, 2)


def test_unknown_and_doubled_names() -> None:
    with pytest.raises(
        ConfigError, match="predictor.name='none' must be one of efficientnet_lite0"
    ):
        create_model(small_config(**{"predictor.name": "none"}), 10)
    with pytest.raises(ValueError, match="two backbones named 'resnet'"):
        register("resnet")(backbone.backbones()["resnet"])


class Plain(Backbone):
    """As many convolutions as `depth` says, each halving the image."""

    depth: int

    @property
    def network_stride(self) -> int:
        return 2**self.depth

    @property
    def feature_width(self) -> int:
        return 4

    def features(self, x: jax.Array, **norm_args: Any) -> jax.Array:
        for index in range(self.depth):
            x = self.conv(4, (3, 3), 2, name=f"conv{index}")(x)
            x = nn.relu(self.norm(name=f"bn{index}")(x, **norm_args))
        return x


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network `plain`, as a file of its own would add it."""
    monkeypatch.setattr(backbone, "_BUILDERS", dict(backbone._BUILDERS))

    @register("plain")
    def build(num_classes: int, *, depth: int = 3) -> Plain:
        check_positive(depth=depth)
        return Plain(num_classes, depth)


def test_a_new_backbone_is_a_class_and_a_function(plain: None) -> None:
    """With its own option it is classifier and predictor: counted, trained for a step, folded."""
    networks = {"model.name": "plain", "predictor.name": "plain"}
    arguments = {"model.args": "depth=2", "predictor.args": "depth=1"}
    config = small_config(**networks, **arguments)
    model = create_model(config, 10)
    assert isinstance(model.classifier, Plain) and model.classifier.depth == 2
    with pytest.raises(ConfigError, match="plain cannot be pruned"):
        create_model(small_config(**networks, **arguments, **{"model.pruning_rates": (0.5,)}), 10)
    # 16x16 and 8x8 positions of 3x3 convolutions of 3 and 4 channels to 4, and the dense layer.
    convolutions = 9 * 3 * 4 * 16**2, 9 * 4 * 4 * 8**2
    assert model_cost(model).classifier[0] == sum(convolutions) + 4 * 10
    # `predictor.size` is 32 too.
    assert model_cost(model).predictor == convolutions[0] + 4 * 2

    x = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    @jax.jit
    def loss(params: Any) -> tuple[jax.Array, Any]:
        output, state = model.apply(
            {"params": params, **rest},
            x,
            tau=1.0,
            train=True,
            method="sample",
            rngs={"gumbel": jax.random.key(1)},
            mutable=list(rest),
        )
        return -jax.nn.log_softmax(output.logits)[:, 3].mean(), state

    (before, state), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    step = jax.tree.map(lambda value, slope: value - 0.05 * slope, variables["params"], gradient)
    assert loss(step)[0] < before
    assert set(state) == {"batch_stats", "batch_stats_32", "batch_stats_16"}
    # The first step moves every statistic of the classifier.
    for size in (32, 16):
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(state[f"batch_stats_{size}"]))

    part = {name: tree["classifier"] for name, tree in variables.items() if "classifier" in tree}
    folded, weights = fold_batch_norm(model.classifier, part, 32)
    call = {"resolution": 32, "train": False}
    np.testing.assert_allclose(
        folded.apply(weights, x, **call), model.classifier.apply(part, x, **call), atol=1e-5
    )


def test_arguments_of_a_new_backbone_are_checked(plain: None) -> None:
    for text, words in (
        ("depht=2", 'model.args="depht=2" does not fit plain: there is no depht. It takes depth=3'),
        ("depth=0", "depth=0 must be above zero. It takes depth=3"),
    ):
        config = small_config(**{"model.name": "plain", "model.args": text})
        with pytest.raises(ConfigError, match=re.escape(words)):
            create_model(config, 10)


def test_a_backbone_without_its_parts_is_refused() -> None:
    class Half(Backbone):
        """Says nothing of its features."""

    with pytest.raises(TypeError, match="abstract"):
        Half(3)


# Of the paths and shapes of all variables at 32 px with 7 classes, each a line: checkpoints and
# PyTorch's weights are read by them. Of the module that had no base class yet.
TREES = [
    ("resnet10", dict(width=8, stem="small"), 62, "af0cd5553976e3a0"),
    ("resnet50", dict(width=4, stem="small", zero_init_residual=True), 267, "9f84154d226edb66"),
    ("mobilenetv2", dict(width_multiplier=0.25), 262, "9e6d65d0d38176fb"),
    ("efficientnet_lite0", dict(width_multiplier=0.25), 247, "d6b61933ad7ce799"),
]


@pytest.mark.parametrize(("name", "options", "count", "digest"), TREES)
def test_trees_of_variables(name: str, options: Any, count: int, digest: str) -> None:
    variables, _ = shapes(backbones()[name](7, **options), 32)
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    text = "\n".join(sorted(f"{path} {leaf.shape}" for path, leaf in flat.items()))
    assert len(flat) == count
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
