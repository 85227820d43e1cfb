"""The table and the plot of docs/beyond.md: a first look beside its controls, on photographs.

python experiments/first_look.py [--collect runs/glance_imagenette; default: what was collected]

Every figure is a mean over the seeds; intervals (95 %) are by paired bootstrap over the test
images, all seeds together. Settings are chosen on the calibration split: a lambda or a threshold
with the highest cost that is within the target there.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib.pyplot as plt
import numpy as np

from drnet_jax.evaluation.cascades import at_cost, through_some
from drnet_jax.evaluation.controls import Outcome, by_choice
from drnet_jax.evaluation.intervals import Interval, intervals
from drnet_jax.evaluation.metrics import EvalRecords, hull_weights
from drnet_jax.inference.decision import choose, lambda_changes
from drnet_jax.runtime.command_line import CommandLine, a_path
from drnet_jax.runtime.files import write_json, write_text
from experiments.first_look_both import both, mean_of
from experiments.first_look_runs import Run, collect, load_all

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "first_look"
SWEEP = ROOT / "configs" / "sweeps" / "glance_imagenette.py"
BEST = "what chooses: Gumbel-softmax on the first look"
FITTED = "what chooses: correctness"
PAPER = "what chooses: Gumbel-softmax on the pixels (the paper's)"
PLAIN = "the same compute: 96 px alone"
TARGETS = (0.55, 0.6, 0.65)
CURVE = np.linspace(0.2, 1.05, 35)
# At a mean cost on the calibration split, in GMACs: what a method gives for images.
Method = Callable[[float, EvalRecords], Outcome]


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
    if BEST not in variants:
        raise SystemExit(f"no runs in {RESULTS / 'runs'}: give --collect, the sweep's directory")
    lines = [row(name, variants) for name in sorted(variants, key=lambda name: name != BEST)]
    text = table(lines)
    write_text(RESULTS / "first_look.md", text)
    write_json(RESULTS / "first_look.json", {"rows": lines, "both": with_predictor(variants)})
    plot(variants, RESULTS / "first_look.png")
    print(text)


def lambda_within(run: Run) -> Callable[[float], float]:
    """From a cost to the least lambda within it on the calibration split."""
    assert run.calibration is not None
    costs, scores = np.array(run.cost.choice_gmacs), run.calibration.scores
    changes = np.unique(lambda_changes(scores, costs))
    between = (changes[1:] + changes[:-1]) / 2
    lambdas = np.array([changes[0] - 1, *between, changes[-1] + 1])
    lambdas = lambdas[np.linspace(0, len(lambdas) - 1, min(len(lambdas), 1000)).round().astype(int)]
    spent = np.array([costs[choose(scores, costs, lam)].mean() for lam in lambdas])

    def within(gmacs: float) -> float:
        """The cheapest choice where none is."""
        found = np.flatnonzero(spent + run.cost.predictor_gmacs <= gmacs)
        return float(lambdas[found[0] if len(found) else -1])

    return within


def adaptive(run: Run) -> Method:
    """A model's own choice, by its lambda."""
    costs, within = np.array(run.cost.choice_gmacs), lambda_within(run)

    def method(gmacs: float, records: EvalRecords) -> Outcome:
        """Of the least lambda within the cost."""
        choice = choose(records.scores, costs, within(gmacs))
        return by_choice(records.answer_top1, choice, costs, run.cost.predictor_gmacs)

    return method


def plain_cascade(run: Run, sureness: str) -> Method:
    """Without reuse, by the confidence or the margin, through the sizes that do best."""
    cascades = through_some(sureness, run.cost.classifier_gmacs)

    def method(gmacs: float, records: EvalRecords) -> Outcome:
        """Of the highest threshold within the cost."""
        assert run.calibration is not None
        best, threshold = at_cost(cascades, run.calibration, gmacs)
        return best.outcome(records, threshold)

    return method


