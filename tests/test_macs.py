"""MAC and parameter counts against the literature, hand counts and XLA."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from drnet_jax.models import macs
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.glance import GlanceHead
from drnet_jax.models.macs import ModelCost, count_macs, model_cost
from drnet_jax.models.predictor import ResolutionPredictor
from drnet_jax.models.resnet import ARCHITECTURES, ResNet


def image(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def num_params(module: nn.Module, size: int, **kwargs: Any) -> int:
    variables = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False, **kwargs), image(size)
    )
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def paper_predictor() -> ResolutionPredictor:
    network = ResNet(3, (1, 1, 1, 1), resolution_aware=False)
    return ResolutionPredictor(network, 128)


# conv1 16x16, layer1 two 3x3, layer2 3x3/2, 3x3 and a 1x1 shortcut at 8x8, fc.
TINY_32 = 256 * 27 * 4 + 2 * 256 * 36 * 4 + 64 * (36 * 8 + 72 * 8 + 4 * 8) + 8 * 10
TINY_16 = 64 * 27 * 4 + 2 * 64 * 36 * 4 + 16 * (36 * 8 + 72 * 8 + 4 * 8) + 8 * 10
TINY_PREDICTOR_16 = 64 * 27 * 4 + 2 * 64 * 36 * 4 + 4 * 2


def tiny() -> ResNet:
    return ResNet(10, (1, 1), width=4, stem="small")


@pytest.mark.parametrize(
    ("name", "size", "gmacs"),
    [
        ("resnet50", 224, 4.089),
        ("resnet50", 168, 2.503),
        ("resnet50", 112, 1.078),
        ("resnet18", 224, 1.814),
        ("resnet34", 224, 3.664),
        ("resnet101", 224, 7.801),
    ],
)
def test_published_gmacs(name: str, size: int, gmacs: float) -> None:
    network = ResNet(1000, **ARCHITECTURES[name])
    assert round(count_macs(network, image(size), resolution=size, train=False) / 1e9, 3) == gmacs


def test_resnet50_has_torchvisions_number_of_parameters() -> None:
    network = ResNet(1000, **ARCHITECTURES["resnet50"], resolution_aware=False)
    assert num_params(network, 224, resolution=224) == 25_557_032


def test_paper_predictor_costs_0_290_gmacs_and_4_907_million_parameters() -> None:
    assert round(count_macs(paper_predictor(), image(128), train=False) / 1e9, 3) == 0.290
    assert round(num_params(paper_predictor(), 128) / 1e6, 3) == 4.907


def test_predictor_costs_the_same_whatever_the_image() -> None:
    costs = {count_macs(paper_predictor(), image(size), train=False) for size in (96, 128, 224)}
    assert len(costs) == 1


@pytest.mark.parametrize(("size", "expected"), [(32, TINY_32), (16, TINY_16)])
def test_hand_count_of_a_tiny_basic_resnet(size: int, expected: int) -> None:
    assert count_macs(tiny(), image(size), resolution=size, train=False) == expected


def test_hand_count_of_a_tiny_bottleneck_resnet() -> None:
    """conv1 16x16, pool to 8x8, 1x1, 3x3, 1x1, shortcut; then 1x1, 3x3/2, 1x1, shortcut; fc."""
    network = ResNet(5, (1, 1), block="bottleneck", width=4)
    first = 256 * 147 * 4 + 64 * (4 * 4 + 36 * 4 + 4 * 16 + 4 * 16)
    second = 64 * 16 * 8 + 16 * (72 * 8 + 8 * 32 + 16 * 32)
    assert count_macs(network, image(32), resolution=32, train=False) == first + second + 32 * 5


def test_model_cost_counts_predictor_and_every_resolution() -> None:
    network = ResNet(2, (1,), width=4, stem="small", resolution_aware=False)
    cost = model_cost(DRNet(tiny(), ResolutionPredictor(network, 16), (32, 16)))
    assert cost == ModelCost(TINY_PREDICTOR_16, (TINY_32, TINY_16))
    assert cost.classifier_gmacs == (TINY_32 / 1e9, TINY_16 / 1e9)
    assert cost.predictor_gmacs == TINY_PREDICTOR_16 / 1e9


def test_model_cost_of_a_first_look() -> None:
    """The smallest costs one look, another one two; the head is a dense layer of 1 + 8 inputs."""
    head = GlanceHead(2, ("margin", "pooled"), reuse=True)
    cost = model_cost(DRNet(tiny(), head, (32, 16)))
    assert cost.classifier == (TINY_32, TINY_16) and cost.predictor == 9 * 2
    assert cost.choice == (TINY_16 + TINY_32, TINY_16)
    assert cost.choice_gmacs == ((TINY_16 + TINY_32) / 1e9, TINY_16 / 1e9)


def test_model_cost_without_predictor() -> None:
    assert model_cost(DRNet(tiny(), None, (32,))) == ModelCost(0, (TINY_32,))


def test_equal_models_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictor and two resolutions: three traces, however often the cost is asked for."""
    counted = []

    def count(module: nn.Module, *args: Any, **kwargs: Any) -> int:
        counted.append(module)
        return count_macs(module, *args, **kwargs)

    monkeypatch.setattr(macs, "count_macs", count)
    network = ResNet(2, (1,), width=6, stem="small", resolution_aware=False)

    def model(width: int) -> DRNet:
        classifier = ResNet(10, (1, 1), width=width, stem="small")
        return DRNet(classifier, ResolutionPredictor(network, 16), (32, 16))

    first = model_cost(model(6))
    assert model_cost(model(6)) == first and len(counted) == 3
    assert model_cost(model(7)) != first and len(counted) == 6


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("strides", [1, 2])
def test_convolution_and_dense_agree_with_xla(groups: int, strides: int) -> None:
    """Half of the flops of XLA's cost analysis, which leaves padded positions out."""
    conv = nn.Conv(8, (3, 5), strides, padding="VALID", use_bias=False, feature_group_count=groups)
    for layer, shape in ((conv, (1, 12, 13, 4)), (nn.Dense(7, use_bias=False), (1, 9))):
        x = jnp.ones(shape)
        variables = layer.init(jax.random.key(0), x)
        flops = jax.jit(layer.apply).lower(variables, x).compile().cost_analysis()["flops"]
        assert count_macs(layer, x) == flops / 2


class OwnMatrix(nn.Module):
    """A parameter of rank 2 outside nn.Conv and nn.Dense."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        matrix = self.param("matrix", nn.initializers.ones, (x.shape[-1], 3))
        return nn.Dense(2)(x @ matrix)


class Outer(nn.Module):
    """Holds an uncountable layer next to a countable one."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return OwnMatrix(name="odd_one")(nn.Dense(4)(x))


class ScaledDense(nn.Dense):
    """A subclass of a countable layer."""


def test_an_uncountable_layer_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="odd_one"):
        count_macs(Outer(), jnp.ones((1, 5)))
    with pytest.raises(ValueError, match="cannot count"):
        count_macs(OwnMatrix(), jnp.ones((1, 5)))


def test_subclasses_are_counted() -> None:
    assert count_macs(nn.Sequential([ScaledDense(4), nn.Dense(6)]), jnp.ones((1, 5))) == 20 + 24


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    shared = nn.Dense(5)
    assert count_macs(nn.Sequential([shared, shared]), jnp.ones((1, 5))) == 50
