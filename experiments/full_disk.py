"""A disk that is really full, a tmpfs: one line, nothing lost, and the same command goes on.

python experiments/full_disk.py

On Linux, as root or where user namespaces may mount a tmpfs. The tiny run of `fault_runs.py` has
its workdir there. The disk becomes full while a training logs, while it saves a checkpoint, and
before an evaluation, a prediction or an export has room for what it writes: its outputs
(`logits.npz`), its report, its tables or its files. Expected each time: status 2 and one line that
names the file; every file that was whole before is as it was, and nothing half is left. With room
again, the same command has to end as a run on a larger disk: to the bit, see `kill_anywhere.py`.
Results: `full_disk.md` and `full_disk.json` beside this file.
"""

import argparse
import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from drnet_jax.checkpoints.checkpoint import steps
from drnet_jax.checkpoints.checksums import find_damage
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.data.encode import encode
from drnet_jax.runtime.command_line import CommandLine, a_path
from experiments.fault_runs import (
    ROOT,
    STAGES,
    command,
    differences,
    digests,
    environment,
    last_line,
    make_reference,
    run,
    workdir_like,
)

SIZE = 48 << 20
PAGE = 4096
NUM_PREDICTED = 150
_SECONDS = 3600.0


@dataclass(frozen=True)
class Case:
    """What the disk has no room for.

    Attributes:
      what: in words.
      mode: of the program.
      names: the file or folder in the error.
      room: bytes that are left at the start, given the reference; None: all, until `when`.
      when: the disk becomes full once this is there, in the workdir.
      fields: of the program.
      said: what else the program has to say.
    """

    what: str
    mode: str
    names: str
    room: Callable[[Path], int] | None = None
    when: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    said: str = ""


CASES = (
    Case("the log of a training", "train", "metrics.jsonl", when="pretrain"),
    # Without a line of the log before the next checkpoint.
    Case("a checkpoint", "train", "pretrain", when="pretrain/3", fields={"log.every_steps": 1000}),
    # What is checked at the start has room.
    Case(
        "logits.npz, then eval.json",
        *("eval", "eval.json", lambda _: 2 * PAGE),
        said="logits.npz is not written, the next time they are computed anew",
    ),
    Case("report.html", "eval", "report.html", when="eval.json"),
    Case(
        "the tables of a prediction",
        *("predict", "predictions.csv"),
        when="predictions/pictures/predict.json",
    ),
    Case(
        "an export",
        *("export", "export", lambda reference: _bytes(reference / "export") // 2),
    ),
)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=a_path, default=ROOT / "runs" / "full_disk")
    parser.add_argument("--results", type=a_path, default=Path(__file__).parent)
    return parser.parse_args(arguments)


def main() -> int:
    """Fills the disk in every case that is left; 1 if one is not as expected."""
    given = parse(sys.argv[1:])
    if os.geteuid():
        # A namespace of its own may mount.
        os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv])
    given.dir.mkdir(parents=True, exist_ok=True)
    reference, path = given.dir / "reference", given.dir / "records.jsonl"
    make_reference(reference)
    predict(reference, given.dir / "pictures")
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    records = {record["what"]: record for record in map(json.loads, lines)}
    for case in CASES:
        if case.what in records:
            continue
        with mounted(given.dir / "disk") as disk:
            record = {"what": case.what} | attempt(case, reference, disk, given.dir / "pictures")
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        records[case.what] = record
        print(f"{case.what}: {record['line']} -> {record['problems'] or 'as expected'}", flush=True)
    found = [records[case.what] for case in CASES]
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    summary: dict[str, Any] = {
        "command": "python experiments/full_disk.py",
        "disk": f"tmpfs of {SIZE >> 20} MiB",
    }
    summary |= {"versions": versions, "cases": found}
    (given.results / "full_disk.json").write_text(json.dumps(summary, indent=2) + "\n")
    (given.results / "full_disk.md").write_text(markdown(summary))
    print(headline(found))
    return int(any(record["problems"] for record in found))


def predict(reference: Path, pictures: Path) -> None:
    """Writes pictures, and predicts them without a fault, unless that is done already."""
    if (reference / "predictions").exists():
        return
    pictures.mkdir(exist_ok=True)
    for number, image in enumerate(compose("test", NUM_PREDICTED)["image"]):
        (pictures / f"{number:03}.png").write_bytes(encode(image, "PNG"))
    done = run(reference, "predict", **{"predict.input": pictures})
    if done.returncode:
        raise RuntimeError(f"predict ends with {done.returncode}: {done.stderr}")