def differences(
    runs: Sequence[Run], outcomes: Sequence[Outcome], others: Sequence[np.ndarray] | None
) -> Interval:
    """Top-1 minus another's, or (None) minus the hull of the fixed sizes at the same cost.

    Args:
      runs: one a seed.
      outcomes: of each.
      others: of each, whether another method is right `[n]`.
    """
    seeds = len(runs)
    own = [column for found in outcomes for column in (found.correct, found.cost)]
    if others is not None:
        columns = np.stack([*own, *others], axis=1)
        return intervals(
            columns,
            lambda means: (means[:, 0 : 2 * seeds : 2] - means[:, 2 * seeds :]).mean(
                axis=1, keepdims=True
            ),
            runs[0].test.origin,
        )[0]
    costs = np.array(runs[0].cost.classifier_gmacs)
    fixed = [column for run in runs for column in run.test.top1.T]
    columns = np.stack([*own, *fixed], axis=1)

    def minus_hull(means: np.ndarray) -> np.ndarray:
        """`[b, 1]` of means `[b, q]`."""
        found = []
        for mean in means:
            levels = mean[2 * seeds :].reshape(seeds, -1)
            pairs = zip(mean[0 : 2 * seeds : 2], mean[1 : 2 * seeds : 2], levels, strict=True)
            found.append(
                np.mean([top1 - hull_weights(costs, at, cost) @ at for top1, cost, at in pairs])
            )
        return np.array(found)[:, None]

    return intervals(columns, minus_hull, runs[0].test.origin)[0]


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
        "minus hull": in_points(differences(runs, outcomes, None)),
    }
    for sureness in ("confidence", "margin"):
        theirs = [plain_cascade(run, sureness)(gmacs, run.test) for run in runs]
        correct = [outcome.correct for outcome in theirs]
        found[f"minus {sureness} cascade"] = in_points(differences(runs, outcomes, correct))
        found[f"{sureness} cascade cost"] = _mean_cost(theirs) / largest
    fixed = [run.test.top1[:, 0].astype(float) for run in runs]
    found["minus largest"] = in_points(differences(runs, outcomes, fixed))
    for name, other, method in (
        ("minus the paper's", PAPER, lambda one: adaptive(one)(gmacs, one.test)),
        ("minus plain network", PLAIN, lambda one: by_choice(one.test.top1, *_all_at(one))),
    ):
        known = {one.seed: one for one in variants.get(other, ())}
        common = [i for i, run in enumerate(runs) if run.seed in known]
        if common:
            theirs = [method(known[runs[i].seed]) for i in common]
            ours = [outcomes[i] for i in common]
            correct = [outcome.correct for outcome in theirs]
            found[name] = in_points(differences([runs[i] for i in common], ours, correct))
            found[f"{name}, seeds"] = [runs[i].seed for i in common]
            found[f"{name}, its cost"] = _mean_cost(theirs) / largest
    return found


def _all_at(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The largest size for every image, and the costs of sizes."""
    return np.zeros(len(run.test.label), int), np.array(run.cost.classifier_gmacs)


def _mean_cost(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([outcome.gmacs for outcome in outcomes]))


def equal(runs: Sequence[Run], method: Callable[[Run], Method]) -> dict[str, object] | None:
    """The least cost at which the seeds' mean is as accurate as the largest size, on calibration.

    There the choice was fitted, too: on the test split expect a little less. Its cost there, over
    the largest size's, and the difference; None where no cost is enough.
    """
    methods = [method(run) for run in runs]
    largest = runs[0].cost.classifier_gmacs[0]
    known = [(run, run.calibration) for run in runs if run.calibration is not None]
    wanted = np.mean([records.top1[:, 0].mean() for _, records in known])
    for target in np.arange(0.15, 1.2, 0.01) * largest:
        found = [each(target, r).top1 for each, (_, r) in zip(methods, known, strict=True)]
        if np.mean(found) >= wanted:
            outcomes = [each(target, run.test) for each, run in zip(methods, runs, strict=True)]
            fixed = [run.test.top1[:, 0].astype(float) for run in runs]
            minus = in_points(differences(runs, outcomes, fixed))
            return {"cost": _mean_cost(outcomes) / largest, "minus largest": minus}
    return None


def in_points(interval: Interval) -> list[float]:
    """In percentage points."""
    return [100 * interval.value, 100 * interval.low, 100 * interval.high]


def with_predictor(variants: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    """The paper's predictor before the first look, at the middle target; empty without its runs."""
    papers = {run.seed: run for run in variants.get(PAPER, ())}
    found = []
    for run in variants[BEST]:
        if run.seed in papers:
            lam = lambda_within(run)(TARGETS[1] * run.cost.classifier_gmacs[0])
            found.append(both(run, papers[run.seed], lam))
    return mean_of(found) if found else {}


def table(lines: Sequence[Mapping[str, object]]) -> str:
    """In Markdown, a line a variant, at the middle target."""
    names = ["minus hull", "minus the paper's", "minus margin cascade", "minus confidence cascade"]
    names += ["minus largest", "minus plain network"]
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


def cell(points: Sequence[float] | None) -> str:
    return "" if points is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*points)


def plot(variants: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Accuracy over cost of the best combination, the paper's mode and the plain cascade."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    runs = variants[BEST]
    largest = runs[0].cost.classifier_gmacs[0]
    curves = {"first look, trained with the classifier": (runs, [adaptive(run) for run in runs])}
    if fitted := variants.get(FITTED):
        curves["first look, fitted"] = (fitted, [adaptive(run) for run in fitted])
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
    if PLAIN in variants:
        plain = 100 * np.mean([run.test.top1[:, 0].mean() for run in variants[PLAIN]])
        axes.plot([1], [plain], "k*", markersize=11, label="96 px alone, compute of stage 1")
    axes.axhline(fixed[0], color="0.8", linewidth=1, zorder=0)
    axes.set(xlabel=f"multiply-adds, over {runs[0].resolutions[0]} px alone", ylabel="top-1, %")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
