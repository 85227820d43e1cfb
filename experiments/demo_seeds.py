"""The demo at three seeds: is DRNet above what needs no predictor, at every seed?

python experiments/demo_seeds.py

Runs `main.py` once a seed (about six minutes each on two cores), skipping seeds that are finished
and resuming one that is not; writes `experiments/demo_seeds.json` and `.md`. Goals, on the test
split, for every seed: at most 8 minutes; largest fixed size >= .90; DRNet, predictor counted, at
most 0.8 of its cost and 1.5 points above both the hull of the fixed sizes at that cost and a random
choice with the same shares.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from drnet_jax.evaluation.metrics import hull_top1, matched_random_top1
from drnet_jax.runtime.environment import environment
from drnet_jax.runtime.files import write_json
from experiments.common import percent, table

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
RUNS = ROOT / "runs" / "demo_seeds"
RESULT = ROOT / "experiments" / "demo_seeds.json"


def main() -> int:
    results = [run_seed(seed) for seed in SEEDS]
    write_json(RESULT, {"setup": environment("python experiments/demo_seeds.py"), "seeds": results})
    table = markdown(results)
    RESULT.with_suffix(".md").write_text(table)
    print(table)
    missed = [result["seed"] for result in results if not reached(result)]
    print(f"seeds that miss a goal: {len(missed)} (goal <= 0)")
    return int(bool(missed))


def run_seed(seed: int) -> dict[str, Any]:
    """Trains and evaluates one seed, or reads what an earlier call left."""
    workdir = RUNS / str(seed)
    result = workdir / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    resumed = (workdir / "config.json").exists()
    start = time.perf_counter()
    command = [sys.executable, "main.py", f"--config.seed={seed}", f"--workdir={workdir}"]
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.perf_counter() - start
    summary = json.loads((workdir / "eval.json").read_text())
    figures = {
        "seed": seed,
        # The time of a resumed run says nothing, so it does not reach the goal.
        "seconds": None if resumed else seconds,
        "hull": hull_top1(summary, summary["gmacs"]),
        "random": matched_random_top1(summary),
        "relative_cost": summary["gmacs"] / summary["fixed"][0]["gmacs"],
        **{name: summary[name] for name in ("top1", "gmacs", "shares", "fixed", "resolutions")},
        **{name: summary[name] for name in ("by_apparent_size", "num_images", "checkpoint_step")},
    }
    write_json(result, figures)
    return figures


def reached(result: dict[str, Any]) -> bool:
    return (
        result["seconds"] is not None
        and result["seconds"] <= 480
        and result["fixed"][0]["top1"] >= 0.90
        and result["relative_cost"] <= 0.8
        and result["top1"] - max(result["hull"], result["random"]) >= 0.015
    )


def markdown(results: list[dict[str, Any]]) -> str:
    """A table by seed, and a table by apparent size with the means over the seeds."""
    resolutions = results[0]["resolutions"]
    sizes = [f"{size} px" for size in resolutions]
    names = ["seed", "minutes", *(f"fixed {size}" for size in sizes), "DRNet", "cost"]
    names += ["hull", "random", *(f"to {size}" for size in sizes)]
    rows = [
        [
            str(result["seed"]),
            "resumed" if result["seconds"] is None else f"{result['seconds'] / 60:.1f}",
            *(percent(entry["top1"]) for entry in result["fixed"]),
            percent(result["top1"]),
            f"{result['relative_cost']:.3f}",
            percent(result["hull"]),
            percent(result["random"]),
            *(percent(share) for share in result["shares"]),
        ]
        for result in results
    ]
    by_size = [
        [
            "{}-{} px".format(*ranges[0]["pixels"]),
            str(ranges[0]["num_images"]),
            *(percent(share) for share in np.mean([r["shares"] for r in ranges], axis=0)),
            percent(np.mean([r["top1"] for r in ranges])),
            *(percent(top1) for top1 in np.mean([r["fixed_top1"] for r in ranges], axis=0)),
        ]
        for ranges in zip(*(result["by_apparent_size"] for result in results), strict=True)
    ]
    size_names = ["digit side", "images", *(f"to {s}" for s in sizes), "DRNet"]
    size_names += [f"fixed {s}" for s in sizes]
    return (
        f"Test split, {results[0]['num_images']} images; top-1 and shares in %; cost: with the "
        "predictor, over the largest fixed size's.\n\n"
        + table(names, rows)
        + f"\nBy apparent size, means over {len(results)} seeds:\n\n"
        + table(size_names, by_size)
    )


if __name__ == "__main__":
    sys.exit(main())
