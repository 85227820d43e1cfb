"""The joint training step over the same step with XLA's own operations, on the CPU.

python benchmarks/operations.py [--networks mobilenetv2 ...] [--repeats 4]

ResNet-50 (224/168/112 px) and MobileNetV2 (224/196/168 px) as in the paper, with the predictors
and recipes of `configs/resnet_in1k.py` and `mobilenetv2_in1k.py`, at batch 8, and the demo's
networks at their batch. Random images, the step as `main.py` runs it; both variants in turns in one
run, medians. Goals, ours over stock: MobileNetV2 0.4, ResNet-50 0.7; none for the demo's.
"""

import argparse
import importlib
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp

from benchmarks.train_step import joint_step
from drnet_jax.models.create import create_model
from drnet_jax.models.variables import init_variables
from drnet_jax.runtime.allocator import keep_freed_memory
from drnet_jax.runtime.command_line import CommandLine

# Config, batch size (0: the config's own) and goal.
NETWORKS: dict[str, tuple[str, int, float]] = {
    "mobilenetv2": ("mobilenetv2_in1k", 8, 0.4),
    "resnet50": ("resnet_in1k", 8, 0.7),
    "demo": ("digits_on_photos", 0, math.inf),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=4)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])
    keep_freed_memory()
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}")
    print(f"Python {platform.python_version()}, jax {jax.__version__}, {arguments.repeats} repeats")
    print("| network | batch | stock, ms an image | ours, ms an image | ours over stock |")
    print("|---|---|---|---|---|")
    ratios = {name: measure(name, arguments.repeats) for name in arguments.networks}
    verdicts = ", ".join(verdict(name, ratio) for name, ratio in ratios.items())
    print(f"joint step over the same with stock operations: {verdicts}")
    return int(any(ratio > NETWORKS[name][2] for name, ratio in ratios.items()))


def verdict(name: str, ratio: float) -> str:
    """A network's part of the last line."""
    goal = NETWORKS[name][2]
    return f"{name} {ratio:.3f} ({'no goal' if math.isinf(goal) else f'goal <= {goal}'})"


def measure(name: str, repeats: int) -> float:
    """Prints a line of the table; ours over stock."""
    config_name, count, _ = NETWORKS[name]
    variants = {}
    for stock in (True, False):
        config = importlib.import_module(f"configs.{config_name}").get_config()
        config.model.stock_operations = stock
        count = count or config.joint.batch_size
        variants[stock] = step(config, count)
    for run in variants.values():
        run()  # Compiles.
        run()
    rounds = [{stock: run() for stock, run in variants.items()} for _ in range(repeats)]
    stock_ms, ours_ms = (
        1000 * statistics.median(times[stock] for times in rounds) / count
        for stock in (True, False)
    )
    ratio = ours_ms / stock_ms
    print(f"| {name} | {count} | {stock_ms:.1f} | {ours_ms:.1f} | {ratio:.3f} |", flush=True)
    return ratio


def step(config: Any, count: int) -> Callable[[], float]:
    """The joint step on random images, as a function that runs once and gives its seconds."""
    model = create_model(config, config.data.num_classes or 10)
    size = model.resolutions[0]
    labels = jax.random.randint(jax.random.key(1), (count,), 0, model.classifier.num_classes)
    images = jax.random.randint(jax.random.key(2), (count, size, size, 3), 0, 256, jnp.uint8)
    variables = init_variables(model, jax.random.key(0))
    run = joint_step(config, model, variables, {"image": images, "label": labels})

    def timed() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    return timed


if __name__ == "__main__":
    sys.exit(main())