@contextmanager
def mounted(place: Path) -> Iterator[Path]:
    """A small file system, empty."""
    place.mkdir(exist_ok=True)
    if place.is_mount():
        # Of an experiment that was killed.
        subprocess.run(["umount", str(place)], check=True)
    options = f"size={SIZE}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def attempt(case: Case, reference: Path, disk: Path, pictures: Path) -> dict[str, Any]:
    """Runs a command out of room, and again with room."""
    workdir = workdir_like(reference, disk / "run", case.mode)
    if case.mode == "predict":
        shutil.rmtree(workdir / "predictions")
    further = {"predict.input": pictures} if case.mode == "predict" else {}
    arguments = command(workdir, case.mode, **further, **case.fields)
    before = digests(workdir)
    filler = disk / "filler"
    if case.room is not None:
        fill(filler, case.room(reference))
    status, said, errors = _run_until_full(arguments, filler, workdir / case.when, case)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    line = lines[0].replace(f"{disk}/", "") if lines else last_line(errors)
    problems = _problems(case, status, said, errors, lines)
    problems += _harmed(workdir, before)
    filler.unlink(missing_ok=True)
    again = run(workdir, case.mode, **further, **case.fields)
    if again.returncode:
        problems.append(f"again: {again.returncode}: {last_line(again.stderr)}")
    problems += _different(case, workdir, reference)
    return {"status": status, "line": line, "problems": problems}


def fill(filler: Path, room: int) -> None:
    """Takes all but so many bytes of a disk, which a program may be writing to."""
    while True:
        found = os.statvfs(filler.parent)
        with filler.open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - room)
                return
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def _run_until_full(
    arguments: Sequence[str], filler: Path, awaited: Path, case: Case
) -> tuple[int, str, str]:
    """Status, stdout and stderr of a program whose disk becomes full, unless it is from the start.

    What it says goes to files elsewhere: a pipe that nobody reads would stop it.
    """
    logs = [filler.parents[1] / f"{name}.log" for name in ("stdout", "stderr")]
    with logs[0].open("w") as out, logs[1].open("w") as errors:
        process = subprocess.Popen(arguments, env=environment(), stdout=out, stderr=errors)
        deadline = time.monotonic() + _SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if case.when and awaited.exists() and not filler.exists():
                fill(filler, 0)
            time.sleep(0.0005)
        process.kill()
        status = process.wait()
    return status, logs[0].read_text(), logs[1].read_text()


def _problems(case: Case, status: int, said: str, errors: str, lines: Sequence[str]) -> list[str]:
    problems = [] if status == 2 else [f"status {status}"]
    if len(lines) != 1 or "Traceback" in errors:
        problems.append(f"not one line: {errors}")
    elif case.names not in lines[0] or "No space left on device" not in lines[0]:
        problems.append(f"the line does not name {case.names}: {lines[0]}")
    if case.said not in said:
        problems.append(f"it does not say: {case.said}")
    return problems


def _harmed(workdir: Path, before: dict[str, str]) -> list[str]:
    """Files that were changed, or are left half, and checkpoints that are not whole."""
    now = digests(workdir)
    # A training describes itself and goes on with its log.
    changed = [n for n in before if before[n] != now.get(n) and not n.startswith("cache/")]
    problems = [f"{name} was changed" for name in changed]
    problems += [f"{name} is left" for name in now if Path(name).name.endswith(".tmp")]
    for stage in STAGES:
        for step in steps(workdir / stage):
            damage = find_damage(workdir / stage / str(step))
            problems += [damage] if damage else []
    return problems


def _different(case: Case, workdir: Path, reference: Path) -> list[str]:
    if case.mode != "predict":
        return differences(workdir, reference, case.mode, otherwise=case.fields)
    found, wanted = (digests(folder / "predictions") for folder in (workdir, reference))
    # The page says when and with which command it was made.
    names = [name for name in found | wanted if name.endswith((".csv", ".jsonl"))]
    return [f"{name} differs" for name in names if found.get(name) != wanted.get(name)]


def headline(records: Sequence[dict[str, Any]]) -> str:
    good = sum(not record["problems"] for record in records)
    return f"{good} of {len(records)}"


def markdown(summary: dict[str, Any]) -> str:
    """The table."""
    listed = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines = [f"`{summary['command']}` ({summary['disk']}; {listed}, CPU)\n"]
    lines += ["| no room for | status | what is said | with room again |", "|---|---|---|---|"]
    for record in summary["cases"]:
        end = "; ".join(record["problems"]) or "the same to the bit"
        lines.append(f"| {record['what']} | {record['status']} | {record['line']} | {end} |")
    lines.append(f"\nAs expected:\n\n{headline(summary['cases'])}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
