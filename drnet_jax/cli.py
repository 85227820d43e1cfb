"""The command line of `main.py`, of `python -m drnet_jax` and of `drnet-jax`."""

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from absl import flags, logging
from ml_collections import ConfigDict

from drnet_jax.config import ConfigError
from drnet_jax.config_checks import check_config, check_several_processes
from drnet_jax.config_files import load_config, split_name
from drnet_jax.config_overrides import set_fields, take_overrides
from drnet_jax.runtime.command_line import INTERRUPTED, CommandLine, SetOnce, a_path
from drnet_jax.runtime.terminal import OutputError, prepare_streams, print_error

MODES = ("train", "convert", "eval", "calibrate", "benchmark", "predict", "export", "report")
_DEFAULT_FILE = "configs/digits_on_photos.py"
_FLAGS = ("config", "workdir", "mode", "coordinator", "num_processes", "process_id", "help")
# Those that the same command goes on with after an interruption.
_RESUMED = ("train", "convert", "predict")
_RESUME = "run the same command to resume"
# In XLA's errors.
_NO_MEMORY = "RESOURCE_EXHAUSTED"
_LESS_MEMORY = (
    "lower <stage>.batch_size, eval.batch_size, benchmark.batch_sizes or inference.buckets; or "
    "keep a stage's batch, with model.remat=True, in parts (<stage>.accumulate) or in half the "
    "bytes (model.dtype=bfloat16)"
)


def run() -> None:
    """Runs the program on the arguments of the process.

    It ends with 0, or with one line and 2; with `INTERRUPTED` where the same command goes on.
    """
    prepare_streams()
    with _starting():
        _interrupt_on_signals()
        try:
            values, others = take_overrides(sys.argv[1:])
            given = parse_flags(others)
        except ConfigError as error:
            _fail(str(error))
    with _starting(given.mode):
        try:
            config = load_config(given.config)
            set_fields(config, values)
        except ConfigError as error:
            _fail(str(error))
        # Grain reads flags of absl, of which this program takes none.
        flags.FLAGS.mark_as_parsed()
    _main(config, given)


@contextmanager
def _starting(mode: str = "") -> Iterator[None]:
    """What comes before `one_line_errors`: interrupted, it ends with a line too.

    Args:
      mode: that is to run, if it is known.
    """
    try:
        yield
    except KeyboardInterrupt:
        _fail("interrupted; nothing was begun", _status(mode))


def _status(mode: str) -> int:
    """That of an interruption."""
    return INTERRUPTED if mode in _RESUMED else 2


def _fail(message: str, status: int = 2) -> NoReturn:
    print_error(f"{_process_name()}{message}")
    sys.exit(status)


def _process_name() -> str:
    """Of one of several processes; before JAX is imported there are none."""
    if "jax" not in sys.modules:
        return ""
    from drnet_jax.runtime.distributed import process_name

    return process_name()


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """`config`, `mode`, `workdir`, which is a `Path`, and which one of several processes this is.

    Args:
      arguments: of the program, but for the fields of the configuration.

    Raises:
      ConfigError: an argument that belongs to no flag; it says how it may be meant.
      SystemExit: a bad value of a flag (with 2 and one line), or --help.
    """
    program = Path(sys.argv[0]).name
    parser = CommandLine(
        prog="python -m drnet_jax" if program == "__main__.py" else program,
        description="Trains, evaluates or uses a DRNet. Fields of the configuration are set by "
        "--config.<field>=<value>; drnet_jax/config_defaults.py has them all.",
    )
    parser.add_argument(
        "--config", action=SetOnce, default=_DEFAULT_FILE, help="what to run (default: %(default)s)"
    )
    parser.add_argument(
        "--workdir",
        action=SetOnce,
        type=a_path,
        help="where checkpoints and results go (default: runs/<name of the config>)",
    )
    parser.add_argument(
        "--mode",
        action=SetOnce,
        choices=MODES,
        default="train",
        help="what to do (default: %(default)s)",
    )
    _add_processes(parser)
    given, left = parser.parse_known_args(arguments)
    for argument in left:
        raise ConfigError(f"argument {argument!r} belongs to no flag: {_as_flag(argument)}")
    if given.workdir is None:
        given.workdir = Path("runs") / Path(split_name(given.config)[0]).stem
    return given


def _add_processes(parser: CommandLine) -> None:
    """The flags of one of several processes, all three of them or none."""
    parser.add_argument(
        "--coordinator",
        action=SetOnce,
        metavar="HOST:PORT",
        help="of several processes: where the first one listens, or 'auto' to ask the cluster "
        "(default: JAX_COORDINATOR_ADDRESS, SLURM or Open MPI; else there is one process)",
    )
    parser.add_argument(
        "--num_processes",
        action=SetOnce,
        type=int,
        help="how many there are (default: JAX_NUM_PROCESSES)",
    )
    parser.add_argument(
        "--process_id",
        action=SetOnce,
        type=int,
        help="which one this is, from 0 (default: JAX_PROCESS_ID)",
    )


