"""Random values for every field, through the real command line: does any break a run, or vanish?

python experiments/random_overrides.py

Ten thousand commands, each with one to three fields at values of many sorts, drawn by Hypothesis
from the declaration of the fields: what they allow, the edges of it and beyond, other types and
lengths, not a number, huge, empty, None, in other scripts. Each has to be refused by one clear line
that names a field, or to be in the configuration as it was written.

Some of the accepted ones (`--runs`) are run: they have to be refused by one line before anything is
written, or to come to their end: training of both stages and evaluation, or another mode on a copy
of a trained run. `experiments/override_trials.py` says what is judged, and how.

What a tiny run can do is run. Values that are legal but take more, a million epochs, say, or a
network of another width, are not: a training with them is prepared up to its first step, which
checks everything and traces every stage with abstract values, and in other modes the values alone
are checked. `_LARGEST` there has the bounds. In most draws values are small enough.

The commands run in one process after another, so that a crash or a hang of one is a finding and
not the end. Interrupted, the same command goes on: draws and results are in `--workdir`, a line a
draw. At the end `random_overrides.json` and `.md` are written to `--output`.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from drnet_jax.runtime.command_line import CommandLine, a_path
from drnet_jax.runtime.progress import Progress
from experiments.override_draws import DEFAULTS, Draw, draws
from tests.xla import QUICK_COMPILATION

ROOT = Path(__file__).parents[1]
# Of a process, so that a draw beyond the memory does not take the machine with it.
_MEMORY = 24 * 2**30
# A hang, whatever else the machine does; alone the slowest command takes 12 seconds.
_SECONDS = 900
# Draws of a process, whose caches grow with every network that is run.
_DRAWS = {False: 5000, True: 100}
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Compiling takes longer than running.
    "XLA_FLAGS": QUICK_COMPILATION,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
_BASE = {
    "model.name": "resnet",
    "model.args": "stage_sizes=(1,), width=4, stem='small'",
    "model.resolutions": (16, 8),
    "predictor.args": "stage_sizes=(1,), width=4, stem='small'",
    "predictor.size": 8,
    "pretrain.batch_size": 8,
    "joint.batch_size": 8,
    "pretrain.num_epochs": 1,
    "joint.num_epochs": 1,
    "eval.batch_size": 8,
    "eval.gallery": 2,
    "predict.gallery": 2,
    "inference.buckets": (1, 4),
    "inference.measure": False,
    "benchmark.batch_sizes": (2,),
    "benchmark.repeats": 5,
    "benchmark.seconds": 0.1,
    "export.images": 8,
    "export.int8_images": 20,
    "log.tensorboard": False,
}
_BASES = {
    "digits": _BASE | {"data.train_images": 8, "data.eval_images": 8},
    "pictures": _BASE | {"data.name": "folder", "data.train_images": 8},
}


def prepare_scratch(scratch: Path) -> None:
    """What all draws start from: pictures, and a trained and calibrated run of each data set."""
    scratch.mkdir(parents=True, exist_ok=True)
    if (scratch / "ready").exists():
        return
    rng = np.random.default_rng(0)
    for name in ("photos", "data/ant", "data/bee"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
        for number in range(20 if "data" in name else 3):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(scratch / name / f"{number}.png")
    from drnet_jax.calibrate import restore_and_calibrate
    from drnet_jax.config_files import load_config
    from drnet_jax.train import train_and_evaluate

    for name, fields in _BASES.items():
        directory = {"data.dir": str(scratch / "data")} if name == "pictures" else {}
        (scratch / f"{name}.py").write_text(
            "from drnet_jax.config import default_config\n\n\ndef get_config():\n"
            "    config = default_config()\n"
            f"    config.update_from_flattened_dict({fields | directory!r})\n    return config\n"
        )
        config = load_config(scratch / f"{name}.py")
        shutil.rmtree(scratch / name, ignore_errors=True)
        train_and_evaluate(config, scratch / name)
        config.budget.ms = 1000.0
        restore_and_calibrate(config, scratch / name)
    (scratch / "ready").touch()


def known_draws(path: Path, seed: int, count: int) -> list[Draw]:
    """Those of a file, which is written first where it is missing: drawing takes minutes."""
    if not path.exists():
        path.write_text("".join(json.dumps(vars(one)) + "\n" for one in draws(seed, count)))
    return [Draw(**json.loads(text)) for text in path.read_text().splitlines()]


def serve(connection: Connection, scratch: Path, run: bool) -> None:
    """The process of some draws: takes them, gives results."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    from absl import flags

    from experiments.override_trials import check_draw, try_draw

    # Grain reads flags of absl.
    flags.FLAGS.mark_as_parsed()
    judge = try_draw if run else check_draw
    while True:
        connection.send(judge(connection.recv(), scratch))


