"""What decoding JPEGs at a reduced scale gains and costs, and images per second of the pipeline.

python benchmarks/input.py

Decode + random resized crop to 224 px on one core, of scikit-learn's two photographs as JPEGs of
500x375, 1000x750 and 3000x2250 px, against decoding whole and resizing the same box exactly; both
by Pillow, in turns, in CPU time. Most crops of 500x375 px are too small to be reduced. Then the
whole pipeline, batches on the device included, with threads and with 1 and 2 worker processes. The
last line is the speed-up for 1000x750 px, and the largest of the mean pixel differences.
"""

import argparse
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import PIL
from absl import flags
from PIL import Image
from sklearn.datasets import load_sample_images

from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.decode import Box, decode_crop, random_crop_box
from drnet_jax.data.pipeline import train_batches
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import Source
from drnet_jax.runtime.command_line import CommandLine
from drnet_jax.runtime.sharding import batch_sharding, create_mesh

GOAL_SPEEDUP, GOAL_DIFFERENCE = 1.5, 1.0
SIZE = 224
SCALE = (0.08, 1.0)
# Width and height of a picture, and the crops timed of it.
PICTURES = ((500, 375, 200), (1000, 750, 200), (3000, 2250, 20))
GOAL_PICTURE = 1
BATCH, BATCHES = 64, 30


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    return CommandLine(description=__doc__.splitlines()[0]).parse_args(arguments)


def main() -> int:
    parse(sys.argv[1:])
    setup = f"Pillow {PIL.__version__}, {os.cpu_count()} cores, {platform.machine()}"
    print(f"{setup}, {SIZE} px crops")
    results = [compare(*picture) for picture in PICTURES]
    with tempfile.TemporaryDirectory() as folder:
        source = write_folder(Path(folder))
        for workers in (0, 1, 2):
            name = f"{workers} worker processes" if workers else "threads"
            print(f"pipeline, 500x375, {name}: {pipeline_rate(source, workers):.0f} images/s")
    speedup = results[GOAL_PICTURE][0]
    difference = max(result[1] for result in results)
    print(
        f"speed-up by reduced decoding: {speedup:.2f} (goal >= {GOAL_SPEEDUP}), "
        f"mean absolute difference {difference:.2f} of 255 (goal <= {GOAL_DIFFERENCE})"
    )
    return int(speedup < GOAL_SPEEDUP or difference > GOAL_DIFFERENCE)


def compare(width: int, height: int, crops: int) -> tuple[float, float]:
    """How much faster than exact crops, and the mean absolute difference from them."""
    encoded = jpegs(width, height)
    rng = np.random.default_rng(0)
    boxes = [random_crop_box(rng, width, height, SCALE) for _ in range(crops)]
    seconds = {"exact": 0.0, "reduced": 0.0}
    differences = []
    for content in encoded:
        # Warm up.
        exact(content, boxes[0])
        reduced(content, boxes[0])
        for box in boxes:
            start = time.thread_time()
            reference = exact(content, box)
            middle = time.thread_time()
            crop = reduced(content, box)
            seconds["exact"] += middle - start
            seconds["reduced"] += time.thread_time() - middle
            differences.append(np.abs(crop.astype(int) - reference.astype(int)).mean())
    count = len(encoded) * len(boxes)
    rates = {name: count / value for name, value in seconds.items()}
    speedup, difference = rates["reduced"] / rates["exact"], float(np.mean(differences))
    print(
        f"{width}x{height}: exact {rates['exact']:.0f}, reduced {rates['reduced']:.0f} images/s on "
        f"one core ({speedup:.2f} times as fast), mean absolute difference {difference:.2f}"
    )
    return speedup, difference


def jpegs(width: int, height: int) -> list[bytes]:
    encoded = []
    for photo in load_sample_images().images:
        buffer = io.BytesIO()
        resized = Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS)
        resized.save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def exact(encoded: bytes, box: Box) -> np.ndarray:
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    with Image.open(io.BytesIO(encoded)) as picture:
        return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=corners))


def reduced(encoded: bytes, box: Box) -> np.ndarray:
    return decode_crop(encoded, lambda width, height: box, SIZE)


def write_folder(root: Path, size: int = SIZE) -> Source:
    """Two classes of a hundred JPEGs of 500x375 px, and their training split at `size` px."""
    for name, content in zip(("china", "flower"), jpegs(*PICTURES[0][:2]), strict=True):
        (root / name).mkdir()
        for number in range(100):
            (root / name / f"{number}.jpg").write_bytes(content)
    return DataSplits(DataSettings("folder", dir=str(root), size=size)).load("train")


def pipeline_rate(source: Source, workers: int) -> float:
    """Images a second, after the first batches."""
    batches = train_batches(
        source,
        batch_size=BATCH,
        seed=0,
        start_step=0,
        sharding=batch_sharding(create_mesh()),
        num_workers=workers,
    )
    for _ in range(10):
        next(batches)
    start = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return BATCH * BATCHES / seconds


if __name__ == "__main__":
    # Grain reads absl flags.
    flags.FLAGS.mark_as_parsed()
    sys.exit(main())
