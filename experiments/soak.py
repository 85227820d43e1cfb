"""Training and evaluation for hours in one process: do memory, file handles or throughput drift?

python experiments/soak.py --hours=2

Rounds of a whole run, both stages and the evaluation with its page, on pictures in files, one after
the other. Every `--interval` seconds memory, open files and threads are noted, and after every
round its images a second and a second of the processors; what other programs leave of the machine
changes the former alone. Records go to `records.jsonl` in `--workdir` as they come.

At the end, or when it is interrupted, a line is fitted to each figure after the warm-up, a tenth of
the time. It is flat if it changes by less than `LIMIT` an hour in the bad direction. `soak.json`,
`soak.md` and `soak.png` go to `--output`. A soak cannot be resumed: it starts anew.
"""

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image
from scipy.stats import linregress

sys.path.insert(0, str(Path(__file__).parents[1]))

from drnet_jax.runtime.command_line import CommandLine, a_path
from tests.small_run import small_config

ROOT = Path(__file__).parents[1]
# Of the mean, an hour.
LIMIT = 0.02
WARM_UP = 0.1
# Figures by what is recorded: unit, and the direction that is bad.
FIGURES = {
    "memory": ("MiB", 1),
    "open files": ("", 1),
    "threads": ("", 1),
    "images per second": ("", -1),
    "images per CPU-second": ("", -1),
}
# Whose slope depends on what else the machine does.
_BESIDE = ("images per second",)
_CLASSES, _EACH, _SIDE, _EPOCHS = 4, 100, 64, 3


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, default=2.0, help="default: %(default)s")
    parser.add_argument("--interval", type=float, default=30.0, help="seconds (%(default)s)")
    parser.add_argument("--workdir", type=a_path, default=ROOT / "runs" / "soak")
    parser.add_argument("--output", type=a_path, default=ROOT / "experiments")
    return parser.parse_args(arguments)


def main() -> int:
    """1 if a figure is not flat."""
    given = parse(sys.argv[1:])
    shutil.rmtree(given.workdir, ignore_errors=True)
    write_pictures(given.workdir / "pictures")
    path = given.workdir / "records.jsonl"
    with path.open("w") as file:
        try:
            soak(given.workdir, file, given.hours * 3600, given.interval)
        except KeyboardInterrupt:
            print("interrupted: what is there is summarised")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    summary = summarise(records)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "soak.json").write_text(json.dumps(summary, indent=1) + "\n")
    (given.output / "soak.md").write_text(markdown(summary))
    plot(records).savefig(given.output / "soak.png", dpi=80)
    print(headline(summary))
    return int(not summary["flat"])


