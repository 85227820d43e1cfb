"""What it saves on the CPU that the process keeps the memory that it frees.

python benchmarks/allocator.py [--repeats 7]

Two processes of the same programs, one after `keep_freed_memory()` and one without, take turns in
one run: the demo's joint step (batch 96), and forward passes of MobileNetV2 and ResNet-50 (224 px,
batch 8, BatchNorm folded), random images and weights. The medians of the turns are compared. Goal,
kept over given back, of the best of the three: at most 0.95; else it is not worth a module.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from benchmarks.operations import step
from benchmarks.turns import turn
from drnet_jax.config_files import load_config
from drnet_jax.inference.folding import fold_batch_norm
from drnet_jax.models.create import create_model
from drnet_jax.models.variables import init_variables
from drnet_jax.runtime.allocator import keep_freed_memory
from drnet_jax.runtime.command_line import CommandLine

GOAL = 0.95
FORWARD = {"mobilenetv2": "mobilenetv2_in1k", "resnet50": "resnet_in1k"}
PROGRAMS = ("demo_step", *FORWARD)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--worker", choices=("kept", "given"), help="used by itself")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])
    if arguments.worker:
        return work(arguments.worker)
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}")
    print(f"Python {platform.python_version()}, jax {jax.__version__}, {arguments.repeats} turns")
    workers = {name: start(name) for name in ("kept", "given")}
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(arguments.repeats):
        for program in PROGRAMS:
            for name, worker in workers.items():
                times.setdefault((program, name), []).append(ask(worker, program))
    for worker in workers.values():
        worker.communicate()
    print("| program | kept, ms | given back, ms | kept over given back |\n|---|---|---|---|")
    ratios = []
    for program in PROGRAMS:
        kept, given = (statistics.median(times[program, name]) for name in ("kept", "given"))
        ratios.append(kept / given)
        print(f"| {program} | {kept:.1f} | {given:.1f} | {ratios[-1]:.3f} |")
    print(f"memory kept over given back, best of three: {min(ratios):.3f} (goal <= {GOAL})")
    return int(min(ratios) > GOAL)


def start(name: str) -> subprocess.Popen[str]:
    """A process of this file that has compiled its programs."""
    worker = subprocess.Popen(
        [sys.executable, __file__, "--worker", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None and worker.stdout.readline().strip() == "ready"
    return worker


def ask(worker: subprocess.Popen[str], program: str) -> float:
    """The ms of one turn."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(f"{program}\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def work(name: str) -> int:
    """Takes a turn of the program that each line of the input names."""
    if name == "kept" and not keep_freed_memory():
        raise SystemExit("this C library has no such setting")
    config = load_config("digits_on_photos")
    timed = step(config, config.joint.batch_size)
    programs: dict[str, Callable[[], object]] = {"demo_step": timed}
    programs |= {network: forward(file) for network, file in FORWARD.items()}
    for run in programs.values():
        run()
    print("ready", flush=True)
    for line in sys.stdin:
        print(turn(programs[line.strip()]), flush=True)
    return 0


def forward(name: str) -> Callable[[], object]:
    """The classifier of a configuration at its largest size, on 8 random images."""
    config = load_config(name)
    model = create_model(config, config.data.num_classes)
    side = model.resolutions[0]
    variables = init_variables(model, jax.random.key(0))
    part = {key: tree["classifier"] for key, tree in variables.items() if "classifier" in tree}
    network, folded = fold_batch_norm(model.classifier, part, side)
    images = jax.random.normal(jax.random.key(1), (8, side, side, 3))
    run = jax.jit(lambda images: network.apply(folded, images, resolution=side, train=False))
    return lambda: jax.block_until_ready(run(images))


if __name__ == "__main__":
    sys.exit(main())
