"""Thousands of damaged pictures of ten formats through the decoder of training and prediction.

python experiments/mutated_pictures.py

Each is made anew from the seed and its number (`picture_mutations.py`) and decoded in a process of
its own kind: with a limit on time and on memory, and with stderr in a file. Expected are pixels, or
`CorruptImageError` with one line, twice the same, as plain Pillow has it (`picture_checks.py`).
Anything else is a finding. Records go to `--records`, from which an interrupted run goes on;
`mutated_pictures.json` and `.md` beside this file have the counts and every finding.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import features

from drnet_jax.runtime.command_line import CommandLine, a_path
from experiments.picture_checks import Outcome, check, limit_memory, redirect_stderr
from experiments.picture_mutations import COMMON, MUTATIONS, RARE, make

ROOT = Path(__file__).parents[1]
COUNT, SEED = 10_000, 0
# Seconds for all crops of one picture; what takes longer hangs.
LIMIT = 20.0
_SPAWN = multiprocessing.get_context("spawn")
_LIBRARIES = ("pil", "libjpeg_turbo", "webp", "avif", "jpg_2000", "libtiff", "zlib_ng")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    records = ROOT / "runs" / "mutated_pictures.jsonl"
    parser.add_argument("--records", type=a_path, default=records, help="to resume from")
    parser.add_argument("--results", type=a_path, default=Path(__file__).parent)
    return parser.parse_args(arguments)


def main() -> int:
    """Runs what is left; 1 if there are findings."""
    given = parse(sys.argv[1:])
    records = read_records(given.records, given.seed)
    waiting = [index for index in range(given.count) if index not in records]
    if records:
        print(f"{len(records)} records in {given.records}, {len(waiting)} pictures left")
    given.records.parent.mkdir(parents=True, exist_ok=True)
    with given.records.open("a") as file:
        for record in run(given.seed, waiting, given.processes):
            record["seed"] = given.seed
            file.write(json.dumps(record) + "\n")
            file.flush()
            records[record["index"]] = record
    found = [records[index] for index in range(given.count)]
    command = "python experiments/mutated_pictures.py"
    summary = summarise(found) | {"command": command, "seed": given.seed, "versions": versions()}
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / "mutated_pictures.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    path.with_suffix(".md").write_text(markdown(summary))
    print(headline(summary))
    return int(bool(summary["findings"]))


def read_records(path: Path, seed: int) -> dict[int, dict[str, Any]]:
    """What is done already, by number; a line that was cut off is done again."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["seed"] == seed:
            records[record["index"]] = record
    return records


@dataclass
class Worker:
    """A process that decodes, and what it is at."""

    process: Any
    connection: Connection
    index: int | None = None
    since: float = 0.0


def start_worker(seed: int, folder: Path, number: int) -> Worker:
    """With its own file for stderr."""
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=work, args=(seed, theirs, folder / f"{number}"), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def work(seed: int, connection: Connection, messages: Path) -> None:
    """Checks one picture after the other until the pipe ends."""
    redirect_stderr(messages)
    limit_memory()
    while True:
        try:
            index = connection.recv()
        except EOFError:
            return
        connection.send(check(seed, index, messages).to_json())


def run(seed: int, waiting: Sequence[int], processes: int) -> Iterable[dict[str, Any]]:
    """The records of these pictures; a process that hangs or dies is replaced."""
    start = shown = time.perf_counter()
    left = list(reversed(waiting))
    with tempfile.TemporaryDirectory() as name:
        started = min(processes, len(left))
        workers = [start_worker(seed, Path(name), number) for number in range(started)]
        done = 0
        while done < len(waiting):
            for worker in workers:
                if worker.index is None and left:
                    worker.index, worker.since = left.pop(), time.perf_counter()
                    worker.connection.send(worker.index)
            busy = [worker for worker in workers if worker.index is not None]
            ready = wait([worker.connection for worker in busy], timeout=1.0)
            for worker in busy:
                record = result(worker, seed, worker.connection in ready)
                if record is None:
                    continue
                worker.index = None
                done += 1
                if not worker.process.is_alive():
                    started += 1
                    workers[workers.index(worker)] = start_worker(seed, Path(name), started)
                yield record
            if time.perf_counter() - shown > 10 or done == len(waiting):
                shown = time.perf_counter()
                rate = done / (shown - start)
                eta = (len(waiting) - done) / max(rate, 1e-9)
                print(f"{done}/{len(waiting)} {rate:.0f} pictures/s ETA {eta:.0f} s", flush=True)
        for worker in workers:
            worker.connection.close()
            worker.process.join()


