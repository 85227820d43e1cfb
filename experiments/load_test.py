"""The server under load: from 1 to 64 clients, malformed requests and aborted uploads among them.

python experiments/load_test.py EXPORT --pictures FOLDER --requests 10000

Every answer is compared with what the export says of the picture offline; memory is sampled; at
last SIGTERM comes under load, and the server has to have answered what it took. Clients and server
share this machine. `load_test.json` and `load_test.md` have the figures; ends with 1 if something
is not as expected. Without `--pictures` those of the embedded data.
"""

import argparse
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

import numpy as np

from drnet_jax.data.digits_on_photos import compose
from drnet_jax.runtime.command_line import CommandLine, a_path
from drnet_jax.runtime.files import write_json, write_text
from drnet_runtime import AdaptiveModel
from experiments.load_clients import SHARES, Client, Numbers, Outcome, Picture, run_clients
from tests.pictures import png

ROOT = Path(__file__).parents[1]
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
NUM_PICTURES = 100
# Two choices whose worth differs by less may fall either way, as batches are cut.
TIE = 1e-4
# Resident memory may grow so much, in MiB, from the end of the warm-up to the end of the load.
GROWTH = 16.0
SECONDS_BEFORE_SIGTERM = 3.0
_MIB = 2**20


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=a_path, help="directory that --mode=export wrote")
    parser.add_argument("--pictures", type=a_path, help="folder of picture files")
    parser.add_argument("--requests", type=int, default=10_000, help="of all client numbers")
    parser.add_argument("--results", type=a_path, default=ROOT / "experiments")
    return parser.parse_args(arguments)


def main() -> int:
    given = parse(sys.argv[1:])
    pictures = offline(given.export, encoded_pictures(given.pictures))
    server, port = start(given.export)
    try:
        facts, problems = under_load(server, port, pictures, given.requests)
        ended, further = sigterm(server, port, pictures)
    finally:
        server.kill()
    problems += further
    facts = {"pictures": len(pictures), "cores": os.cpu_count()} | facts | {"sigterm": ended}
    write_json(given.results / "load_test.json", facts | {"problems": problems})
    write_text(given.results / "load_test.md", in_words(facts, problems))
    print(in_words(facts, problems))
    return int(bool(problems))


