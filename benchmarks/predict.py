"""How `--mode=predict` gets pictures to the networks, against the other ways.

python benchmarks/predict.py

JPEGs of 500x375 px, quality 90, random crops of scikit-learn's two photographs, in files; the
networks take 128 px (predictor) and 224, 168 or 112 px (classifier) at shares 40/30/30.

decode      milliseconds a picture on one core: decoded once at 224 px; the same and resized on the
            host to what the networks take, which is what predict does; decoded at a reduced scale
            for the predictor, and again for the chosen resolution alone.
difference  mean absolute, of 255, between what is fed at each size and the square of 224 px
            resized on the device, which the networks are trained on.
end to end  a small network with random weights, every file from reading to logits, in turns:
            predict, against decoding at 224 px and resizing on the device, as evaluation does.

Goals, set before measuring: end to end 1.5 times as fast, difference at most 0.5.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import flax
import jax
import numpy as np
import PIL
from absl import flags
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_sample_images

from drnet_jax.config import default_config
from drnet_jax.data.decode import resize_square
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.folder import FileReader
from drnet_jax.data.sources import EncodedSource
from drnet_jax.evaluate import classify_source
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.inference.files import FileClassifier
from drnet_jax.models.create import create_model
from drnet_jax.models.layers import resize
from drnet_jax.models.variables import init_variables
from drnet_jax.runtime.command_line import CommandLine

GOAL_SPEEDUP, GOAL_DIFFERENCE = 1.5, 0.5
RESOLUTIONS, SHARES, PREDICTOR = (224, 168, 112), (0.4, 0.3, 0.3), 128
WIDTH, HEIGHT, QUALITY, COUNT = 500, 375, 90, 400
CROP, BATCH, REPEATS = 224 / 256, 64, 5
CORES = os.cpu_count() or 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    return CommandLine(description=__doc__.splitlines()[0]).parse_args(arguments)


def main() -> int:
    parse(sys.argv[1:])
    print(f"{jax.devices()[0].device_kind}, {CORES} cores, {platform.machine()}")
    print(f"Python {platform.python_version()}, jax {jax.__version__}, Pillow {PIL.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder))
        encoded = [file.read_bytes() for file in files]
        chosen = np.random.default_rng(1).choice(RESOLUTIONS, COUNT, p=SHARES)
        decode_work(encoded, chosen)
        difference = differences(encoded[:100])
        speedup = end_to_end(files, encoded)
    print(
        f"end to end: {speedup:.2f} times as fast (goal >= {GOAL_SPEEDUP}), "
        f"mean absolute difference {difference:.2f} of 255 (goal <= {GOAL_DIFFERENCE})"
    )
    return int(speedup < GOAL_SPEEDUP or difference > GOAL_DIFFERENCE)


def write_files(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    files = []
    for number in range(COUNT):
        photo = photos[number % 2]
        top = rng.integers(photo.shape[0] - HEIGHT + 1)
        left = rng.integers(photo.shape[1] - WIDTH + 1)
        files.append(folder / f"{number:03}.jpg")
        crop = Image.fromarray(photo[top : top + HEIGHT, left : left + WIDTH])
        crop.save(files[-1], quality=QUALITY)
    return files


def square(encoded: bytes, size: int) -> np.ndarray:
    return EvalView(size, CROP).decode(encoded)


def decode_work(encoded: list[bytes], chosen: np.ndarray) -> None:
    """Prints the milliseconds a picture of every way, on one core, timed in turns."""

    def once(content: bytes, size: int) -> None:
        square(content, RESOLUTIONS[0])

    def once_and_resized(content: bytes, size: int) -> None:
        largest = square(content, RESOLUTIONS[0])
        resize_square(largest, PREDICTOR)
        resize_square(largest, size)

    def twice(content: bytes, size: int) -> None:
        square(content, PREDICTOR)
        square(content, size)

    smallest = np.full(len(encoded), RESOLUTIONS[-1])
    work: dict[str, tuple[Callable[[bytes, int], None], np.ndarray]] = {
        "once at 224 px": (once, chosen),
        "once, resized on the host (predict)": (once_and_resized, chosen),
        "at 128 px, again at the chosen": (twice, chosen),
        "at 128 px, again at 112 px for all": (twice, smallest),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(REPEATS):
        for name, (decode, sizes) in work.items():
            start = time.perf_counter()
            for content, size in zip(encoded, sizes, strict=True):
                decode(content, int(size))
            times[name].append(time.perf_counter() - start)
    for size in (*RESOLUTIONS, PREDICTOR):
        start = time.perf_counter()
        for content in encoded:
            square(content, size)
        print(f"decode at {size} px: {ms(time.perf_counter() - start):.2f} ms a picture")
    for name, seconds in times.items():
        print(f"decode {name}: {ms(statistics.median(seconds)):.2f} ms a picture")


def ms(seconds: float) -> float:
    """A picture's milliseconds, of the seconds of all."""
    return 1000 * seconds / COUNT


