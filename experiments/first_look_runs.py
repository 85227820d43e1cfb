"""What the runs of `configs/sweeps/glance_imagenette.py` recorded of every image, in small files.

`experiments/first_look.py` needs nothing else, so that its figures can be computed anew without a
training.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from drnet_jax.checkpoints.restore import find_model
from drnet_jax.checkpoints.runs import is_finished, stored_config
from drnet_jax.evaluation.inputs import logits_key
from drnet_jax.evaluation.logits import load
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.models.macs import ModelCost, model_cost
from drnet_jax.sweep import base_config, load_sweep
from drnet_jax.sweeps.plan import make_plan

SPLITS = ("calibration", "test")
_RECORDED = [field.name for field in fields(EvalRecords) if field.name != "origin"]


@dataclass(frozen=True)
class Run:
    """One run, evaluated.

    Attributes:
      variant: of the sweep.
      seed: of the run.
      resolutions: in pixels.
      cost: of its networks.
      test: what figures are of.
      calibration: what thresholds and lambdas are chosen on; None with one resolution, of which
        nothing is chosen.
    """

    variant: str
    seed: int
    resolutions: tuple[int, ...]
    cost: ModelCost
    test: EvalRecords
    calibration: EvalRecords | None


def collect(sweep: Path, directory: Path, results: Path, overrides: dict[str, str]) -> None:
    """Keeps what the finished runs of a sweep recorded; others are named.

    Args:
      sweep: its file.
      directory: of its runs.
      results: where the files go.
      overrides: of the configuration, as the sweep was given them.
    """
    loaded = load_sweep(sweep)
    plan = make_plan(loaded, base_config(loaded, overrides), directory)
    results.mkdir(parents=True, exist_ok=True)
    kept: set[Path] = set()
    for question, variants in plan.variants.items():
        for variant, jobs in variants.items():
            # One that comes up again is kept under its first name.
            for job in (job for job in jobs if job.workdir not in kept):
                kept.add(job.workdir)
                if not is_finished(job.workdir, job.stage):
                    print(f"not finished: {question}, {variant}: {job.workdir.name}")
                    continue
                save(read(job.workdir, f"{question}: {variant}"), results)


def read(workdir: Path, variant: str) -> Run:
    """A run from its `logits.npz`.

    Raises:
      LogitsError: that is of another checkpoint.
    """
    config = stored_config(workdir)
    trained = find_model(config, workdir)
    key = logits_key(config, trained)
    records: dict[str, EvalRecords | None] = {}
    for split in SPLITS:
        found = load(workdir / "logits.npz", key, split)
        records[split] = None if found is None else found.records()
    model, seed = trained.model, config.seed
    return Run(variant, seed, model.resolutions, model_cost(model), **records)


def save(run: Run, results: Path) -> None:
    """Writes a run to a file of its own."""
    arrays = {
        f"{split}/{name}": getattr(getattr(run, split), name)
        for split in SPLITS
        if getattr(run, split) is not None
        for name in _RECORDED
    }
    name = "".join(c if c.isalnum() else "_" for c in run.variant)
    np.savez_compressed(
        results / f"{name}_seed{run.seed}.npz",
        variant=np.array(run.variant),
        seed=np.array(run.seed),
        resolutions=np.array(run.resolutions),
        macs=np.array([run.cost.predictor, *run.cost.classifier]),
        glances=np.array(run.cost.glances),
        **arrays,
    )


def load_all(results: Path) -> Iterator[Run]:
    """Every run that was kept."""
    for path in sorted(results.glob("*.npz")):
        with np.load(path) as arrays:
            records = {
                split: EvalRecords(**{name: arrays[f"{split}/{name}"] for name in _RECORDED})
                if f"{split}/label" in arrays.files
                else None
                for split in SPLITS
            }
            predictor, *classifier = map(int, arrays["macs"])
            yield Run(
                str(arrays["variant"]),
                int(arrays["seed"]),
                tuple(map(int, arrays["resolutions"])),
                ModelCost(predictor, tuple(classifier), bool(arrays["glances"])),
                **records,
            )
