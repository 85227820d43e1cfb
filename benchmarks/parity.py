"""Our networks against torchvision's: the largest difference of their logits.

python benchmarks/parity.py PYTHON

PYTHON has torch and torchvision (the extra `reference`), in an environment of its own.
Random weights, perturbed BatchNorm statistics, evaluation; differences are given over the largest
absolute logit. Goal: 1e-4 everywhere. `tests/test_torch_parity.py` compares every stage and the
running statistics too.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np

from drnet_jax.models.backbone import backbones
from drnet_jax.pretrained.torch_weights import variables_from_torch
from drnet_jax.runtime.command_line import CommandLine

SCRIPT = Path(__file__).parents[1] / "tests" / "torch_reference.py"
GOAL = 1e-4


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="one that has torch and torchvision")
    return parser.parse_args(arguments)


def main() -> int:
    python = parse(sys.argv[1:]).python
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.npz"
        subprocess.run([python, SCRIPT, path], check=True)
        reference = np.load(path)
        print(f"torch {', torchvision '.join(reference['versions'])}; jax {jax.__version__}")
        names = dict.fromkeys(name.split("/")[0] for name in reference.files if "/" in name)
        # NumPy's maximum, which keeps NaN.
        worst = float(np.max([compare(reference, name) for name in names]))
    print(f"largest difference: {worst:.1e} of the largest logit (goal <= {GOAL:.0e})")
    return int(not worst <= GOAL)


def compare(reference: np.lib.npyio.NpzFile, name: str) -> float:
    """Prints a line for every size; the largest difference."""
    network = backbones()[name](10)
    prefix = f"{name}/state/"
    state = {n.removeprefix(prefix): reference[n] for n in reference.files if n.startswith(prefix)}
    sizes = [
        int(n.split("/")[1]) for n in reference.files if n.startswith(f"{name}/") and "logits" in n
    ]
    differences = []
    for size in sizes:
        variables = variables_from_torch(network, state, (size,))
        images = reference[f"{name}/{size}/images"].transpose(0, 2, 3, 1)
        logits = network.apply(variables, images, resolution=size, train=False)
        wanted = reference[f"{name}/{size}/logits"]
        difference, scale = np.abs(logits - wanted).max(), np.abs(wanted).max()
        print(f"| {name} | {size} | {difference:.1e} | {scale:.2f} | {difference / scale:.1e} |")
        differences.append(float(difference / scale))
    return float(np.max(differences))


if __name__ == "__main__":
    sys.exit(main())
