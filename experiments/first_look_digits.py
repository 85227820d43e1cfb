"""A first look beside the paper's predictor on the embedded data, at what the paper's spends.

python experiments/first_look_digits.py --sweep-dir runs/glance_digits

Of the runs of `configs/sweeps/glance_digits.py`. Lambdas and thresholds have the highest cost on
the calibration split that is within the cost of the paper's predictor there, seed by seed.
Intervals (95 %) by paired bootstrap over the digits, all seeds together.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from drnet_jax.checkpoints.restore import find_model
from drnet_jax.checkpoints.runs import is_finished, stored_config
from drnet_jax.evaluation.inputs import load_split, with_origin
from drnet_jax.runtime.command_line import CommandLine, a_path
from drnet_jax.runtime.files import write_json, write_text
from drnet_jax.sweep import base_config, load_sweep
from drnet_jax.sweeps.plan import make_plan
from experiments.first_look_methods import (
    adaptive,
    cell,
    differences,
    equal,
    in_points,
    minus_hull,
    plain_cascade,
)
from experiments.first_look_runs import Run, read

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "first_look"
SWEEP = ROOT / "configs" / "sweeps" / "glance_digits.py"
PAPER = "Gumbel-softmax on the pixels (the paper's)"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep-dir", type=a_path, default=Path("runs/glance_digits"))
    return parser.parse_args(arguments)


def main() -> None:
    given = parse(sys.argv[1:])
    variants = finished(given.sweep_dir)
    if PAPER not in variants:
        raise SystemExit(f"no run of the paper's predictor in {given.sweep_dir}: run the sweep")
    lines = [row(name, runs, variants[PAPER]) for name, runs in variants.items()]
    write_json(RESULTS / "digits.json", {"rows": lines})
    write_text(RESULTS / "digits.md", table(lines))
    print(table(lines))


def finished(directory: Path) -> dict[str, list[Run]]:
    """The runs of the sweep that have come to their end, by variant; others are named."""
    sweep = load_sweep(SWEEP)
    plan = make_plan(sweep, base_config(sweep, {}), directory.resolve())
    found: dict[str, list[Run]] = {}
    for variants in plan.variants.values():
        for name, jobs in variants.items():
            for job in jobs:
                if is_finished(job.workdir, job.stage):
                    found.setdefault(name, []).append(with_digits(job.workdir, name))
                else:
                    print(f"not finished: {name}, seed {job.config['seed']}")
    return found


def with_digits(workdir: Path, variant: str) -> Run:
    """A run that knows which test images are of the same digit."""
    run, config = read(workdir, variant), stored_config(workdir)
    source = load_split(config, workdir, find_model(config, workdir), "test")
    return replace(run, test=with_origin(run.test, source))


def row(name: str, runs: Sequence[Run], papers: Sequence[Run]) -> dict[str, Any]:
    """A variant at the costs of the paper's predictor, of the seeds that both have."""
    known = {run.seed: run for run in papers}
    runs = [run for run in runs if run.seed in known]
    costs = [spent(known[run.seed]) for run in runs]
    pairs = list(zip(runs, costs, strict=True))
    largest = runs[0].cost.classifier_gmacs[0]
    outcomes = [adaptive(run)(gmacs, run.test) for run, gmacs in pairs]
    theirs = [adaptive(known[run.seed])(gmacs, known[run.seed].test) for run, gmacs in pairs]
    cascades = [plain_cascade(run, "margin")(gmacs, run.test) for run, gmacs in pairs]
    fixed = [run.test.top1[:, 0].astype(float) for run in runs]
    found = {
        "minus the paper's": [each.correct for each in theirs],
        "minus margin cascade": [each.correct for each in cascades],
        "minus largest": fixed,
    }
    return {
        "variant": name,
        "seeds": [run.seed for run in runs],
        "fixed": (100 * np.mean([run.test.top1.mean(axis=0) for run in runs], axis=0)).tolist(),
        "top1": 100 * float(np.mean([each.top1 for each in outcomes])),
        "cost": float(np.mean([each.gmacs for each in outcomes])) / largest,
        "equal": equal(runs, adaptive),
        "minus hull": in_points(minus_hull(runs, outcomes)),
        **{key: in_points(differences(runs, outcomes, other)) for key, other in found.items()},
    }


def spent(run: Run) -> float:
    """GMACs of an image on the calibration split, by a predictor's own choice."""
    assert run.calibration is not None
    costs = np.array(run.cost.choice_gmacs)[run.calibration.choice]
    return float(costs.mean()) + run.cost.predictor_gmacs


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown, a line a variant."""
    names = ["minus the paper's", "minus hull", "minus margin cascade", "minus largest"]
    heading = ["", "seeds", "fixed", "top-1", "cost", *names, "as good as the largest at"]
    rows = [heading, ["---"] * len(heading)]
    for line in lines:
        same = line["equal"]
        rows.append(
            [
                line["variant"],
                str(len(line["seeds"])),
                " / ".join(f"{value:.1f}" for value in line["fixed"]),
                f"{line['top1']:.1f}",
                f"{line['cost']:.2f}",
                *(cell(line[name]) for name in names),
                "never" if same is None else f"{same['cost']:.2f}: {cell(same['minus largest'])}",
            ]
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


if __name__ == "__main__":
    main()
