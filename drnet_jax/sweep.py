"""Runs a sweep: python -m drnet_jax.sweep configs/sweeps/digits.py [--config.x=y ...]

Every job is a run of the program with a workdir and a log of its own. What is finished is skipped,
what was stopped is resumed, and runs that start from the same stage 1 share it. After every job of
stage 2 the table (`sweep.md`, `sweep.json`) and the plot (`sweep.png`) are written anew.
"""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.config import ConfigError
from drnet_jax.config_files import call_file, find_config, load_config
from drnet_jax.config_overrides import set_fields, take_overrides
from drnet_jax.data.settings import check_places
from drnet_jax.data.sources import DataError
from drnet_jax.reports.comparison import Setting, markdown, settings, to_json
from drnet_jax.reports.comparison_plot import comparison_figure
from drnet_jax.reports.comparison_warnings import warnings
from drnet_jax.reports.svg import plot_style
from drnet_jax.runtime.command_line import INTERRUPTED, CommandLine, SetOnce, a_path
from drnet_jax.runtime.files import (
    check_writable,
    in_words,
    replacing,
    write_json,
    write_text,
)
from drnet_jax.runtime.locks import locked
from drnet_jax.runtime.terminal import OutputError, prepare_streams, print_error, print_line
from drnet_jax.sweeps.images import check_present_images
from drnet_jax.sweeps.jobs import JobRunner, Outcome, minutes, why_unfinished
from drnet_jax.sweeps.plan import Job, Plan, Sweep, check_directory, check_images, make_plan
from drnet_jax.sweeps.tables import runs_table, size_table