def _as_flag(argument: str) -> str:
    """How to write what was given without a flag."""
    if argument in MODES:
        return f"--mode={argument}"
    # One dash, or the dash of a text processor.
    name = argument.lstrip("-\u2010\u2011\u2012\u2013\u2014\u2212")
    flag = name.partition("=")[0]
    if flag in _FLAGS or flag.startswith("config."):
        return f"--{name}"
    if name != argument and (close := difflib.get_close_matches(flag, _FLAGS, n=1)):
        return f"did you mean --{close[0]}?"
    if split_name(argument)[0].endswith(".py"):
        return f"--config={argument}"
    return "--config=<file>, --workdir=<folder>, --mode=<mode> or --config.<field>=<value>"


def _main(config: ConfigDict, given: argparse.Namespace) -> None:
    mode, workdir = given.mode, given.workdir
    with ExitStack() as job:
        with _starting(mode):
            logging.use_absl_handler()
            logging.set_verbosity(logging.WARNING)
            devices = _start_jax(given)
            # Imported late: --help and bad flags answer sooner.
            import jax

            from drnet_jax.data.settings import check_places
            from drnet_jax.runtime.allocator import keep_freed_memory
            from drnet_jax.runtime.compilation_cache import kept_programs
            from drnet_jax.runtime.distributed import check_devices, ending_together
            from drnet_jax.runtime.progress import log

            job.enter_context(ending_together())
            if jax.default_backend() == "cpu":
                keep_freed_memory()
            job.enter_context(one_line_errors(mode))
        log(f"workdir: {workdir} | devices: {devices}")
        check_config(config, jax.device_count(), mode)
        if jax.process_count() > 1:
            check_several_processes(config, mode)
            check_devices()
        # Before anything is written there.
        check_places(config, workdir)
        if mode != "report":
            job.enter_context(kept_programs(workdir / "cache" / "programs"))
        _job(mode, config)(config, workdir)


@contextmanager
def one_line_errors(mode: str) -> Iterator[None]:
    """Ends the program with one line for whatever its user can do something about, and with 2.

    A signal ends the modes that the same command resumes with `INTERRUPTED`.

    Args:
      mode: what runs in this block.
    """
    import jax

    from drnet_jax.budgets.calibration import BudgetError
    from drnet_jax.checkpoints.checkpoint import CheckpointError
    from drnet_jax.data.sources import DataError
    from drnet_jax.exports.errors import ExportError
    from drnet_jax.pretrained.errors import WeightsError
    from drnet_jax.runtime.files import in_words
    from drnet_jax.training.stops import TrainingError, TrainingInterrupted

    try:
        yield
    except (ConfigError, DataError, WeightsError) as error:
        _fail(str(error))
    except TrainingInterrupted as error:
        _fail(str(error), INTERRUPTED)
    except (CheckpointError, TrainingError, BudgetError, ExportError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(in_words(error))
    except OutputError as error:
        kept = _RESUME if mode in _RESUMED else "what was written is kept"
        _fail(f"{error}; {kept}")
    except KeyboardInterrupt:
        kept = _RESUME if mode in _RESUMED else "nothing is kept"
        _fail(f"interrupted; {kept}", _status(mode))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and _NO_MEMORY not in str(error):
            raise
        _fail(f"out of memory ({_first_line(error)}): {_LESS_MEMORY}")


def _interrupt_on_signals() -> None:
    """SIGTERM and SIGHUP end the program as Ctrl-C does; where they are ignored, they stay so."""

    def interrupt(number: int, _: FrameType | None) -> NoReturn:
        """Once: shell and system may both send it."""
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, interrupt)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _start_jax(given: argparse.Namespace) -> str:
    """The devices in words. What the environment asks of JAX and it cannot do is one line."""
    try:
        import jax

        from drnet_jax.runtime.distributed import start_processes

        start_processes(vars(given))
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        processes = jax.process_count()
        return devices if processes == 1 else f"{devices} in {processes} processes"
    except ConfigError as error:
        _fail(str(error))
    # A platform without its plugin is an assertion of JAX's.
    except (RuntimeError, ValueError, AssertionError) as error:
        asked = " ".join(f"{n}={v}" for n, v in os.environ.items() if n.startswith("JAX_"))
        why = (str(error).splitlines() or ["there is no such platform here"])[0]
        _fail(f"JAX does not start with {asked or 'its defaults'}: {why}; correct or unset it")


def _job(mode: str, config: ConfigDict) -> Callable[[ConfigDict, Path], object]:
    """What a mode runs, on a configuration and a workdir."""
    if mode == "train":
        from drnet_jax.train import train_and_evaluate

        return train_and_evaluate
    if mode == "convert":
        from drnet_jax.convert import convert

        return convert
    if mode == "calibrate":
        from drnet_jax.calibrate import restore_and_calibrate

        return restore_and_calibrate
    if mode == "benchmark":
        from drnet_jax.benchmark import restore_and_benchmark

        return restore_and_benchmark
    if mode == "predict":
        from drnet_jax.predict import restore_and_predict

        return restore_and_predict
    if mode == "export":
        from drnet_jax.export import restore_and_export

        return restore_and_export
    if mode == "report":
        from drnet_jax.report import compare_runs

        return compare_runs
    from drnet_jax.evaluate import restore_and_evaluate, restore_and_evaluate_bucketed

    bucketed = config.eval.dispatch == "bucketed"
    return restore_and_evaluate_bucketed if bucketed else restore_and_evaluate
