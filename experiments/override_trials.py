"""One command of random values, read or run in this process by the real program, and judged.

What may come of it when its values are checked:

- `refused`: a `ConfigError` of one line that names one of the fields, or what one does not go with.
- `accepted`: every value is in the configuration as it was written.

What may come of it when it is run:

- `rejected`: exit code 2 and one line that names one of the fields, or what one does not go
  with, and nothing is written.
- `ran`: exit code 0, to the end; every value is in the configuration, and in the `config.json` of a
  training, as it was written.
- `prepared`: accepted, but more than a tiny run can do (`_is_expensive`): a training is checked and
  traced up to its first step, in other modes the values alone are checked.
- `diverged`: figures that are not finite in a training with another rate, loss or scale of the
  input; the program says so in one line.
- `no such budget`: the calibration split cannot keep a budget, which shows with its table only.

Anything else is a finding.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from drnet_jax import cli
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.config import ConfigError, flatten
from drnet_jax.config_checks import check_config
from drnet_jax.config_fields import FIELDS
from drnet_jax.config_files import load_config
from drnet_jax.config_overrides import set_fields, take_overrides
from drnet_jax.data.sources import DataError
from drnet_jax.train import prepare
from experiments.override_draws import Draw, reading

CHECKED = ("refused", "accepted")
RUN = ("rejected", "ran", "prepared", "diverged", "no such budget")
_SCALES = ("learning_rate", "lr_scale", "decay", "momentum", "eta", "tau", "alpha", "warmup")
_DIVERGED = ("with a gradient of norm", "not finite", "the objective on the calibration split is")
_LARGEST = {
    **{"model.resolutions": 64, "predictor.size": 64, "inference.buckets": 64},
    **{"benchmark.batch_sizes": 64, "benchmark.repeats": 20, "benchmark.seconds": 5},
    **{"pretrain.num_epochs": 8, "joint.num_epochs": 8, "data.num_workers": 1},
    **{"pretrain.batch_size": 64, "joint.batch_size": 64, "eval.batch_size": 512},
    **{"data.train_images": 200, "data.eval_images": 200, "budget.batch_size": 64},
    **{"export.fixed_batches": 64, "export.images": 200, "export.int8_images": 200},
    "pretrain.accumulate": 8,
    "joint.accumulate": 8,
}


def check_draw(drawn: Draw, scratch: Path) -> dict[str, Any]:
    """Reads and checks the values of a draw, and nothing more; see `try_draw`."""
    values, arguments = _command(drawn, scratch)
    try:
        wrong = _not_as_written(flatten(configuration(arguments)), values)
        outcome, detail = ("not as written", wrong) if wrong else ("accepted", "")
    except ConfigError as error:
        outcome, detail = "refused", str(error)
        if "\n" in detail:
            outcome = "not one clear line"
        elif not _names_a_field(detail):
            outcome = "names no field"
    # Nothing else may come out: that is what is looked for.
    except Exception as error:
        outcome, detail = "traceback", _where(error)
    return _result(drawn, outcome, detail, scratch)


def try_draw(drawn: Draw, scratch: Path) -> dict[str, Any]:
    """Runs a draw.

    Args:
      drawn: what to run.
      scratch: of `prepare_scratch`; a folder in it is used and removed.
    """
    place = scratch / "trial"
    shutil.rmtree(place, ignore_errors=True)
    if drawn.mode not in ("train", "convert"):
        shutil.copytree(scratch / drawn.data, place / "workdir")
    place.mkdir(exist_ok=True)
    values, arguments = _command(drawn, scratch)
    before = _files(place)
    directory = Path.cwd()
    # Relative paths lead to nothing else.
    os.chdir(place)
    try:
        outcome, detail = _judge(drawn, values, arguments, place, before)
    finally:
        os.chdir(directory)
        shutil.rmtree(place, ignore_errors=True)
    return _result(drawn, outcome, detail, scratch)


def _result(drawn: Draw, outcome: str, detail: str, scratch: Path) -> dict[str, Any]:
    detail = detail.replace(str(scratch), "SCRATCH")
    return vars(drawn) | {"outcome": outcome, "detail": detail}


def _command(drawn: Draw, scratch: Path) -> tuple[dict[str, str], list[str]]:
    """The values with their paths, and the arguments of the program."""
    place = scratch / "trial"
    names = {"run": scratch / drawn.data, "pictures": scratch / "photos", "missing": place / "no"}
    values = {name: _filled(text, names) for name, text in drawn.values.items()}
    arguments = [f"--config.{name}={text}" for name, text in values.items()]
    arguments += [f"--config={scratch / drawn.data}.py", f"--mode={drawn.mode}"]
    arguments.append(f"--workdir={place / 'workdir'}")
    if drawn.mode == "predict" and "predict.input" not in values:
        arguments.append(f"--config.predict.input={scratch / 'photos'}")
    if drawn.mode == "report" and "report.runs" not in values:
        arguments.append(f"--config.report.runs=('{scratch / drawn.data}',)")
    return values, arguments


def _filled(text: str, names: dict[str, Path]) -> str:
    for name, path in names.items():
        text = text.replace(f"{{{name}}}", str(path))
    return text


def _judge(
    drawn: Draw, values: dict[str, str], arguments: list[str], place: Path, before: set[Any]
) -> tuple[str, str]:
    """Outcome and detail."""
    try:
        config = configuration(arguments)
    except ConfigError:
        # So does the program, with one line.
        pass
    else:
        wrong = _not_as_written(flatten(config), values)
        if wrong:
            return "not as written", wrong
        if _is_expensive(config, drawn.mode):
            return _judge_expensive(drawn, config, values, place, before)
    code, errors, failure = _run(arguments, place.parent)
    if failure:
        return "traceback", failure
    if code == 0:
        return _judge_run(drawn, values, place)
    lines = [line for line in errors.splitlines() if line.strip()]
    if code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        return "not one clear line", f"exit code {code}: {' | '.join(lines)[:300]}"
    (line,) = lines
    if any(words in line for words in _DIVERGED):
        scaled = [n for n in values if any(word in n for word in (*_SCALES, "data.", "model."))]
        return ("diverged" if scaled else "diverged for no reason"), line
    if "cannot be kept" in line or "show no drop" in line:
        return "no such budget", line
    if not _names_a_field(line):
        return "names no field", line
    changed = _files(place) ^ before
    if changed:
        names = sorted({str(path.relative_to(place)) for path, *_ in changed})
        return "refused after work", f"{line} ({len(names)} files changed, {names[:4]})"
    return "rejected", line


def _names_a_field(line: str) -> bool:
    """One of those that were set, or another one that one of them does not go with."""
    return any(re.search(rf"(?<![\w.])(config\.)?{re.escape(name)}(?!\w)", line) for name in FIELDS)


def configuration(arguments: list[str]) -> ConfigDict:
    """As the program reads it.

    Raises:
      ConfigError: a value is not accepted.
    """
    values, others = take_overrides(arguments)
    given = cli.parse_flags(others)
    config = load_config(given.config)
    set_fields(config, values)
    check_config(config, jax.device_count(), given.mode)
    return config


def _not_as_written(flat: dict[str, Any], values: dict[str, str]) -> str:
    for name, text in values.items():
        meanings = reading(name, text)
        if not any(_same(flat[name], meaning) for meaning in meanings):
            return f"{name}={text!r} became {flat[name]!r}, read independently {meanings!r}"
    return ""


def _same(got: Any, meaning: Any) -> bool:
    if isinstance(got, list) and isinstance(meaning, list):
        return len(got) == len(meaning) and all(map(_same, got, meaning))
    return type(got) is type(meaning) and got == meaning


def _is_expensive(config: ConfigDict, mode: str) -> bool:
    """More than a run of seconds can do; see the top of `random_overrides.py`."""
    flat = flatten(config)
    for name, most in _LARGEST.items():
        value = flat[name]
        # Another model or other data than those of the trained run are refused at once.
        matters = mode == "train" or name.startswith(
            ("eval.", "inference.", "benchmark.", "budget.", "export.")
        )
        if matters and max(value if isinstance(value, list) else [value], default=0) > most:
            return True
    if mode != "train":
        return False
    small = {"resnet", "resnet10", "mobilenetv2_one_block"}
    texts = (config.model.args, config.predictor.args)
    narrow = all("width=4" in text.replace(" ", "") for text in texts)
    return not narrow or not {config.model.name, config.predictor.name} <= small


def _judge_expensive(
    drawn: Draw, config: ConfigDict, values: dict[str, str], place: Path, before: set[Any]
) -> tuple[str, str]:
    if drawn.mode != "train":
        return "prepared", "values alone"
    try:
        with _captured(place.parent):
            prepare(config, place / "workdir")
    except (ConfigError, DataError, CheckpointError, OSError) as error:
        line = str(error)
        if "\n" in line:
            return "not one clear line", line[:300]
        if not _names_a_field(line):
            return "names no field", line
        return ("refused after work" if _files(place) ^ before else "rejected"), line
    except Exception as error:
        return "traceback", _where(error)
    return "prepared", "up to the first step"


def _judge_run(drawn: Draw, values: dict[str, str], place: Path) -> tuple[str, str]:
    """Of a run that came to its end: whether its files say what was written."""
    if drawn.mode == "train":
        wrong = _not_as_written(json.loads((place / "workdir" / "config.json").read_text()), values)
        if wrong:
            return "not as written", wrong
        if not (place / "workdir" / "eval.json").exists():
            return "no result", "eval.json is missing"
    return "ran", ""


def _run(arguments: list[str], scratch: Path) -> tuple[int, str, str]:
    """Exit code, standard error, and where an exception that nothing caught came up."""
    sys.argv = ["main.py", *arguments]
    failure, code = "", 0
    with _captured(scratch):
        try:
            cli.run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException as error:
            failure = _where(error)
    return code, (scratch / "stderr").read_text(errors="replace"), failure


def _where(error: BaseException) -> str:
    own = [f for f in traceback.extract_tb(error.__traceback__) if "drnet_jax" in f.filename]
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "elsewhere"
    text = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__} at {place}: {text}"


@contextlib.contextmanager
def _captured(scratch: Path) -> Iterator[None]:
    """Both outputs of the process into files, those of libraries in C++ too."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(scratch / "stdout", "w") as out, open(scratch / "stderr", "w") as errors:
        os.dup2(out.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)


def _files(place: Path) -> set[Any]:
    """What lies there, but for the index that a folder of pictures keeps."""
    return {
        (path, path.stat().st_size, path.stat().st_mtime_ns)
        for path in place.rglob("*")
        if path.is_file() and "cache" not in path.parts
    }