def main(arguments: Sequence[str]) -> int:
    """Runs the jobs and writes the table and the plot.

    Returns:
      0; 1 if a job failed; `INTERRUPTED` if none did, but a signal stopped one.

    Raises:
      SystemExit: with 2 for an error, or `INTERRUPTED` for a signal, after one line.
    """
    given, overrides = parse(arguments)
    # The jobs need the GPUs; this process only writes.
    jax.config.update("jax_platforms", "cpu")
    command = shlex.join(["python", "-m", "drnet_jax.sweep", *arguments])
    try:
        with _terminations() as stops:
            return _status(_run(given, overrides, command, stops))
    except (ConfigError, CheckpointError, DataError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(in_words(error))
    except OutputError as error:
        _fail(f"{error}; run the same command to resume")
    except KeyboardInterrupt:
        _fail("interrupted; run the same command to resume", INTERRUPTED)


def _status(outcomes: Sequence[Outcome]) -> int:
    """The exit status, after a line that says what is left."""
    failed = sum(outcome.failed for outcome in outcomes)
    interrupted = sum(outcome.interrupted for outcome in outcomes)
    counts = {"failed": failed, "were interrupted": interrupted}
    text = ", ".join(f"{count} jobs {what}" for what, count in counts.items() if count)
    if text:
        print_error(f"{text}; run the same command to resume")
    return 1 if failed else INTERRUPTED if interrupted else 0


def _run(
    given: argparse.Namespace,
    overrides: Mapping[str, Any],
    command: str,
    stops: list[Callable[[], None]],
) -> list[Outcome]:
    """Runs what is not finished, and writes the table.

    Args:
      given: what `parse` found.
      overrides: the fields that are set for every job.
      command: that runs the sweep.
      stops: gets what a signal calls.

    Raises:
      ConfigError: the sweep, its directory or its configuration cannot be used.
      CheckpointError: a run is damaged.
      DataError: the data cannot be read, or are other data.
      OSError: the results cannot be written.
      OutputError: what is printed is lost.
      KeyboardInterrupt: a signal.
    """
    directory = (given.dir or Path("runs") / given.sweep.stem).resolve()
    results = given.results or directory
    sweep = load_sweep(given.sweep)
    base = base_config(sweep, overrides)
    check_places(base, results)
    plan = make_plan(sweep, base, directory)
    check_directory(plan)
    check_present_images(plan)

    def write() -> None:
        """The table and the plot, as far as they go."""
        check_images(plan)
        _write(plan, command, results)

    runner = JobRunner(sweep.config, overrides, given.devices)
    stops.append(runner.terminate)
    check_writable(results)
    # Two sweeps at once would run the same jobs in the same workdirs.
    with locked(
        directory / "sweep.lock",
        f"runs the sweep in {directory}",
        "wait until it ends, or give another --dir",
    ):
        outcomes = _run_all(runner, plan.stage_one) + _run_all(runner, plan.stage_two, write)
        write()
        table = (results / "sweep.md").read_text(encoding="utf-8")
    print_line(f"\n{table}\nwrote sweep.md, sweep.json and sweep.png in {results}")
    return outcomes


def _fail(message: str, status: int = 2) -> NoReturn:
    print_error(message)
    sys.exit(status)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """`sweep`, `dir`, `results` and `devices`; and the fields that are set for every job.

    Raises:
      SystemExit: with 2 and one line, or --help.
    """
    parser = CommandLine(
        prog="python -m drnet_jax.sweep",
        description=f"{__doc__} Fields of every job are set by --config.<field>=<value>.",
    )
    parser.add_argument("sweep", type=a_path, help="a file with get_sweep(), as in configs/sweeps/")
    parser.add_argument(
        "--dir",
        action=SetOnce,
        type=a_path,
        help="of all runs; default: runs/<name of the sweep>",
    )
    parser.add_argument(
        "--results", action=SetOnce, type=a_path, help="where the table goes; default: --dir"
    )
    parser.add_argument(
        "--devices",
        action=SetOnce,
        nargs="+",
        default=[""],
        help="GPUs: a job on each at once (default: one job)",
    )
    try:
        overrides, others = take_overrides(arguments)
    except ConfigError as error:
        parser.error(str(error))
    return parser.parse_args(others), overrides


def load_sweep(path: Path) -> Sweep:
    """What `get_sweep()` of a file gives.

    Raises:
      ConfigError: there is no such file, or it gives no sweep.
    """
    sweep = call_file(find_config(path), "get_sweep")
    if not isinstance(sweep, Sweep):
        raise ConfigError(f"get_sweep() of {path} gives {type(sweep).__name__}, no Sweep")
    return sweep


def base_config(sweep: Sweep, overrides: Mapping[str, Any]) -> ConfigDict:
    """The configuration that the variants change.

    Args:
      sweep: the variants.
      overrides: what the user sets for every job, by the names of the fields.

    Raises:
      ConfigError: see `load_config` and `set_fields`; or the sweep sets one of them for every job.
    """
    base = load_config(sweep.config)
    set_fields(base, overrides)
    variants = [set(found) for question in sweep.questions.values() for found in question.values()]
    always = {"seed", "stages", "joint.init_from"}.union(set.intersection(*variants or [set()]))
    for name in sorted(always & overrides.keys()):
        raise ConfigError(f"{name} is set by the sweep for every job: change the file of the sweep")
    return base


@contextmanager
def _terminations() -> Iterator[list[Callable[[], None]]]:
    """SIGTERM and SIGHUP end the sweep, and its running jobs, as a terminal's Ctrl-C does.

    It gives a list of what to call then: of the jobs, once there are some. Where
    SIGHUP is ignored (`nohup`), it stays so.
    """

    def stop(*_: object) -> NoReturn:
        """They save what they have; shell and system may both send a signal."""
        for number in numbers:
            # What is ignored here would be so in a job that starts at this moment.
            signal.signal(number, lambda *_: None)
        for call in calls:
            call()
        raise KeyboardInterrupt

    calls: list[Callable[[], None]] = []
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield calls
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_all(
    runner: JobRunner, jobs: Sequence[Job], after_each: Callable[[], None] | None = None
) -> list[Outcome]:
    """Runs what is not finished, as many at once as there are devices."""
    unfinished = {job.workdir: why for job in jobs if (why := why_unfinished(job))}
    waiting = [job for job in jobs if job.workdir in unfinished]
    if len(waiting) < len(jobs):
        print_line(f"{len(jobs) - len(waiting)} of {len(jobs)} jobs are finished already")
    for job in waiting:
        # Its figures were in the table, perhaps.
        if (job.workdir / "eval.json").exists():
            print_line(f"{job.name} runs again: {unfinished[job.workdir]}")
    outcomes = []
    start = time.perf_counter()
    with ThreadPoolExecutor(runner.num_devices) as pool:
        futures = {pool.submit(runner.run, job): job for job in waiting}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                outcome = future.result()
                outcomes.append(outcome)
                left = (time.perf_counter() - start) / done * (len(waiting) - done) / 60
                text = f"FAILED: {outcome.problem}" if outcome.failed else outcome.problem
                text = text or f"{outcome.seconds:.0f} s"
                name = futures[future].name
                print_line(f"[{done}/{len(waiting)}] {name}: {text}; ETA {left:.0f} min")
                if after_each is not None:
                    after_each()
        except KeyboardInterrupt:
            # Ctrl-C reaches the running jobs too, which save what they have, but not one that
            # starts at this moment.
            runner.terminate()
            pool.shutdown(cancel_futures=True)
            raise
        except (CheckpointError, DataError, OSError, OutputError):
            pool.shutdown(cancel_futures=True)
            raise
    return outcomes


def _write(plan: Plan, command: str, results: Path) -> None:
    """The tables and the plot of what is finished."""
    finished = [job for job in plan.stage_two if not why_unfinished(job)]
    done = {job.workdir for job in finished}
    questions: dict[str, list[Setting]] = {
        question: settings(
            {name: [j.workdir for j in jobs if j.workdir in done] for name, jobs in found.items()}
        )
        for question, found in plan.variants.items()
    }
    summaries = [s for found in questions.values() for setting in found for s in setting.summaries]
    # The jobs' own: this process has no GPU.
    made = {**(summaries[0].get("environment", {}) if summaries else {}), "command": command}
    notes = warnings(summaries)
    content = {"environment": made, "warnings": notes, "questions": to_json(questions)}
    content["minutes"] = {job.workdir.name: minutes(job) for job in finished}
    write_json(results / "sweep.json", content)
    question, found = next(iter(questions.items()))
    said = "".join(f"Warning: {note}\n\n" for note in notes)
    tables = [said, markdown(questions), runs_table(finished), size_table(question, found[0])]
    write_text(results / "sweep.md", "\n".join([f"`{command}`\n", *filter(None, tables)]))
    with plot_style():
        with replacing(results / "sweep.png") as temporary:
            comparison_figure(questions).savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
