"""Small networks of every kind, and what is known of one without running it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from drnet_jax.models.arguments import default_arguments
from drnet_jax.models.backbone import backbones


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


def short(name: str) -> Any:
    """A few blocks of every kind: the whole networks take minutes to compile."""
    network = narrow(name, 5)
    if name == "resnet":
        return network.clone(stage_sizes=(1, 1))
    return network.clone(stages=((1, 16, 1, 1, 3), (6, 24, 2, 2, 5)))
