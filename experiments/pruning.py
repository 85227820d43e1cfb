"""Pruning, resolution and both at equal multiply-adds, on photographs.

python experiments/pruning.py [--collect runs/pruning] [--times]

What the finished runs of `configs/sweeps/pruning.py` said of every image is kept in
`experiments/pruning/runs/` by `--collect`, from which the table is made without a training. A
target is what the largest size costs at a pruning rate: there `pruned` is that size of that
network, `dynamic` the network that is not pruned, `both` the one in between that is most accurate
on the calibration split. Lambdas have the highest cost there that is within the target. Intervals
(95 %) by paired bootstrap over the test images, all seeds together. `--times`, with `--collect`,
takes milliseconds an image too, of the first seed, on a quiet machine: `times.json`.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from drnet_jax.benchmark import restore_and_benchmark
from drnet_jax.checkpoints.runs import stored_config
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
    with_seeds_of,
)
from experiments.first_look_runs import Run, collect, load_all

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "pruning"
SWEEP = ROOT / "configs" / "sweeps" / "pruning.py"
# Questions of the sweep.
CHOOSERS = ("first look", "pixels")
FILTERS = "which filters, at 0.5"
FPGM_RATE = "0.5"
# `largest` is that size of the network that is not pruned, at its own cost.
COMPARED = (
    ("both", "pruned"),
    ("both", "dynamic"),
    ("dynamic", "pruned"),
    ("both", "largest"),
    ("dynamic", "largest"),
    ("pruned", "largest"),
)
# Of the multiply-adds of its own largest size: what a choice keeps of the accuracy there.
SHARE = 0.65
BATCH_SIZE = 8
# Of one rate, one a seed.
Runs = list[Run]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", type=a_path, help="directory of the sweep, whose runs to read")
    parser.add_argument("--times", action="store_true", help="take milliseconds too")
    given = parser.parse_args(arguments)
    if given.times and not given.collect:
        parser.error("--times runs the models of a sweep: give its directory by --collect")
    return given


def main() -> None:
    given = parse(sys.argv[1:])
    if given.collect:
        collect(SWEEP, given.collect, RESULTS / "runs", {})
    runs = read_runs(RESULTS / "runs")
    if "none" not in runs.get(CHOOSERS[0], {}):
        raise SystemExit(f"no runs in {RESULTS / 'runs'}: give --collect, the sweep's directory")
    if given.times:
        write_json(RESULTS / "times.json", take_times(runs, given.collect))
    path = RESULTS / "times.json"
    times = json.loads(path.read_text()) if path.exists() else {}
    lines, alone = [], []
    for chooser in (name for name in CHOOSERS if "none" in runs.get(name, {})):
        rates = runs[chooser]
        alone += [of_rate(f"{chooser}, {name}", found) for name, found in rates.items()]
        for target in list(rates)[1:]:
            found = at_target(rates, target, times.get(chooser, {}).get(target, {}))
            lines.append({"chooser": chooser, **found})
    filters, fpgm = runs.get(FILTERS, {}), runs[CHOOSERS[0]].get(FPGM_RATE)
    alone += [of_rate(f"{FILTERS}: {name}", found, fpgm) for name, found in filters.items()]
    write_json(RESULTS / "pruning.json", {"targets": lines, "alone": alone})
    text = f"{table(lines)}\n{table_alone(alone)}"
    write_text(RESULTS / "pruning.md", text)
    print(text)


def read_runs(directory: Path) -> dict[str, dict[str, Runs]]:
    """By question and variant, in the sweep's order; of a question the seeds that are complete."""
    known: dict[str, Runs] = {}
    for run in load_all(directory):
        known.setdefault(run.variant, []).append(run)
    found: dict[str, dict[str, Runs]] = {}
    for question, variants in load_sweep(SWEEP).questions.items():
        there = {n: known[f"{question}: {n}"] for n in variants if f"{question}: {n}" in known}
        if not there:
            continue
        seeds = set.intersection(*({run.seed for run in runs} for runs in there.values()))
        found[question] = {
            name: sorted((run for run in runs if run.seed in seeds), key=lambda run: run.seed)
            for name, runs in there.items()
        }
    return found


def of_rate(name: str, runs: Runs, fpgm: Runs | None = None) -> dict[str, Any]:
    """A pruning rate by itself: its sizes, and what choosing among them saves of its own cost.

    Args:
      name: what to call it.
      runs: one a seed.
      fpgm: of these seeds, and perhaps others, whose largest size its own is compared with.
    """
    largest = runs[0].cost.classifier_gmacs[0]
    minus = None
    if fpgm is not None:
        own, others = with_seeds_of(fpgm, runs, [largest_alone(run) for run in runs])
        minus = in_points(differences(others, own, [largest_alone(r).correct for r in others]))
    chosen = [adaptive(run)(SHARE * largest, run.test) for run in runs]
    whole = [largest_alone(run).correct for run in runs]
    return {
        "minus FPGM": minus,
        "share": mean_cost(chosen) / largest,
        "minus largest": in_points(differences(runs, chosen, whole)),
        "name": name,
        "seeds": [run.seed for run in runs],
        "gmacs": largest,
        "fixed": (100 * np.mean([run.test.top1.mean(axis=0) for run in runs], axis=0)).tolist(),
        "equal": equal(runs, adaptive),
    }


