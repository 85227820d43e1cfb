"""The command line of `main.py`, of `python -m drnet_jax` and of `drnet-jax`."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

from drnet_jax.config import ConfigError
from drnet_jax.config_checks import check_config
from drnet_jax.config_files import load_config
from drnet_jax.config_overrides import override

MODES = ("train", "eval", "calibrate", "benchmark", "predict", "report")
_DEFAULT_FILE = "configs/digits_on_photos.py"
# Those that the same command goes on with after an interruption.
_RESUMED = ("train", "predict")


def run() -> None:
    """Runs the program on the arguments of the process; it ends with 0, or with 2 and one line."""
    try:
        file, arguments = _take_file(sys.argv[1:])
        config = load_config(file)
        sys.argv[1:] = override(config, arguments)
    except ConfigError as error:
        _fail(str(error))
    _define_flags()
    app.run(partial(_main, config, file), flags_parser=_parse_flags)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _take_file(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """What `--config` names, and the other arguments."""
    file, others = _DEFAULT_FILE, []
    left = iter(arguments)
    for argument in left:
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            others.append(argument)
            continue
        file = value if equals else next(left, "")
        if not file:
            raise ConfigError(f"--config has no value: --config={_DEFAULT_FILE}")
    return file, others


def _define_flags() -> None:
    # For --help only: `run` has taken it.
    flags.DEFINE_string(
        "config", _DEFAULT_FILE, "File that says what to run; fields with --config.x=y."
    )
    flags.DEFINE_string(
        "workdir", None, "Where checkpoints and results go (default: runs/<name of the config>)."
    )
    flags.DEFINE_enum("mode", "train", MODES, "What to do.")
    for name in ("config", "workdir", "mode"):
        # --help lists the flags of the script that was started.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def _parse_flags(arguments: list[str]) -> list[str]:
    try:
        left = flags.FLAGS(arguments)
    except flags.Error as error:
        _fail(str(error).splitlines()[0])
    # The first one is the program.
    for argument in left[1:]:
        _fail(f"argument {argument!r} belongs to no flag: {_as_flag(argument)}")
    return left


def _as_flag(argument: str) -> str:
    """How to write what was given without a flag."""
    if argument in MODES:
        return f"--mode={argument}"
    if argument.partition(":")[0].endswith(".py"):
        return f"--config={argument}"
    return "--config=<file>, --workdir=<folder>, --mode=<mode> or --config.<field>=<value>"


def _main(config: ConfigDict, file: str, _: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    # Imported late: --help and bad flags answer sooner.
    import jax

    from drnet_jax.budgets.calibration import BudgetError
    from drnet_jax.checkpoints.checkpoint import CheckpointError
    from drnet_jax.data.settings import check_places
    from drnet_jax.data.sources import DataError
    from drnet_jax.runtime.allocator import keep_freed_memory
    from drnet_jax.training.stops import TrainingError

    mode: str = flags.FLAGS.mode
    workdir = Path(flags.FLAGS.workdir or Path("runs") / Path(file.partition(":")[0]).stem)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    print(f"workdir: {workdir} | devices: {jax.device_count()} x {jax.devices()[0].device_kind}")
    try:
        # The training does it itself.
        if mode != "train":
            check_config(config, jax.device_count(), mode)
        # Before anything is written there.
        check_places(config, workdir)
        _job(mode, config)(config, workdir)
    except (ConfigError, DataError, CheckpointError, TrainingError, BudgetError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        resumes = "run the same command to resume" if mode in _RESUMED else "nothing is kept"
        _fail(f"interrupted; {resumes}")


def _job(mode: str, config: ConfigDict) -> Callable[[ConfigDict, Path], object]:
    """What a mode runs, on a configuration and a workdir."""
    if mode == "train":
        from drnet_jax.train import train_and_evaluate

        return train_and_evaluate
    if mode == "calibrate":
        from drnet_jax.calibrate import restore_and_calibrate

        return restore_and_calibrate
    if mode == "benchmark":
        from drnet_jax.benchmark import restore_and_benchmark

        return restore_and_benchmark
    if mode == "predict":
        from drnet_jax.predict import restore_and_predict

        return restore_and_predict
    if mode == "report":
        from drnet_jax.report import compare_runs

        return compare_runs
    from drnet_jax.evaluate import restore_and_evaluate, restore_and_evaluate_bucketed

    bucketed = config.eval.dispatch == "bucketed"
    return restore_and_evaluate_bucketed if bucketed else restore_and_evaluate
