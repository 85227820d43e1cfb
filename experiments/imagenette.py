"""DRNet on real photographs (Imagenette) on two CPU cores: is it above what needs no predictor?

python experiments/imagenette.py PATH [--variants]

PATH is a folder of classes; every class is split by seed: a fifth for the test, a tenth for the
calibration, the rest for training (`drnet_jax/data/splits.py`). Three seeds of
`configs/imagenette_cpu.py`, stage 1 and stage 2 in workdirs of their own under `runs/imagenette/`:
what is finished is skipped, what is not is resumed. With `--variants` stage 2 is also run at seed 0
with other settings and read on the calibration split, which is how the settings were chosen.

Writes `experiments/imagenette.json` and `.md`. Intervals: 95 %, paired bootstrap over the test
images, which all seeds share. Goals: largest fixed size >= 70 %; DRNet, predictor counted, above
the hull of the fixed sizes at its cost and above a random choice with its shares, lower ends of the
intervals above zero.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from absl import flags
from scipy import stats

from configs.imagenette_cpu import get_config
from drnet_jax.checkpoints.restore import restore_model
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import data_settings
from drnet_jax.evaluation.metrics import EvalRecords, hull_top1, matched_random_top1, summarise
from drnet_jax.evaluation.outputs import evaluate, make_eval_step
from drnet_jax.models.macs import ModelCost, model_cost
from drnet_jax.runtime.environment import environment
from drnet_jax.runtime.files import write_json
from experiments.common import percent, table

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "imagenette"
RESULT = ROOT / "experiments" / "imagenette.json"
SEEDS = (0, 1, 2)
RESAMPLES = 2000
# Overrides of stage 2, beside the configuration itself.
VARIANTS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "predictor lr / 30 (the paper's)": {"joint.predictor_lr_scale": 0.1},
    "routed statistics (the paper's)": {"model.statistics": "routed"},
    "predictor at 48 px": {"predictor.size": 48},
    "eta 0.3": {"joint.eta": 0.3},
    "tau falling from 1 to 0.1": {"joint.tau_decay": 0.75},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="a folder of pictures a class")
    parser.add_argument("--variants", action="store_true", help="other settings of stage 2 too")
    arguments = parser.parse_args()
    path = arguments.path
    evaluated = [run_seed(path, seed, {}, "test") for seed in SEEDS]
    resolutions, cost = evaluated[0][1:]
    result = compare([records for records, *_ in evaluated], resolutions, cost)
    variants = []
    if arguments.variants:
        for name, overrides in VARIANTS.items():
            records, _, cost = run_seed(path, 0, overrides, "calibration")
            variants.append({"name": name, **figures(records, resolutions, cost)})
    elif RESULT.exists():
        variants = json.loads(RESULT.read_text())["variants"]
    result = {
        "setup": environment("python experiments/imagenette.py PATH --variants"),
        **result,
        "variants": variants,
    }
    write_json(RESULT, result)
    RESULT.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))
    return verdict(result)


def run_seed(
    path: str, seed: int, overrides: dict[str, Any], split: str
) -> tuple[EvalRecords, tuple[int, ...], ModelCost]:
    """Trains both stages as far as they are not finished, and evaluates every image of a split."""
    stage_one = RUNS / f"pretrain_{seed}"
    train(path, stage_one, {"seed": seed, "stages": ("pretrain",)})
    suffix = "".join(f"_{name.split('.')[1]}={value}" for name, value in overrides.items())
    workdir = RUNS / f"joint_{seed}{suffix}"
    changes = {"seed": seed, "stages": ("joint",), "joint.init_from": str(stage_one), **overrides}
    train(path, workdir, changes)
    config = get_config()
    config.update_from_flattened_dict({**changes, "data.dir": path})
    restored = restore_model(config, workdir)
    records = evaluate(
        make_eval_step(restored.model, tuple(config.data.mean), tuple(config.data.std)),
        restored.variables,
        DataSplits(data_settings(config, workdir)).load(split),
        batch_size=config.eval.batch_size,
        mesh=restored.mesh,
    )
    return records, restored.model.resolutions, model_cost(restored.model)


def train(path: str, workdir: Path, changes: dict[str, Any]) -> None:
    """`main.py` resumes, skips what is finished, and refuses a run with other settings."""
    overrides = {**changes, "data.dir": path}
    command = [sys.executable, "main.py", "--config=configs/imagenette_cpu.py"]
    command += [f"--config.{name}={value}" for name, value in overrides.items()]
    subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, check=True)


def figures(records: EvalRecords, resolutions: tuple[int, ...], cost: ModelCost) -> dict[str, Any]:
    """What is compared, of one model: fractions, and the cost over the largest fixed size's."""
    summary = summarise(records, resolutions, cost)
    return {
        "top1": summary["top1"],
        "relative_cost": summary["gmacs"] / summary["fixed"][0]["gmacs"],
        "gmacs": summary["gmacs"],
        "hull": hull_top1(summary, summary["gmacs"]),
        # What the choice is worth before the predictor has cost anything.
        "hull_at_classifier_cost": hull_top1(summary, summary["gmacs_classifier"]),
        "random": matched_random_top1(summary),
        "shares": summary["shares"],
        "fixed": summary["fixed"],
        "oracle": float(records.top1.any(axis=1).mean()),
    }


