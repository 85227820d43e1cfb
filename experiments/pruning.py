"""Pruning, resolution and both at equal multiply-adds, on photographs.

python experiments/pruning.py --sweep-dir runs/pruning [--times; default: without]

Of the runs of `configs/sweeps/pruning.py`. A target is what the largest size costs at a pruning
rate: there `pruned` is that size of that network, `dynamic` the network that is not pruned, `both`
the one in between that is most accurate on the calibration split. Lambdas have the highest cost
there that is within the target. Intervals (95 %) by paired bootstrap over the test images, all
seeds together. `--times` takes milliseconds an image too, of the first seed, on a quiet machine.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from drnet_jax.benchmark import restore_and_benchmark
from drnet_jax.checkpoints.runs import is_finished, stored_config
from drnet_jax.evaluation.controls import Outcome
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
    lambda_within,
    largest_alone,
    mean_cost,
)
from experiments.first_look_runs import Run, read

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "pruning"
SWEEP = ROOT / "configs" / "sweeps" / "pruning.py"
BATCH_SIZE = 8
# Of one rate, one a seed.
Runs = list[Run]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep-dir", type=a_path, default=Path("runs/pruning"))
    parser.add_argument("--times", action="store_true", help="take milliseconds too")
    return parser.parse_args(arguments)


def main() -> None:
    given = parse(sys.argv[1:])
    runs, workdirs = finished(given.sweep_dir)
    lines, alone = [], []
    for chooser in ("first look", "pixels"):
        rates = runs.get(chooser, {})
        if "none" not in rates:
            raise SystemExit(f"{given.sweep_dir} lacks finished runs of {chooser!r}, not pruned")
        alone += [of_rate(f"{chooser}, {name}", found) for name, found in rates.items()]
        for target in list(rates)[1:]:
            timer = timer_of(workdirs[chooser]) if given.times else None
            lines.append({"chooser": chooser, **at_target(rates, target, timer)})
    filters = runs.get("which filters, at 0.5", {})
    alone += [of_rate(name, found, filters["FPGM"]) for name, found in filters.items()]
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "pruning.json", {"targets": lines, "alone": alone})
    text = f"{table(lines)}\n{table_alone(alone)}"
    write_text(RESULTS / "pruning.md", text)
    print(text)


def finished(
    directory: Path,
) -> tuple[dict[str, dict[str, Runs]], dict[str, dict[str, Path]]]:
    """Runs by question and variant, one a seed that all have; and a workdir of each."""
    sweep = load_sweep(SWEEP)
    plan = make_plan(sweep, base_config(sweep, {}), directory.resolve())
    runs: dict[str, dict[str, Runs]] = {}
    workdirs: dict[str, dict[str, Path]] = {}
    lacking = set()
    for question, variants in plan.variants.items():
        for name, jobs in variants.items():
            for job in jobs:
                if not is_finished(job.workdir, job.stage):
                    lacking.add(job.config["seed"])
                    print(f"not finished: {question}, {name}, seed {job.config['seed']}")
    for question, variants in plan.variants.items():
        for name, jobs in variants.items():
            there = [job.workdir for job in jobs if job.config["seed"] not in lacking]
            if there:
                runs.setdefault(question, {})[name] = [read(path, name) for path in there]
                workdirs.setdefault(question, {})[name] = there[0]
    return runs, workdirs


def of_rate(name: str, runs: Runs, fpgm: Runs | None = None) -> dict[str, Any]:
    """A pruning rate by itself: its sizes, and what choosing among them saves of its own cost.

    Args:
      name: what to call it.
      runs: one a seed.
      fpgm: of the same seeds, whose largest size its own is compared with.
    """
    largest = runs[0].cost.classifier_gmacs[0]
    minus = None
    if fpgm is not None and fpgm is not runs:
        theirs = [largest_alone(run).correct for run in fpgm]
        minus = in_points(differences(runs, [largest_alone(run) for run in runs], theirs))
    return {
        "minus FPGM": minus,
        "name": name,
        "seeds": [run.seed for run in runs],
        "gmacs": largest,
        "fixed": (100 * np.mean([run.test.top1.mean(axis=0) for run in runs], axis=0)).tolist(),
        "equal": equal(runs, adaptive),
    }


# From a rate, and a lambda of its choice or None for the largest size, to milliseconds.
Timer = Callable[[str, float | None], float]


def at_target(rates: Mapping[str, Runs], target: str, timer: Timer | None) -> dict[str, Any]:
    """Everything that the table says of a target, the name of a rate."""
    gmacs = rates[target][0].cost.classifier_gmacs[0]
    largest = rates["none"][0].cost.classifier_gmacs[0]
    pruned = [largest_alone(run) for run in rates[target]]
    between = list(rates)[1 : list(rates).index(target)]
    # Each method's rate, and whether it chooses.
    methods = {"pruned": (target, False), "dynamic": ("none", True)}
    if between:
        methods["both"] = (max(between, key=lambda name: held_out(rates[name], gmacs)), True)
    outcomes: dict[str, list[Outcome]] = {
        name: [adaptive(run)(gmacs, run.test) for run in rates[rate]] if chooses else pruned
        for name, (rate, chooses) in methods.items()
    }
    found: dict[str, Any] = {"target": gmacs / largest, "rate": target}
    for name, (rate, chooses) in methods.items():
        found[name] = {
            "rate": rate,
            "top1": 100 * float(np.mean([outcome.top1 for outcome in outcomes[name]])),
            "cost": mean_cost(outcomes[name]) / largest,
        }
        if timer is not None:
            lam = lambda_within(rates[rate][0])(gmacs) if chooses else None
            found[name]["ms"] = timer(rate, lam)
    for one, other in (("both", "pruned"), ("both", "dynamic"), ("dynamic", "pruned")):
        if one in outcomes:
            theirs = [outcome.correct for outcome in outcomes[other]]
            minus = differences(rates["none"], outcomes[one], theirs)
            found[f"{one} minus {other}"] = in_points(minus)
    return found


def held_out(runs: Runs, gmacs: float) -> float:
    """Top-1 of the choice at a cost, on the calibration split."""
    known = [(run, run.calibration) for run in runs if run.calibration is not None]
    return float(np.mean([adaptive(run)(gmacs, records).top1 for run, records in known]))


def timer_of(workdirs: Mapping[str, Path]) -> Timer:
    """Times the runs in these workdirs, by rate, in batches of images in memory."""

    def milliseconds(rate: str, lam: float | None) -> float:
        """Of an image."""
        config = stored_config(workdirs[rate])
        config.benchmark.batch_sizes = (BATCH_SIZE,)
        rows = restore_and_benchmark(config, workdirs[rate], lambdas={"chosen": lam or 0.0})
        kind = "fixed" if lam is None else "adaptive"
        # The largest size is the first of the fixed ones.
        row = next(row for row in rows if (row.input, row.kind) == ("pixels", kind))
        return row.latency.mean / BATCH_SIZE

    return milliseconds


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown, a line a target."""
    names = ["both minus pruned", "both minus dynamic", "dynamic minus pruned"]
    methods = ["pruned", "dynamic", "both"]
    heading = ["chooses", "GMACs of the largest", *methods, *names]
    rows = [heading, ["---"] * len(heading)]
    for line in lines:
        cells = [method_cell(line.get(name)) for name in methods]
        cells += [cell(line.get(name)) for name in names]
        rows.append([line["chooser"], f"{line['target']:.2f}", *cells])
    return in_markdown(rows)


def method_cell(found: Mapping[str, Any] | None) -> str:
    """Top-1, cost over the largest size's, rate and, where taken, milliseconds."""
    if found is None:
        return ""
    text = f"{found['top1']:.1f} at {found['cost']:.2f} (rate {found['rate']})"
    return f"{text}, {found['ms']:.2f} ms" if "ms" in found else text


def table_alone(lines: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown, a line a rate."""
    heading = ["rate", "seeds", "GMACs", "fixed", "largest, minus FPGM's"]
    heading.append("as good as its own largest at")
    rows = [heading, ["---"] * len(heading)]
    for line in lines:
        same = line["equal"]
        rows.append(
            [
                line["name"],
                str(len(line["seeds"])),
                f"{line['gmacs']:.4f}",
                " / ".join(f"{value:.1f}" for value in line["fixed"]),
                cell(line["minus FPGM"]),
                "never" if same is None else f"{same['cost']:.2f}: {cell(same['minus largest'])}",
            ]
        )
    return in_markdown(rows)


def in_markdown(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


if __name__ == "__main__":
    main()
