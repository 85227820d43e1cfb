"""Our networks against those of the libraries whose weight files we read: logits, and their files.

python benchmarks/parity.py PYTHON

PYTHON is of an environment of its own with the extra `reference`: torchvision, timm, Keras and
`efficientnet-lite-pytorch`. Each network has random weights and perturbed BatchNorm statistics and
comes to us in a file. Every line is a network, and for every size the largest difference of the
logits over the largest absolute one. Goal: 1e-4 everywhere. `tests/test_torch_parity.py` compares
every stage and the running statistics too.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np

from drnet_jax.models.arguments import parse_arguments
from drnet_jax.models.backbone import Backbone, backbones
from drnet_jax.pretrained.weights import load_weights
from drnet_jax.runtime.command_line import CommandLine
from tests.import_cases import CASES, NUM_CLASSES, SIZES, Case

SCRIPT = Path(__file__).parents[1] / "tests" / "torch_files.py"
GOAL = 1e-4


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="one that has torchvision, timm and Keras")
    return parser.parse_args(arguments)


def main() -> int:
    python, start = parse(sys.argv[1:]).python, time.perf_counter()
    worst = []
    print("| weights | network | " + " | ".join(f"{size} px" for size in SIZES) + " |", flush=True)
    print("|---" * (len(SIZES) + 2) + "|")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, SCRIPT, "write", folder], check=True)
        for case in CASES:
            differences = compare(case, Path(folder))
            weights = f"{case.library}'s {case.model}, {case.file}"
            network = case.network + (f" ({case.args})" if case.args else "")
            row = " | ".join(f"{difference:.1e}" for difference in differences)
            print(f"| {weights} | {network} | {row} |", flush=True)
            worst += differences
    # NumPy's maximum, which keeps NaN.
    largest = float(np.max(worst))
    print(f"largest difference: {largest:.1e} of the largest logit (goal <= {GOAL:.0e})")
    print(f"jax {jax.__version__}, {time.perf_counter() - start:.0f} s")
    return int(not largest <= GOAL)


def compare(case: Case, folder: Path) -> list[float]:
    """The largest difference of the logits over the largest one, by size."""
    path = case.path(folder)
    network = network_of(case)
    variables = load_weights(path, network, SIZES)
    differences = []
    with np.load(f"{path}.npz") as reference:
        for size in SIZES:
            images = reference[f"{size}/images"].transpose(0, 2, 3, 1)
            wanted = reference[f"{size}/logits"]
            logits = apply(network, size, variables, images)
            differences.append(float(np.abs(logits - wanted).max() / np.abs(wanted).max()))
    return differences


# Libraries share a network, compiled once. XLA takes longer to optimise it than it runs.
@partial(jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 0})
def apply(network: Backbone, size: int, variables: Any, images: jax.Array) -> Any:
    """The logits."""
    return network.apply(variables, images, resolution=size, train=False)


def network_of(case: Case) -> Backbone:
    """Ours."""
    builder = backbones()[case.network]
    return builder(NUM_CLASSES, **parse_arguments(case.args, builder))


if __name__ == "__main__":
    sys.exit(main())
