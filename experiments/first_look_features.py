"""What a second look could keep of the first beyond its logits, and other ways to train it.

python experiments/first_look_features.py --stage-one runs/glance_imagenette/stage1

Every way goes on from the same stage 1 (`seed=0`, `seed=1`, ... in the given directory, those of
`configs/sweeps/glance_imagenette.py`) for as many epochs, on the same batches; 'as before' is what
the others are compared with. No gradient goes into the first look. Afterwards each is as
`model.reuse='logits'`: the weight of the first look's logits is fitted to the calibration split,
and the second look is taken below a margin. A run that is there is not trained again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from drnet_jax.checkpoints.restore import restore_model
from drnet_jax.checkpoints.runs import is_finished, stored_config
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.pipeline import train_batches
from drnet_jax.data.settings import data_settings
from drnet_jax.data.sources import Source
from drnet_jax.evaluation.logits import Logits
from drnet_jax.evaluation.metrics import EvalRecords, record
from drnet_jax.evaluation.outputs import evaluate_logits, make_eval_step
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.glance import Look
from drnet_jax.models.macs import model_cost
from drnet_jax.models.resnet import ResNet
from drnet_jax.models.variables import init_variables, merge_variables
from drnet_jax.runtime.command_line import CommandLine, a_path
from drnet_jax.runtime.files import write_json, write_text
from drnet_jax.runtime.progress import log
from drnet_jax.runtime.sharding import batch_sharding
from drnet_jax.training.optim import create_learning_rate_fn, create_optimizer
from drnet_jax.training.reuse import fit_weights
from drnet_jax.training.stage_losses import Batch, Metrics, PretrainLoss
from drnet_jax.training.train_state import create_train_state
from drnet_jax.training.train_step import TrainPreprocess, make_train_step
from experiments.first_look_methods import (
    TARGETS,
    adaptive,
    cell,
    differences,
    in_points,
    plain_cascade,
)
from experiments.first_look_runs import SPLITS, Run, load_all, save

RESULTS = Path(__file__).parent / "first_look"
CONTROL = "as before"
EPOCHS = 5
# Of stage 1's: it has come to its end already.
RATE = 0.25
# Of the first look's logits in what the second is trained to be right with.
MIXED = 0.5
_FIELDS = ("classifier", "predictor", "resolutions", "statistics")


class Seen:
    """Holds the map that a first look gave its last stage, for the second of the same trace."""

    maps: jax.Array


class SeeingResNet(ResNet):
    """A ResNet whose second look sees what the first gave its last stage.

    Attributes:
      first: the resolution of the first look.
      seen: of it.
    """

    first: int = 0
    seen: Seen | None = None

    @nn.nowrap
    def run_block(self, block: nn.Module, x: jax.Array, **norm_args: Any) -> jax.Array:
        """Before the last stage, adds the first look's map through a 1x1 projection."""
        if block.name == f"layer{len(self.stage_sizes)}_0":
            assert self.seen is not None
            if norm_args["resolution"] == self.first:
                self.seen.maps = jax.lax.stop_gradient(x)
            else:
                seen = jax.image.resize(self.seen.maps, x.shape, "nearest")
                zeros = nn.initializers.zeros
                x += nn.Conv(
                    x.shape[-1], (1, 1), use_bias=False, kernel_init=zeros, name="seen_conv"
                )(seen)
        return super().run_block(block, x, **norm_args)


class Following(DRNet):
    """A DRNet whose second look is given something of the first.

    Attributes:
      pooled: a layer on the first look's pooled features, added to the second's logits.
      share: of the first look's logits, likewise.
    """

    pooled: nn.Dense | None = None
    share: float = 0.0

    def look_everywhere(self, images: jax.Array, **arguments: Any) -> list[Look]:
        """As of every DRNet, the first look before the second."""
        largest, smallest = self.resolutions
        first = self.look(images, smallest, **arguments)
        second = self.look(images, largest, **arguments)
        kept = jax.lax.stop_gradient(first)
        logits = second.logits + self.share * kept.logits
        if self.pooled is not None:
            logits = logits + self.pooled(kept.pooled)
        return [second.replace(logits=logits), first]


