"""Every convolution of a network on the CPU, over what the machine allows.

python benchmarks/roofline.py [--networks resnet50 mobilenetv2] [--batch-size 8] [--repeats 5]

What it allows is estimated from the same run: the rate of a product of two large matrices, and that
of a copy. The bound of a convolution is its multiply-adds at the one or the pixels that it reads,
its kernel and its output at the other, whichever takes longer, and twice that for both gradients;
what is in the cache already can be faster. Each different convolution is timed alone at 224 px in
float32, ours and XLA's own in turns, the best of the repeats; the stem's gradient by the image,
which training does not need, is in it. There is no goal.
"""

import argparse
import math
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import flax.linen as nn
import jax
import jax.numpy as jnp

from drnet_jax.models.backbone import backbones
from drnet_jax.models.convolution import convolve
from drnet_jax.runtime.allocator import keep_freed_memory
from drnet_jax.runtime.command_line import CommandLine

SIZE = 224
NETWORKS = ["resnet50", "mobilenetv2"]
VARIANTS: dict[str, Callable[..., jax.Array]] = {
    "ours": convolve,
    "stock": jax.lax.conv_general_dilated,
}
# Of a convolution: its layer, apart from its name and place, and the shape of its input.
Key = tuple[nn.Conv, tuple[int, ...]]
# Seconds by passes (forward, or both gradients) and variant, with the bound as a third.
Times = dict[tuple[str, str], float]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(backbones()), default=NETWORKS)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])
    keep_freed_memory()
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}"
    macs_a_second, bytes_a_second = machine_rates(arguments.repeats)
    print(f"jax {jax.__version__}, {device}, batch {arguments.batch_size}, ms an image")
    print(f"matrix product {macs_a_second / 1e9:.0f} GMAC/s, copy {bytes_a_second / 1e9:.1f} GB/s")
    verdicts = []
    for name in arguments.networks:
        kinds: dict[str, Times] = defaultdict(lambda: defaultdict(float))
        for (layer, shape), number in convolutions(name, arguments.batch_size).items():
            times = measure(layer, shape, arguments.repeats)
            macs, size = work(layer, shape)
            bound = max(macs / macs_a_second, size / bytes_a_second)
            times |= {("forward", "bound"): bound, ("gradients", "bound"): 2 * bound}
            for key, seconds in times.items():
                kinds[kind(layer)][key] += number * seconds / arguments.batch_size
        verdicts.append(report(name, kinds))
    print(f"bound over ours, all convolutions: {'; '.join(verdicts)} (no goal)")
    return 0


def machine_rates(repeats: int) -> tuple[float, float]:
    """Multiply-adds a second of a large matrix product, and bytes a second of a large copy."""
    size = 4096
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    copy = jax.jit(jnp.negative)
    seconds = [
        min(timed(function, *inputs) for _ in range(repeats + 1))
        for function, inputs in ((product, (matrix, matrix)), (copy, (matrix,)))
    ]
    return size**3 / seconds[0], 2 * matrix.nbytes / seconds[1]


def convolutions(name: str, batch_size: int) -> Counter[Key]:
    """How often a network applies each of its different convolutions."""
    found: Counter[Key] = Counter()

    def note(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Counts a convolution when it is called."""
        if isinstance(context.module, nn.Conv) and context.method_name == "__call__":
            layer = context.module.clone(
                parent=None, name=None, conv_general_dilated=VARIANTS["stock"]
            )
            found[layer, args[0].shape] += 1
        return function(*args, **kwargs)

    network = backbones()[name](1000)
    images = jax.ShapeDtypeStruct((batch_size, SIZE, SIZE, 3), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda x: network.init(jax.random.key(0), x, resolution=SIZE, train=False), images
        )
    return found


def measure(layer: nn.Conv, shape: tuple[int, ...], repeats: int) -> Times:
    """The best time of each variant, forward and both gradients."""
    x = jax.random.normal(jax.random.key(0), shape)
    runs: dict[tuple[str, str], Callable[[], float]] = {}
    for variant, function in VARIANTS.items():
        made = layer.clone(conv_general_dilated=function)
        variables = made.init(jax.random.key(1), x)
        forward = jax.jit(made.apply)
        y = forward(variables, x)
        gradients = jax.jit(lambda variables, x, y, f=made.apply: jax.vjp(f, variables, x)[1](y))
        runs["forward", variant] = partial(timed, forward, variables, x)
        runs["gradients", variant] = partial(timed, gradients, variables, x, y)
    rounds = [{key: run() for key, run in runs.items()} for _ in range(repeats + 1)]
    return {key: min(times[key] for times in rounds) for key in runs}


def timed(function: Callable[..., Any], *inputs: Any) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function(*inputs))
    return time.perf_counter() - start


def work(layer: nn.Conv, shape: tuple[int, ...]) -> tuple[int, int]:
    """Multiply-adds, and bytes read and written."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    y, variables = jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x), x)
    kernel = variables["params"]["kernel"]
    taps = math.prod(kernel.shape[:3])
    read = min(x.size, math.prod(y.shape[:-1]) * math.prod(kernel.shape[:2]) * x.shape[-1])
    return y.size * taps, 4 * (read + kernel.size + y.size)


def kind(layer: nn.Conv) -> str:
    """What a convolution is called."""
    size = "x".join(str(length) for length in layer.kernel_size)
    return f"{size} depthwise" if layer.feature_group_count > 1 else size


def report(name: str, kinds: dict[str, Times]) -> str:
    """Prints a network's table; what the bound is of our time."""
    columns = [
        (passes, variant) for passes in ("forward", "gradients") for variant in (*VARIANTS, "bound")
    ]
    total: Times = {key: sum(times[key] for times in kinds.values()) for key in columns}
    print(f"| {name} | " + " | ".join(f"{passes}, {variant}" for passes, variant in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for label, times in {**kinds, "all": total}.items():
        cells = " | ".join(f"{1000 * times[key]:.1f}" for key in columns)
        print(f"| {label} | {cells} |", flush=True)
    parts = (f"{p} {total[p, 'bound'] / total[p, 'ours']:.2f}" for p in ("forward", "gradients"))
    return f"{name} {', '.join(parts)}"


if __name__ == "__main__":
    sys.exit(main())