def write_pictures(folder: Path) -> None:
    """Classes of noise around a colour of their own."""
    rng = np.random.default_rng(0)
    for label in range(_CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
        colour = rng.integers(256, size=3)
        for number in range(_EACH):
            noise = rng.integers(-60, 60, (_SIDE, _SIDE, 3))
            pixels = (colour + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number}.png")


def configuration(pictures: Path) -> ConfigDict:
    """Of a round."""
    return small_config(
        **{"data.name": "folder", "data.dir": str(pictures), "data.train_images": 0},
        **{"data.eval_images": 0, "data.num_workers": 0, "log.tensorboard": True},
        **{"pretrain.num_epochs": _EPOCHS, "joint.num_epochs": _EPOCHS, "log.every_steps": 20},
    )


def soak(workdir: Path, file: TextIO, seconds: float, interval: float) -> None:
    """Rounds until the time is over; the last one comes to its end."""
    # Imported late: --help answers sooner.
    from absl import flags

    from drnet_jax.train import train_and_evaluate

    # Grain reads flags of absl.
    flags.FLAGS.mark_as_parsed()
    start, over = time.perf_counter(), threading.Event()

    def note(kind: str, **figures: float) -> None:
        record = {"kind": kind, "seconds": round(time.perf_counter() - start, 2), **figures}
        file.write(json.dumps(record) + "\n")
        file.flush()

    def watch() -> None:
        while not over.wait(interval):
            note("sample", **process_figures())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        while time.perf_counter() - start < seconds:
            begun, used = time.perf_counter(), time.process_time()
            config = configuration(workdir / "pictures")
            train_and_evaluate(config, workdir / "run")
            images = images_of(config, workdir / "run")
            shutil.rmtree(workdir / "run")
            note(
                "round",
                **{"images per second": images / (time.perf_counter() - begun)},
                **{"images per CPU-second": images / (time.process_time() - used)},
            )
    finally:
        over.set()
        watcher.join()


def process_figures() -> dict[str, float]:
    """What this process holds (Linux)."""
    status = Path("/proc/self/status").read_text()
    return {
        "memory": int(status.split("VmRSS:")[1].split()[0]) / 1024,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": int(status.split("Threads:")[1].split()[0]),
    }


def images_of(config: ConfigDict, run: Path) -> int:
    """Images that were trained with and evaluated."""
    # Checkpoints are named by their steps.
    steps = {
        stage: max(int(path.name) for path in (run / stage).iterdir()) for stage in config.stages
    }
    trained = sum(count * config[stage].batch_size for stage, count in steps.items())
    return trained + json.loads((run / "eval.json").read_text())["num_images"]


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By figure its mean after the warm-up and its change an hour."""
    seconds = max(record["seconds"] for record in records)
    figures = {}
    for name, (unit, bad) in FIGURES.items():
        points = [(r["seconds"], r[name]) for r in records if name in r]
        later = [(t, value) for t, value in points if t >= WARM_UP * seconds]
        if len(later) < 3:
            continue
        times, values = np.array(later).T
        fit = linregress(times / 3600, values)
        change = float(fit.slope / values.mean())
        figures[name] = {
            "unit": unit,
            "points": len(later),
            "mean": float(values.mean()),
            "change_per_hour": change,
            # Of values that are all the same there is none.
            "standard_error": float(np.nan_to_num(fit.stderr / values.mean())),
            "flat": bool(bad * change < LIMIT),
        }
    judged = [found["flat"] for name, found in figures.items() if name not in _BESIDE]
    return {
        "hours": seconds / 3600,
        "rounds": sum(record["kind"] == "round" for record in records),
        "limit": LIMIT,
        "figures": figures,
        "flat": bool(judged) and all(judged),
    }


def headline(summary: Mapping[str, Any]) -> str:
    """One line."""
    verdict = "flat" if summary["flat"] else "not flat"
    changes = ", ".join(
        f"{name} {found['change_per_hour']:+.2%} an hour"
        for name, found in summary["figures"].items()
    )
    return f"{summary['rounds']} rounds in {summary['hours']:.2f} hours: {verdict} ({changes})"


def markdown(summary: Mapping[str, Any]) -> str:
    """The table."""
    lines = [
        "`python experiments/soak.py`, which says how it is judged\n",
        headline(summary),
        "\n| figure | mean | change an hour | standard error | flat |\n|---|---:|---:|---:|---|",
    ]
    for name, found in summary["figures"].items():
        flat = "yes" if found["flat"] else "no"
        note = " (not judged)" if name in _BESIDE else ""
        lines.append(
            f"| {name} | {found['mean']:.1f} {found['unit']} | {found['change_per_hour']:+.2%} | "
            f"{found['standard_error']:.2%} | {flat}{note} |"
        )
    return "\n".join(lines) + "\n"


def plot(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Every figure over time."""
    figure = Figure((6, 7), layout="constrained")
    for axes, (name, (unit, _)) in zip(
        figure.subplots(len(FIGURES), sharex=True), FIGURES.items(), strict=True
    ):
        points = [(r["seconds"] / 3600, r[name]) for r in records if name in r]
        axes.plot(*zip(*points, strict=True) if points else ([], []), ".-", markersize=3)
        axes.set_ylim(bottom=0)
        axes.set_title(f"{name} ({unit})" if unit else name, fontsize=9)
    axes.set_xlabel("hours")
    return figure


if __name__ == "__main__":
    sys.exit(main())
