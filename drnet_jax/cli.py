"""The command line of `main.py` and of `python -m drnet_jax`."""

import difflib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from drnet_jax.config import ConfigError, default_config, flatten
from drnet_jax.config_checks import check_config
from drnet_jax.config_files import find_config, shipped_configs

MODES = ("train", "eval", "calibrate", "benchmark", "predict", "report")


def run() -> None:
    """Runs the program on the arguments of the process; it ends with 0, or with 2 and one line."""
    sys.argv[1:] = _find_config_files(sys.argv[1:])
    # The overrides of the default config are applied while the flag is defined.
    with _clear_errors():
        config_flags.DEFINE_config_file(
            "config",
            str(shipped_configs() / "digits_on_photos.py"),
            "What to run; override fields with --config.x=y.",
        )
    flags.DEFINE_string(
        "workdir", None, "Where checkpoints and results go (default: runs/<name of the config>)."
    )
    flags.DEFINE_enum("mode", "train", MODES, "What to do.")
    app.run(_main, flags_parser=_parse_flags)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _find_config_files(arguments: Sequence[str]) -> list[str]:
    """The arguments with the path of the file that `--config` names, a shipped one's too."""
    found = list(arguments)
    for place, argument in enumerate(found):
        match = re.fullmatch(r"(--?config=)(.+)", argument)
        if match:
            try:
                found[place] = match[1] + str(find_config(match[2]))
            except ConfigError as error:
                _fail(str(error))
    return found


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Turns what absl and ml_collections raise about bad flags into one line."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        _fail(_unknown_field(str(error)))
    except (flags.Error, ValueError, TypeError, OSError) as error:
        _fail(str(error).splitlines()[0])


def _unknown_field(error: str) -> str:
    match = re.search(r"\w+", error)
    field = match.group() if match else error
    known = [name.split(".")[-1] for name in flatten(default_config())]
    close = difflib.get_close_matches(field, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "; drnet_jax/config.py lists them all"
    return f"unknown config field {field!r}{hint}"


def _parse_flags(arguments: list[str]) -> list[str]:
    with _clear_errors():
        return flags.FLAGS(arguments)


def _main(_: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    # Imported late: --help and bad flags answer sooner.
    import jax

    from drnet_jax.budgets.calibration import BudgetError
    from drnet_jax.checkpoints.checkpoint import CheckpointError
    from drnet_jax.data.sources import DataError
    from drnet_jax.runtime.allocator import keep_freed_memory
    from drnet_jax.training.stops import TrainingError

    config: ConfigDict = flags.FLAGS.config
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    mode: str = flags.FLAGS.mode
    workdir = Path(flags.FLAGS.workdir or Path("runs") / name)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    print(f"workdir: {workdir} | devices: {jax.device_count()} x {jax.devices()[0].device_kind}")
    try:
        check_config(config, jax.device_count())
        _job(mode, config)(config, workdir)
    except (ConfigError, DataError, CheckpointError, TrainingError, BudgetError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        resumes = "run the same command to resume" if mode == "train" else "nothing is kept"
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