def compare(
    evaluated: list[EvalRecords], resolutions: tuple[int, ...], cost: ModelCost
) -> dict[str, Any]:
    """Figures of every seed, and mean differences over the seeds with their intervals."""

    def differences(index: np.ndarray, other: Callable[[dict[str, Any]], float]) -> float:
        rows = [figures(records.take(index), resolutions, cost) for records in evaluated]
        return float(np.mean([row["top1"] - other(row) for row in rows]))

    controls: dict[str, Callable[[dict[str, Any]], float]] = {
        "hull": lambda row: row["hull"],
        "hull, predictor not counted": lambda row: row["hull_at_classifier_cost"],
        "random": lambda row: row["random"],
        "largest": lambda row: row["fixed"][0]["top1"],
    }
    num_images = len(evaluated[0].choice)
    intervals = {}
    for name, other in controls.items():
        found = stats.bootstrap(
            (np.arange(num_images),),
            lambda index, other=other: differences(index.astype(int), other),
            vectorized=False,
            method="percentile",
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(0),
        ).confidence_interval
        mean = differences(np.arange(num_images), other)
        intervals[name] = {"mean": mean, "low": float(found.low), "high": float(found.high)}
    seeds = [figures(records, resolutions, cost) for records in evaluated]
    return {"num_images": num_images, "seeds": seeds, "differences": intervals}


def verdict(result: dict[str, Any]) -> int:
    """The last line: 0 if every goal is reached."""
    largest = min(row["fixed"][0]["top1"] for row in result["seeds"])
    lows = {name: result["differences"][name]["low"] for name in ("hull", "random")}
    print(
        f"largest fixed size {100 * largest:.1f} % (goal >= 70); lower end of DRNet minus hull "
        f"{100 * lows['hull']:+.2f}, minus random {100 * lows['random']:+.2f} (goals > 0)"
    )
    return int(largest < 0.7 or min(lows.values()) <= 0)


def markdown(result: dict[str, Any]) -> str:
    """Tables of the seeds, of the differences and of the variants."""
    sizes = [str(entry["resolution"]) for entry in result["seeds"][0]["fixed"]]
    heading = [*(f"fixed {size}" for size in sizes), "oracle", "DRNet", "cost", "hull", "random"]
    heading.append(f"sent to {' / '.join(sizes)} px")
    seeds = table(
        ["seed", *heading],
        [[str(seed), *row(entry)] for seed, entry in enumerate(result["seeds"])],
    )
    intervals = table(
        ["DRNet minus", "points", "95 %"],
        [
            [name, f"{100 * d['mean']:+.2f}", f"{100 * d['low']:+.2f} to {100 * d['high']:+.2f}"]
            for name, d in result["differences"].items()
        ],
    )
    text = (
        f"Test split, {result['num_images']} images; top-1 and shares in %; cost: with the "
        "predictor, over the largest fixed size's; oracle: right at one size at least.\n\n"
        f"{seeds}\nMeans over the seeds:\n\n{intervals}"
    )
    if result["variants"]:
        rows = [[entry["name"], *row(entry)] for entry in result["variants"]]
        text += "\nStage 2 with other settings, seed 0, calibration split:\n\n"
        text += table(["stage 2", *heading], rows)
    return text


def row(entry: dict[str, Any]) -> list[str]:
    fractions = [fixed["top1"] for fixed in entry["fixed"]]
    texts = [percent(value) for value in (*fractions, entry["oracle"], entry["top1"])]
    texts.append(f"{entry['relative_cost']:.3f}")
    texts += [percent(entry[name]) for name in ("hull", "random")]
    return [*texts, " / ".join(f"{100 * share:.0f}" for share in entry["shares"])]


if __name__ == "__main__":
    # Grain reads absl flags.
    flags.FLAGS.mark_as_parsed()
    sys.exit(main())
