"""What checksums add to saving and loading a checkpoint.

python benchmarks/checkpoint.py

The state of stage 2 of a shipped configuration, on the CPU: saved, its checksums written, verified
and restored, all in turns, from files that the system may still hold in memory. Medians; the last
line is the larger of two ratios: writing checksums over the whole save, and verifying them over the
whole load.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp

from drnet_jax.checkpoints.checkpoint import StageCheckpoints
from drnet_jax.checkpoints.checksums import find_damage, write_checksums
from drnet_jax.config_files import load_config
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost
from drnet_jax.runtime.command_line import CommandLine
from drnet_jax.training.create import create_stage_step
from drnet_jax.training.train_state import TrainState, create_train_state

GOAL = 0.1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="resnet_in1k", help="of a shipped configuration")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(arguments)


def main() -> int:
    given = parse(sys.argv[1:])
    state = state_of(given.config)
    leaves = jax.tree.leaves(state)
    print(
        f"jax {jax.__version__}, {given.config}: {len(leaves)} arrays, "
        f"{sum(leaf.nbytes for leaf in leaves) / 1e6:.0f} MB"
    )
    times: dict[str, list[float]] = {name: [] for name in ("save", "write", "verify", "load")}
    with tempfile.TemporaryDirectory() as folder:
        for step in range(1, given.repeats + 1):
            path = Path(folder) / str(step)
            times["save"].append(seconds(save, path, state))
            times["write"].append(seconds(write_checksums, path))
            times["verify"].append(seconds(find_damage, path))
            times["load"].append(seconds(load, path, state))
    found = {name: median(values) for name, values in times.items()}
    print(
        f"save {found['save']:.2f} s, of which checksums {found['write']:.2f} s; "
        f"load {found['load']:.2f} s, of which verifying {found['verify']:.2f} s"
    )
    share = max(found["write"] / found["save"], found["verify"] / found["load"])
    print(f"checksums over save or load: {share:.3f} (goal <= {GOAL})")
    return int(share > GOAL)


def state_of(name: str) -> TrainState:
    """A fresh state of stage 2."""
    config = load_config(name)
    model = create_model(config, config.data.num_classes or 10)
    tx, _ = create_stage_step(config, "joint", model, model_cost(model), None, steps_per_epoch=1)
    size, ema = model.resolutions[0], config.joint.ema_decay > 0
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    shapes = jax.eval_shape(lambda v: create_train_state(v, tx, ema=ema), variables)
    # Values do not matter, but zeros would compress.
    random = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(shapes))))
    return jax.tree.map(lambda leaf: _random(leaf, next(random)), shapes)


def _random(leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jax.random.normal(key, leaf.shape, leaf.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype)


def save(path: Path, state: TrainState) -> None:
    """Until it is complete."""
    with StageCheckpoints(path.parent) as checkpoints:
        checkpoints.save(int(path.name), state)


def load(path: Path, like: TrainState) -> TrainState:
    """Verified."""
    with StageCheckpoints(path.parent, read_only=True) as checkpoints:
        return checkpoints.load(int(path.name), like)


def seconds(run: Callable[..., object], *arguments: Any) -> float:
    """Of one call, until what it gives is there."""
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
