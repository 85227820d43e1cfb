"""What the runs of `configs/sweeps/glance_imagenette.py` recorded of every image, in small files.

`experiments/first_look.py` needs nothing else, so that its figures can be computed anew without a
training.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from drnet_jax.checkpoints.runs import stored_config
from drnet_jax.config import flatten
from drnet_jax.evaluation.logits import Logits
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import ModelCost, model_cost
from drnet_jax.sweep import base_config, load_sweep
from drnet_jax.sweeps.plan import make_plan

SPLITS = ("calibration", "test")
# Of a sureness, at which a threshold is: enough digits for 2,000 images.
_SHORT = {"confidence": np.float32, "margin": np.float32, "ce": np.float16, "index": np.int32}


@dataclass(frozen=True)
class Run:
    """One run, evaluated.

    Attributes:
      variant: of the sweep.
      seed: of the run.
      resolutions: in pixels.
      cost: of its networks.
      calibration: what thresholds and lambdas are chosen on.
      test: what figures are of.
    """

    variant: str
    seed: int
    resolutions: tuple[int, ...]
    cost: ModelCost
    calibration: EvalRecords
    test: EvalRecords


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
    for question, variants in plan.variants.items():
        for variant, jobs in variants.items():
            for job in jobs:
                path = job.workdir / "logits.npz"
                if not path.exists():
                    print(f"not finished: {question}, {variant}: {job.workdir.name}")
                    continue
                save(read(job.workdir, f"{question}: {variant}"), results)


def read(workdir: Path, variant: str) -> Run:
    """A run from its `logits.npz`."""
    config = stored_config(workdir)
    records = {}
    with np.load(workdir / "logits.npz") as arrays:
        for split in SPLITS:
            found = Logits(*(arrays[f"{split}/{field.name}"] for field in fields(Logits)))
            records[split] = found.records()
            num_classes = found.logits.shape[2]
    model = create_model(config, num_classes)
    seed = flatten(config)["seed"]
    return Run(variant, seed, model.resolutions, model_cost(model), **records)


def save(run: Run, results: Path) -> None:
    """Writes a run to a file of its own."""
    arrays = {
        f"{split}/{field.name}": _short(field.name, getattr(getattr(run, split), field.name))
        for split in SPLITS
        for field in fields(EvalRecords)
        if field.name != "origin"
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


def _short(name: str, values: np.ndarray) -> np.ndarray:
    return values.astype(_SHORT[name]) if name in _SHORT else values


def load_all(results: Path) -> Iterator[Run]:
    """Every run that was kept."""
    for path in sorted(results.glob("*.npz")):
        with np.load(path) as arrays:
            records = {
                split: EvalRecords(
                    **{
                        field.name: arrays[f"{split}/{field.name}"]
                        for field in fields(EvalRecords)
                        if field.name != "origin"
                    }
                )
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
