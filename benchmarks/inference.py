"""Forward passes on the CPU: ours with BatchNorm folded, over PyTorch's and ONNX Runtime's.

python benchmarks/inference.py PYTHON [--networks resnet50 mobilenetv2] [--repeats 12]

PYTHON has the extra `reference`, in an environment of its own; ONNX Runtime (`pip install
onnxruntime`) is left out, with a word, where this Python lacks it.
Random weights, 224 px, float32, two threads each, and each keeps the memory that it frees
(`drnet_jax/runtime/allocator.py`). All take turns of 0.3 seconds in one run (`turns.py`); ms an
image: of each the best turn, since other programs of the machine only add time, and the median of
the turns. Ours, stock: XLA's own operations, BatchNorm not folded. PyTorch: eager in NCHW with
BatchNorm, the same in channels-last, and scripted, frozen (BatchNorm folded) and optimised for
inference. Goals, ours over PyTorch eager by the best turns, at batch 8 and at batch 1: ResNet-50
1.05, MobileNetV2 0.7.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.turns import turn
from drnet_jax.inference.folding import fold_batch_norm
from drnet_jax.models.backbone import backbones
from drnet_jax.runtime.allocator import keep_freed_memory
from drnet_jax.runtime.command_line import CommandLine

SIZE = 224
GOALS = {"resnet50": 1.05, "mobilenetv2": 0.7}
BATCHES = (8, 1)
# Of both sides.
THREADS = 2
# Ms an image of every turn, by variant and batch size.
Times = dict[tuple[str, int], list[float]]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="one that has torch and torchvision")
    parser.add_argument("--networks", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--repeats", type=int, default=12)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])
    keep_freed_memory()
    # XLA takes every core that this process may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    if find_spec("onnxruntime") is None:
        print("ONNX Runtime is not installed: left out")
    worst = {}
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            times = measure(name, arguments.python, Path(folder), arguments.repeats)
        worst[name] = report(name, times)
    goals = "; ".join(
        f"{name}: {best:.2f} (goal <= {GOALS[name]}; by medians {typical:.2f})"
        for name, (best, typical) in worst.items()
    )
    print(f"ours over PyTorch eager, the larger of both batch sizes: {goals}")
    return int(any(best > GOALS[name] for name, (best, _) in worst.items()))


def report(name: str, times: Times) -> tuple[float, float]:
    """Prints a table of ms an image; the larger ratio of ours to PyTorch eager, best and median."""
    head = " | ".join(f"batch {batch}" for batch in BATCHES)
    print(f"| {name}, ms an image: best (median) | {head} |")
    print("|---" * (1 + len(BATCHES)) + "|")
    for variant in dict.fromkeys(variant for variant, _ in times):
        of_batches = [times[variant, batch] for batch in BATCHES]
        cells = " | ".join(f"{min(turns):.1f} ({median(turns):.1f})" for turns in of_batches)
        print(f"| {variant} | {cells} |", flush=True)

    def ratio(statistic: Callable[[list[float]], float]) -> float:
        pairs = [(times["ours", batch], times["torch eager", batch]) for batch in BATCHES]
        return max(statistic(ours) / statistic(eager) for ours, eager in pairs)

    return ratio(min), ratio(median)


def measure(name: str, python: str, folder: Path, repeats: int) -> Times:
    """Every variant has a turn in every round."""
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

        def ask(variant: str, batch: int) -> float:
            torch.stdin.write(f"{variant} {batch}\n")
            torch.stdin.flush()
            if not (answer := torch.stdout.readline()):
                raise SystemExit(f"{script.name} ended at {variant!r}; its message is above")
            return float(answer)

        turns: dict[tuple[str, int], Callable[[], float]] = {}
        for batch in BATCHES:
            ours = our_variants(name, batch)
            if find_spec("onnxruntime") is not None:
                ask("onnx", batch)
                ours["onnxruntime"] = onnx_variant(folder / f"{batch}.onnx", batch)
            turns |= {(variant, batch): partial(turn, run) for variant, run in ours.items()}
            for variant in ("eager", "channels_last", "folded"):
                turns[f"torch {variant}", batch] = partial(ask, variant, batch)
        rounds = [{key: run() / key[1] for key, run in turns.items()} for _ in range(repeats)]
    return {key: [times[key] for times in rounds] for key in turns}


def our_variants(name: str, batch: int) -> dict[str, Callable[[], object]]:
    """Folded in our forms, and stock, each as a function that runs once."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, SIZE, SIZE, 3)), "float32")
    network = backbones()[name](1000)
    variables = jax.jit(lambda key: network.init(key, images[:1], resolution=SIZE, train=False))(
        jax.random.key(0)
    )
    folded, folded_variables = fold_batch_norm(network, variables, SIZE)
    stock = network.clone(stock_operations=True)
    return {
        "ours": compiled(folded, folded_variables, images),
        "ours, stock": compiled(stock, variables, images),
    }


def compiled(network: Any, variables: Any, images: jax.Array) -> Callable[[], object]:
    """A compiled forward pass as a function that runs it."""

    def forward(variables: Any, images: jax.Array) -> jax.Array:
        logits: jax.Array = network.apply(variables, images, resolution=SIZE, train=False)
        return logits

    program = jax.jit(forward).lower(variables, images).compile()
    return lambda: program(variables, images).block_until_ready()


def onnx_variant(path: Path, batch: int) -> Callable[[], object]:
    """The exported network in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32)
    inputs = {session.get_inputs()[0].name: images}
    return lambda: session.run(None, inputs)


if __name__ == "__main__":
    sys.exit(main())