def result(worker: Worker, seed: int, ready: bool) -> dict[str, Any] | None:
    """What a worker has found; that it hangs or died; None: it is at it."""
    if ready:
        try:
            found: dict[str, Any] = worker.connection.recv()
            return found
        except EOFError:
            worker.process.join()
            problem = f"the process died: exit code {worker.process.exitcode}"
    elif time.perf_counter() - worker.since > LIMIT:
        worker.process.kill()
        worker.process.join()
        problem = f"it takes more than {LIMIT:g} s"
    else:
        return None
    assert worker.index is not None
    picture = make(seed, worker.index)
    outcome = Outcome(worker.index, picture.form, picture.mutation, findings=[problem])
    return outcome.to_json()


def versions() -> dict[str, str]:
    """Of Python, Pillow and the libraries in it."""
    found = {name: features.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **{n: v for n, v in found.items() if v}}


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts by format and mutation, the extremes, and every finding."""
    findings = [
        {**{n: record[n] for n in ("index", "form", "mutation")}, "finding": finding}
        for record in records
        for finding in record["findings"]
    ]
    lines = [f"{r['index']} {r['decoded']} {r['reason']} {r['digest']}" for r in records]
    reasons = Counter(record["reason"] for record in records if record["reason"])
    return {
        "pictures": len(records),
        "decoded": sum(record["decoded"] for record in records),
        "by_format": counts(records, "form", [*COMMON, *RARE]),
        "by_mutation": counts(records, "mutation", list(MUTATIONS)),
        "reasons": dict(reasons.most_common(25)),
        "slowest_seconds": max(record["seconds"] for record in records),
        "largest_mebibytes": max(record["mebibytes"] for record in records),
        "largest_difference": max(record["difference"] for record in records),
        # The same where every picture gives the same pixels or the same reason.
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
        "findings": findings,
    }


def counts(
    records: Sequence[dict[str, Any]], by: str, names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """How many were decoded, were corrupt and have findings."""
    found = {}
    for name in names:
        here = [record for record in records if record[by] == name]
        decoded = sum(record["decoded"] for record in here)
        bad = sum(bool(record["findings"]) for record in here)
        found[name] = {"decoded": decoded, "corrupt": len(here) - decoded, "findings": bad}
    return found


def headline(summary: dict[str, Any]) -> str:
    """One line."""
    return (
        f"{summary['pictures']} pictures of {len(summary['by_format'])} formats: "
        f"{summary['decoded']} decoded, {summary['pictures'] - summary['decoded']} corrupt with a "
        f"reason, {len(summary['findings'])} findings; slowest {summary['slowest_seconds']:.2f} s, "
        f"at most {summary['largest_mebibytes']:.0f} MiB, digest {summary['digest']}"
    )


def markdown(summary: dict[str, Any]) -> str:
    """The tables."""
    listed = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    parts = [f"`{summary['command']}` (seed {summary['seed']}; {listed})\n", headline(summary)]
    for title, name in (("format", "by_format"), ("mutation", "by_mutation")):
        lines = [f"\n| {title} | decoded | corrupt | findings |\n|---|---|---|---|"]
        for row, found in summary[name].items():
            lines.append(f"| {row} | {' | '.join(map(str, found.values()))} |")
        parts.append("\n".join(lines))
    lines = ["\n| why corrupt, the most frequent | pictures |\n|---|---|"]
    lines += [f"| {reason} | {count} |" for reason, count in summary["reasons"].items()]
    parts.append("\n".join(lines))
    lines = ["\nFindings:\n"] if summary["findings"] else ["\nNo findings."]
    lines += [
        f"* {found['index']} ({found['form']}, {found['mutation']}): {found['finding']}"
        for found in summary["findings"]
    ]
    return "\n".join([*parts, *lines]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