def differences(encoded: list[bytes]) -> float:
    """The largest mean difference of what predict feeds."""
    largest = np.stack([square(content, RESOLUTIONS[0]) for content in encoded])
    worst = 0.0
    for size in (168, PREDICTOR, 112):
        trained_on = np.asarray(resize(largest.astype(np.float32), size))
        fed = np.stack([resize_square(one, size) for one in largest])
        direct = np.stack([square(content, size) for content in encoded])
        mean = float(np.abs(fed - trained_on).mean())
        other = float(np.abs(direct - trained_on).mean())
        print(f"difference at {size} px: {mean:.2f}; decoded at that size: {other:.2f}")
        worst = max(worst, mean)
    return worst


def end_to_end(files: list[Path], encoded: list[bytes]) -> float:
    """Seconds of decoding at 224 px and resizing on the device, over those of predict."""
    config = small_model()
    model = create_model(config, 10)
    variables = init_variables(model, jax.random.key(0))
    view = EvalView(RESOLUTIONS[0], CROP)
    settings = {"mean": config.data.mean, "std": config.data.std, "buckets": (1, 2, 4, 8, 16, 32)}
    own = FileClassifier(model, variables, view=view, **settings)
    variables = with_bias(variables, bias(scores_of(own, encoded)))
    own = FileClassifier(model, variables, view=view, **settings)
    resizing = ArrayClassifier(model, variables, **settings)
    reader = FileReader(tuple(files))
    labels = np.zeros(COUNT, np.int32)
    source = EncodedSource(reader, np.arange(COUNT), labels, "", RESOLUTIONS[0], (1, 1), CROP)
    times: dict[str, list[float]] = {"predict": [], "device": []}
    for repeat in range(REPEATS + 1):
        start = time.perf_counter()
        found = own.classify_batches(batches(files))
        chosen = np.concatenate([result.resolutions for _, result in found])
        middle = time.perf_counter()
        _, got, _ = classify_source(resizing, source, BATCH, 0.0)
        if repeat:
            times["predict"].append(middle - start)
            times["device"].append(time.perf_counter() - middle)
    median = {name: statistics.median(values) for name, values in times.items()}
    shares = [round(float((chosen == size).mean()), 2) for size in RESOLUTIONS]
    print(f"shares {shares}, {100 * (chosen == got.resolutions).mean():.1f} % the same choices")
    print(
        f"end to end: predict {COUNT / median['predict']:.0f}, decoding at 224 px and resizing on "
        f"the device {COUNT / median['device']:.0f} images/s"
    )
    return median["device"] / median["predict"]


def batches(files: list[Path]) -> list[list[Path]]:
    return [files[start : start + BATCH] for start in range(0, COUNT, BATCH)]


def small_model() -> ConfigDict:
    config = default_config()
    config.model.update(args="width=8", resolutions=RESOLUTIONS)
    config.predictor.update(size=PREDICTOR, args="stage_sizes=(1, 1, 1), width=8")
    return config


def scores_of(engine: FileClassifier, encoded: list[bytes]) -> np.ndarray:
    """The predictor's, `[n, m]`."""
    assert engine.predictor is not None
    views = [resize_square(square(content, RESOLUTIONS[0]), PREDICTOR) for content in encoded]
    rows = [np.asarray(engine.predictor.run(view[None]))[0] for view in views]
    return np.stack(rows)


def bias(scores: np.ndarray) -> np.ndarray:
    """`[m]` that gives the scores the shares wanted."""
    found = np.zeros(len(SHARES), np.float32)
    for step in range(5000):
        shares = np.bincount((scores + found).argmax(1), minlength=len(SHARES)) / len(scores)
        found += ((np.array(SHARES) - shares) * scores.std(0).mean() / (10 + step / 10)).astype(
            np.float32
        )
    return found


def with_bias(variables: Any, offset: np.ndarray) -> Any:
    """The variables, with the predictor's last bias moved."""
    flat = flax.traverse_util.flatten_dict(variables)
    path = ("params", "predictor", "network", "fc", "bias")
    flat[path] = flat[path] + offset
    return flax.traverse_util.unflatten_dict(flat)


if __name__ == "__main__":
    # Grain reads absl flags.
    flags.FLAGS.mark_as_parsed()
    sys.exit(main())
