"""Worker processes: they leave signals to the main one, and end with it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from drnet_jax.data.workers import signals_withheld

STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
MASK = "import signal; print(*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
PARENT = """
import multiprocessing, os, sys, time
from drnet_jax.data.workers import end_with_parent

def work(path):
    end_with_parent(0, 1)
    open(path, "w").write(f"{os.getpid()}.")
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work, args=sys.argv[1:]).start()
    time.sleep(60)
"""


def test_what_begins_in_the_block_never_sees_a_signal_to_stop() -> None:
    """A thread, and a process that it starts."""
    found: list[set[int]] = []

    def thread() -> None:
        found.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
        text = subprocess.run([sys.executable, "-c", MASK], capture_output=True, text=True).stdout
        found.append(set(map(int, text.split())))

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with signals_withheld():
        started = threading.Thread(target=thread)
        started.start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    started.join()
    assert all(mask >= STOPS for mask in found) and len(found) == 2


def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    noted = tmp_path / "worker"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, str(tmp_path / "parent.py"), str(noted)]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not noted.exists() or not noted.read_text().endswith("."):
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    worker = Path("/proc") / noted.read_text().rstrip(".")
    parent.kill()
    parent.wait()
    # A zombie, where nothing waits for orphans, has no command line.
    while worker.exists() and (worker / "cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)
