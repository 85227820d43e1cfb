"""How far one program a batch is from exact dispatch: the figures of docs/inference.md.

python experiments/fused_choices.py NAME=WORKDIR [NAME=WORKDIR] [--cost 0.6] [--check]

Of finished runs, from the scores and logits that `logits.npz` keeps of every test image: random
batches are given their places by the `assign` of `FusedClassifier`, whose answers are those of
exact dispatch wherever the choices are (tests/test_fused.py). Shares and lambda are those of the
calibration split for a mean cost.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from drnet_jax.budgets.calibration import Point
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.runs import load_run, stored_config
from drnet_jax.data.sources import ArraySource
from drnet_jax.evaluation.controls import by_choice
from drnet_jax.evaluation.inputs import load_split
from drnet_jax.evaluation.logits import LogitsError
from drnet_jax.hub.classifier import AdaptiveClassifier
from drnet_jax.hub.saved_model import of_run
from drnet_jax.inference.decision import choose
from drnet_jax.runtime.command_line import CommandLine, a_path
from drnet_jax.runtime.files import write_json, write_text
from experiments.first_look_methods import cell
from experiments.first_look_runs import Run, read
from experiments.fused_batches import assigned, in_batches, point_of, values_of

RESULTS = Path(__file__).parent
BATCH_SIZES = (1, 8, 32, 128, 256, 1024)
PLACES = (1.0, 1.25)
CHECKED = (8, 32, 256)
# Of a batch size, batches that are classified to check what is simulated.
CHECKED_BATCHES = 3


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=named, metavar="NAME=WORKDIR")
    parser.add_argument("--cost", type=float, default=0.6, help="mean cost over the largest size's")
    parser.add_argument("--check", action="store_true", help="only beside the program itself")
    return parser.parse_args(arguments)


def named(text: str) -> tuple[str, Path]:
    """A run's name in the tables, and its folder."""
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} must be a name, =, and the folder of a run")
    return name, a_path(folder)


def main() -> None:
    given = parse(sys.argv[1:])
    try:
        runs = [(workdir, read(workdir, name)) for name, workdir in given.runs]
    except (CheckpointError, LogitsError) as error:
        raise SystemExit(f"error: {error}") from error
    for _, run in runs:
        if run.calibration is None or run.test is None:
            modes = "--mode=eval and --mode=calibrate"
            raise SystemExit(f"error: {run.variant} lacks the outputs of a split: run {modes}")
    if given.check:
        for workdir, run in runs:
            check(workdir, run, point_of(run, given.cost))
        return
    found = [measure(run, given.cost) for _, run in runs]
    write_json(RESULTS / "fused_choices.json", {"cost": given.cost, "runs": found})
    write_text(RESULTS / "fused_choices.md", text := table(found))
    print(text)


def measure(run: Run, target: float) -> dict[str, Any]:
    """Everything that the tables say of a run."""
    point, largest = point_of(run, target), run.cost.classifier_gmacs[0]
    costs = np.array(run.cost.choice_gmacs)
    choices = choose(run.test.scores, costs, point.lam)
    exact = by_choice(run.test.answer_top1, choices, costs, run.cost.predictor_gmacs)
    return {
        "name": run.variant,
        "images": len(choices),
        "resolutions": list(run.resolutions),
        "lambda": point.lam,
        "shares": [100 * share for share in point.shares],
        "exact top1": 100 * exact.top1,
        "exact cost": exact.gmacs / largest,
        "rows": [
            in_batches(run, point, choices, size, places)
            for places in PLACES
            for size in BATCH_SIZES
            # A batch of one has no places.
            if size > 1 or places == 1
        ],
    }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown: the runs, in short, all of their batches, and what the best assignment gains."""
    runs = [["", "images", "shares", "top-1", "cost"]]
    batches = [["", "batch", "places", "agreement", "top-1", "cost", "minus exact at that cost"]]
    best = [["", "batch", "places", "value lost", "of a spread of", "top-1 minus the optimum's"]]
    for run in found:
        shares = " / ".join(f"{share:.1f}" for share in run["shares"])
        exact = [f"{run['exact top1']:.1f}", f"{run['exact cost']:.3f}"]
        runs.append([run["name"], str(run["images"]), shares, *exact])
        for row in run["rows"]:
            start = [run["name"], str(row["batch"]), f"{row['places']:g}"]
            same = f"{row['agreement']:.1f} ± {row['agreement std']:.1f}"
            level = [f"{row['top1']:.1f}", f"{row['cost']:.3f}", cell(row["minus exact"])]
            batches.append([*start, same, *level])
            if "value lost" in row:
                values = [f"{row['value lost']:.4f}", f"{row['spread of values']:.2f}"]
                best.append([*start, *values, cell(row["minus optimum"])])
    short = [summary(found, places) for places in PLACES]
    tables = map(markdown, (runs, *short, batches, best))
    return "\n".join(["What these are: docs/inference.md, One program a batch.\n", *tables])


def summary(found: Sequence[Mapping[str, Any]], places: float) -> list[list[str]]:
    """A row a run, a column a batch size: agreement, top-1 minus exact dispatch's, cost."""
    rows = [[f"places an image: {places:g}", *(str(size) for size in BATCH_SIZES if size > 1)]]
    for run in found:
        cells = [
            f"{row['agreement']:.1f}, {signed(row['minus exact'][0])} at {row['cost']:.2f}"
            for row in run["rows"]
            if row["places"] == places and row["batch"] > 1
        ]
        rows.append([run["name"], *cells])
    return rows


def signed(points: float) -> str:
    """Without a minus before a zero."""
    return f"{round(points, 1) + 0:+.1f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of a heading and rows."""
    heading, *others = rows
    lines = [heading, ["---"] * len(heading), *others]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def check(workdir: Path, run: Run, point: Point) -> None:
    """Prints how often the program itself, on test images, does what is simulated."""
    restored, config = load_run(workdir), stored_config(workdir)
    source = load_split(config, workdir, restored, "test")
    if not isinstance(source, ArraySource):
        raise SystemExit(f"error: {run.variant}: --check takes runs with their images in memory")
    classifier = AdaptiveClassifier(of_run(config, restored), image_size=source.image_size)
    values, test = values_of(run, point), run.test
    for size in CHECKED:
        fused = classifier.fused(size, shares=point.shares, lam=point.lam)
        rows = np.random.default_rng(size).permutation(len(values))[: CHECKED_BATCHES * size]
        rows = rows.reshape(CHECKED_BATCHES, size)
        simulated = assigned(values[rows], fused.capacities)
        results = [fused.classify(source.images[test.index[batch]]) for batch in rows]
        choices = np.stack([result.choices for result in results])
        right = np.stack([result.labels for result in results]) == test.label[rows]
        same = int((choices == simulated).sum())
        alike = int((right == test.answer_top1[rows, simulated]).sum())
        print(
            f"{run.variant}, batch {size}: of {rows.size} images {same} choices are those "
            f"simulated, {alike} answers as right or wrong as those"
        )


if __name__ == "__main__":
    main()
