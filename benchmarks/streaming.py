"""The streaming evaluator against the dense evaluation, on the same model and data.

python benchmarks/streaming.py WORKDIR

WORKDIR: a finished run of the demo, `runs/digits_on_photos`. Both evaluate the same test images in
turns, compiled beforehand, input included. Goal: the dense time over the streaming time is at least
nine tenths of the ratio of their MACs.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from absl import flags

from drnet_jax.config import default_config
from drnet_jax.evaluate import classify_source
from drnet_jax.evaluation.inputs import restore_and_load
from drnet_jax.evaluation.outputs import evaluate, make_eval_step
from drnet_jax.inference.create import array_classifier
from drnet_jax.runtime.command_line import CommandLine, a_path

REPEATS = 5


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=a_path)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])
    config = default_config()
    restored, source = restore_and_load(config, arguments.workdir, "test")
    engine = array_classifier(config, restored, source.image_size)
    eval_step = make_eval_step(restored.model, tuple(config.data.mean), tuple(config.data.std))
    size = config.eval.batch_size
    times: dict[str, list[float]] = {"dense": [], "streaming": []}
    for repeat in range(REPEATS + 1):
        start = time.perf_counter()
        records = evaluate(
            eval_step, restored.variables, source, batch_size=size, mesh=restored.mesh
        )
        middle = time.perf_counter()
        labels, got, _ = classify_source(engine, source, size, 0.0)
        end = time.perf_counter()
        if repeat:  # The first compiles.
            times["dense"].append(middle - start)
            times["streaming"].append(end - middle)
    agree = float((got.choices == records.choice).mean())
    top1 = [records.chosen(records.top1).mean(), (got.labels == labels).mean()]
    dense, streaming = (statistics.median(values) for values in times.values())
    dense_macs = engine.cost.predictor + sum(engine.cost.classifier)
    goal = 0.9 * dense_macs / got.macs.mean()
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}")
    print(f"Python {platform.python_version()}, jax {jax.__version__}, {len(labels)} images")
    print(f"best buckets: {[program.plan.best for program in engine.classifiers]}")
    print(f"same choices {100 * agree:.2f} %, top-1 {100 * top1[0]:.2f} and {100 * top1[1]:.2f} %")
    shares = np.bincount(got.choices, minlength=len(engine.resolutions)) / len(labels)
    print(f"shares {shares.round(3).tolist()}, dense {dense:.2f} s, streaming {streaming:.2f} s")
    print(f"dense over streaming: {dense / streaming:.2f} (goal >= {goal:.2f})")
    return int(dense / streaming < goal)


if __name__ == "__main__":
    # Grain reads absl flags.
    flags.FLAGS.mark_as_parsed()
    sys.exit(main())
