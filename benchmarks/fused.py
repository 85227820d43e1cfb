"""What one program a batch takes, beside the largest size alone, exact dispatch and its own parts.

python benchmarks/fused.py [--config resnet_in1k --dtype bfloat16] [--glance] [--batch-sizes 256 1]

A DRNet with random weights, BatchNorm folded, on scikit-learn's photographs in random crops, of
which equally many choose each resolution. Of a batch 40 % of the images get the largest resolution,
of three 30 % each of the others; --glance: a first look at the smallest in the place of the
predictor. At batch 1 ten images drawn by these shares are classified one after another and timed
together: figures are their mean, but for those of parts and of `fused at` a size, of single calls.

largest  the classifier at the largest resolution alone
fused    `FusedClassifier`
exact    `ArrayClassifier`, with the batch and the groups as its buckets, beside the classifier at
         the largest resolution with the same upload
parts    the predictor, and the classifier at each resolution for as many images as go there, each a
         program of its own: fused over their sum is to be 1.05 or less from batch 32 on

`largest` and `fused` are timed from images on the device; from host memory to results there, one
batch after another (`uploaded`, on a GPU in up to four pieces); and so in a stream, in which a
batch is uploaded from pinned memory while the one before it computes (`streamed`, by the batch).
`exact` uploads a batch in one piece from memory that is not pinned, so that it is compared with the
largest resolution uploaded likewise (`uploaded whole`). All take turns of 0.3 s in one run
(`turns.py`); medians of the rounds, ms a batch. The last line is fused over the sum of its parts,
the largest of all batches.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np

from benchmarks.even_choices import EvenModel, compiled, draw, even_model
from benchmarks.rows import Row, append_row
from benchmarks.turns import turn
from drnet_jax.config_files import load_config, shipped_configs
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.inference.capacity import capacities_of
from drnet_jax.inference.fused import FusedClassifier
from drnet_jax.inference.networks import InferenceNetwork, classifier_networks, predictor_network
from drnet_jax.inference.programs import Program
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import model_cost
from drnet_jax.models.variables import classifier_variables
from drnet_jax.runtime.allocator import keep_freed_memory
from drnet_jax.runtime.command_line import CommandLine, a_path
from drnet_jax.runtime.environment import environment

METHODS = ("largest", "fused", "exact", "parts")
SHARES = {2: (0.4, 0.6), 3: (0.4, 0.3, 0.3)}
GOAL_PARTS, GOAL_BATCH = 1.05, 32
# Batches of one image that are timed together.
SINGLES = 10
# Images that batches are drawn from, at most.
POOL = 1536
# Of which a stream is made where there is only one.
STREAMED = 6
# What time is saved by, and against what.
SAVED = {
    "fused": "largest",
    "fused uploaded": "largest uploaded",
    "fused streamed": "largest streamed",
    "exact uploaded whole": "largest uploaded whole",
}


class Timed(NamedTuple):
    """Something to time: a function that runs it, and how many batches that are."""

    run: Callable[[], object]
    batches: int


Work = dict[str, Timed]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    shipped = sorted(path.stem for path in shipped_configs().glob("*.py"))
    parser.add_argument("--config", choices=shipped, default="resnet_in1k")
    parser.add_argument("--glance", action="store_true", help="a first look, no predictor")
    parser.add_argument("--resolutions", type=int, nargs="+", help="default: those of the config")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=a_path, help="a file that every batch adds a line to")
    parser.add_argument("--job", default="fused", help="what the lines are called")
    found = parser.parse_args(arguments)
    resolutions = tuple(found.resolutions or load_config(found.config).model.resolutions)
    if found.glance and not found.resolutions:
        resolutions = (resolutions[0], resolutions[-1])
    if len(resolutions) not in SHARES:
        parser.error(f"{len(resolutions)} resolutions: there are shares for 2 and 3")
    if any(size < 1 or 1 < size < 4 for size in found.batch_sizes):
        parser.error("--batch-sizes are 1, or 4 and more: each resolution gets an image")
    found.resolutions = resolutions
    return found


def main() -> int:
    arguments = parse(sys.argv[1:])
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    config = load_config(arguments.config)
    config.model.update(resolutions=arguments.resolutions, dtype=arguments.dtype)
    if arguments.glance:
        config.predictor.kind, config.model.reuse = "glance", "logits"
    sizes = arguments.batch_sizes
    even = even_model(config, min(3 * max(*sizes, SINGLES), POOL), chunk=sizes[0])
    setting = {**environment(), "xla_flags": os.environ.get("XLA_FLAGS", "")}
    print(f"{setting['device']}, jax {setting['jax']}, {config.model.name}, {arguments.dtype}")
    worst = 0.0
    for size in sizes:
        row = measure(even, size, arguments.methods, arguments.rounds)
        print(in_words(row), flush=True)
        if arguments.rows:
            append_row(arguments.rows, {"job": arguments.job, **row, "environment": setting})
        if size >= GOAL_BATCH:
            worst = max(worst, row.get("over_parts", 0.0))
    if worst:
        print(f"fused over the sum of its parts: {worst:.3f} (goal <= {GOAL_PARTS})")
    return int(worst > GOAL_PARTS)


def measure(even: EvenModel, size: int, methods: Sequence[str], rounds: int) -> Row:
    """Times the methods at one batch size; what the row holds is in `in_words`."""
    shares = SHARES[len(even.model.resolutions)]
    counts = capacities_of(shares, SINGLES if size == 1 else size)
    images = draw(even.images, even.choices, np.array(counts))
    batches = np.split(images, len(images) // size)
    compile_start = time.perf_counter()
    makers = {"largest": _largest, "fused": _fused, "exact": _exact, "parts": _parts}
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda method: makers[method](even, counts, batches), methods)
        work = dict(chain.from_iterable(part.items() for part in made))
    compile_seconds = time.perf_counter() - compile_start
    times = [{name: turn(timed.run) for name, timed in work.items()} for _ in range(rounds)]
    ms = {
        name: median(found[name] for found in times) / timed.batches for name, timed in work.items()
    }
    cost = model_cost(even.model)
    spent = cost.predictor + np.dot(counts, cost.choice) / sum(counts)
    row: Row = {
        "unit": str(size),
        "counts": counts,
        "resolutions": even.model.resolutions,
        "batch": size,
        "ms": ms,
        "macs_saved": float(1 - spent / cost.classifier[0]),
        "compile_seconds": compile_seconds,
    }
    saved = {
        name: 1 - ms[name] / ms[largest]
        for name, largest in SAVED.items()
        if {name, largest} <= ms.keys()
    }
    if saved:
        row["time_saved"] = saved
    if "fused" in ms and "parts" in methods:
        row["over_parts"] = ms["fused"] / _sum_of_parts(ms, counts, even.model.resolutions, size)
    return row


def in_words(row: Row) -> str:
    """What was measured at a batch size."""
    images = "/".join(map(str, row["counts"]))
    px = "/".join(map(str, row["resolutions"]))
    unit = "a batch"
    if row["batch"] == 1:
        unit = f"an image, mean of {sum(row['counts'])} calls in a row (parts, fused at: one)"
    lines = [
        f"batch {row['batch']}: {images} images at {px} px, compiled in "
        f"{row['compile_seconds']:.0f} s; ms {unit}: "
        + ", ".join(f"{name} {ms:.2f}" for name, ms in row["ms"].items())
    ]
    for name, saved in row.get("time_saved", {}).items():
        lines.append(
            f"{name}: time saved {100 * saved:.1f} %, MACs saved {100 * row['macs_saved']:.1f} %: "
            f"{100 * saved / row['macs_saved']:.0f} % of them"
        )
    if "over_parts" in row:
        lines.append(f"fused over the sum of its parts: {row['over_parts']:.3f}")
    return "\n  ".join(lines)


def _sum_of_parts(
    ms: dict[str, float], counts: Sequence[int], resolutions: Sequence[int], size: int
) -> float:
    """Ms of the predictor and of the classifiers for a batch, or for an image in the mean."""
    total = ms["part predictor"]
    for count, resolution in zip(counts, resolutions, strict=True):
        share = count / sum(counts) if size == 1 else 1.0
        # The last of a first look has none.
        total += share * ms.get(f"part {resolution}", 0.0)
    return total


def _largest(even: EvenModel, counts: Sequence[int], batches: Sequence[np.ndarray]) -> Work:
    """The classifier at the largest resolution, which all images get; uploaded as for `fused`."""
    model = DRNet(even.model.classifier, None, even.model.resolutions[:1])
    settings = even.settings | {"model": model, "variables": classifier_variables(even.variables)}
    size = len(batches[0])
    alone = FusedClassifier(**settings, batch_size=size, capacities=None if size == 1 else (size,))
    return _timed("largest", alone, batches)


def _fused(even: EvenModel, counts: Sequence[int], batches: Sequence[np.ndarray]) -> Work:
    """One program a batch; of single images at each choice too."""
    size = len(batches[0])
    fused = FusedClassifier(
        **even.settings, batch_size=size, capacities=None if size == 1 else counts
    )
    work = _timed("fused", fused, batches)
    if size == 1:
        chosen = {int(fused.classify(batch).resolutions[0]): batch for batch in batches}
        for resolution, batch in sorted(chosen.items(), reverse=True):
            work[f"fused at {resolution}"] = _on_device(fused, [batch])
    return work


def _timed(name: str, classifier: FusedClassifier, batches: Sequence[np.ndarray]) -> Work:
    """From the device, and from host memory: one batch by itself, and a stream of them."""
    stream = list(batches) if len(batches) > 1 else list(batches) * STREAMED
    return {
        name: _on_device(classifier, batches),
        f"{name} uploaded": _each(classifier.classify, batches),
        f"{name} streamed": Timed(lambda: list(classifier.classify_batches(stream)), len(stream)),
    }


def _on_device(classifier: FusedClassifier, batches: Sequence[np.ndarray]) -> Timed:
    """Runs batches that are on the device already, and waits for each."""
    placed = [jax.block_until_ready(classifier.upload(batch)) for batch in batches]
    return _each(lambda batch: jax.block_until_ready(classifier.run(batch)), placed)


def _exact(even: EvenModel, counts: Sequence[int], batches: Sequence[np.ndarray]) -> Work:
    """Choices first, then a launch a group; and the largest resolution with such an upload."""
    size = len(batches[0])
    groups = set() if size == 1 else {count for count in counts if count}
    engine = ArrayClassifier(**even.settings, buckets=sorted({size, *groups}))
    found = np.bincount(
        np.concatenate([engine.classify(batch).choices for batch in batches]), minlength=len(counts)
    )
    # Up to rounding, which may decide for an image.
    assert abs(found - counts).max() <= max(1, 0.02 * sum(counts)), (found, counts)
    alone = compiled(_classifiers(even)[0], even.images, size)
    return {
        "largest uploaded whole": _each(lambda batch: np.asarray(alone.run(batch)), batches),
        "exact uploaded whole": _each(engine.classify, batches),
    }


def _parts(even: EvenModel, counts: Sequence[int], batches: Sequence[np.ndarray]) -> Work:
    """What the fused program holds, each for as many images as it has there."""
    size = len(batches[0])
    networks = _networks(even)
    places = [size, *([1] * len(counts) if size == 1 else counts)][: len(networks)]
    with ThreadPoolExecutor() as pool:
        made = pool.map(compiled, networks.values(), repeat(even.images), places)
        programs = list(made)
    work: Work = {}
    for name, program, count in zip(networks, programs, places, strict=True):
        images = np.resize(batches[0], (count, *batches[0].shape[1:]))
        placed = jax.device_put(images, jax.local_devices()[0])
        work[f"part {name}"] = _each(partial(_run_and_wait, program), [placed])
    return work


def _networks(even: EvenModel) -> dict[str, InferenceNetwork]:
    """The predictor, and the classifier at each resolution, but for that of a first look."""
    predictor = predictor_network(even.model, even.variables, even.mean, even.std, fold=True)
    assert predictor is not None
    classifiers = _classifiers(even)
    names = [str(resolution) for resolution in even.model.resolutions]
    if even.model.glances:
        names, classifiers = names[:-1], classifiers[:-1]
    return {"predictor": predictor, **dict(zip(names, classifiers, strict=True))}


def _classifiers(even: EvenModel) -> tuple[InferenceNetwork, ...]:
    return classifier_networks(even.model, even.variables, even.mean, even.std, fold=True)


def _run_and_wait(program: Program, images: jax.Array) -> object:
    """Without the way to the host, as of `FusedClassifier.run`."""
    executable = program.executables[len(images)]
    return jax.block_until_ready(executable(program.network.variables, images))


def _each(run: Callable[[Any], object], batches: Sequence[Any]) -> Timed:
    """Runs one batch after another."""
    return Timed(lambda: [run(batch) for batch in batches], len(batches))


if __name__ == "__main__":
    sys.exit(main())