def methods_at(rates: Mapping[str, Runs], target: str) -> dict[str, tuple[str, bool]]:
    """Each method's rate, and whether it chooses, at the cost of a rate's largest size."""
    gmacs = rates[target][0].cost.classifier_gmacs[0]
    between = list(rates)[1 : list(rates).index(target)]
    methods = {"pruned": (target, False), "dynamic": ("none", True)}
    if between:
        methods["both"] = (max(between, key=lambda name: held_out(rates[name], gmacs)), True)
    return methods


def at_target(rates: Mapping[str, Runs], target: str, ms: Mapping[str, float]) -> dict[str, Any]:
    """Everything that the table says of a target.

    Args:
      rates: the runs of each.
      target: the name of a rate.
      ms: milliseconds an image by method, of those that were timed.
    """
    gmacs = rates[target][0].cost.classifier_gmacs[0]
    largest = rates["none"][0].cost.classifier_gmacs[0]
    pruned = [largest_alone(run) for run in rates[target]]
    methods = methods_at(rates, target)
    outcomes: dict[str, list[Outcome]] = {
        name: [adaptive(run)(gmacs, run.test) for run in rates[rate]] if chooses else pruned
        for name, (rate, chooses) in methods.items()
    }
    found: dict[str, Any] = {"target": gmacs / largest, "rate": target}
    for name, (rate, _) in methods.items():
        found[name] = {
            "rate": rate,
            "top1": 100 * float(np.mean([outcome.top1 for outcome in outcomes[name]])),
            "cost": mean_cost(outcomes[name]) / largest,
        }
        if name in ms:
            found[name]["ms"] = ms[name]
    outcomes["largest"] = [largest_alone(run) for run in rates["none"]]
    for one, other in COMPARED:
        if one in outcomes:
            theirs = [outcome.correct for outcome in outcomes[other]]
            minus = differences(rates["none"], outcomes[one], theirs)
            found[f"{one} minus {other}"] = in_points(minus)
    return found


def held_out(runs: Runs, gmacs: float) -> float:
    """Top-1 of the choice at a cost, on the calibration split."""
    known = [(run, run.calibration) for run in runs if run.calibration is not None]
    return float(np.mean([adaptive(run)(gmacs, records).top1 for run, records in known]))


def take_times(
    runs: Mapping[str, Mapping[str, Runs]], directory: Path
) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds an image by chooser, target and method, of the first seed's runs."""
    sweep = load_sweep(SWEEP)
    plan = make_plan(sweep, base_config(sweep, {}), directory.resolve())
    found: dict[str, dict[str, dict[str, float]]] = {}
    for chooser in (name for name in CHOOSERS if "none" in runs.get(name, {})):
        rates = runs[chooser]
        for target in list(rates)[1:]:
            gmacs = rates[target][0].cost.classifier_gmacs[0]
            times = found.setdefault(chooser, {}).setdefault(target, {})
            for method, (rate, chooses) in methods_at(rates, target).items():
                run = rates[rate][0]
                jobs = {job.config["seed"]: job for job in plan.variants[chooser][rate]}
                lam = lambda_within(run)(gmacs) if chooses else None
                times[method] = milliseconds(jobs[run.seed].workdir, lam)
    return found


def milliseconds(workdir: Path, lam: float | None) -> float:
    """Of an image, in batches of images in memory; without a lambda at the largest size."""
    config = stored_config(workdir)
    config.benchmark.batch_sizes = (BATCH_SIZE,)
    rows = restore_and_benchmark(config, workdir, lambdas={"chosen": lam or 0.0})
    kind = "fixed" if lam is None else "adaptive"
    # The largest size is the first of the fixed ones.
    row = next(row for row in rows if (row.input, row.kind) == ("pixels", kind))
    return row.latency.mean / BATCH_SIZE


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown, a line a target."""
    names = [f"{one} minus {other}" for one, other in COMPARED]
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
    heading += [f"choice at {SHARE}, minus its own largest", "as good as its own largest at"]
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
                f"{line['share']:.2f}: {cell(line['minus largest'])}",
                "never" if same is None else f"{same['cost']:.2f}: {cell(same['minus largest'])}",
            ]
        )
    return in_markdown(rows)


def in_markdown(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


if __name__ == "__main__":
    main()
