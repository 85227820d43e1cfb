"""Thousands of damaged files through a reader, in processes of their own: counts, and findings.

What is common to `mutated_pictures.py` and `mutated_weights.py`. Records go to `--records`, from
which an interrupted run goes on.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from drnet_jax.runtime.command_line import CommandLine, a_path

ROOT = Path(__file__).parents[1]
COUNT, SEED = 10_000, 0
# Seconds for one file, beside whatever else the machine does; what takes longer hangs.
LIMIT = 120.0
ADDRESS_SPACE = 6 << 30
_SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Outcome:
    """What came of a file.

    Attributes:
      index: its number.
      form: its format.
      mutation: what happened to it.
      read: whether it is read.
      reason: why not.
      digest: of what is read.
      seconds: of a processor that it takes.
      mebibytes: by which memory grew meanwhile.
      findings: what should not be.
    """

    index: int
    form: str
    mutation: str
    read: bool = False
    reason: str = ""
    digest: str = ""
    seconds: float = 0.0
    mebibytes: float = 0.0
    findings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As a line of the records."""
        return asdict(self)


@dataclass(frozen=True)
class Subject:
    """What is damaged, and how it is checked; its functions are found by name in other processes.

    Attributes:
      name: of the results: `mutated_<name>.json` and `.md`.
      words: for what is read, and for what is not.
      check: gives the outcome of a seed's file of a number; it may write to the folder given.
      describe: format and mutation of that file.
      forms: all formats.
      mutations: all of them.
      versions: of the libraries that read.
    """

    name: str
    words: tuple[str, str]
    check: Callable[[int, int, Path], Outcome]
    describe: Callable[[int, int], tuple[str, str]]
    forms: Sequence[str]
    mutations: Sequence[str]
    versions: dict[str, str]


