"""An export in drnet_runtime: adaptive over its largest resolution, and over PyTorch.

python benchmarks/runtime.py DIRECTORY FOLDER [--torch PYTHON --network resnet50] [--int8]

FOLDER: pictures that the model was not trained on; in folders named as its classes they give the
top-1 of both. All are decoded beforehand. Two threads each, on two cores; all take turns in one run
(`turns.py`), ours over the same 96 pictures in every turn. Adaptive: the cheapest lambda that loses
no accuracy on the calibration split, the most accurate one within a --fraction of the largest
resolution's cost, or --lam. The largest resolution: its file alone, in a plain
session of ONNX Runtime that takes the whole batch, and in one of the runtime's, which takes a few
images at once; the better of both counts. PyTorch: eager, the same network with random weights in
either order of memory, the better of which counts, images that are normalised already; PYTHON has
torch and torchvision (for EfficientNet-Lite timm). Ms a picture: of each the best turn, since other
programs of the machine only add time, and the median of the turns. Goals: of the share of multiply-
adds that is saved, 0.9 of it in time at batch 32, and no more time at batch 1; half of PyTorch's
time at every batch size; from the start of Python to the first answer, 1 s.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

import numpy as np
import onnxruntime

from drnet_runtime import AdaptiveModel
from drnet_runtime.manifest import CLASSIFIER, read_manifest
from drnet_runtime.pictures import SUFFIXES
from drnet_runtime.sessions import NetworkSession

ROOT = Path(__file__).parents[1]
BATCHES = (1, 8, 32)
GOAL_SHARE, GOAL_SHARE_OF_ONE, GOAL_TORCH, GOAL_START = 0.9, 0.0, 0.5, 1.0
THREADS = 2
# Pictures of a turn: batches of every size are full.
TIMED = 96
ADAPTIVE = "adaptive"
# Programs by what `torch_times.py` calls them.
TORCH = {"eager": "PyTorch eager", "channels_last": "PyTorch eager, channels last"}
LARGEST = ("largest resolution alone", "the same, a few images at once")
# Ms a picture of every turn, by program and batch size.
Times = dict[tuple[str, int], list[float]]
Turn = Callable[[], float]
Run = Callable[[np.ndarray], np.ndarray]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("directory", type=Path, help="what --mode=export wrote")
    parser.add_argument("folder", type=Path, help="of pictures")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--lam", type=float, help="lambda; default: calibrated for no drop")
    budget.add_argument("--fraction", type=float, help="calibrated for this part of the cost")
    parser.add_argument("--images", type=int, default=512, help="at most; from all over the folder")
    parser.add_argument("--torch", metavar="PYTHON", help="one that has torch; default: left out")
    parser.add_argument("--network", help="torchvision's or timm's name of the export's network")
    parser.add_argument("--int8", action="store_true", help="all of the export's files in int8")
    parser.add_argument("--repeats", type=int, default=8)
    found = parser.parse_args(arguments)
    if (found.torch is None) != (found.network is None):
        parser.error("--torch and --network go together")
    if found.images < TIMED:
        parser.error(f"--images: at least {TIMED}")
    return found


def main() -> int:
    arguments = parse(sys.argv[1:])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    model = AdaptiveModel.load(arguments.directory, threads=THREADS, int8=arguments.int8)
    lam = arguments.lam
    if arguments.fraction is not None:
        lam = model.lam_for(fraction=arguments.fraction)
    elif lam is None:
        lam = model.lam_for(drop=0.0)
    files, images = decode(model, arguments.folder, arguments.images)
    largest, in_parts = largest_alone(arguments.directory, arguments.int8)
    kind = "int8" if arguments.int8 else "float32"
    print(f"ONNX Runtime {onnxruntime.__version__}, {THREADS} threads, {model.name}, {kind}")
    describe(model, lam, files, images, largest)
    timed = images[np.linspace(0, len(images) - 1, TIMED).round().astype(int)]
    turns = {}
    for batch in BATCHES:
        parts = np.split(timed, TIMED // batch)
        turns[ADAPTIVE, batch] = partial(one_turn, lambda part: model.classify(part, lam), parts)
        for program, run in zip(LARGEST, (largest, in_parts), strict=True):
            turns[program, batch] = partial(one_turn, run, parts)
    with torch_turns(arguments, model.resolutions[0]) as of_torch:
        rounds = [
            {key: turn() for key, turn in (turns | of_torch).items()}
            for _ in range(arguments.repeats)
        ]
    times = {key: [found[key] for found in rounds] for key in rounds[0]}
    saved = 1 - float(model.classify(timed, lam).macs.mean()) / model.largest_macs
    return report(times, saved, start_seconds(arguments.directory, files[0]))


def decode(model: AdaptiveModel, folder: Path, most: int) -> tuple[list[Path], np.ndarray]:
    """Pictures from all over a folder, and what the model sees of them."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if len(found) < TIMED:
        raise SystemExit(f"{folder} has {len(found)} pictures: {TIMED} are needed")
    places = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    files = [found[place] for place in places]
    return files, np.stack([model.decode(file) for file in files])


def largest_alone(directory: Path, int8: bool) -> tuple[Run, Run]:
    """The classifier at the largest resolution: as a program that has nothing else would run it,
    and as the runtime runs it.
    """
    manifest = read_manifest(directory, int8=int8)
    network = next(n for n in manifest.networks if n.role == CLASSIFIER)
    content = (directory / network.file).read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    ours = NetworkSession(
        network,
        content,
        input_name=manifest.input_name,
        image_size=manifest.image_size,
        threads=THREADS,
    )

    def run(images: np.ndarray) -> np.ndarray:
        (logits,) = session.run(None, {manifest.input_name: images})
        return np.asarray(logits)

    return run, lambda images: ours.run(images)[0]