def results(drawn: list[Draw], scratch: Path, run: bool) -> Iterator[dict[str, Any]]:
    """Of every draw, run or only checked, by processes that live for some draws each."""
    context = multiprocessing.get_context("spawn")
    process, used = None, 0
    for one in drawn:
        if process is None:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, scratch, run), daemon=False)
            process.start()
            theirs.close()
            used = 0
        start = time.perf_counter()
        found: dict[str, Any] = {}
        try:
            ours.send(one)
            if ours.poll(_SECONDS):
                found = ours.recv()
            else:
                found = vars(one) | {"outcome": "hang", "detail": f"more than {_SECONDS} s"}
        except (EOFError, OSError):
            process.join(10)
            found = vars(one) | {"outcome": "crash", "detail": f"exit code {process.exitcode}"}
        used += 1
        if found["outcome"] in ("hang", "crash") or used == _DRAWS[run]:
            process.kill()
            process.join()
            process = None
        yield found | {"run": run, "seconds": round(time.perf_counter() - start, 2)}
    if process is not None:
        process.kill()


def completed(drawn: list[Draw], run: bool, path: Path, scratch: Path) -> list[dict[str, Any]]:
    """The results of all of them; those that are missing in the file are added to it."""
    lines = path.read_text().splitlines() if path.exists() else []
    known = {(one["number"], one["run"]): one for one in map(json.loads, lines)}
    left = [one for one in drawn if (one.number, run) not in known]
    progress = Progress("runs" if run else "draws", len(drawn), len(drawn) - len(left), unit="draw")
    with path.open("a") as file:
        for done, one in enumerate(results(left, scratch, run), len(drawn) - len(left) + 1):
            known[one["number"], run] = one
            file.write(json.dumps(one) + "\n")
            file.flush()
            progress.show(done, one["outcome"])
    progress.close()
    return [known[one.number, run] for one in drawn]


def summarise(
    checked: list[dict[str, Any]], tried: list[dict[str, Any]], seed: int
) -> dict[str, Any]:
    """Counts by outcome and by field, and every finding."""
    from experiments.override_trials import CHECKED, RUN

    fields: dict[str, Counter[str]] = {name: Counter() for name in DEFAULTS}
    for one in [*checked, *tried]:
        for name in one["values"]:
            fields[name]["runs" if one["run"] else "draws"] += 1
            good = one["outcome"] in (*CHECKED, *RUN)
            fields[name][one["outcome"] if good else "findings"] += 1
    return {
        "draws": len(checked),
        "runs": len(tried),
        "seed": seed,
        "seconds": round(sum(one["seconds"] for one in [*checked, *tried])),
        "checked": dict(Counter(one["outcome"] for one in checked).most_common()),
        "run": dict(Counter(one["outcome"] for one in tried).most_common()),
        "modes": dict(Counter(one["mode"] for one in tried).most_common()),
        "hypothesis": version("hypothesis"),
        "fields": {name: dict(counts) for name, counts in fields.items()},
        "findings": [one for one in [*checked, *tried] if one["outcome"] not in (*CHECKED, *RUN)],
    }


def markdown(summary: dict[str, Any]) -> str:
    """The same as a page."""
    from experiments.override_trials import CHECKED, RUN

    columns = ["draws", *CHECKED, "runs", *RUN, "findings"]
    lines = [
        "# Random values for every field",
        "",
        "Made by `python experiments/random_overrides.py`, which says how a command is judged.",
        "",
        line(summary),
        "",
        "| field | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, counts in summary["fields"].items():
        row = " | ".join(str(counts.get(column, 0)) for column in columns)
        lines.append(f"| `{name}` | {row} |")
    lines += ["", "## Findings", ""]
    for one in summary["findings"]:
        values = " ".join(f"{name}={text!r}" for name, text in one["values"].items())
        lines.append(
            f"- {one['number']}, {one['mode']}: `{values}`: {one['outcome']}: {one['detail']}"
        )
    return "\n".join(lines + ([] if summary["findings"] else ["None."])) + "\n"


def line(summary: dict[str, Any]) -> str:
    """The whole in a line."""
    checked, run = (
        ", ".join(f"{count} {name}" for name, count in summary[what].items())
        for what in ("checked", "run")
    )
    return (
        f"{summary['draws']} commands over {len(summary['fields'])} fields: {checked}; "
        f"{summary['runs']} of the accepted ones run: {run}; {len(summary['findings'])} findings; "
        f"{summary['seconds'] / 60:.0f} minutes."
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=500, help="of accepted draws (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=a_path, default=ROOT / "runs" / "random_overrides")
    parser.add_argument("--output", type=a_path, default=ROOT / "experiments")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse(sys.argv[1:])
    scratch = options.workdir.resolve()
    # For the processes of the draws.
    os.environ |= _ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled")}
    prepare_scratch(scratch)
    name = f"{options.seed}_{options.draws}.jsonl"
    drawn = known_draws(scratch / f"draws_{name}", options.seed, options.draws)
    path = scratch / f"results_{name}"
    checked = completed(drawn, False, path, scratch)
    accepted = {one["number"] for one in checked if one["outcome"] == "accepted"}
    sample = [one for one in drawn if one.number in accepted]
    # In a random order, so that all modes and fields are among the first.
    random.Random(options.seed).shuffle(sample)
    tried = completed(sample[: options.runs], True, path, scratch)
    summary = summarise(checked, tried, options.seed)
    (options.output / "random_overrides.json").write_text(json.dumps(summary, indent=1) + "\n")
    (options.output / "random_overrides.md").write_text(markdown(summary))
    print(line(summary))


if __name__ == "__main__":
    main()