@dataclass(frozen=True)
class DoubtLoss(PretrainLoss):
    """Stage 1 with images of the largest size weighted by how wrong the first look is."""

    def __call__(
        self, params: Any, collections: Any, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """See `Loss`."""
        del key, step
        logits, updated = self.model.apply(
            {"params": params, **collections},
            batch["image"],
            train=True,
            sample_mask=batch.get("mask"),
            method="classify_all",
            mutable=list(collections),
        )
        ce = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.broadcast_to(batch["label"][:, None], logits.shape[:2])
        )
        # By the first look's probability of the label; what it is sure of counts a little too.
        weight = 1 - jax.lax.stop_gradient(jnp.exp(-ce[:, -1])) + 0.1
        loss = (weight * ce[:, 0]).mean() / weight.mean() + ce[:, -1].mean()
        return loss, (updated, {"loss": loss})


def following(model: DRNet, **given: Any) -> DRNet:
    """The same model, its second look given something of the first."""
    return Following(*(getattr(model, field) for field in _FIELDS), **given)


def pooled(model: DRNet) -> DRNet:
    """A layer on the first look's pooled features is added to the second's logits."""
    zeros = nn.initializers.zeros
    layer = nn.Dense(model.classifier.num_classes, use_bias=False, kernel_init=zeros)
    return following(model, pooled=layer)


def seeing(model: DRNet) -> DRNet:
    """The second look sees the first's last maps too."""
    classifier = model.classifier
    assert isinstance(classifier, ResNet)
    fields = {field: getattr(classifier, field) for field in classifier.__dataclass_fields__}
    fields = {field: value for field, value in fields.items() if field not in ("parent", "name")}
    seeing_one = SeeingResNet(**fields, first=model.resolutions[-1], seen=Seen())
    return pooled(model.clone(classifier=seeing_one))


