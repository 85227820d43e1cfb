"""The jobs of a sweep as runs of the program."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from drnet_jax.checkpoints.checkpoint import damaged, read_object, steps
from drnet_jax.checkpoints.restore import read_identities
from drnet_jax.checkpoints.runs import is_finished
from drnet_jax.config import IMAGE_FIELDS
from drnet_jax.reports.summaries import read_summary
from drnet_jax.runtime.command_line import INTERRUPTED
from drnet_jax.runtime.files import write_json
from drnet_jax.sweeps.plan import Job

PROGRAM = (sys.executable, "-m", "drnet_jax")
_PACKAGE = Path(__file__).parents[1]
# What of a configuration changes the figures of an evaluation, but not the trained model.
_EVALUATED = (*IMAGE_FIELDS, "eval.controls")


def why_unfinished(job: Job) -> str:
    """What a job lacks, in words; empty: it is trained to its end and evaluated as it is wanted.

    Its checkpoints are there, and `eval.json` is of the end of this training: of these fields, on
    these images, without a budget. It may also be of a model that was half trained, or of another
    run's (`restore_from`).

    Raises:
      CheckpointError: a file beside its checkpoints is damaged.
    """
    stage = job.stage
    if not is_finished(job.workdir, stage):
        return "its training has not ended, or its checkpoint was removed"
    summary = read_summary(job.workdir)
    if summary is None:
        return "it is not evaluated"
    # An eval.json that does not say so is of an earlier version.
    if summary.get("stage") != stage or not summary.get("finished"):
        return "its eval.json is not of the end of its training"
    if summary.get("checkpoint_step") not in steps(job.workdir / stage):
        return "its eval.json is of a checkpoint that was removed"
    evaluated = summary["config"]
    if evaluated.get("restore_from"):
        return f"its eval.json is of the model in {evaluated['restore_from']}"
    if changed := job.changed(evaluated):
        return f"its eval.json is of another training ({'; '.join(changed)})"
    if summary.get("identities") != read_identities(job.workdir):
        return "its eval.json is of other images"
    if summary["lambda"]:
        return "its eval.json is of a budget"
    other = [
        f"{name}: {evaluated.get(name)} -> {job.config[name]}"
        for name in _EVALUATED
        if name in job.config and _resolved(evaluated, name) != _resolved(job.config, name)
    ]
    return f"it is evaluated otherwise ({'; '.join(other)})" if other else ""


def _resolved(config: Mapping[str, Any], name: str) -> Any:
    """A field, a directory as an absolute path."""
    value = config.get(name)
    return Path(value).resolve() if name == "data.dir" and value else value


def minutes(job: Job) -> float | None:
    """What a run took, stage 1 included; None where it was resumed.

    Raises:
      CheckpointError: a `time.json` is damaged.
    """
    total = 0.0
    for part in filter(None, (job, job.stage_one)):
        path = part.workdir / "time.json"
        if not path.exists():
            return None
        seconds = read_object(path).get("seconds")
        if not isinstance(seconds, int | float):
            raise damaged(path, "it has no seconds")
        total += seconds / 60
    return total


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
      seconds: that it took.
      problem: what it lacks, in words; empty: it is finished.
      interrupted: whether nothing is wrong with it: a signal stopped it, or its stage 1.
    """

    seconds: float
    problem: str = ""
    interrupted: bool = False

    @property
    def failed(self) -> bool:
        """Whether it needs a hand before it can go on."""
        return bool(self.problem) and not self.interrupted


class JobRunner:
    """Runs jobs, each on a device that is free.

    Args:
      config: the configuration, as `--config` takes it.
      overrides: of every job, by the names of the fields.
      devices: GPUs by number; an empty name: whatever the program finds.
    """

    def __init__(self, config: str, overrides: Mapping[str, Any], devices: Sequence[str]) -> None:
        self._start = [*PROGRAM, f"--config={config}"]
        self._overrides = overrides
        self._running: set[subprocess.Popen[bytes]] = set()
        self._terminated = False
        self._interrupted: set[Path] = set()
        self._free: SimpleQueue[str] = SimpleQueue()
        self.num_devices = len(devices)
        for device in devices:
            self._free.put(device)

    def run(self, job: Job) -> Outcome:
        """Runs a job to its end, if its stage 1 is finished."""
        if job.stage_one is not None and (why := why_unfinished(job.stage_one)):
            waits = job.stage_one.workdir in self._interrupted
            return Outcome(0.0, f"{job.stage_one.name} is not finished: {why}", waits)
        job.workdir.mkdir(parents=True, exist_ok=True)
        path = job.workdir / "log.txt"
        resumed = (job.workdir / "config.json").exists()
        device = self._free.get()
        start = time.perf_counter()
        try:
            code = self._wait(self.command(job), path, device)
        finally:
            self._free.put(device)
        seconds = time.perf_counter() - start
        # The time of a resumed run says nothing.
        if not code and not resumed:
            write_json(job.workdir / "time.json", {"seconds": seconds})
        if code < 0:
            return Outcome(seconds, f"ended by {signal.Signals(-code).name} ({path})")
        if not code:
            return Outcome(seconds, why_unfinished(job))
        if code == INTERRUPTED:
            self._interrupted.add(job.workdir)
        last = path.read_text(encoding="utf-8", errors="replace").splitlines()[-1]
        return Outcome(seconds, f"{last} ({path})", interrupted=code == INTERRUPTED)

    def _wait(self, command: Sequence[str], path: Path, device: str) -> int:
        environment = dict(os.environ)
        # The package as it is imported here, wherever this process was started.
        paths = [str(_PACKAGE.parent), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(shlex.join(command) + "\n")
            log.flush()
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            self._running.add(process)
            # The signal that ended the job before may be known here only now.
            if self._terminated:
                process.terminate()
            code = process.wait()
            self._running.discard(process)
        return code

    def terminate(self) -> None:
        """Sends SIGTERM to the running jobs, and to those that start nevertheless."""
        self._terminated = True
        for process in list(self._running):
            process.terminate()

    def command(self, job: Job) -> list[str]:
        """How to run a job."""
        fields: dict[str, Any] = {**self._overrides, **job.overrides}
        fields["stages"] = (job.stage,)
        if job.stage_one is not None:
            fields["joint.init_from"] = job.stage_one.workdir
        command = [*self._start, *(f"--config.{name}={value}" for name, value in fields.items())]
        return [*command, f"--workdir={job.workdir}"]
