"""Runs a sweep: python -m drnet_jax.sweep configs/sweeps/digits.py [--config.x=y ...]

Every job is a run of `main.py` with a workdir and a log of its own. What is finished is skipped,
what was stopped is resumed, and runs that start from the same stage 1 share it. The sweep ends in
one table (`sweep.md`, `sweep.json`) and one plot (`sweep.png`).
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from absl import flags
from ml_collections import ConfigDict, config_flags

from drnet_jax.comparison import markdown, read_summary, settings, to_json
from drnet_jax.comparison_plot import comparison_figure
from drnet_jax.config import ConfigError, changed_fields
from drnet_jax.svg import plot_style
from drnet_jax.sweep_plan import Job, Plan, Sweep, load_file, make_plan
from drnet_jax.writers import say, write_json, write_text

_ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str]) -> int:
    """Runs the jobs and writes the table and the plot.

    Returns:
      0, or 1 if a job failed.
    """
    parser = argparse.ArgumentParser("python -m drnet_jax.sweep", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a file with get_sweep(), as in configs/sweeps/")
    parser.add_argument("--dir", type=Path, help="of all runs; default: runs/<name of the sweep>")
    parser.add_argument("--results", type=Path, help="where the table goes; default: --dir")
    parser.add_argument(
        "--devices", nargs="+", default=[""], help="GPUs: a job on each at once (default: one job)"
    )
    given, overrides = parser.parse_known_args(arguments)
    directory = (given.dir or Path("runs") / given.sweep.stem).resolve()
    try:
        sweep = load_file(given.sweep, "get_sweep")
        plan = make_plan(sweep, _base(sweep, overrides), directory)
    except ConfigError as error:
        parser.exit(2, f"error: {error}\n")
    runner = _Runner(sweep, overrides, given.devices)
    try:
        failed = runner.run(plan.stage_one) + runner.run(plan.stage_two)
    except KeyboardInterrupt:
        parser.exit(2, "error: interrupted; run the same command to resume\n")
    command = " ".join(["python -m drnet_jax.sweep", str(given.sweep), *overrides])
    _write(plan, command, given.results or directory)
    return int(bool(failed))


def _base(sweep: Sweep, overrides: Sequence[str]) -> ConfigDict:
    """The configuration that the variants change."""
    bad = [text for text in overrides if not text.startswith("--config.") or "=" not in text]
    if bad:
        raise ConfigError(f"unknown arguments {bad}; overrides are --config.<field>=<value>")
    values = flags.FlagValues()
    base = load_file(_ROOT / sweep.config, "get_config")
    try:
        config_flags.DEFINE_config_dict(
            "config", base, flag_values=values, sys_argv=["sweep", *overrides]
        )
        values(["sweep", *overrides])
    except (AttributeError, KeyError, ValueError, TypeError, flags.Error) as error:
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error
    return values.config


class _Runner:
    """Runs jobs, as many at once as there are devices."""

    def __init__(self, sweep: Sweep, overrides: Sequence[str], devices: Sequence[str]) -> None:
        self._config = sweep.config
        self._overrides = overrides
        self._num_devices = len(devices)
        self._free: SimpleQueue[str] = SimpleQueue()
        for device in devices:
            self._free.put(device)

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Runs what is not finished; the jobs that failed."""
        waiting = [job for job in jobs if not _finished(job)]
        if len(waiting) < len(jobs):
            say(f"{len(jobs) - len(waiting)} of {len(jobs)} jobs are finished already")
        failed = []
        start = time.perf_counter()
        with ThreadPoolExecutor(self._num_devices) as pool:
            futures = {pool.submit(self._run, job): job for job in waiting}
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    seconds, problem = future.result()
                    left = (time.perf_counter() - start) / done * (len(waiting) - done)
                    text = f"FAILED: {problem}" if problem else f"{seconds:.0f} s"
                    name = futures[future].name
                    say(f"[{done}/{len(waiting)}] {name}: {text}; ETA {left / 60:.0f} min")
                    failed += [futures[future]] if problem else []
            except KeyboardInterrupt:
                # The terminal has interrupted the running jobs too; they save what they have.
                pool.shutdown(cancel_futures=True)
                raise
        return failed

    def _run(self, job: Job) -> tuple[float, str]:
        """Seconds, and what went wrong, if anything."""
        if job.stage_one is not None and not _finished(job.stage_one):
            return 0.0, f"{job.stage_one.name} is not finished"
        job.workdir.mkdir(parents=True, exist_ok=True)
        path = job.workdir / "log.txt"
        device = self._free.get()
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": device} if device else {})
        start = time.perf_counter()
        try:
            with path.open("a") as log:
                command = self._command(job)
                log.write(shlex.join(command) + "\n")
                log.flush()
                code = subprocess.run(
                    command, cwd=_ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
                ).returncode
        finally:
            self._free.put(device)
        seconds = time.perf_counter() - start
        return seconds, f"{path.read_text().splitlines()[-1]} ({path})" if code else ""

    def _command(self, job: Job) -> list[str]:
        stages = "('pretrain',)" if job.stage_one is None else "('joint',)"
        command = [sys.executable, "main.py", f"--config={self._config}", *self._overrides]
        command += [f"--config.{name}={value}" for name, value in job.overrides.items()]
        command += [f"--config.stages={stages}", f"--workdir={job.workdir}"]
        if job.stage_one is not None:
            command.append(f"--config.joint.init_from={job.stage_one.workdir}")
        return command


def _finished(job: Job) -> bool:
    """Whether it was evaluated, with the same configuration."""
    summary = read_summary(job.workdir)
    if summary is None:
        return False
    theirs = {name: value for name, value in summary["config"].items() if name in job.config}
    return not changed_fields(theirs, job.config)


def _write(plan: Plan, command: str, results: Path) -> None:
    """The table and the plot of what is finished."""
    questions = {
        question: settings(
            {name: [job.workdir for job in jobs if _finished(job)] for name, jobs in found.items()}
        )
        for question, found in plan.variants.items()
    }
    write_json(results / "sweep.json", {"command": command, "questions": to_json(questions)})
    text = markdown(questions)
    write_text(results / "sweep.md", f"`{command}`\n\n{text}")
    with plot_style():
        comparison_figure(questions).savefig(results / "sweep.png", dpi=120)
    say(f"\n{text}\nwrote {results / 'sweep.md'}, sweep.json and sweep.png")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