# By name: the model, and what is minimised.
WAYS: dict[str, tuple[Callable[[DRNet], DRNet], type[PretrainLoss]]] = {
    CONTROL: (following, PretrainLoss),
    "pooled features of the first look": (pooled, PretrainLoss),
    "its last maps and pooled features": (seeing, PretrainLoss),
    "trained for the mixed logits": (lambda model: following(model, share=MIXED), PretrainLoss),
    "trained for what the first look doubts": (following, DoubtLoss),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("--stage-one", type=a_path, help="directory of runs of stage 1, seed=K")
    parser.add_argument("--runs", type=a_path, default=Path("runs/first_look_features"))
    return parser.parse_args(arguments)


def main() -> None:
    given = parse(sys.argv[1:])
    given.runs.mkdir(parents=True, exist_ok=True)
    known = {(run.variant, run.seed) for run in load_all(given.runs)}
    for origin in sorted(given.stage_one.glob("seed=*")) if given.stage_one else []:
        if not is_finished(origin, "pretrain"):
            print(f"not finished: {origin}")
            continue
        for name, (make, loss) in WAYS.items():
            if (name, stored_config(origin).seed) not in known:
                save(train(origin, name, make, loss), given.runs)
    variants: dict[str, list[Run]] = {}
    for run in load_all(given.runs):
        variants.setdefault(run.variant, []).append(run)
    if CONTROL not in variants:
        raise SystemExit(f"no runs in {given.runs}: give --stage-one, the runs of stage 1")
    lines = [row(name, variants[name], variants[CONTROL]) for name in WAYS if name in variants]
    write_json(RESULTS / "features.json", {"rows": lines})
    write_text(RESULTS / "features.md", table(lines))
    print(table(lines))


def train(origin: Path, name: str, make: Callable[[DRNet], DRNet], loss: type[PretrainLoss]) -> Run:
    """Goes on from a run of stage 1 in one way."""
    config = stored_config(origin)
    restored = restore_model(config, origin)
    model = make(restored.model)
    splits = DataSplits(data_settings(config, origin))
    # New layers are zero, the others are as they were.
    fresh = flatten_dict(init_variables(model, jax.random.key(config.seed)))
    variables = unflatten_dict(fresh | flatten_dict(restored.variables))
    variables = run_steps(config, name, loss(model), variables, splits.load("train"), restored.mesh)
    step = make_eval_step(model, tuple(config.data.mean), tuple(config.data.std))
    found = {
        split: evaluate_logits(
            step,
            variables,
            splits.load(split),
            batch_size=config.eval.batch_size,
            mesh=restored.mesh,
            checkpoint=None,
        )
        for split in SPLITS
    }
    weight = fit_weights(found["calibration"].logits, found["calibration"].label)
    log(f"{name}, seed {config.seed}: weight of the first look {weight[0]:.2f}")
    records = {split: by_margin(outputs, weight) for split, outputs in found.items()}
    return Run(name, config.seed, model.resolutions, model_cost(restored.model), **records)


def run_steps(
    config: ConfigDict,
    name: str,
    loss: PretrainLoss,
    variables: Any,
    source: Source,
    mesh: Mesh,
) -> Any:
    """The variables after `EPOCHS` more epochs; the predictor's are left as they are."""
    section = config.pretrain.copy_and_resolve_references()
    section.num_epochs, section.warmup_epochs = EPOCHS, 0
    section.base_learning_rate *= RATE
    steps_per_epoch = len(source) // section.batch_size
    trained = {
        collection: {part: leaves for part, leaves in tree.items() if part != "predictor"}
        for collection, tree in variables.items()
        if collection != "fitted"
    }
    rates = {
        part: create_learning_rate_fn(section, steps_per_epoch, 1.0) for part in trained["params"]
    }
    tx = create_optimizer(section, rates)
    data = config.data
    preprocess = TrainPreprocess(tuple(data.mean), tuple(data.std), data.flip)
    step = make_train_step(
        loss, tx, preprocess, learning_rate_fns=rates, ema_decay=section.ema_decay
    )
    state = create_train_state(trained, tx, ema=section.ema_decay > 0)
    batches = train_batches(
        source,
        batch_size=section.batch_size,
        # Another order than stage 1 had, the same for every way.
        seed=1000 + config.seed,
        start_step=0,
        sharding=batch_sharding(mesh),
        num_workers=data.num_workers,
    )
    start = time.perf_counter()
    with closing(batches):
        for index in range(1, EPOCHS * steps_per_epoch + 1):
            state, metrics = step(state, next(batches).arrays, jax.random.key(config.seed))
            if index % steps_per_epoch == 0:
                rate = index * section.batch_size / (time.perf_counter() - start)
                epoch = index // steps_per_epoch
                log(f"{name}: epoch {epoch} loss {metrics['loss']:.3f} {rate:.0f} img/s")
    return merge_variables(variables, state.eval_variables)


def by_margin(outputs: Logits, weight: np.ndarray) -> EvalRecords:
    """The records of outputs, whose scores ask for a second look below a margin."""
    found = record(outputs.logits, outputs.scores, weight, outputs.label, outputs.index)
    sure = found.margin[:, -1]
    scores = np.stack([-sure, np.zeros_like(sure)], axis=1)
    return replace(found, scores=scores, choice=scores.argmax(axis=1))


def row(name: str, runs: Sequence[Run], controls: Sequence[Run]) -> dict[str, Any]:
    """A way beside the control, at every target; intervals as in `experiments/first_look.py`."""
    ordered = sorted(runs, key=lambda run: run.seed)
    known = {run.seed: run for run in controls}
    fixed = np.mean([run.test.top1.mean(axis=0) for run in ordered], axis=0)
    targets = {}
    for target in TARGETS:
        gmacs = target * ordered[0].cost.classifier_gmacs[0]
        outcomes = [adaptive(run)(gmacs, run.test) for run in ordered]
        theirs = [adaptive(known[run.seed])(gmacs, known[run.seed].test) for run in ordered]
        minus = differences(ordered, outcomes, [outcome.correct for outcome in theirs])
        cascades = [plain_cascade(known[run.seed], "margin") for run in ordered]
        plain = [
            each(gmacs, known[run.seed].test) for each, run in zip(cascades, ordered, strict=True)
        ]
        above = differences(ordered, outcomes, [outcome.correct for outcome in plain])
        targets[f"{target}"] = {
            "top1": 100 * float(np.mean([outcome.top1 for outcome in outcomes])),
            "minus as before": in_points(minus),
            "minus its plain cascade": in_points(above),
        }
    return {
        "way": name,
        "seeds": [run.seed for run in ordered],
        "fixed": (100 * fixed).tolist(),
        "targets": targets,
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """In Markdown, a line a way, at the middle target."""
    heading = ["", "seeds", "fixed", "top-1", f"minus '{CONTROL}'", "minus its plain cascade"]
    rows = [heading, ["---"] * len(heading)]
    for line in lines:
        here = line["targets"][f"{TARGETS[1]}"]
        rows.append(
            [
                line["way"],
                str(len(line["seeds"])),
                " / ".join(f"{value:.1f}" for value in line["fixed"]),
                f"{here['top1']:.1f}",
                cell(here["minus as before"]),
                cell(here["minus its plain cascade"]),
            ]
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


if __name__ == "__main__":
    main()
