"""What dispatch costs, and what of the saved MACs arrives as saved time.

python benchmarks/dispatch.py [--resolutions 224 160 96] [--batch-size 8]

The paper's ResNet-50 and predictor with random weights, float32, BatchNorm folded everywhere;
scikit-learn's photographs in random crops. The predictor's last bias is set so that the batch
divides as wanted. Each line, timed in turns in one run, medians:

overhead  adaptive time / (predictor time + sum over j of n_j * t_j), t_j being an image's time at
          the best bucket: <= 1.05 at batch >= 32, <= 1.15 below;
saving    (1 - adaptive / fixed largest) in time over the same in MACs, predictor counted:
          >= 65 % at shares 40/30/30, >= 80 % at 20/30/50, batch 32.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import flax
import jax
import numpy as np
from sklearn.datasets import load_sample_images

from drnet_jax.build import create_model
from drnet_jax.config import default_config
from drnet_jax.inference.adaptive import AdaptiveClassifier
from drnet_jax.train_state import init_variables

# Shares of the batch, and the goal of the saving.
SHARES = (((0.4, 0.3, 0.3), 0.65), ((0.2, 0.3, 0.5), 0.80))
REPEATS = 7


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolutions", type=int, nargs=3, default=(224, 168, 112))
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    size = arguments.batch_size
    config = default_config()
    config.model.update(name="resnet50", width=64, stem="imagenet")
    config.model.resolutions = tuple(arguments.resolutions)
    config.predictor.update(size=128, stage_sizes=(1, 1, 1, 1), width=64, stem="imagenet")
    model = create_model(config, 1000)
    variables = init_variables(model, jax.random.key(0))
    buckets = [2**power for power in range(size.bit_length()) if 2**power <= size]

    def engine(variables: Any) -> AdaptiveClassifier:
        """Compiled for these variables."""
        mean, std = config.data.mean, config.data.std
        return AdaptiveClassifier(model, variables, mean=mean, std=std, buckets=buckets)

    images = crops(size, max(arguments.resolutions))
    plain = engine(variables)
    table = plain.measure(repeats=3)
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}")
    print(f"Python {platform.python_version()}, jax {jax.__version__}, batch {size}")
    scores = plain.classify(images).scores
    late = False
    for shares, goal in SHARES:
        counts = np.round(np.array(shares) * size).astype(int)
        counts[-1] = size - counts[:-1].sum()
        biased = engine(with_bias(variables, bias_for(scores, counts))).with_times(table)
        got = biased.classify(images)
        assert np.array_equal(np.bincount(got.choices, minlength=3), counts), got.choices
        late |= report(biased, images, counts, goal)
    return int(late)


def report(engine: AdaptiveClassifier, images: np.ndarray, counts: np.ndarray, goal: float) -> bool:
    """Times everything in turns; whether a goal was missed."""
    assert engine.predictor is not None
    size = len(images)
    programs = (engine.predictor, *engine.classifiers)
    names = ("adaptive", "largest", *range(len(programs)))
    times: dict[Any, list[float]] = {name: [] for name in names}
    for _ in range(REPEATS):
        times["adaptive"].append(seconds(lambda: engine.classify(images)))
        times["largest"].append(seconds(lambda: run(engine.classifiers[0], images)))
        for index, program in enumerate(programs):
            best = program.plan.best
            took = seconds(lambda program=program, best=best: run(program, images[:best]))
            times[index].append(took / best)
    median = {name: statistics.median(values) for name, values in times.items()}
    parts = size * median[0] + sum(n * median[1 + j] for j, n in enumerate(counts))
    overhead = median["adaptive"] / parts
    saved = 1 - median["adaptive"] / median["largest"]
    macs = engine.cost.predictor + np.dot(counts, engine.cost.classifier) / size
    saved_macs = 1 - macs / engine.cost.classifier[0]
    each = ", ".join(f"{1000 * median[1 + j]:.1f}" for j in range(len(counts)))
    limit = 1.05 if size >= 32 else 1.15
    share = saved / saved_macs
    print(f"{'/'.join(map(str, counts))} images at {engine.resolutions.tolist()} px")
    print(f"  ms an image: predictor {1000 * median[0]:.1f}, classifier {each}")
    print(f"  adaptive {median['adaptive']:.3f} s, largest alone {median['largest']:.3f} s")
    print(
        f"overhead {overhead:.3f} (goal <= {limit}); time saved {100 * saved:.1f} %, MACs saved "
        f"{100 * saved_macs:.1f} %: {100 * share:.0f} % (goal >= {100 * goal:.0f} %, batch 32)"
    )
    return overhead > limit or (size >= 32 and share < goal)


def run(program: Any, images: np.ndarray) -> None:
    """Runs and waits."""
    for part in program.start(images):
        part.wait()


def seconds(work: Any) -> float:
    """That `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def crops(count: int, size: int) -> np.ndarray:
    """`[count, size, size, 3]` of two photographs."""
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    found = []
    for number in range(count):
        photograph = photographs[number % 2]
        top = rng.integers(photograph.shape[0] - size + 1)
        left = rng.integers(photograph.shape[1] - size + 1)
        found.append(photograph[top : top + size, left : left + size])
    return np.stack(found)


def bias_for(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A bias `[m]` for scores `[n, m]` so that `counts` images choose each column."""
    bias = np.zeros(scores.shape[1])
    step = float(scores.std(axis=0).max())
    for _ in range(20000):
        excess = np.bincount((scores + bias).argmax(1), minlength=len(bias)) - counts
        if not excess.any():
            return bias
        bias -= step * excess / len(scores)
        step *= 0.9995
    raise RuntimeError("these scores cannot be divided so")


def with_bias(variables: Any, bias: np.ndarray) -> Any:
    """Variables with `bias` added to the predictor's last one."""
    flat = flax.traverse_util.flatten_dict(variables)
    path = ("params", "predictor", "network", "fc", "bias")
    flat[path] = flat[path] + bias.astype(np.float32)
    return flax.traverse_util.unflatten_dict(flat)


if __name__ == "__main__":
    sys.exit(main())