def describe(
    model: AdaptiveModel,
    lam: float,
    files: Sequence[Path],
    images: np.ndarray,
    largest: Run,
) -> None:
    """Prints what is chosen, and the top-1 of both where folders are classes."""
    result = model.classify(images, lam)
    alone = np.concatenate([largest(part) for part in np.array_split(images, len(images) // 32)])
    shares = np.bincount(result.choices, minlength=len(model.resolutions)) / len(images)
    print(
        f"lambda {lam:.4g}: {len(images)} pictures, shares "
        + ", ".join(f"{size} px {s:.3f}" for size, s in zip(model.resolutions, shares, strict=True))
    )
    names = [file.parent.name for file in files]
    if set(names) <= set(model.classes):
        wanted = np.array([model.classes.index(name) for name in names])
        both = [float((labels == wanted).mean()) for labels in (result.labels, alone.argmax(1))]
        print(f"top-1: adaptive {100 * both[0]:.2f} %, largest alone {100 * both[1]:.2f} %")


def one_turn(run: Callable[[np.ndarray], object], parts: Sequence[np.ndarray]) -> float:
    """Ms a picture of one pass over batches, after a pause and a call as in `turns.turn`."""
    time.sleep(0.1)
    run(parts[0])
    start = time.perf_counter()
    for part in parts:
        run(part)
    return 1000 * (time.perf_counter() - start) / TIMED


@contextmanager
def torch_turns(arguments: argparse.Namespace, size: int) -> Iterator[dict[tuple[str, int], Turn]]:
    """The turns of PyTorch in a process of its own; none without it."""
    if arguments.torch is None:
        print("PyTorch is left out: --torch names a Python that has it")
        yield {}
        return
    script = Path(__file__).with_name("torch_times.py")
    command = [arguments.torch, str(script), arguments.network, ".", f"--size={size}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        writing, reading = process.stdin, process.stdout
        assert writing is not None and reading is not None
        versions = reading.readline().split()
        if not versions:
            raise SystemExit(f"{arguments.torch} cannot run {script.name}; its message is above")
        print(f"torch {versions[0]}, torchvision {versions[1]}, {arguments.network}")

        def ask(variant: str, batch: int) -> float:
            writing.write(f"{variant} {batch}\n")
            writing.flush()
            if not (answer := reading.readline()):
                raise SystemExit(f"{script.name} ended; its message is above")
            return float(answer) / batch

        yield {
            (program, batch): partial(ask, variant, batch)
            for variant, program in TORCH.items()
            for batch in BATCHES
        }


def start_seconds(directory: Path, file: Path) -> float:
    """From the start of Python to the answer for one picture, the best of five."""
    code = (
        "import sys; from drnet_runtime import AdaptiveModel; "
        "print(AdaptiveModel.load(sys.argv[1]).classify_files(sys.argv[2:])[0].label)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime")}
    command = [sys.executable, "-c", code, str(directory.resolve()), str(file.resolve())]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def report(times: Times, saved: float, start: float) -> int:
    """Prints the table and the last line; 1 where a goal is missed."""
    head = " | ".join(f"batch {batch}" for batch in BATCHES)
    print(f"| ms a picture: best (median) | {head} |")
    print("|---" * (1 + len(BATCHES)) + "|")
    for program in dict.fromkeys(program for program, _ in times):
        cells = [
            f"{min(times[program, batch]):.2f} ({statistics.median(times[program, batch]):.2f})"
            for batch in BATCHES
        ]
        print(f"| {program} | {' | '.join(cells)} |")

    def ratios(programs: Sequence[str], statistic: Callable[[list[float]], float]) -> list[float]:
        """Adaptive over the best of some programs, by batch size."""
        return [
            statistic(times[ADAPTIVE, b])
            / min(statistic(times[program, b]) for program in programs)
            for b in BATCHES
        ]

    best, typical = (
        [(1 - ratio) / saved for ratio in ratios(LARGEST, statistic)]
        for statistic in (min, statistics.median)
    )
    print(
        f"multiply-adds saved: {saved:.3f}; of that in time, by batch size: "
        + ", ".join(f"{b:.2f} (by medians {t:.2f})" for b, t in zip(best, typical, strict=True))
    )
    torch, met = "not run", True
    programs = list(TORCH.values())
    if (programs[0], BATCHES[0]) in times:
        worst = max(ratios(programs, min))
        torch = f"{worst:.2f} (goal <= {GOAL_TORCH}; by medians "
        torch += f"{max(ratios(programs, statistics.median)):.2f})"
        met = worst <= GOAL_TORCH
    print(
        f"share of the saving at batch {BATCHES[-1]}: {best[-1]:.2f} (goal >= {GOAL_SHARE}), at "
        f"batch 1: {best[0]:.2f} (goal >= {GOAL_SHARE_OF_ONE:g}); over PyTorch eager, the largest "
        f"of all batch sizes: {torch}; start to first answer: {start:.2f} s (goal < {GOAL_START:g})"
    )
    met = met and best[-1] >= GOAL_SHARE and best[0] >= GOAL_SHARE_OF_ONE and start < GOAL_START
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
