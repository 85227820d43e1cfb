"""What a GPU gives, in one command of bounded time: adaptive inference, XLA's flags, training.

python benchmarks/gpu.py --out FOLDER [--seconds 540] [--imagenette PATH]

In this order, each in a process of its own, the cheapest and most telling first (`gpu_plan.py`):

* ResNet-50 in bfloat16 at 224/112 px with a first look: `FusedClassifier` beside the largest size
  alone, at batches 256 and 1 (`fused.py`);
* the joint training step, with and without input (`throughput.py`);
* the first of these with a set of XLA's flags;
* the same at 224/168/112 px with the paper's predictor, without flags;
* training at each size alone, other flags, the fused program beside its parts, the demo
  (`main.py`), the other batches from 8 to 1,024, exact dispatch, and input by processes;
* Imagenette at 224/160/96 px, from a folder of its classes.

On a CPU the same runs with tiny networks. Every figure is added to FOLDER/rows.jsonl at once; runs
and compiled programs stay in FOLDER too. What is left when the time is over is named, and the same
command goes on with it: give a new FOLDER once the code is another. What failed or took too long
comes after the others then. Flags in `XLA_FLAGS` are kept, and come after those that are tried. The
last line has the figures that there are goals for; the status is 1 if one is missed on a GPU, or a
process failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu_goals import in_words, judge
from benchmarks.gpu_plan import FULL, TINY, TRAINED, Job, plan
from benchmarks.rows import Row, append_row, read_rows
from drnet_jax.data.files import list_pictures
from drnet_jax.data.folder import Folder
from drnet_jax.data.sources import DataError
from drnet_jax.runtime.command_line import CommandLine, a_path

ROOT = Path(__file__).parents[1]
# In a process of its own: a GPU has memory for one only.
PROBE = """
import json, os, jax
device = jax.devices()[0]
found = {"platform": device.platform, "device": device.device_kind, "jax": jax.__version__}
print(json.dumps(found | {"xla_flags": os.environ.get("XLA_FLAGS", "")}))
"""
# Of Imagenette.
CLASSES = 10
# Seconds for a process to end once it is asked to, and below which none is started.
GRACE, LEAST = 10.0, 15.0


class Left(NamedTuple):
    """Units of a job that have no figure, and why."""

    job: str
    units: tuple[str, ...]
    reason: str
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.job} {' '.join(self.units)} ({self.reason})"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=a_path, required=True, help="a folder for all that comes of it"
    )
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything")
    parser.add_argument("--imagenette", type=a_path, help="a folder of its classes; else not run")
    return parser.parse_args(arguments)


def main() -> int:
    start = time.monotonic()
    arguments = parse(sys.argv[1:])
    # Else the process that runs would go on without this one.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder = arguments.out.resolve()
    imagenette = arguments.imagenette and arguments.imagenette.resolve()
    try:
        if imagenette:
            check_imagenette(imagenette)
        folder.mkdir(parents=True, exist_ok=True)
        setting = probe(folder)
        gpu = setting["platform"] == "gpu"
        jobs = plan(FULL if gpu else TINY, imagenette)
        print(f"{setting['device']}, jax {setting['jax']}, {os.cpu_count()} cores: {folder}")
        left = run(jobs, folder, start + arguments.seconds)
        rows = read_rows(folder / "rows.jsonl")
    except (ValueError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for part in left:
        print(f"left out: {part}")
    if left:
        print("the same command again goes on with what was left out")
    goals = judge(rows)
    failed = any(part.failed for part in left)
    if not gpu:
        print(f"tiny networks on a CPU, without goals: {'; '.join(goal.text for goal in goals)}")
        return int(failed)
    print("; ".join(in_words(goal) for goal in goals))
    return int(failed or any(goal.missed for goal in goals))


def check_imagenette(root: Path) -> None:
    """Stops for a folder that its training would stop for, which comes last.

    Raises:
      ValueError: it is no folder of ten classes with pictures.
    """
    if not root.is_dir():
        raise ValueError(f"--imagenette: {root} is no folder")
    try:
        classes = Folder(root).classes
    except DataError as error:
        raise ValueError(f"--imagenette: {error}") from error
    if len(classes) != CLASSES:
        raise ValueError(f"--imagenette: {root} has {len(classes)} classes, Imagenette {CLASSES}")
    # `read_split` may print, which starts JAX: that takes the memory of the GPU.
    found = {Path(picture.name).parent.name for picture in list_pictures(root).pictures}
    if empty := [name for name in classes if name not in found]:
        raise ValueError(f"--imagenette: {root} has no picture of {', '.join(empty)}")


def probe(folder: Path) -> Mapping[str, Any]:
    """Platform, device, version of JAX and the user's flags, which a folder has figures of one of.

    Raises:
      SubprocessError: JAX does not start.
      ValueError: the folder has figures of another device, version or flags.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE], stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    setting: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    path = folder / "setting.json"
    if path.exists() and (before := json.loads(path.read_text())) != setting:
        raise ValueError(f"{folder} has figures of {before}, this is {setting}: give another --out")
    path.write_text(json.dumps(setting) + "\n")
    return setting


