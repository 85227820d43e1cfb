"""Images a second through the input pipeline, against plain Pillow and by number of workers.

python benchmarks/input.py

Decode + random resized crop to 224 px on one core, of scikit-learn's two photographs as JPEGs of
500x375 and of 1000x750 px, against decoding whole and resizing the same box with Pillow's
antialiased BILINEAR; both are timed alternately. Then the whole pipeline, batches on the device
included, with threads and with 1 and 2 worker processes. The last line is the smaller speed-up,
with the largest of the mean pixel differences.
"""

import io
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import numpy as np
from absl import flags
from PIL import Image
from sklearn.datasets import load_sample_images

from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.decode import Box, decode_crop, random_crop_box
from drnet_jax.data.pipeline import train_batches
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import Source
from drnet_jax.runtime.sharding import batch_sharding, create_mesh

GOAL_SPEEDUP, GOAL_DIFFERENCE = 1.5, 1.0
SIZE = 224
SCALE = (0.08, 1.0)
PICTURES = ((500, 375), (1000, 750))
CROPS = 200
BATCH, BATCHES = 64, 30


def main() -> int:
    setup = f"opencv {cv2.__version__}, {os.cpu_count()} cores, {platform.machine()}"
    print(f"{setup}, {SIZE} px crops")
    results = [compare(*size) for size in PICTURES]
    with tempfile.TemporaryDirectory() as folder:
        source = write_folder(Path(folder))
        for workers in (0, 1, 2):
            name = f"{workers} worker processes" if workers else "threads"
            print(f"pipeline, 500x375, {name}: {pipeline_rate(source, workers):.0f} images/s")
    speedup = min(result[0] for result in results)
    difference = max(result[1] for result in results)
    print(
        f"speed-up over Pillow: {speedup:.2f} (goal >= {GOAL_SPEEDUP}), "
        f"mean absolute difference {difference:.2f} of 255 (goal <= {GOAL_DIFFERENCE})"
    )
    return int(speedup < GOAL_SPEEDUP or difference > GOAL_DIFFERENCE)


def compare(width: int, height: int) -> tuple[float, float]:
    """How much faster than Pillow, and the mean absolute difference of the crops."""
    encoded = jpegs(width, height)
    rng = np.random.default_rng(0)
    boxes = [random_crop_box(rng, width, height, SCALE) for _ in range(CROPS)]
    seconds = {"pillow": 0.0, "ours": 0.0}
    differences = []
    for content in encoded:
        # Warm up.
        by_pillow(content, boxes[0])
        by_us(content, boxes[0])
        for box in boxes:
            start = time.perf_counter()
            reference = by_pillow(content, box)
            middle = time.perf_counter()
            crop = by_us(content, box)
            seconds["pillow"] += middle - start
            seconds["ours"] += time.perf_counter() - middle
            differences.append(np.abs(crop.astype(int) - reference.astype(int)).mean())
    count = len(encoded) * len(boxes)
    rates = {name: count / value for name, value in seconds.items()}
    speedup, difference = rates["ours"] / rates["pillow"], float(np.mean(differences))
    print(
        f"{width}x{height}: Pillow {rates['pillow']:.0f}, ours {rates['ours']:.0f} images/s a core"
        f" ({speedup:.2f}x), mean absolute difference {difference:.2f}"
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


def by_pillow(encoded: bytes, box: Box) -> np.ndarray:
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    with Image.open(io.BytesIO(encoded)) as picture:
        rgb = picture.convert("RGB")
    return np.asarray(rgb.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=corners))


def by_us(encoded: bytes, box: Box) -> np.ndarray:
    return decode_crop(encoded, lambda width, height: box, SIZE)


def write_folder(root: Path) -> Source:
    for name, content in zip(("china", "flower"), jpegs(*PICTURES[0]), strict=True):
        (root / name).mkdir()
        for number in range(100):
            (root / name / f"{number}.jpg").write_bytes(content)
    return DataSplits(DataSettings("folder", dir=str(root), size=SIZE)).load("train")


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
