"""The whole program on damaged pictures: a training and a prediction that end, and lose none.

python experiments/mutated_program.py

Pictures of `picture_mutations.py`, two thirds of them damaged, as train, calibration and test
folders of two classes, and further ones as a folder to predict. Which are corrupt is found out by
decoding each by itself. Expected: the training ends with 0, names corrupt pictures only and leaves
out of the evaluation exactly those; the prediction ends with 0, and every file is once in one of
its tables, with its reason. `mutated_program.json` beside this file has the counts.
"""

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from drnet_jax.data.decode import SUFFIXES, CorruptImageError
from drnet_jax.data.eval_view import EvalView
from drnet_jax.runtime.command_line import CommandLine, a_path
from experiments.picture_mutations import make

ROOT = Path(__file__).parents[1]
SEED = 7
# Pictures of each folder: as many are made as it takes, and of three one is left as it was.
SPLITS = {"train": 400, "calibration": 120, "test": 200}
PREDICTED = 400
VIEW = EvalView(32, 0.875)
FIELDS = {
    "data.name": "folder",
    "data.skip_corrupt": True,
    "data.max_corrupt": 100_000,
    "data.train_images": 0,
    "data.eval_images": 0,
    "data.eval_crop": VIEW.fraction,
    "model.args": "width=4, stem='small'",
    "model.resolutions": "(32, 16)",
    "pretrain.num_epochs": 1,
    "joint.num_epochs": 1,
    "inference.measure": False,
    "log.tensorboard": False,
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=a_path, default=ROOT / "runs" / "mutated_program")
    parser.add_argument("--results", type=a_path, default=Path(__file__).parent)
    return parser.parse_args(arguments)


def main() -> int:
    """Writes the pictures, runs the program and compares; 1 if something is not as expected."""
    given = parse(sys.argv[1:])
    shutil.rmtree(given.dir, ignore_errors=True)
    numbers = iter(range(100_000))
    corrupt = {
        split: write_pictures(given.dir / "pictures" / split, count, numbers)
        for split, count in SPLITS.items()
    }
    unreadable = write_pictures(given.dir / "predicted", PREDICTED, numbers)
    workdir, start = given.dir / "run", time.perf_counter()
    problems, facts = check_training(given.dir, workdir, corrupt)
    further_problems, further = check_prediction(given.dir, workdir, unreadable)
    problems += further_problems
    summary = {"command": "python experiments/mutated_program.py", "seed": SEED} | facts | further
    summary |= {"seconds": round(time.perf_counter() - start), "problems": problems}
    path = given.results / "mutated_program.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"{json.dumps(facts | further)}; {len(problems)} problems: {problems}")
    return int(bool(problems))


def write_pictures(folder: Path, count: int, numbers: Iterable[int]) -> dict[str, str]:
    """Files of two classes, and why which of them are corrupt, by their path in the folder."""
    corrupt = {}
    for place, number in zip(range(count), _usable(numbers, count), strict=True):
        picture = make(SEED, number)
        path = folder / "ab"[place % 2] / picture.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.content)
        try:
            VIEW.decode(picture.content)
        except CorruptImageError as error:
            corrupt[path.relative_to(folder).as_posix()] = str(error)
    return corrupt


def _usable(numbers: Iterable[int], count: int) -> Iterable[int]:
    """So many numbers of pictures that the program takes by their names, a third of them whole."""
    wanted = {True: count // 3, False: count - count // 3}
    for number in numbers:
        picture = make(SEED, number)
        whole = picture.mutation in ("none", "wrong extension", "one pixel wide", "orientation")
        if wanted[whole] and picture.name.endswith(SUFFIXES):
            wanted[whole] -= 1
            yield number
        if not any(wanted.values()):
            return


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the program on the smallest network."""
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    command = [sys.executable, "-m", "drnet_jax", "--config=configs/tiny.py", *fields, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def check_training(
    folder: Path, workdir: Path, corrupt: dict[str, dict[str, str]]
) -> tuple[list[str], dict[str, int]]:
    """Problems of a training, and what it says of its pictures."""
    run = program(f"--config.data.dir={folder / 'pictures'}", f"--workdir={workdir}")
    (folder / "train.log").write_text(run.stdout + run.stderr)
    if run.returncode:
        return [f"training: {run.returncode}: {run.stderr.splitlines()[-1:]}"], {}
    problems = []
    said = run.stdout + run.stderr
    named = set(re.findall(r"left out: \S*/pictures/train/(\S+): ", said))
    # Lines of libtiff may come in between, before the end of one.
    if not named or any(f"{name}: {corrupt['train'].get(name)}" not in said for name in named):
        problems.append("training left out none, or what is whole, or has other reasons")
    summary = json.loads((workdir / "eval.json").read_text())
    if summary["num_corrupt"] != len(corrupt["test"]):
        problems.append(f"{summary['num_corrupt']} test images left out: {len(corrupt['test'])}")
    if summary["num_images"] + summary["num_corrupt"] != SPLITS["test"]:
        problems.append("the test images do not add up")
    return problems, {
        "training_images": SPLITS["train"],
        "training_corrupt": len(corrupt["train"]),
        "training_named": len(named),
        "test_images": summary["num_images"],
        "test_corrupt": summary["num_corrupt"],
        "training_lines_on_stderr": len(run.stderr.splitlines()),
    }


def check_prediction(
    folder: Path, workdir: Path, unreadable: dict[str, str]
) -> tuple[list[str], dict[str, int]]:
    """Problems of a prediction, and its counts."""
    root, output = folder / "predicted", folder / "predictions"
    places = (f"--config.predict.input={root}", f"--config.predict.output={output}")
    run = program("--mode=predict", *places, f"--workdir={workdir}")
    (folder / "predict.log").write_text(run.stdout + run.stderr)
    if run.returncode:
        return [f"prediction: {run.returncode}: {run.stderr.splitlines()[-1:]}"], {}
    rows = {}
    for name in ("predictions", "unreadable"):
        with (output / f"{name}.csv").open(newline="") as file:
            rows[name] = list(csv.DictReader(file))
    problems = []
    files = sorted(row["file"] for found in rows.values() for row in found)
    if files != sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*")):
        problems.append("the tables have not every file once")
    if {row["file"]: row["reason"] for row in rows["unreadable"]} != unreadable:
        problems.append("unreadable.csv does not have what is corrupt, or other reasons")
    return problems, {
        "predicted": len(rows["predictions"]),
        "unreadable": len(rows["unreadable"]),
        "prediction_lines_on_stderr": len(run.stderr.splitlines()),
    }


if __name__ == "__main__":
    sys.exit(main())