def parse(arguments: Sequence[str], subject: Subject, about: str) -> argparse.Namespace:
    parser = CommandLine(description=about)
    parser.add_argument("--count", type=int, default=COUNT, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    records = ROOT / "runs" / f"mutated_{subject.name}.jsonl"
    parser.add_argument("--records", type=a_path, default=records, help="to resume from")
    parser.add_argument("--results", type=a_path, default=Path(__file__).parent)
    return parser.parse_args(arguments)


def main(subject: Subject, given: argparse.Namespace) -> int:
    """Runs what is left; 1 if there are findings."""
    records = read_records(given.records, given.seed)
    waiting = [index for index in range(given.count) if index not in records]
    if records:
        print(f"{len(records)} records in {given.records}, {len(waiting)} {subject.name} left")
    given.records.parent.mkdir(parents=True, exist_ok=True)
    with given.records.open("a") as file:
        for record in run(subject, given.seed, waiting, given.processes):
            record["seed"] = given.seed
            file.write(json.dumps(record) + "\n")
            file.flush()
            records[record["index"]] = record
    summary = summarise([records[index] for index in range(given.count)], subject)
    summary |= {"seed": given.seed, "versions": subject.versions}
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / f"mutated_{subject.name}.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    path.with_suffix(".md").write_text(markdown(summary, subject))
    print(headline(summary, subject))
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
    """A process that reads, and what it is at."""

    process: Any
    connection: Connection
    index: int | None = None
    since: float = 0.0


def start_worker(subject: Subject, seed: int, folder: Path) -> Worker:
    """With a folder of its own."""
    folder.mkdir()
    ours, theirs = _SPAWN.Pipe()
    arguments = (subject.check, seed, theirs, folder)
    process = _SPAWN.Process(target=work, args=arguments, daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def work(
    check: Callable[[int, int, Path], Outcome], seed: int, connection: Connection, folder: Path
) -> None:
    """Checks one file after the other until the pipe ends."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    while True:
        try:
            index = connection.recv()
        except EOFError:
            return
        connection.send(check(seed, index, folder).to_json())


def run(
    subject: Subject, seed: int, waiting: Sequence[int], processes: int
) -> Iterable[dict[str, Any]]:
    """The records of these files; a process that hangs or dies is replaced."""
    start = shown = time.perf_counter()
    left = list(reversed(waiting))
    with tempfile.TemporaryDirectory() as name:
        started = min(processes, len(left))
        folders = (Path(name) / str(number) for number in range(started))
        workers = [start_worker(subject, seed, folder) for folder in folders]
        done = 0
        while done < len(waiting):
            for worker in workers:
                if worker.index is None and left:
                    worker.index, worker.since = left.pop(), time.perf_counter()
                    worker.connection.send(worker.index)
            busy = [worker for worker in workers if worker.index is not None]
            ready = wait([worker.connection for worker in busy], timeout=1.0)
            for worker in busy:
                record = result(worker, subject, seed, worker.connection in ready)
                if record is None:
                    continue
                worker.index = None
                done += 1
                if not worker.process.is_alive():
                    folder, started = Path(name) / str(started), started + 1
                    workers[workers.index(worker)] = start_worker(subject, seed, folder)
                yield record
            if time.perf_counter() - shown > 10 or done == len(waiting):
                shown = time.perf_counter()
                rate = done / (shown - start)
                eta = (len(waiting) - done) / max(rate, 1e-9)
                progress = f"{done}/{len(waiting)} {rate:.0f} {subject.name}/s ETA {eta:.0f} s"
                print(progress, flush=True)
        for worker in workers:
            worker.connection.close()
            worker.process.join()


def result(worker: Worker, subject: Subject, seed: int, ready: bool) -> dict[str, Any] | None:
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
    form, mutation = subject.describe(seed, worker.index)
    return Outcome(worker.index, form, mutation, findings=[problem]).to_json()


def peak_mebibytes(*, reset: bool = False) -> float:
    """The most memory that this process has held since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def summarise(records: Sequence[dict[str, Any]], subject: Subject) -> dict[str, Any]:
    """Counts by format and mutation, the extremes, and every finding."""
    findings = [
        {**{n: record[n] for n in ("index", "form", "mutation")}, "finding": finding}
        for record in records
        for finding in record["findings"]
    ]
    lines = [f"{r['index']} {r['read']} {r['reason']} {r['digest']}" for r in records]
    reasons = Counter(record["reason"] for record in records if record["reason"])
    return {
        "command": f"python experiments/mutated_{subject.name}.py",
        "files": len(records),
        "read": sum(record["read"] for record in records),
        "by_format": counts(records, "form", subject.forms),
        "by_mutation": counts(records, "mutation", subject.mutations),
        "reasons": dict(reasons.most_common(25)),
        "slowest_seconds": max(record["seconds"] for record in records),
        "largest_mebibytes": max(record["mebibytes"] for record in records),
        # The same where every file gives the same or the same reason.
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
        "findings": findings,
    }


def counts(
    records: Sequence[dict[str, Any]], by: str, names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """How many were read, were not and have findings."""
    found = {}
    for name in names:
        here = [record for record in records if record[by] == name]
        read = sum(record["read"] for record in here)
        bad = sum(bool(record["findings"]) for record in here)
        found[name] = {"read": read, "refused": len(here) - read, "findings": bad}
    return found


def headline(summary: dict[str, Any], subject: Subject) -> str:
    """One line."""
    read, refused = subject.words
    return (
        f"{summary['files']} {subject.name} of {len(summary['by_format'])} formats: "
        f"{summary['read']} {read}, {summary['files'] - summary['read']} {refused} with a reason, "
        f"{len(summary['findings'])} findings; slowest {summary['slowest_seconds']:.2f} s, "
        f"at most {summary['largest_mebibytes']:.0f} MiB, digest {summary['digest']}"
    )


def markdown(summary: dict[str, Any], subject: Subject) -> str:
    """The tables."""
    versions = {"python": platform.python_version(), **summary["versions"]}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [
        f"`{summary['command']}` (seed {summary['seed']}; {listed})\n",
        headline(summary, subject),
    ]
    read, refused = subject.words
    for title, name in (("format", "by_format"), ("mutation", "by_mutation")):
        lines = [f"\n| {title} | {read} | {refused} | findings |\n|---|---|---|---|"]
        for row, found in summary[name].items():
            lines.append(f"| {row} | {' | '.join(map(str, found.values()))} |")
        parts.append("\n".join(lines))
    lines = [f"\n| why {refused}, the most frequent | {subject.name} |\n|---|---|"]
    lines += [f"| {reason} | {count} |" for reason, count in summary["reasons"].items()]
    parts.append("\n".join(lines))
    lines = ["\nFindings:\n"] if summary["findings"] else ["\nNo findings."]
    lines += [
        f"* {found['index']} ({found['form']}, {found['mutation']}): {found['finding']}"
        for found in summary["findings"]
    ]
    return "\n".join([*parts, *lines]) + "\n"