def run(jobs: Sequence[Job], folder: Path, deadline: float) -> list[Left]:
    """Runs what has no figure yet, one process after another; what is left without one.

    Args:
      jobs: in their order.
      folder: of `rows.jsonl`, which they add to.
      deadline: of `time.monotonic()`, after which none runs any more.
    """
    left = []
    path, stopped = folder / "rows.jsonl", folder / "stopped.jsonl"
    for job in jobs:
        units = missing(job, read_rows(path), read_rows(stopped))
        if not units:
            print(f"== {job.name} {' '.join(job.units)}: is in {path.name}", flush=True)
            continue
        seconds = min(job.limit, deadline - time.monotonic() - GRACE)
        if seconds < LEAST:
            left.append(Left(job.name, units, "no time was left"))
            continue
        print(f"== {job.name} {' '.join(units)}, at most {seconds:.0f} s", flush=True)
        start = time.monotonic()
        resumed = (folder / job.name).exists()
        code = _wait(command(job, units, folder), environment(job, folder), seconds)
        if job.is_program and code == 0:
            # The time of a resumed run says nothing.
            took = None if resumed else time.monotonic() - start
            append_row(path, trained_row(job, folder, took))
        done = {row["unit"] for row in read_rows(path) if row["job"] == job.name}
        if units := tuple(unit for unit in units if unit not in done):
            reason = f"ended after {seconds:.0f} s" if code is None else f"status {code}"
            left.append(Left(job.name, units, reason, failed=code is not None))
            append_row(stopped, {"job": job.name, "unit": units[0]})
    return left


def missing(job: Job, rows: Sequence[Row], stopped: Sequence[Row]) -> tuple[str, ...]:
    """Units of a job that no row has; those that a process was stopped in come last."""
    found = {row["unit"] for row in rows if row["job"] == job.name}
    times = Counter(row["unit"] for row in stopped if row["job"] == job.name)
    return tuple(sorted((unit for unit in job.units if unit not in found), key=times.__getitem__))


def command(job: Job, units: Sequence[str], folder: Path) -> list[str]:
    """How to run units of a job."""
    start = [sys.executable, *job.command]
    if job.is_program:
        return [*start, f"--workdir={folder / job.name}"]
    rows = ["--rows", str(folder / "rows.jsonl"), "--job", job.name]
    return [*start, job.option, *units, *rows]


def environment(job: Job, folder: Path) -> dict[str, str]:
    """Of a job's process: XLA takes the last of equal flags, so that the user's count."""
    found = dict(os.environ)
    flags = f"{job.xla_flags} {found.get('XLA_FLAGS', '')}".strip()
    if flags:
        found["XLA_FLAGS"] = flags
    found.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    return found


def trained_row(job: Job, folder: Path, seconds: float | None) -> Row:
    """Of a run of the program that has come to its end."""
    summary = json.loads((folder / job.name / "eval.json").read_text())
    kept = ("top1", "gmacs", "fixed", "resolutions", "shares")
    figures = {name: summary[name] for name in kept}
    return {"job": job.name, "unit": TRAINED, "seconds": seconds, **figures}


def _wait(words: Sequence[str], variables: Mapping[str, str], seconds: float) -> int | None:
    """The status of a process; None: it was ended after these seconds."""
    process = subprocess.Popen(words, cwd=ROOT, env=variables)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


if __name__ == "__main__":
    sys.exit(main())
