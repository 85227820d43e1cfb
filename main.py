"""Trains, evaluates or uses a DRNet: python main.py --config=configs/digits_on_photos.py"""

import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from drnet_jax.checkpoint import CheckpointError
from drnet_jax.config import ConfigError, default_config, flatten
from drnet_jax.config_checks import check_config
from drnet_jax.data.sources import DataError

_DEFAULT_CONFIG = Path(__file__).parent / "configs" / "digits_on_photos.py"


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


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


# The overrides of the default config are applied while the flag is defined.
with _clear_errors():
    _CONFIG = config_flags.DEFINE_config_file(
        "config", str(_DEFAULT_CONFIG), "What to run; override fields with --config.x=y."
    )
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints and results go (default: runs/<name of the config>)."
)
_MODES = ["train", "eval", "calibrate", "benchmark", "predict", "report"]
_MODE = flags.DEFINE_enum("mode", "train", _MODES, "What to do.")


def main(_: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    # Imported late: --help and bad flags answer sooner.
    import jax

    from drnet_jax.allocator import keep_freed_memory
    from drnet_jax.benchmark import restore_and_benchmark
    from drnet_jax.calibrate import restore_and_calibrate
    from drnet_jax.compare import compare_runs
    from drnet_jax.evaluate import restore_and_evaluate
    from drnet_jax.evaluate_bucketed import restore_and_evaluate_bucketed
    from drnet_jax.inference.calibration import BudgetError
    from drnet_jax.predict import restore_and_predict
    from drnet_jax.stage_loop import TrainingError
    from drnet_jax.train import train_and_evaluate

    config: ConfigDict = _CONFIG.value
    file = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    if not file.is_file():
        _fail(f"config file {file} does not exist; configs/ has the shipped ones")
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    name = file.stem
    workdir = Path(_WORKDIR.value or Path("runs") / name)
    print(f"workdir: {workdir} | devices: {jax.device_count()} x {jax.devices()[0].device_kind}")
    try:
        if _MODE.value == "train":
            if config.predict.input:
                _fail("predict.input belongs to --mode=predict, after the training")
            train_and_evaluate(config, workdir)
            return
        check_config(config, jax.device_count())
        if _MODE.value == "calibrate":
            restore_and_calibrate(config, workdir)
        elif _MODE.value == "benchmark":
            restore_and_benchmark(config, workdir)
        elif _MODE.value == "predict":
            restore_and_predict(config, workdir)
        elif _MODE.value == "report":
            compare_runs(config, workdir)
        elif config.eval.dispatch == "bucketed":
            restore_and_evaluate_bucketed(config, workdir)
        else:
            restore_and_evaluate(config, workdir)
    except (ConfigError, DataError, CheckpointError, TrainingError, BudgetError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        resumes = "run the same command to resume" if _MODE.value == "train" else "nothing is kept"
        _fail(f"interrupted; {resumes}")


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses flags; a bad one ends the program with one line."""
    with _clear_errors():
        return flags.FLAGS(arguments)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
