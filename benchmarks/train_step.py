"""The joint training step over the sum of its parts.

python benchmarks/train_step.py [--config resnet_in1k --dtype bfloat16 --batch-size 256]

The parts: a forward-backward pass of the plain classifier at each resolution, and one of the
predictor. What the step adds is resizing, mixing, the regulariser and the optimiser. The demo's
model, float32, batch 100, or another; images on the device; both are timed alternately in one run,
and the medians are compared.
"""

import argparse
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

from drnet_jax.config import alpha_target
from drnet_jax.config_files import load_config, shipped_configs
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost
from drnet_jax.models.variables import init_variables
from drnet_jax.runtime.command_line import CommandLine
from drnet_jax.runtime.sharding import create_mesh, replicated_sharding
from drnet_jax.training.create import create_stage_step, noise_key
from drnet_jax.training.losses import cross_entropy
from drnet_jax.training.train_state import create_train_state

GOAL = 1.15
REPEATS = 15


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    shipped = sorted(path.stem for path in shipped_configs().glob("*.py"))
    parser.add_argument("--config", choices=shipped, default="digits_on_photos")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=100)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])
    config = load_config(arguments.config)
    config.model.dtype = arguments.dtype
    model = create_model(config, config.data.num_classes or 10)
    variables = init_variables(model, jax.random.key(0))
    count, size = arguments.batch_size, model.resolutions[0]
    labels = jax.random.randint(jax.random.key(1), (count,), 0, model.classifier.num_classes)
    images = jax.random.randint(jax.random.key(2), (count, size, size, 3), 0, 256, jnp.uint8)

    step = joint_step(config, model, variables, {"image": images, "label": labels})
    parts = [
        part_step(model.classifier, variables, "classifier", resolution, labels, resolution)
        for resolution in model.resolutions
    ]
    assert model.predictor is not None
    parts.append(
        part_step(model.predictor.network, variables, "predictor", model.predictor.size, labels, 0)
    )
    times: list[list[float]] = [[] for _ in (step, *parts)]
    for repeat in range(REPEATS + 2):
        for record, run in zip(times, (step, *parts), strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run())
            if repeat >= 2:  # The first two compile and warm up.
                record.append(time.perf_counter() - start)
    whole, *pieces = (statistics.median(record) for record in times)
    names = [f"classifier {r}" for r in model.resolutions] + ["predictor"]
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}")
    print(f"Python {platform.python_version()}, jax {jax.__version__}, {REPEATS} repeats, medians")
    for name, seconds in zip(["joint step", *names], [whole, *pieces], strict=True):
        print(f"  {name}: {1000 * seconds:.1f} ms, {count / seconds:.0f} images/s")
    ratio = whole / sum(pieces)
    print(f"joint step / sum of its parts: {ratio:.3f} (goal <= {GOAL})")
    return int(ratio > GOAL)


def joint_step(
    config: Any, model: Any, variables: Any, batch: dict[str, jax.Array]
) -> Callable[[], Any]:
    """`stage_step` of the joint stage, always with the same batch."""
    step = stage_step(config, "joint", model, variables)
    return lambda: step(batch)


def stage_step(config: Any, stage: str, model: Any, variables: Any) -> Callable[[Any], Any]:
    """The training step as `main.py` runs it, each call from the state of the last.

    Args:
      config: the whole configuration.
      stage: `pretrain` or `joint`.
      model: the DRNet.
      variables: what it starts from; in `pretrain` those of the classifier.

    Returns:
      A function of a batch on the devices, which gives its metrics.
    """
    cost = model_cost(model)
    target = None
    if stage == "joint":
        target = alpha_target(config, cost.choice_costs, cost.largest_cost)
    tx, train_step = create_stage_step(config, stage, model, cost, target, steps_per_epoch=120)
    # A copy: the step donates its state, and others use the variables too.
    state = create_train_state(
        jax.tree.map(jnp.copy, variables), tx, ema=config[stage].ema_decay > 0
    )
    # As the step leaves it: else the second call would be compiled anew.
    replicated = replicated_sharding(create_mesh())
    state = jax.device_put(state, replicated)
    key = noise_key(config.seed, stage, replicated)

    def run(batch: Any) -> Any:
        nonlocal state
        state, metrics = train_step(state, batch, key)
        return metrics

    return run


def part_step(
    network: Any, variables: Any, part: str, size: int, labels: jax.Array, resolution: int
) -> Callable[[], Any]:
    """Loss, gradients and new statistics of one network at one size."""
    images = jax.random.normal(jax.random.key(3), (labels.shape[0], size, size, 3))
    # The predictor wraps its network once more.
    trees = {name: tree[part] for name, tree in variables.items() if part in tree}
    if part == "predictor":
        trees = {name: tree["network"] for name, tree in trees.items()}
    params = trees.pop("params")
    targets = labels % network.num_classes

    @jax.jit
    def fwd_bwd(params: Any, trees: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, updated = network.apply(
                {"params": params, **trees},
                images,
                resolution=resolution,
                train=True,
                mutable=list(trees),
            )
            return cross_entropy(logits, targets), updated

        return jax.value_and_grad(loss, has_aux=True)(params)

    return lambda: fwd_bwd(params, trees)


if __name__ == "__main__":
    sys.exit(main())