def encoded_pictures(folder: Path | None) -> list[bytes]:
    """Files of a folder, evenly from all of it; or digits on photographs."""
    if folder is None:
        return [png(image) for image in compose("test", NUM_PICTURES)["image"]]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"error: {folder} has no JPEG: name another folder")
    step = max(1, len(files) // NUM_PICTURES)
    return [path.read_bytes() for path in files[::step][:NUM_PICTURES]]


def offline(export: Path, encoded: Sequence[bytes]) -> list[Picture]:
    """What the export says of each picture alone, at lambda 0 and three of its table."""
    model = AdaptiveModel.load(export)
    points = model.points
    lams = [0.0] + [points[len(points) * i // 4].lam for i in (1, 2, 3) if points]
    images = [model.decode(content) for content in encoded]
    answers: list[dict[float, Any]] = [{} for _ in encoded]
    confidences: list[dict[float, float]] = [{} for _ in encoded]
    for lam in dict.fromkeys(lams):
        for place, image in enumerate(images):
            result = model.classify(image[None], lam)
            neighbours = model.classify(np.stack([image] * 2), np.array([lam - TIE, lam + TIE]))
            label = int(result.labels[0])
            top = np.sort(result.logits[0])
            known = (neighbours.choices == result.choices).all() and top[-1] - top[-2] > TIE
            found = (model.classes[label], int(result.resolutions[0]), int(result.looks[0]))
            answers[place][lam] = found if known else None
            confidences[place][lam] = float(result.probabilities[0, label])
    return [Picture(*each) for each in zip(encoded, answers, confidences, strict=True)]


def start(export: Path) -> tuple[subprocess.Popen[str], int]:
    """A server with its defaults, and its port."""
    command = [sys.executable, "-m", "drnet_runtime.serve", str(export), "--port=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime")}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found = re.search(r":(\d+)/$", server.stdout.readline())
    if found is None:
        raise SystemExit("error: the server did not start, as it said above")
    return server, int(found[1])


def under_load(
    server: subprocess.Popen[str], port: int, pictures: Sequence[Picture], count: int
) -> tuple[dict[str, Any], list[str]]:
    """Figures by number of clients, and problems."""
    # ONNX Runtime keeps what its largest batches took.
    warm = load(port, pictures, max(CLIENTS), range(-(count // 8), 0))
    rows, total, begin = [], warm, memory(server)
    numbers = np.array_split(np.arange(count), len(CLIENTS))
    samples = [{"requests": 0, "mib": begin}]
    for clients, part in zip(CLIENTS, numbers, strict=True):
        start = time.perf_counter()
        outcome = load(port, pictures, clients, map(int, part))
        seconds = time.perf_counter() - start
        rows.append(row(clients, outcome, seconds))
        total.add(outcome)
        samples.append({"requests": int(part[-1]) + 1, "mib": memory(server)})
        print(f"{clients} clients: {len(part) / seconds:.0f} requests/s", flush=True)
    found = metrics(port)
    problems = total.wrong[:20] + disagreements(found, total)
    growth = samples[-1]["mib"] - begin
    if growth > GROWTH:
        problems.append(f"memory grew by {growth:.1f} MiB")
    facts = {
        "requests": count,
        "kinds": dict(total.kinds),
        "statuses": {str(status): n for status, n in sorted(total.statuses.items())},
        "answered_pictures": total.pictures,
        "ties": total.ties,
        "wrong": len(total.wrong),
        "lost": total.lost,
        "rows": rows,
        "memory": samples,
        "pictures_a_call": found["drnet_batch_pictures_sum"] / found["drnet_batch_pictures_count"],
    }
    return facts, problems


def load(port: int, pictures: Sequence[Picture], clients: int, numbers: Any) -> Outcome:
    shared = Numbers(numbers)
    return run_clients([Client(port, pictures, shared) for _ in range(clients)])


def row(clients: int, outcome: Outcome, seconds: float) -> dict[str, Any]:
    p50, p95, p99 = np.percentile(outcome.seconds, (50, 95, 99)) * 1000
    return {
        "clients": clients,
        "requests_a_second": sum(outcome.kinds.values()) / seconds,
        "pictures_a_second": outcome.pictures / seconds,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
    }


def disagreements(found: dict[str, float], total: Outcome) -> list[str]:
    """Where the server's own counts are not the clients'; what is still open at the end."""
    classified = sum(v for name, v in found.items() if name.startswith("drnet_pictures_total{"))
    statuses = {
        status: found.get(f'drnet_requests_total{{path="/classify",status="{status}"}}', 0)
        for status in total.statuses
    }
    pairs = {"pictures": (classified, total.pictures)}
    pairs |= {f"status {status}": (statuses[status], n) for status, n in total.statuses.items()}
    pairs |= {
        name: (found[f"drnet_{name}"], 0)
        for name in ("queue_pictures", "accepted_pictures", "held_bytes", "open_requests")
    }
    problems = [
        f"{name}: {a:g} in the metrics, not {b}" for name, (a, b) in pairs.items() if a != b
    ]
    if not np.isclose(found["drnet_macs_spent_total"], 1e9 * total.gmacs, rtol=1e-9):
        problems.append("the metrics' multiply-adds are not those of the answers")
    return problems


def sigterm(
    server: subprocess.Popen[str], port: int, pictures: Sequence[Picture]
) -> tuple[dict[str, Any], list[str]]:
    """SIGTERM with 64 clients: what they were answered, and what the server says it took."""
    before = metrics(port)
    shared = Numbers(itertools.count(10**9))
    clients = [Client(port, pictures, shared, until_refused=True) for _ in range(max(CLIENTS))]
    threading.Timer(SECONDS_BEFORE_SIGTERM, server.send_signal, (signal.SIGTERM,)).start()
    outcome = run_clients(clients)
    said, _ = server.communicate(timeout=60)
    counts = {int(status): int(n) for n, status in re.findall(r"(\d+) with (\d+)", said)}
    taken = re.search(r"(\d+) requests at /classify, (\d+) ended", said)
    problems = outcome.wrong[:20]
    if server.returncode != 0:
        problems.append(f"after SIGTERM the exit code was {server.returncode}")
    if taken is None or taken[1] != taken[2]:
        problems.append(f"not all that was taken ended: {said.strip()}")
    for status, count in counts.items():
        earlier = before.get(f'drnet_requests_total{{path="/classify",status="{status}"}}', 0)
        if status != 499 and count - earlier != outcome.statuses[status]:
            problems.append(
                f"SIGTERM: {count - earlier:g} answers of {status} were given, and "
                f"{outcome.statuses[status]} received"
            )
    return {
        "exit_code": server.returncode,
        "received": outcome.statuses.total(),
        "connections_not_taken": outcome.lost,
        "server": said.strip(),
    }, problems


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        lines = response.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def memory(server: subprocess.Popen[str]) -> float:
    """Resident, in MiB."""
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def in_words(facts: dict[str, Any], problems: Sequence[str]) -> str:
    shares = ", ".join(f"{100 * share:g} % {kind}" for kind, share in SHARES.items())
    lines = [
        f"{facts['requests']} requests ({shares}, the rest single pictures) of "
        f"{facts['pictures']} pictures, {facts['cores']} cores for server and clients: "
        f"{facts['answered_pictures']} pictures answered, {facts['wrong']} wrong, "
        f"{facts['lost']} lost, {facts['ties']} ties not compared; "
        f"{facts['pictures_a_call']:.1f} pictures a model call.",
        "",
        "| clients | requests/s | pictures/s | p50 ms | p95 ms | p99 ms | memory MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for each, sample in zip(facts["rows"], facts["memory"][1:], strict=True):
        lines.append(
            f"| {each['clients']} | {each['requests_a_second']:.0f} | "
            f"{each['pictures_a_second']:.0f} | {each['p50_ms']:.1f} | {each['p95_ms']:.1f} | "
            f"{each['p99_ms']:.1f} | {sample['mib']:.1f} |"
        )
    ended = facts["sigterm"]
    lines += [
        "",
        f"Memory after the warm-up: {facts['memory'][0]['mib']:.1f} MiB. SIGTERM with 64 clients: "
        f"exit code {ended['exit_code']}, {ended['received']} answers received, "
        f"{ended['connections_not_taken']} connections closed that the server had not taken a "
        "request from.",
        "",
        "Problems: " + ("; ".join(problems) if problems else "none") + ".",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
