"""Predictions of 20,000 pictures by two workers of Ray, also with a worker and the driver killed.

python experiments/ray_predict.py WORKDIR FOLDER

WORKDIR: a finished run, of `configs/tiny.py`, say. Pictures and results go to FOLDER: JPEGs of the
embedded data, each image at twenty qualities, a thousandth of the files empty. Expected in all
cases are the tables of one process, byte for byte. A case that is finished is not run again;
`ray_predict.json` and `.md` beside this file have what was found. Needs the extra `ray`.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image

from drnet_jax.checkpoints.runs import stored_config
from drnet_jax.config import flatten
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.runtime.command_line import CommandLine, a_path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".json")
QUALITIES, EMPTY = range(76, 96), 1000
TABLES = ("predictions.csv", "unreadable.csv")
Case = Callable[[list[str], Path, int], dict[str, Any]]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir", type=a_path)
    parser.add_argument("folder", type=a_path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args(arguments)


def main() -> int:
    """Runs the cases that are left; 1 if a table is another one."""
    given = parse(sys.argv[1:])
    pictures = given.folder / "pictures"
    write_pictures(pictures, given.count)
    base = command(given.workdir, pictures)
    shared = [*base, f"--config.predict.workers={given.workers}"]
    cases: dict[str, tuple[list[str], Case]] = {
        "one process": (base, whole),
        f"{given.workers} workers": (shared, whole),
        "a worker killed": (shared, worker_killed),
        "the driver killed": (shared, driver_killed),
    }
    for name, (arguments, case) in cases.items():
        output = given.folder / name.replace(" ", "_")
        kept = output.with_suffix(".json")
        if not kept.exists():
            print(f"{name} ...", flush=True)
            shutil.rmtree(output, ignore_errors=True)
            found = case([*arguments, f"--config.predict.output={output}"], output, given.count)
            kept.write_text(json.dumps(found))
    found = {
        name: json.loads((given.folder / f"{name.replace(' ', '_')}.json").read_text())
        | rows_of(given.folder / name.replace(" ", "_"), given.folder / "one_process")
        for name in cases
    }
    write_results(found, given.count)
    return int(not all(case["same_tables"] for case in found.values()))


def write_pictures(folder: Path, count: int) -> None:
    """Each image at all qualities, in the order of their names; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    images = compose("test", -(-count // len(QUALITIES)))["image"]
    for number in range(count):
        path = folder / f"{number // 1000:02}" / f"{number:05}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(exist_ok=True)
        file = BytesIO()
        quality = QUALITIES[number % len(QUALITIES)]
        Image.fromarray(images[number // len(QUALITIES)]).save(file, "JPEG", quality=quality)
        path.write_bytes(b"" if number % EMPTY == EMPTY // 2 else file.getvalue())


def command(workdir: Path, pictures: Path) -> list[str]:
    """`--mode=predict` of a run as it was trained."""
    trained = flatten(stored_config(workdir))
    fields = {name: trained[name] for name in trained if name.startswith(("model.", "predictor."))}
    fields |= {"predict.input": pictures, "inference.measure": False, "predict.gallery": 0}
    fields |= {name: trained[name] for name in ("data.mean", "data.std", "stages")}
    return [
        *(sys.executable, str(ROOT / "main.py"), "--mode=predict", f"--workdir={workdir}"),
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def start(arguments: list[str], output: Path) -> subprocess.Popen[bytes]:
    """What it prints is beside its output."""
    # Ray's own would be that of a job which yields to all others.
    environment = os.environ | {"RAY_worker_niceness": "0", "JAX_PLATFORMS": "cpu"}
    with output.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)


def finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise RuntimeError(f"{process.args} ended with {process.returncode}: see its .log")


def whole(arguments: list[str], output: Path, count: int) -> dict[str, Any]:
    """Without a kill."""
    begin = time.monotonic()
    finish(start(arguments, output))
    return {"seconds": round(time.monotonic() - begin, 1)}


def worker_killed(arguments: list[str], output: Path, count: int) -> dict[str, Any]:
    """One of the workers, once a quarter of the rows is there."""
    begin = time.monotonic()
    process = start(arguments, output)
    rows = wait_for_rows(process, output, count // 4)
    victim = next(pid for pid in below(process.pid) if b"MapWorker" in name_of(pid))
    os.kill(victim, signal.SIGKILL)
    finish(process)
    return {"seconds": round(time.monotonic() - begin, 1), "rows_at_the_kill": rows}


def driver_killed(arguments: list[str], output: Path, count: int) -> dict[str, Any]:
    """And the same command once more, which goes on."""
    begin = time.monotonic()
    process = start(arguments, output)
    rows = wait_for_rows(process, output, count // 4)
    left = below(process.pid)
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() and name_of(pid) for pid in left):
        time.sleep(0.2)
    ended = time.monotonic()
    before = (output / TABLES[0]).read_bytes()
    finish(start(arguments, output))
    assert (output / TABLES[0]).read_bytes().startswith(before)
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "rows_at_the_kill": rows,
        "seconds_to_go_on": round(time.monotonic() - ended, 1),
    }


def wait_for_rows(process: subprocess.Popen[bytes], output: Path, rows: int) -> int:
    """How many there are, once there are as many as `rows`."""
    path = output / TABLES[0]
    while process.poll() is None:
        found = path.read_bytes().count(b"\n") - 1 if path.exists() else 0
        if found >= rows:
            return found
        time.sleep(0.1)
    raise RuntimeError(f"it ended before {rows} rows: see {output.with_suffix('.log')}")


def below(pid: int) -> list[int]:
    """All processes that a process has started, and theirs."""
    try:
        threads = [*Path(f"/proc/{pid}/task").iterdir()]
        own = [int(child) for t in threads for child in (t / "children").read_text().split()]
    except OSError:
        return []
    return [*own, *(further for child in own for further in below(child))]


def name_of(pid: int) -> bytes:
    """Its command line; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def rows_of(output: Path, expected: Path) -> dict[str, Any]:
    """How many files are answered, how many of them twice, and whether the tables are the same."""
    tables = [(output / name).read_bytes() for name in TABLES]
    files = [line.split(b",")[0] for table in tables for line in table.splitlines()[1:]]
    return {
        "files": len(files),
        "twice": len(files) - len(set(files)),
        "same_tables": tables == [(expected / name).read_bytes() for name in TABLES],
    }


def write_results(found: dict[str, dict[str, Any]], count: int) -> None:
    """The figures, as JSON and as a table."""
    import jax
    import ray

    versions = f"Python {platform.python_version()}, jax {jax.__version__}, ray {ray.__version__}"
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {versions}"
    RESULTS.write_text(
        json.dumps({"count": count, "machine": machine, "cases": found}, indent=2) + "\n"
    )
    lines = [
        "# Predictions by workers of Ray",
        "",
        f"`python experiments/ray_predict.py WORKDIR FOLDER`: {count} files, {machine}.",
        "",
        "| | rows at the kill | files answered | twice | tables of one process | s |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {case.get('rows_at_the_kill', '')} | {case['files']} | {case['twice']} | "
            f"{'byte for byte' if case['same_tables'] else '**others**'} | {case['seconds']} |"
            for name, case in found.items()
        ),
    ]
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
