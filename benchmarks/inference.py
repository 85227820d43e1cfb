"""Forward passes on the CPU: ours with BatchNorm folded, over PyTorch's and ONNX Runtime's.

python benchmarks/inference.py PYTHON [--networks resnet50 mobilenetv2] [--repeats 7]

PYTHON has torch and torchvision (`requirements-reference.txt`), in an environment of its own;
ONNX Runtime (`pip install onnxruntime`) is left out, with a word, where this Python lacks it.
Random weights, 224 px, float32, two threads each, and each keeps the memory that it frees
(`drnet_jax/allocator.py`). All take turns of 0.3 seconds in one run; ms an image: of each the best
turn's median, since other programs of the machine only add time. Ours, stock: XLA's own
operations, BatchNorm not folded. PyTorch: eager in NCHW with BatchNorm, the same in channels-last,
and scripted, frozen (BatchNorm folded) and optimised for inference. Goals, ours over PyTorch eager,
at batch 8 and at batch 1: ResNet-50 1.05, MobileNetV2 0.7.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax.allocator import keep_freed_memory
from drnet_jax.inference.folding import fold_batch_norm
from drnet_jax.models.backbone import BackboneOptions, backbones

SIZE = 224
GOALS = {"resnet50": 1.05, "mobilenetv2": 0.7}
BATCHES = (8, 1)
# Of both sides.
THREADS = 2
# Of a way, in seconds.
TURN = 0.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="one that has torch and torchvision")
    parser.add_argument("--networks", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    keep_freed_memory()
    # XLA takes every core that this process may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    worst = {}
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            times = measure(name, arguments.python, Path(folder), arguments.repeats)
        worst[name] = report(name, times)
    goals = "; ".join(
        f"{name}: {ratio:.2f} (goal <= {GOALS[name]})" for name, ratio in worst.items()
    )
    print(f"ours over PyTorch eager, the larger of both batch sizes: {goals}")
    return int(any(ratio > GOALS[name] for name, ratio in worst.items()))


def report(name: str, times: dict[tuple[str, int], float]) -> float:
    """Prints a table of ms an image; the larger ratio of ours to PyTorch eager."""
    print(f"| {name}, ms an image | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |")
    print("|---" * (1 + len(BATCHES)) + "|")
    for way in dict.fromkeys(way for way, _ in times):
        cells = " | ".join(f"{times[way, batch]:.1f}" for batch in BATCHES)
        print(f"| {way} | {cells} |", flush=True)
    return max(times["ours", batch] / times["torch eager", batch] for batch in BATCHES)


def measure(name: str, python: str, folder: Path, repeats: int) -> dict[tuple[str, int], float]:
    """Ms an image by way and batch size; every round times every way once."""
    script = Path(__file__).with_name("torch_times.py")
    command = [python, str(script), name, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as torch:
        assert torch.stdin is not None and torch.stdout is not None
        versions = torch.stdout.readline().split()
        if not versions:
            raise SystemExit(f"{python} cannot run {script.name}; its message is above")
        print(f"jax {jax.__version__}, torch {versions[0]}, torchvision {versions[1]}")

        def ask(way: str, batch: int) -> float:
            torch.stdin.write(f"{way} {batch}\n")
            torch.stdin.flush()
            return float(torch.stdout.readline())

        ways: dict[tuple[str, int], Callable[[], float]] = {}
        for batch in BATCHES:
            for way, run in our_ways(name, batch).items():
                ways[way, batch] = run
            for way in ("eager", "channels_last", "folded"):
                ways[f"torch {way}", batch] = lambda way=way, batch=batch: ask(way, batch)
            ask("onnx", batch)
            if (run := onnx_way(folder / f"{batch}.onnx", batch)) is not None:
                ways["onnxruntime", batch] = run
        rounds = [{key: settled(run) / key[1] for key, run in ways.items()} for _ in range(repeats)]
    return {key: min(times[key] for times in rounds) for key in ways}


def settled(run: Callable[[], float]) -> float:
    """The median of calls in a row, after the threads of the way before have stopped spinning."""
    time.sleep(0.1)
    run()
    deadline, times = time.perf_counter() + TURN, [run()]
    while time.perf_counter() < deadline:
        times.append(run())
    return statistics.median(times)


def our_ways(name: str, batch: int) -> dict[str, Callable[[], float]]:
    """Folded in our forms, and stock, each as a function that runs once and gives its ms."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, SIZE, SIZE, 3)), "float32")
    network = backbones()[name](1000, BackboneOptions())
    variables = jax.jit(lambda key: network.init(key, images[:1], resolution=SIZE, train=False))(
        jax.random.key(0)
    )
    folded, folded_variables = fold_batch_norm(network, variables, SIZE)
    stock = network.clone(stock_operations=True)
    return {
        "ours": timed(folded, folded_variables, images),
        "ours, stock": timed(stock, variables, images),
    }


def timed(network: Any, variables: Any, images: jax.Array) -> Callable[[], float]:
    """A compiled forward pass as a function that gives its ms."""

    def forward(variables: Any, images: jax.Array) -> jax.Array:
        logits: jax.Array = network.apply(variables, images, resolution=SIZE, train=False)
        return logits

    compiled = jax.jit(forward).lower(variables, images).compile()

    def run() -> float:
        start = time.perf_counter()
        compiled(variables, images).block_until_ready()
        return 1000 * (time.perf_counter() - start)

    return run


def onnx_way(path: Path, batch: int) -> Callable[[], float] | None:
    """The exported network in ONNX Runtime; None without it."""
    if find_spec("onnxruntime") is None:
        print("ONNX Runtime is not installed: left out")
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32)
    inputs = {session.get_inputs()[0].name: images}

    def run() -> float:
        start = time.perf_counter()
        session.run(None, inputs)
        return 1000 * (time.perf_counter() - start)

    return run


if __name__ == "__main__":
    sys.exit(main())
