"""Every registered backbone is one; the families compute what they are known to."""

import hashlib
import re
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from drnet_jax.config import ConfigError
from drnet_jax.inference.folding import fold_batch_norm
from drnet_jax.models import backbone
from drnet_jax.models.arguments import default_arguments
from drnet_jax.models.backbone import Backbone, backbones, check_positive, register
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import count_macs, model_cost
from drnet_jax.models.mobilenet import rounded
from tests.random_model import randomised
from tests.small_run import small_config

FAMILIES = ("resnet", "mobilenetv2", "mobilenetv2_one_block", "efficientnet_lite0")


def narrow(name: str, num_classes: int) -> Any:
    """A small network of every kind."""
    builder = backbones()[name]
    small = {"width": 4, "width_multiplier": 0.25}
    options = {n: small[n] for n in default_arguments(builder) if n in small}
    return builder(num_classes, **options)


def image(size: int, count: int = 1) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, size, size, 3), jnp.float32)


def shapes(network: Any, size: int) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Of the variables, and of what every layer gives, without running it."""
    seen: dict[str, tuple[int, ...]] = {}

    def note(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = next_fun(*args, **kwargs)
        if context.method_name == "__call__":
            seen["/".join(context.module.path)] = output.shape
        return output

    def initialise(x: jax.Array) -> Any:
        with nn.intercept_methods(note):
            return network.init(jax.random.key(0), x, resolution=size, train=False)

    return jax.eval_shape(initialise, image(size)), seen


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


def short(name: str) -> Any:
    """A few blocks of every kind: the whole networks take minutes to compile."""
    network = narrow(name, 5)
    if name == "resnet":
        return network.clone(stage_sizes=(1, 1))
    return network.clone(stages=((1, 16, 1, 1, 3), (6, 24, 2, 2, 5)))


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


def written_out(variables: Any, x: np.ndarray, network: Any, top: float = 6) -> np.ndarray:
    """A MobileNet in evaluation, once more in XLA's own operations and NumPy."""
    size = x.shape[1]
    params, stats = variables["params"], variables[f"batch_stats_{size}"]

    def layer(x: Any, p: Any, s: Any, name: str, strides: int = 1) -> np.ndarray:
        kernel = p[f"{name}_conv"]["kernel"]
        pads: Any = "SAME" if network.same_padding else [(kernel.shape[0] // 2,) * 2] * 2
        y = lax.conv_general_dilated(
            np.asarray(x, np.float32),
            kernel,
            (strides, strides),
            pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1] // kernel.shape[2],
        )
        norm, moments = p[f"{name}_bn"], s[f"{name}_bn"]
        y = (np.asarray(y, np.float64) - moments["mean"]) / np.sqrt(
            moments["var"] + network.epsilon
        )
        return y * norm[f"scale_{size}"] + norm[f"bias_{size}"]

    x = np.clip(layer(x, params, stats, "stem", 2), 0, top)
    for stage, (expansion, _, blocks, strides, _) in enumerate(network.stages):
        for index in range(blocks):
            p, s = (tree[f"stage{stage}_{index}"] for tree in (params, stats))
            y = x if expansion == 1 else np.clip(layer(x, p, s, "expand"), 0, top)
            y = np.clip(layer(y, p, s, "depthwise", strides if index == 0 else 1), 0, top)
            y = layer(y, p, s, "project")
            added = (index or strides == 1) and x.shape[-1] == y.shape[-1]
            x = x + y if added else y
    if network.head_features:
        x = np.clip(layer(x, params, stats, "head"), 0, top)
    return x.mean(axis=(1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"]


@pytest.mark.parametrize("name", ["mobilenetv2", "mobilenetv2_one_block", "efficientnet_lite0"])
def test_inverted_residuals_written_out_once_more(name: str) -> None:
    """At an even size, where the two paddings differ; with a block that is added to its input."""
    network = short(name).clone(stages=((1, 16, 1, 1, 3), (6, 24, 2, 2, 5)))
    x = np.random.default_rng(0).normal(0, 50, size=(2, 18, 18, 3)).astype(np.float32)
    call = {"resolution": 18, "train": False}
    variables = jax.jit(lambda x: network.init(jax.random.key(0), x, **call))(x)
    variables = randomised(variables, 0)
    got = jax.jit(lambda v, x: network.apply(v, x, **call))(variables, x)
    expected = written_out(variables, x, network)
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=tolerance)
    # Activations do reach 6.
    assert np.abs(written_out(variables, x, network, np.inf) - expected).max() > 10 * tolerance
    assert network.epsilon == (1e-3 if name == "efficientnet_lite0" else 1e-5)


@pytest.mark.parametrize(
    ("name", "size", "gmacs", "params"),
    [
        ("mobilenetv2", 224, 0.3008, 3_504_872),
        ("mobilenetv2", 196, 0.2600, 3_504_872),
        ("mobilenetv2", 168, 0.1889, 3_504_872),
        ("mobilenetv2", 112, 0.0822, 3_504_872),
        ("efficientnet_lite0", 224, 0.3852, 4_652_008),
    ],
)
def test_published_costs(name: str, size: int, gmacs: float, params: int) -> None:
    """MobileNetV2's are torchvision's; EfficientNet-Lite0 has 4.7 million parameters."""
    network = backbones()[name](1000).clone(resolution_aware=False)
    assert round(count_macs(network, image(size), resolution=size, train=False) / 1e9, 4) == gmacs
    variables, _ = shapes(network, size)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == params


@pytest.mark.parametrize(
    ("name", "stem", "head"), [("mobilenetv2", 8, 1280), ("efficientnet_lite0", 32, 1280)]
)
def test_ends_of_a_narrow_network(name: str, stem: int, head: int) -> None:
    """A quarter of MobileNetV2 keeps its head, and of EfficientNet-Lite its stem too."""
    params = shapes(narrow(name, 7), 64)[0]["params"]
    assert params["stem_conv"]["kernel"].shape == (3, 3, 3, stem)
    assert params["head_conv"]["kernel"].shape[-1] == head


def test_the_papers_predictor_has_about_0_3_million_parameters() -> None:
    variables, _ = shapes(backbones()["mobilenetv2_one_block"](3), 64)
    assert 0.25e6 < sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) < 0.35e6


@pytest.mark.parametrize(
    ("features", "expected"), [(32 * 0.75, 24), (24 * 0.75, 24), (16 * 0.35, 8), (1280 * 1.4, 1792)]
)
def test_width_multiplier_rounds_as_torchvision(features: float, expected: int) -> None:
    """By hand: 18 would be below nine tenths of the next multiple of 8 under it, 16."""
    assert rounded(features) == expected


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
