"""`kill -9` at 20 random points of a run, then the same command again: is the end the same?

python experiments/kill_anywhere.py

A tiny run of two stages, on the CPU. Killed: trainings at a random step of each stage; while a
checkpoint is written (its temporary folder is there, and still there when the process has ended);
evaluations and exports at a random moment of the time that they take. The same command then has to
end as a run that nothing interrupted: the final parameters, statistics and optimiser state of both
stages bit for bit, every logged loss, every figure of `eval.json`, every byte of an export. An
export that was killed is complete, or not there. Two trainings get SIGTERM instead, which has to
end with the status that says "the same command resumes" (75), with the step saved.

Records go to `--dir`, from which an interrupted experiment goes on. Results:
`kill_anywhere.md` and `kill_anywhere.json` beside this file.
"""

import argparse
import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from drnet_jax.runtime.command_line import INTERRUPTED, CommandLine, a_path
from experiments.fault_runs import (
    NUM_STEPS,
    ROOT,
    SAVED,
    STAGES,
    command,
    differences,
    environment,
    last_line,
    make_reference,
    run,
    workdir_like,
)

SEED = 0
# How many of each; in the last line the first four.
COUNTS = {"training": 7, "checkpoint": 5, "evaluation": 4, "export": 4, "SIGTERM": 2}
MODES = {"evaluation": "eval", "export": "export"}
# A checkpoint of this size is written in some milliseconds: it takes a few tries to hit one.
_TRIES = 20
# Seconds: about what the next step takes, or a checkpoint.
_WITHIN = 0.2
_SECONDS = 3600.0


@dataclass(frozen=True)
class Point:
    """Where a run is killed.

    Attributes:
      index: of all.
      what: is killed.
      stage: of a training.
      step: of that, after which it is killed, or the checkpoint of which is written.
      fraction: of the time to the next step, or of what an evaluation or export takes.
    """

    index: int
    what: str
    stage: str = ""
    step: int = 0
    fraction: float = 0.0

    @property
    def mode(self) -> str:
        """Of the program."""
        return MODES.get(self.what, "train")


def draw(seed: int) -> list[Point]:
    """The points, which depend on nothing but the seed."""
    rng = np.random.default_rng(seed)
    points: list[Point] = []
    for what, count in COUNTS.items():
        for number in range(count):
            # Each stage in turn, so that both get their share.
            stage = "" if what in MODES else STAGES[number % 2]
            steps = SAVED if what == "checkpoint" else range(1, NUM_STEPS)
            step = int(rng.choice(steps)) if stage else 0
            # Before a quarter of it Python and JAX start.
            fraction = float(rng.uniform(0.25 if what in MODES else 0.0, 1.0))
            points.append(Point(len(points), what, stage, step, fraction))
    return points


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=a_path, default=ROOT / "runs" / "kill_anywhere")
    parser.add_argument("--results", type=a_path, default=Path(__file__).parent)
    return parser.parse_args(arguments)


def main() -> int:
    """Runs what is left of the points; 1 if one of them did not come to the same end."""
    given = parse(sys.argv[1:])
    given.dir.mkdir(parents=True, exist_ok=True)
    reference, path = given.dir / "reference", given.dir / "records.jsonl"
    make_reference(reference)
    seconds = _durations(reference, given.dir)
    records = {record["index"]: record for record in map(json.loads, _lines(path))}
    for point in draw(SEED):
        if point.index in records:
            continue
        record = attempt(point, reference, given.dir / "try", seconds)
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        records[point.index] = record
        print(f"{_place(record)}: {record['left']} -> {_end(record)}", flush=True)
    found = [records[index] for index in sorted(records)]
    summary = {
        "command": "python experiments/kill_anywhere.py",
        "seed": SEED,
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "tries": found,
    }
    (given.results / "kill_anywhere.json").write_text(json.dumps(summary, indent=2) + "\n")
    (given.results / "kill_anywhere.md").write_text(markdown(summary))
    print(_headline(found))
    return int(any(record["problems"] for record in found))


