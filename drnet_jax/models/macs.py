"""Exact multiply-add counts, from a module's own description, without running it.

A convolution counts its full kernel at every output position, padded ones included, as the
literature does; normalisation, activation, pooling and resizing count nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from drnet_jax.models.drnet import DRNet
from drnet_jax.models.glance import GlanceHead, Look

GIGA = 1e9


@dataclass(frozen=True)
class MeasuredCost:
    """Milliseconds that one image costs a DRNet on some device.

    Attributes:
      choice: by the chosen resolution, as `ModelCost.choice`.
      largest: the classifier at the largest resolution alone.
      setting: on what they were measured, in words.
    """

    choice: tuple[float, ...]
    largest: float
    setting: str


@dataclass(frozen=True)
class ModelCost:
    """Multiply-adds (MACs) that one image costs a DRNet.

    Attributes:
      predictor: MACs of the resolution predictor (0 without one), of a first look its head's.
      classifier: MACs of the classifier at every resolution, in the order of `resolutions`.
      glances: every image gets a first look at the last, the smallest resolution.
      measured: times, where choices are trained and made by those instead of MACs.
    """

    predictor: int
    classifier: tuple[int, ...]
    glances: bool = False
    measured: MeasuredCost | None = None

    @property
    def choice(self) -> tuple[int, ...]:
        """MACs of the classifier by the chosen resolution: the first look counts too."""
        if not self.glances:
            return self.classifier
        first = self.classifier[-1]
        return (*(first + macs for macs in self.classifier[:-1]), first)

    @property
    def classifier_gmacs(self) -> tuple[float, ...]:
        """`classifier` in 10^9 MACs: of a fixed resolution, without predictor and first look."""
        return tuple(macs / GIGA for macs in self.classifier)

    @property
    def choice_gmacs(self) -> tuple[float, ...]:
        """`choice` in 10^9 MACs."""
        return tuple(macs / GIGA for macs in self.choice)

    @property
    def choice_costs(self) -> tuple[float, ...]:
        """What L_reg and lambda count by choice, in `unit`."""
        return self.choice_gmacs if self.measured is None else self.measured.choice

    @property
    def largest_cost(self) -> float:
        """The largest resolution alone, in `unit`."""
        return self.classifier_gmacs[0] if self.measured is None else self.measured.largest

    @property
    def unit(self) -> str:
        """`'GMACs'` or `'ms'`."""
        return "GMACs" if self.measured is None else "ms"

    @property
    def predictor_gmacs(self) -> float:
        """`predictor` in 10^9 MACs."""
        return self.predictor / GIGA


def count_macs(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Counts the multiply-adds of `module(*args, **kwargs)` for a batch of one.

    The call is traced with abstract values (`jax.eval_shape`); every `nn.Conv` and `nn.Dense`, and
    any subclass, is counted from its own fields and shapes.

    Args:
      module: an unbound module.
      *args: its inputs, as arrays or `jax.ShapeDtypeStruct` of batch size 1.
      **kwargs: further arguments of the call that are not arrays.

    Raises:
      ValueError: a parameter of rank 2 or more belongs to a layer that is neither.
    """
    total = 0
    counted: set[tuple[str, ...]] = set()

    def interceptor(
        next_fun: Callable[..., Any],
        call_args: tuple[Any, ...],
        call_kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Runs a module's method and adds up what its convolution or dense layer costs."""
        nonlocal total
        output = next_fun(*call_args, **call_kwargs)
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, (nn.Conv, nn.Dense)):
            total += _layer_macs(layer, call_args[0].shape, output.shape)
            counted.add(tuple(layer.path))
        return output

    def initialise(*inputs: jax.Array) -> Any:
        """Initialises the module, which visits every layer once."""
        with nn.intercept_methods(interceptor):
            return module.init(jax.random.key(0), *inputs, **kwargs)

    variables = jax.eval_shape(initialise, *args)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        layer_path = tuple(entry.key for entry in path[:-1])
        if leaf.ndim >= 2 and layer_path not in counted:
            raise ValueError(
                f"cannot count the MACs of layer {'/'.join(layer_path)}: it is neither an nn.Conv "
                "nor an nn.Dense; build it from those, or subclass them"
            )
    return total


def _layer_macs(
    layer: nn.Conv | nn.Dense, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> int:
    positions = math.prod(output_shape[:-1])
    if isinstance(layer, nn.Dense):
        return positions * input_shape[-1] * layer.features
    kernel = layer.kernel_size if not isinstance(layer.kernel_size, int) else (layer.kernel_size,)
    taps = math.prod(kernel) * (input_shape[-1] // layer.feature_group_count)
    return positions * taps * layer.features


@lru_cache
def model_cost(model: DRNet) -> ModelCost:
    """Counts the predictor, and the classifier at every resolution: once for equal models."""
    classifier = tuple(
        count_macs(model.classifier, _image(size), resolution=size, train=False)
        for size in model.resolutions
    )
    return ModelCost(_predictor_macs(model), classifier, model.glances)


def _predictor_macs(model: DRNet) -> int:
    if model.predictor is None:
        return 0
    if isinstance(model.predictor, GlanceHead):
        widths = (model.classifier.num_classes, model.classifier.feature_width)
        shapes: Any = [jax.ShapeDtypeStruct((1, width), jnp.float32) for width in widths]
        return count_macs(model.predictor, Look(*shapes))
    size = model.predictor.size
    return count_macs(model.predictor, _image(size), train=False)


def _image(size: int) -> jax.ShapeDtypeStruct:
    """An abstract image `[1, size, size, 3]`."""
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
