"""`eval.json` and `report.html` from kept outputs of ImageNet's size: time and memory.

python benchmarks/report.py

Synthetic logits of 50,000 images at five resolutions and of 1,000 classes are written by another
process, with a tenth as many of a calibration split. Then this one reads them and does what
`--mode=eval` does with them. Goals: under 60 s and 4 GB.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from configs.resnet_in1k import get_config
from drnet_jax.evaluate import evaluation
from drnet_jax.evaluation import logits
from drnet_jax.reports.evaluation_report import write_report
from drnet_jax.runtime.command_line import CommandLine
from drnet_jax.runtime.environment import environment
from drnet_jax.runtime.files import write_json
from tests.synthetic import synthetic_logits, synthetic_model

SIDES = (224, 192, 168, 112, 96)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1_000)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logits.npz"
        spawn = multiprocessing.get_context("spawn")
        writer = spawn.Process(target=generate, args=(path, arguments.images, arguments.classes))
        writer.start()
        writer.join()
        print(f"logits.npz: {path.stat().st_size / 1e9:.2f} GB")
        start = time.perf_counter()
        report(path, tuple(f"class {index}" for index in range(arguments.classes)))
        seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory: {memory:.2f} GB (goal < 4)")
    print(f"seconds: {seconds:.1f} (goal < 60)")
    return int(seconds >= 60 or memory >= 4)


def generate(path: Path, images: int, classes: int) -> None:
    """Writes both splits."""
    logits.save(path, "key", "test", synthetic_logits(images, len(SIDES), classes))
    logits.save(
        path, "key", "calibration", synthetic_logits(images // 10, len(SIDES), classes, seed=1)
    )


def report(path: Path, classes: tuple[str, ...]) -> None:
    """What follows from the file."""
    config = get_config()
    config.model.resolutions = SIDES
    trained = synthetic_model(config, classes, path.parent)
    test, calibration = (logits.load(path, "key", split) for split in ("test", "calibration"))
    assert test is not None and calibration is not None
    records = test.records()
    summary = evaluation(trained, records, calibration.records(), 0.0, None)
    summary |= {"split": "test", "config": trained.config, "environment": environment()}
    write_json(path.parent / "eval.json", summary)
    rng = np.random.default_rng(0)

    def pixels(_: int, resolution: int) -> np.ndarray:
        """Noise, which is the largest in a page."""
        return rng.integers(256, size=(resolution, resolution, 3), dtype=np.uint8)

    page = path.parent / "report.html"
    write_report(page, summary, trained, test, records, pixels, gallery=config.eval.gallery)
    print(f"report.html: {page.stat().st_size / 1e6:.1f} MB, {summary['controls']['verdict']}")


if __name__ == "__main__":
    sys.exit(main())
