"""Memory of a training step: what XLA plans for each config, before anything runs.

python benchmarks/memory.py [names of configs; default: all]

Compiles the joint step, without running it, and adds up what `compiled.memory_analysis()` says:
arguments (state and batch), outputs that reuse no argument, and temporaries. The compiler is the
one of the device at hand, and others fuse otherwise. On a CPU, bfloat16 is widened, and XLA merges
what remat computes again with the first computation, so neither saves anything here
(`tests/test_train_step.py` counts what JAX saves instead). Stock: with XLA's own operations
(`model.stock_operations`). All four take some seven minutes on two cores. The last line, with
`resnet_in1k`, is ResNet-50's memory at batch 256 with four micro-batches over that of the plain
step: a quarter, and the state.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from ml_collections import ConfigDict

from drnet_jax.config_files import load_config, shipped_configs
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost
from drnet_jax.runtime.command_line import CommandLine
from drnet_jax.runtime.sharding import batch_sharding, replicated_sharding
from drnet_jax.training.create import create_stage_step, noise_key
from drnet_jax.training.train_state import create_train_state

GOAL = 0.3
CONFIGS = ("digits_on_photos", "resnet_imagenette", "mobilenetv2_in1k", "resnet_in1k")
VARIANTS: dict[str, dict[str, object]] = {
    "as it is": {},
    "bfloat16": {"model.dtype": "bfloat16"},
    "remat": {"model.remat": True},
    "accumulate=4": {"joint.accumulate": 4},
    "stock": {"model.stock_operations": True},
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    shipped = sorted(path.stem for path in shipped_configs().glob("*.py"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a shipped configuration")
    given = parser.parse_args(arguments)
    for name in given.names:
        if name not in shipped:
            parser.error(f"no configuration {name!r}: there are {', '.join(shipped)}")
    return given


def main() -> int:
    names = parse(sys.argv[1:]).names or list(CONFIGS)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, one device, GiB, joint step")
    print(f"{'config':<22}{'batch':>6}" + "".join(f"{variant:>15}" for variant in VARIANTS))
    ratio = None
    for name in names:
        config = load_config(name)
        row = [step_gib(config, overrides) for overrides in VARIANTS.values()]
        print(
            f"{name:<22}{config.joint.batch_size:>6}" + "".join(f"{gib:>15.2f}" for gib in row),
            flush=True,
        )
        if name == "resnet_in1k":
            ratio = row[list(VARIANTS).index("accumulate=4")] / row[0]
    if ratio is None:
        return 0
    print(
        f"memory with accumulate=4 over the plain step, resnet_in1k: {ratio:.3f} (goal <= {GOAL})"
    )
    return int(ratio > GOAL)


def step_gib(config: ConfigDict, overrides: dict[str, object]) -> float:
    """Arguments, outputs and temporaries of one compiled joint step."""
    return gib(compiled_step(config, overrides, 1))


def gib(program: Any) -> float:
    """What a compiled program takes of a device."""
    analysis = program.memory_analysis()
    total = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    total += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return total / 2**30


def compiled_step(config: ConfigDict, overrides: dict[str, object], devices: int) -> Any:
    """The joint step of a config, compiled for so many devices; nothing is run."""
    config = ConfigDict(config.to_dict())
    config.update_from_flattened_dict(overrides)
    model = create_model(config, config.data.num_classes or 10)
    section = config.joint
    tx, step = create_stage_step(
        config, "joint", model, model_cost(model), None, steps_per_epoch=1000
    )
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    split, whole = batch_sharding(mesh), replicated_sharding(mesh)
    size, count = model.resolutions[0], section.batch_size
    images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8, sharding=split)
    labels = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=split)
    floats = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), floats)
    ema = section.ema_decay > 0
    state = jax.eval_shape(lambda v: create_train_state(v, tx, ema=ema), variables)
    key = jax.eval_shape(lambda: noise_key(config.seed, "joint"))
    state, key = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), (state, key)
    )
    # Buffers are planned before the backend optimises, which takes minutes.
    fast = {"xla_backend_optimization_level": 0}
    lowered = step.lower(state, {"image": images, "label": labels}, key)
    return lowered.compile(compiler_options=fast)


if __name__ == "__main__":
    sys.exit(main())
