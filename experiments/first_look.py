"""The table and the plot of docs/beyond.md: a first look beside its controls, on photographs.

python experiments/first_look.py [--collect runs/glance_imagenette; default: what was collected]

Every figure is a mean over the seeds; intervals (95 %) are by paired bootstrap over the test
images, all seeds together. Settings are chosen on the calibration split: a lambda or a threshold
with the highest cost that is within the target there.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib.pyplot as plt
import numpy as np

from drnet_jax.evaluation.controls import Outcome
from drnet_jax.runtime.command_line import CommandLine, a_path
from drnet_jax.runtime.files import write_json, write_text
from experiments.first_look_both import both, mean_of
from experiments.first_look_methods import (
    TARGETS,
    adaptive,
    cell,
    differences,
    equal,
    in_points,
    lambda_within,
    largest_alone,
    mean_cost,
    minus_hull,
    plain_cascade,
    with_seeds_of,
)
from experiments.first_look_runs import Run, collect, load_all

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "first_look"
SWEEP = ROOT / "configs" / "sweeps" / "glance_imagenette.py"
TRAINED = "what chooses: Gumbel-softmax on the first look"
FITTED = "what chooses: correctness"
PAPER = "what chooses: Gumbel-softmax on the pixels (the paper's)"
PLAIN = "the same compute: 96 px alone"
PLAIN_LONGER = "the same compute: 96 px alone, both stages"
LONGER = "the same compute: stage 1 of 28 epochs"
MORE_SIZES = "sizes: 96, 64, 48 and 32 px"
CURVE = np.linspace(0.2, 1.05, 35)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", type=a_path, help="directory of the sweep, whose runs to read")
    return parser.parse_args(arguments)


def main() -> None:
    given = parse(sys.argv[1:])
    if given.collect:
        collect(SWEEP, given.collect, RESULTS / "runs", {})
    variants: dict[str, list[Run]] = {}
    for run in load_all(RESULTS / "runs"):
        variants.setdefault(run.variant, []).append(run)
    if TRAINED not in variants:
        raise SystemExit(f"no runs in {RESULTS / 'runs'}: give --collect, the sweep's directory")
    lines = [row(name, variants) for name in sorted(variants, key=lambda name: name != TRAINED)]
    text = table(lines)
    write_text(RESULTS / "first_look.md", text)
    write_json(RESULTS / "first_look.json", {"rows": lines, "both": with_predictor(variants)})
    plot(variants, RESULTS / "first_look.png")
    print(text)


def row(name: str, variants: Mapping[str, Sequence[Run]]) -> dict[str, object]:
    """Everything that the table says of a variant."""
    runs = sorted(variants[name], key=lambda run: run.seed)
    largest = np.array([run.cost.classifier_gmacs[0] for run in runs])
    fixed = np.mean([run.test.top1.mean(axis=0) for run in runs], axis=0)
    found: dict[str, object] = {
        "variant": name,
        "seeds": [run.seed for run in runs],
        "resolutions": list(runs[0].resolutions),
        "fixed": (100 * fixed).tolist(),
    }
    if len(runs[0].resolutions) == 1:
        return found
    found["targets"] = {
        f"{target}": at_target(runs, target * largest[0], variants) for target in TARGETS
    }
    found["equal"] = equal(runs, adaptive)
    found["cascade_equal"] = equal(runs, lambda run: plain_cascade(run, "margin"))
    return found


def at_target(
    runs: Sequence[Run], gmacs: float, variants: Mapping[str, Sequence[Run]]
) -> dict[str, object]:
    """A variant and what it is compared with, at a cost."""
    outcomes = [adaptive(run)(gmacs, run.test) for run in runs]
    largest = runs[0].cost.classifier_gmacs[0]
    found: dict[str, object] = {
        "top1": 100 * float(np.mean([outcome.top1 for outcome in outcomes])),
        "cost": float(np.mean([outcome.gmacs for outcome in outcomes])) / largest,
        "minus hull": in_points(minus_hull(runs, outcomes)),
    }
    for sureness in ("confidence", "margin"):
        theirs = [plain_cascade(run, sureness)(gmacs, run.test) for run in runs]
        correct = [outcome.correct for outcome in theirs]
        found[f"minus {sureness} cascade"] = in_points(differences(runs, outcomes, correct))
        found[f"{sureness} cascade cost"] = mean_cost(theirs) / largest
    fixed = [run.test.top1[:, 0].astype(float) for run in runs]
    found["minus largest"] = in_points(differences(runs, outcomes, fixed))
    return found | beside_others(runs, outcomes, gmacs, variants)


def beside_others(
    runs: Sequence[Run],
    outcomes: Sequence[Outcome],
    gmacs: float,
    variants: Mapping[str, Sequence[Run]],
) -> dict[str, object]:
    """A variant's outcomes beside other trainings', as far as they have its seeds."""
    found: dict[str, object] = {}
    for name, other, method in (
        ("the paper's", PAPER, lambda one: adaptive(one)(gmacs, one.test)),
        ("28 epochs, fitted", LONGER, lambda one: adaptive(one)(gmacs, one.test)),
        ("plain network", PLAIN, largest_alone),
        ("plain network, longer", PLAIN_LONGER, largest_alone),
    ):
        ours, common = with_seeds_of(variants.get(other, ()), runs, outcomes)
        if common:
            theirs = [method(one) for one in common]
            correct = [outcome.correct for outcome in theirs]
            found[f"minus {name}"] = in_points(differences(common, ours, correct))
            found[f"minus {name}, seeds"] = [one.seed for one in common]
            found[f"minus {name}, its cost"] = mean_cost(theirs) / runs[0].cost.classifier_gmacs[0]
    ours, common = with_seeds_of(variants.get(MORE_SIZES, ()), runs, outcomes)
    if common:
        found["minus hull of four sizes"] = in_points(minus_hull(common, ours))
        found["minus hull of four sizes, seeds"] = [one.seed for one in common]
    return found


def with_predictor(variants: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    """The paper's predictor before the first look, at the middle target; empty without its runs."""
    papers = {run.seed: run for run in variants.get(PAPER, ())}
    found = []
    for run in variants[TRAINED]:
        if run.seed in papers:
            lam = lambda_within(run)(TARGETS[1] * run.cost.classifier_gmacs[0])
            found.append(both(run, papers[run.seed], lam))
    return mean_of(found) if found else {}


