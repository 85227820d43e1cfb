"""Runs the documented commands that train or use a model, made tiny, in an empty directory.

python tests/run_documented_commands.py

`drnet_jax` and `drnet_runtime` are the installed packages (`PYTHONPATH` says where), `drnet-jax` is
on the `PATH`. What a command does not set itself is set to the smallest networks and a few images.
Not run: what only docstrings name, but for sweeps; data sets that have to be downloaded; networks
and files of the reader's; sweeps of more than three jobs. `tests/test_documented_commands.py`
checks all of these as far as it goes without.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# Behind PYTHONPATH: the package itself is the installed one.
sys.path.append(str(Path(__file__).parents[1]))

from ml_collections import ConfigDict
from PIL import Image

from drnet_jax.cli import parse_flags
from drnet_jax.config import ConfigError
from drnet_jax.config_files import load_config
from drnet_jax.config_overrides import set_fields, take_overrides
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.sweep import base_config, load_sweep, parse
from drnet_jax.sweeps.plan import make_plan
from tests.conversion_data import write_weights
from tests.documented import Command, documented_commands
from tests.xla import QUICK_COMPILATION

TINY = {
    "model.name": "resnet",
    "model.args": "stage_sizes=(1,), width=4, stem='small'",
    "model.resolutions": (64, 32),
    "predictor.name": "resnet",
    "predictor.args": "stage_sizes=(1,), width=4, stem='small'",
    "predictor.size": 32,
    "data.train_images": 80,
    "data.eval_images": 40,
    "data.num_workers": 0,
    "pretrain.num_epochs": 1,
    "pretrain.warmup_epochs": 0.5,
    "pretrain.batch_size": 40,
    "joint.num_epochs": 1,
    "joint.warmup_epochs": 0.5,
    "joint.batch_size": 40,
    "eval.batch_size": 40,
    "inference.buckets": (1, 8),
    "benchmark.batch_sizes": (1,),
    "benchmark.repeats": 5,
    "benchmark.seconds": 0.5,
    "log.tensorboard": False,
}
# What documents call the reader's own folders and runs.
STANDING_FOR = {"PATH": "pictures", "FOLDER": "pictures/0", "FILE": "weights.safetensors"}
STANDING_FOR |= {"runs/a": "runs/digits_on_photos", "runs/b": "runs/eta05"}
LEFT_BY = {
    "train": ("eval.json", "report.html", "logits.npz"),
    "convert": ("eval.json", "report.html", "conversion.json", "calibration.json"),
    "eval": ("eval.json", "report.html"),
    "calibrate": ("calibration.json",),
    "benchmark": ("benchmark/*/table.md", "benchmark/*/throughput.png"),
    "predict": ("predictions/*/predictions.csv", "predictions/*/gallery.html"),
    "export": ("export/manifest.json", "export/classifier_*.onnx"),
    "classify": (),
    "report": ("comparison.html", "comparison.json"),
}
TRAININGS = ("train", "convert")
# After the training, in the order in which they need each other.
MODES = ("calibrate", "eval", "benchmark", "predict", "export", "classify", "report")


@dataclass(frozen=True)
class Run:
    """A command as it is run here: program and arguments; and files that it has to leave."""

    command: Command
    mode: str
    program: tuple[str, ...]
    arguments: tuple[str, ...]
    workdir: Path
    left: tuple[str, ...]


def main() -> int:
    write_pictures(Path("pictures"))
    write_weights(Path("weights.safetensors"), 3, stage_sizes=(1,))
    commands = [
        command
        for command, where in documented_commands().items()
        if command.kind == "sweep" or not where.endswith(".py")
    ]
    # `python main.py` and `drnet-jax` are the same program.
    runs = {(run.mode, run.arguments): run for c in commands for run in runs_of(c)}
    trainings = [run for run in runs.values() if run.mode in TRAININGS]
    first = [run for run in trainings if "init_from" not in str(run.command)]
    # They start from those.
    second = [run for run in trainings if run not in first]
    # A budget needs the calibration.
    rest = sorted(
        (run for run in runs.values() if run.mode not in TRAININGS),
        key=lambda run: ("--config.budget" in str(run.command), MODES.index(run.mode)),
    )
    with ThreadPoolExecutor(2) as pool:
        good = [*pool.map(succeeds, first), *pool.map(succeeds, second), *map(succeeds, rest)]
    every = (*first, *second, *rest)
    failed = [str(run.command) for run, ok in zip(every, good, strict=True) if not ok]
    print(f"{len(good)} commands run, {len(failed)} failed: {failed}")
    return int(bool(failed) or len(good) < 20)


def write_pictures(folder: Path) -> None:
    """Three classes of 150 pictures each."""
    data = compose("test", 450)
    for index, image in enumerate(data["image"]):
        file = folder / str(index % 3) / f"{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def runs_of(command: Command) -> Iterator[Run]:
    """The run of a command, or none."""
    if command.kind == "main":
        words = [replaced(word) for word in command.arguments]
        try:
            config, mode, workdir = configuration(words)
        except ConfigError:
            # Of a file of the reader's.
            return
        if config.data.name not in ("digits_on_photos", "folder") or "my_network" in str(words):
            return
        # Ray is an extra, without which tests/test_predict_workers.py is skipped too.
        if config.predict.workers and find_spec("ray") is None:
            return
        given = take_overrides(words)[0]
        # Other networks than the smallest take minutes to compile for more than this.
        short = {"stages": ("pretrain",), "model.resolutions": (64,)}
        short = short if mode == "train" and "model.name" in given else {}
        # Of so few pictures a narrow one may not be kept.
        short |= {"budget.max_drop": 100.0} if mode == "convert" else {}
        fields = {n: value for n, value in (TINY | short).items() if n not in given}
        words += [f"--config.{name}={value}" for name, value in fields.items()]
        left = ("eval_bucketed.json",) if config.eval.dispatch == "bucketed" else LEFT_BY[mode]
        if config.export.output:
            workdir = Path(config.export.output)
            left = (
                "manifest.json",
                *(f"fixed_{size}.onnx" for size in config.export.fixed_batches),
            )
        script = command.words[0] == "drnet-jax"
        program = ("drnet-jax",) if script else (sys.executable, "-m", "drnet_jax")
        yield Run(command, mode, program, tuple(words), workdir, left)
    if command.kind == "runtime":
        ours = {"DIRECTORY": "runs/digits_on_photos/export", "FOLDER": "pictures/0"}
        arguments = tuple(ours.get(word, word) for word in command.arguments)
        program = (sys.executable, "-m", "drnet_runtime")
        yield Run(command, "classify", program, arguments, Path("."), LEFT_BY["classify"])
    if command.kind == "sweep":
        given, overrides = parse([replaced(word) for word in command.arguments])
        sweep = load_sweep(given.sweep)
        plan = make_plan(sweep, base_config(sweep, overrides), Path("runs"))
        if len(plan.stage_one) + len(plan.stage_two) <= 3:
            fields = [f"--config.{n}={v}" for n, v in TINY.items() if n not in overrides]
            program = (sys.executable, "-m", "drnet_jax.sweep")
            folder = Path("runs") / given.sweep.stem
            left = ("sweep.md", "sweep.png", "sweep.json")
            yield Run(command, "train", program, (*command.arguments, *fields), folder, left)


def replaced(word: str) -> str:
    """With folders that there are in the place of the reader's, any budget of time kept, and the
    one stage of `TINY` pruned."""
    for name, ours in STANDING_FOR.items():
        word = word.replace(f"={name}", f"={ours}").replace(f"'{name}'", f"'{ours}'")
    word = re.sub(r"^(--config\.model\.pruning_rates)=.*", r"\1=(0.5,)", word)
    return re.sub(r"^(--config\.budget\.ms)=.*", r"\1=500", word)


def configuration(words: list[str]) -> tuple[ConfigDict, str, Path]:
    values, others = take_overrides(words)
    given = parse_flags(others)
    config = load_config(given.config)
    set_fields(config, values)
    return config, given.mode, given.workdir


def succeeds(run: Run) -> bool:
    """Runs it; whether it ends well and leaves what it should."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {QUICK_COMPILATION}".strip(),
        "JAX_COMPILATION_CACHE_DIR": str(Path("cache").resolve()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    # What a command before has left would hide that this one leaves nothing.
    for pattern in run.left if run.mode not in TRAININGS else ():
        for old in run.workdir.glob(pattern):
            old.unlink()
    start = time.perf_counter()
    done = subprocess.run(
        [*run.program, *run.arguments], env=environment, capture_output=True, text=True
    )
    missing = [pattern for pattern in run.left if not list(run.workdir.glob(pattern))]
    good = done.returncode == 0 and not missing
    print(
        f"{'ok' if good else 'FAILED'} {time.perf_counter() - start:.1f} s: {run.command}",
        flush=True,
    )
    if not good:
        print(f"{done.stdout}\n{done.stderr}\nleft no {missing}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