def _lines(path: Path) -> list[str]:
    """Of a file that may not be there; one that was cut off has no line end."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def _durations(reference: Path, folder: Path) -> dict[str, float]:
    """Seconds that evaluation and export take, from their start to their end, without a fault."""
    path = folder / "seconds.json"
    if not path.exists():
        found = {}
        for what, mode in MODES.items():
            workdir = workdir_like(reference, folder / "timed", mode)
            start = time.perf_counter()
            done = run(workdir, mode)
            found[what] = time.perf_counter() - start
            problems = differences(workdir, reference, mode)
            if done.returncode or problems:
                raise RuntimeError(f"without a fault: {done.stderr}{problems}")
        path.write_text(json.dumps(found) + "\n")
    content: dict[str, float] = json.loads(path.read_text())
    return content


def attempt(
    point: Point, reference: Path, workdir: Path, seconds: dict[str, float]
) -> dict[str, Any]:
    """Interrupts a run at a point, runs the same command again, and compares the end."""
    code = tries = 0
    hit = False
    while not hit and tries < _TRIES:
        tries += 1
        workdir_like(reference, workdir, point.mode)
        ready = _readiness(point, workdir, seconds)
        code = _interrupt(command(workdir, point.mode), ready, point.what)
        hit = _is_written(workdir, point) if point.what == "checkpoint" else code != 0
        # It was over already: the machine had other work when its time was taken.
        point = point if hit else replace(point, fraction=0.8 * point.fraction)
    left, problems = _left(point, workdir), []
    if not hit:
        problems.append(f"it was not hit in {tries} tries")
    wanted = INTERRUPTED if point.what == "SIGTERM" else -signal.SIGKILL
    if code != wanted:
        problems.append(f"it ended with {code}, not {wanted}")
    complete = (workdir / "export").exists()
    # What is complete is not written again.
    if not complete:
        again = run(workdir, point.mode)
        if again.returncode:
            problems.append(f"again: {again.returncode}: {last_line(again.stderr)}")
    problems += differences(workdir, reference, point.mode)
    facts = {"tries": tries, "status": code, "left": left, "problems": problems}
    return asdict(point) | facts


def _interrupt(arguments: Sequence[str], ready: Callable[[], bool], what: str) -> int:
    """Starts a program and sends it a signal as soon as it is ready for that; its status."""
    process = subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + _SECONDS
    while process.poll() is None and not ready() and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGTERM if what == "SIGTERM" else signal.SIGKILL)
    return process.wait()


def _readiness(point: Point, workdir: Path, seconds: dict[str, float]) -> Callable[[], bool]:
    """What says whether a point is reached."""
    start = time.perf_counter()
    if point.what in MODES:
        return lambda: time.perf_counter() - start > point.fraction * seconds[point.what]
    is_there = _is_written if point.what == "checkpoint" else _is_logged
    reached: list[float] = []

    def is_reached() -> bool:
        """After the step is logged, or its checkpoint is begun, and some time of what follows."""
        if not reached and is_there(workdir, point):
            reached.append(time.perf_counter())
        return bool(reached) and time.perf_counter() - reached[0] > _WITHIN * point.fraction

    return is_reached


def _is_logged(workdir: Path, point: Point) -> bool:
    lines = map(json.loads, _lines(workdir / "metrics.jsonl"))
    return (point.stage, point.step) in [(x["stage"], x["step"]) for x in lines if "loss" in x]


def _is_written(workdir: Path, point: Point) -> bool:
    """Whether the temporary folder of a checkpoint is there."""
    return any((workdir / point.stage).glob(f"{point.step}.orbax-checkpoint-tmp*"))


def _left(point: Point, workdir: Path) -> str:
    """What an interrupted run left, in words."""
    if point.mode == "train":
        saved = {
            stage: sorted(int(p.name) for p in (workdir / stage).glob("*") if p.name.isdigit())
            for stage in STAGES
        }
        words = [f"{stage} {steps[-1]}" for stage, steps in saved.items() if steps]
        half = " and half of the next" if _is_written(workdir, point) else ""
        return f"{', '.join(words) or 'no checkpoint'}{half}"
    if point.what == "export":
        if (workdir / "export").exists():
            return "a complete export"
        return "a hidden folder" if any(workdir.glob(".export.*.tmp")) else "nothing"
    names = ("logits.npz", "eval.json", "report.html")
    return ", ".join(name for name in names if (workdir / name).exists()) or "nothing"


def _place(record: dict[str, Any]) -> str:
    """In words."""
    if record["what"] in MODES:
        return f"{record['what']}, at {100 * record['fraction']:.0f} % of its time"
    if record["what"] == "checkpoint":
        return f"checkpoint {record['step']} of {record['stage']}"
    signal_name = " (SIGTERM)" if record["what"] == "SIGTERM" else ""
    return f"after step {record['step']} of {record['stage']}{signal_name}"


def _end(record: dict[str, Any]) -> str:
    return "; ".join(record["problems"]) or "the same to the bit"


def _headline(records: Sequence[dict[str, Any]]) -> str:
    killed = [record for record in records if record["what"] != "SIGTERM"]
    good = sum(not record["problems"] for record in killed)
    return f"{good} of {len(killed)}"


def markdown(summary: dict[str, Any]) -> str:
    """The table."""
    listed = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines = [f"`{summary['command']}` (seed {summary['seed']}; {listed}, CPU)\n"]
    lines += [
        "| interrupted | status | what was left | the same command again |",
        "|---|---|---|---|",
    ]
    for record in summary["tries"]:
        cells = [_place(record), str(record["status"]), record["left"], _end(record)]
        lines.append(f"| {' | '.join(cells)} |")
    stopped = [record for record in summary["tries"] if record["what"] == "SIGTERM"]
    good = sum(not record["problems"] for record in stopped)
    lines.append(f"\nSIGTERM: {good} of {len(stopped)} saved, ended with 75 and resumed.")
    lines.append(f"\n`kill -9`, resumed bit for bit:\n\n{_headline(summary['tries'])}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
