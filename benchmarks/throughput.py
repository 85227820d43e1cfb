"""Images a second of training: jointly, with the input pipeline, and at each size alone.

python benchmarks/throughput.py [--config resnet_in1k --dtype bfloat16 --batch-size 256]

Steps as `main.py` runs them, optimiser included, two in flight, random weights. Jointly: stage 2 at
all resolutions, with its predictor. A size alone: stage 1 with this one resolution. Images are on
the device; with input: JPEGs of 500x375 px are read, decoded and cropped beside the steps, by
threads, or --workers processes. MFU, the share of the device's peak (Chowdhery et al. 2022, arXiv
2204.02311, appendix B): six floating-point operations a multiply-add, two of them forward; of
bfloat16, and of devices whose peak is in the table here. The last line is the joint step's.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks.input import write_folder
from benchmarks.rows import Row, append_row
from benchmarks.train_step import stage_step
from drnet_jax.config_files import load_config, shipped_configs
from drnet_jax.data.pipeline import TrainBatch, train_batches
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost
from drnet_jax.models.variables import init_variables
from drnet_jax.runtime.allocator import keep_freed_memory
from drnet_jax.runtime.command_line import CommandLine, a_path
from drnet_jax.runtime.environment import environment
from drnet_jax.runtime.sharding import batch_sharding, create_mesh
from drnet_jax.training.feed import BatchFeed

JOINT, WITH_INPUT = "joint", "input"
# Dense bfloat16 operations a second, by part of the device's name, the first that fits: NVIDIA's
# data sheets, without sparsity.
PEAK = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "A100": 312e12,
}
# Forward, and the gradients by the inputs and by the weights.
OPERATIONS_A_MAC = 6
GOAL_MFU = 0.45
# Steps before the clock starts: they compile. Of the pipeline more, which use up the batches that
# waited meanwhile (drnet_jax/data/pipeline.py).
WARM_UP, WAITING = 5, 8


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    shipped = sorted(path.stem for path in shipped_configs().glob("*.py"))
    parser.add_argument("--config", choices=shipped, default="resnet_in1k")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument(
        "--units", nargs="+", help=f"of {JOINT}, {WITH_INPUT} and the resolutions; default: all"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that decode; 0: threads")
    parser.add_argument("--seconds", type=float, default=3.0, help="that each is timed for")
    parser.add_argument("--rows", type=a_path, help="a file that every unit adds a line to")
    parser.add_argument("--job", default="training", help="what the lines are called")
    found = parser.parse_args(arguments)
    resolutions = load_config(found.config).model.resolutions
    units = (JOINT, WITH_INPUT, *map(str, resolutions))
    for unit in found.units or ():
        if unit not in units:
            parser.error(f"--units: {unit!r} is none of {', '.join(units)}")
    found.units = found.units or units
    return found


def main() -> int:
    arguments = parse(sys.argv[1:])
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    config = load_config(arguments.config)
    config.model.dtype = arguments.dtype
    config.data.num_classes = config.data.num_classes or 10
    setting = {**environment(), "xla_flags": os.environ.get("XLA_FLAGS", "")}
    print(f"{setting['device']}, jax {setting['jax']}, {config.model.name}, {arguments.dtype}")
    steps = Steps(config, arguments.batch_size)
    rows = []
    for unit in arguments.units:
        row = measure(steps, unit, arguments)
        print(in_words(row), flush=True)
        if arguments.rows:
            append_row(arguments.rows, {"job": arguments.job, **row, "environment": setting})
        rows.append(row)
    joint = [row["mfu"] for row in rows if row["unit"] == JOINT and row["mfu"] is not None]
    if joint:
        print(f"MFU of the joint step: {100 * joint[0]:.1f} % (goal >= {100 * GOAL_MFU:.0f} %)")
    return int(any(mfu < GOAL_MFU for mfu in joint))


class Steps:
    """Training steps by resolutions: all jointly, or one alone; each is compiled once.

    Args:
      config: the whole configuration.
      batch_size: images of a batch.
    """

    def __init__(self, config: ConfigDict, batch_size: int) -> None:
        self.config = config
        self.batch_size = batch_size
        self.sharding = batch_sharding(create_mesh())
        self._made: dict[tuple[int, ...], tuple[Callable[[Any], Any], int]] = {}

    def step(self, resolutions: tuple[int, ...]) -> tuple[Callable[[Any], Any], int]:
        """A function of a batch, and the multiply-adds of an image, forward."""
        if resolutions not in self._made:
            config = ConfigDict(self.config.to_dict())
            config.model.resolutions = resolutions
            model = create_model(config, config.data.num_classes)
            cost = model_cost(model)
            stage = "joint" if len(resolutions) > 1 else "pretrain"
            variables = init_variables(model, jax.random.key(0))
            step = stage_step(config, stage, model, variables)
            self._made[resolutions] = step, cost.predictor + sum(cost.classifier)
        return self._made[resolutions]

    def resident(self, size: int) -> Iterator[TrainBatch]:
        """Random images, on the device, the same ones always."""
        rng = np.random.default_rng(0)
        count = self.batch_size
        arrays = {
            "image": rng.integers(0, 256, (count, size, size, 3), np.uint8),
            "label": rng.integers(0, self.config.data.num_classes, count, np.int32),
            "mask": np.ones(count, bool),
        }
        return repeat(TrainBatch(jax.device_put(arrays, self.sharding), np.array([], int)))


def measure(steps: Steps, unit: str, arguments: argparse.Namespace) -> Row:
    """Images a second of a unit; `mfu` is None where it is unknown."""
    resolutions = tuple(steps.config.model.resolutions)
    if unit not in (JOINT, WITH_INPUT):
        resolutions = (int(unit),)
    step, macs = steps.step(resolutions)
    if unit == WITH_INPUT:
        with tempfile.TemporaryDirectory() as folder:
            batches = train_batches(
                write_folder(Path(folder), resolutions[0]),
                batch_size=steps.batch_size,
                seed=0,
                start_step=0,
                sharding=steps.sharding,
                num_workers=arguments.workers,
            )
            waiting = WAITING + max(os.cpu_count() or 1, 2 * arguments.workers)
            with closing(batches):
                timed = time_steps(step, batches, arguments.seconds, WARM_UP + waiting)
    else:
        timed = time_steps(step, steps.resident(resolutions[0]), arguments.seconds, WARM_UP)
    rate = steps.batch_size / timed["seconds_a_step"]
    device = jax.devices()[0].device_kind
    return {
        "unit": unit,
        "resolutions": resolutions,
        "batch": steps.batch_size,
        "workers": arguments.workers if unit == WITH_INPUT else None,
        **timed,
        "images_a_second": rate,
        "mfu": utilisation(rate * macs / jax.device_count(), device, arguments.dtype),
    }


def time_steps(
    step: Callable[[Any], Any], batches: Iterator[TrainBatch], seconds: float, warm_up: int
) -> dict[str, float]:
    """Seconds a step in the mean, those of the first one, and the share that input was waited for.

    Args:
      step: takes a batch and gives metrics.
      batches: endless.
      seconds: that are timed, and three steps at least.
      warm_up: steps before them.
    """
    feed = BatchFeed(batches)

    def run() -> Any:
        metrics = step(feed.next().arrays)
        feed.started(metrics["loss"])
        return metrics

    start = time.perf_counter()
    jax.block_until_ready(run())
    first = time.perf_counter() - start
    for _ in range(warm_up - 1):
        metrics = run()
    jax.block_until_ready(metrics)
    feed.take_waited()
    count, start = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - start < seconds:
        metrics = run()
        count += 1
    jax.block_until_ready(metrics)
    took = time.perf_counter() - start
    return {
        "seconds_a_step": took / count,
        "first_step_seconds": first,
        "input_wait": feed.take_waited() / took,
    }


def utilisation(macs_a_second: float, device: str, dtype: str) -> float | None:
    """MFU of forward multiply-adds a second and device in training; None: the peak is unknown."""
    peak = next((peak for name, peak in PEAK.items() if name in device), None)
    if peak is None or dtype != "bfloat16":
        return None
    return OPERATIONS_A_MAC * macs_a_second / peak


def in_words(row: Row) -> str:
    """What was measured of a unit."""
    px = "/".join(map(str, row["resolutions"]))
    what = {JOINT: f"jointly at {px} px", WITH_INPUT: f"jointly at {px} px, with input"}
    mfu = "unknown" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
    return (
        f"{what.get(row['unit'], f'at {px} px alone')}, batch {row['batch']}: "
        f"{row['images_a_second']:.0f} images/s, {1000 * row['seconds_a_step']:.1f} ms a step, "
        f"MFU {mfu}, waited for input {100 * row['input_wait']:.1f} % of the time, first step "
        f"{row['first_step_seconds']:.0f} s"
    )


if __name__ == "__main__":
    # Grain reads absl flags.
    flags.FLAGS.mark_as_parsed()
    sys.exit(main())
