"""What it costs to train by several processes instead of one, on one machine.

python benchmarks/hosts.py [--rounds 3]

One, two and four CPU processes of one device each, started by `jax.distributed`, take turns at the
same training: stage 1 of the demo, the same batches, gradients summed by Gloo. Images/s without
compilation, validation and saving: the median over the windows of a run but for the first.

One process uses all cores already, so that more of them cannot be faster: the ratio to one says
what working together costs. What several machines gain is not shown here. The last line is the
ratio of two processes; goal: 0.8 or more.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from drnet_jax.runtime.command_line import CommandLine

ROOT = Path(__file__).parents[1]
GOAL = 0.8
COUNTS = (1, 2, 4)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--steps", type=int, default=40, help="of a turn")
    parser.add_argument("--batch-size", type=int, default=96)
    return parser.parse_args(arguments)


def main() -> int:
    given = parse(sys.argv[1:])
    cores = len(os.sched_getaffinity(0))
    print(f"jax {jax.__version__}, {cores} cores, {platform.machine()}, batch {given.batch_size}")
    found: dict[int, list[float]] = {count: [] for count in COUNTS}
    for turn in range(given.rounds):
        for count in COUNTS:
            speed = images_per_second(count, given.steps, given.batch_size)
            found[count].append(speed)
            print(f"turn {turn + 1}, {count} processes: {speed:.1f} images/s", flush=True)
    # Of the same turn: what else the machine does changes from turn to turn.
    ratios = {
        count: statistics.median(a / b for a, b in zip(found[count], found[1], strict=True))
        for count in COUNTS
    }
    print("| processes | images/s, median | over one process |\n|---|---|---|")
    for count in COUNTS:
        print(f"| {count} | {statistics.median(found[count]):.1f} | {ratios[count]:.2f} |")
    print(f"two processes over one: {ratios[2]:.2f} (goal >= {GOAL})")
    return int(ratios[2] < GOAL)


def images_per_second(count: int, steps: int, batch_size: int) -> float:
    """Of one run.

    Args:
      count: of its processes.
      steps: that it trains.
      batch_size: over all processes.
    """
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        fields = {
            "stages": ("pretrain",),
            "pretrain.num_epochs": 1,
            "pretrain.warmup_epochs": 0,
            "pretrain.batch_size": batch_size,
            "data.train_images": steps * batch_size,
            "data.eval_images": batch_size,
            "eval.batch_size": batch_size,
            "log.every_steps": 5,
            "log.tensorboard": False,
        }
        command = [sys.executable, str(ROOT / "main.py"), f"--workdir={folder}/run"]
        command += [f"--config={ROOT / 'configs' / 'digits_on_photos.py'}"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        if count > 1:
            command += [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
        processes = [
            subprocess.Popen(
                [*command, *([f"--process_id={number}"] if count > 1 else [])],
                stdout=subprocess.DEVNULL,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            )
            for number in range(count)
        ]
        if any([process.wait() for process in processes]):
            raise SystemExit(f"error: a training by {count} processes failed, and says why")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    windows = [line["images_per_second"] for line in map(json.loads, lines) if "loss" in line]
    return statistics.median(windows[1:])


if __name__ == "__main__":
    sys.exit(main())