def table(lines: Sequence[Mapping[str, object]]) -> str:
    """In Markdown, a line a variant, at the middle target."""
    names = ["minus hull", "minus the paper's", "minus margin cascade", "minus largest"]
    names += ["minus plain network", "minus plain network, longer", "minus 28 epochs, fitted"]
    names += ["minus hull of four sizes"]
    target = f"{TARGETS[1]}"
    heading = ["", "fixed", "top-1", "cost", *names, "as good as the largest at"]
    rows = [heading, ["---"] * len(heading)]
    for line in lines:
        fixed = " / ".join(f"{value:.1f}" for value in line["fixed"])
        if "targets" not in line:
            rows.append([str(line["variant"]), fixed, *[""] * (len(heading) - 2)])
            continue
        here = line["targets"][target]
        cells = [cell(here.get(name)) for name in names]
        same = line["equal"]
        rows.append(
            [
                str(line["variant"]),
                fixed,
                f"{here['top1']:.1f}",
                f"{here['cost']:.2f}",
                *cells,
                "never" if same is None else f"{same['cost']:.2f}: {cell(same['minus largest'])}",
            ]
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def plot(variants: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Accuracy over cost of first looks, the paper's mode, the plain cascade and fixed sizes."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    runs = variants[TRAINED]
    largest = runs[0].cost.classifier_gmacs[0]
    curves = {"first look, trained with the classifier": (runs, [adaptive(run) for run in runs])}
    if fitted := variants.get(FITTED):
        curves["first look, fitted"] = (fitted, [adaptive(run) for run in fitted])
    if longer := variants.get(LONGER):
        name = "first look, fitted after as many epochs"
        curves[name] = (longer, [adaptive(run) for run in longer])
    curves["plain cascade (margin)"] = (runs, [plain_cascade(run, "margin") for run in runs])
    if papers := variants.get(PAPER):
        curves["the paper's predictor"] = (papers, [adaptive(run) for run in papers])
    for label, (those, methods) in curves.items():
        pairs = list(zip(methods, those, strict=True))
        outcomes = [[each(target * largest, run.test) for each, run in pairs] for target in CURVE]
        cost = [np.mean([outcome.gmacs for outcome in found]) / largest for found in outcomes]
        top1 = [100 * np.mean([outcome.top1 for outcome in found]) for found in outcomes]
        axes.plot(cost, top1, label=label)
    fixed = 100 * np.mean([run.test.top1.mean(axis=0) for run in runs], axis=0)
    costs = np.array(runs[0].cost.classifier_gmacs) / largest
    axes.plot(costs, fixed, "ko--", label="fixed sizes, and their hull")
    for name, marker, compute in ((PLAIN, "k*", "stage 1"), (PLAIN_LONGER, "r*", "both stages")):
        if name in variants:
            plain = 100 * np.mean([run.test.top1[:, 0].mean() for run in variants[name]])
            axes.plot(
                [1], [plain], marker, markersize=11, label=f"96 px alone, compute of {compute}"
            )
    if more := variants.get(MORE_SIZES):
        levels = 100 * np.mean([run.test.top1.mean(axis=0) for run in more], axis=0)
        places = np.array(more[0].cost.classifier_gmacs) / largest
        axes.plot(places, levels, "s:", color="0.5", label="fixed sizes, trained at four")
    axes.axhline(fixed[0], color="0.8", linewidth=1, zorder=0)
    axes.set(xlabel=f"multiply-adds, over {runs[0].resolutions[0]} px alone", ylabel="top-1, %")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
