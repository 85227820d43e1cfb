"""What comes before stage 1 of imported weights: their outputs, the head, and figures before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax.checkpoints.answers import UNKNOWN, with_answers, write_answers
from drnet_jax.checkpoints.conversion import note_conversion, timed
from drnet_jax.checkpoints.restore import read_classes
from drnet_jax.config import SPLITS, flatten
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.index_cache import digest
from drnet_jax.data.settings import data_settings
from drnet_jax.data.sources import DataError, EncodedSource, Source
from drnet_jax.evaluation.inputs import KeptOutputs, missing
from drnet_jax.evaluation.logits import Logits
from drnet_jax.evaluation.metrics import record, summarise
from drnet_jax.evaluation.outputs import evaluate_logits, make_look_step, name_images
from drnet_jax.models.glance import Look
from drnet_jax.runtime.progress import log
from drnet_jax.runtime.sharding import replicated_sharding
from drnet_jax.training.fit_head import fit_head
from drnet_jax.training.imported import Imported, checksums, read_imported, with_head
from drnet_jax.training.stage import Run

Outputs = Mapping[str, Logits]
# What outputs depend on, beside the weights and the images.
_FIELDS = ("model.name", "model.args", "model.resolutions", "model.dtype", "data.mean", "data.std")


def import_weights(run: Run) -> Run:
    """The run with what its stage 1 starts from, and without labels with the network's answers.

    The network runs once over every split, as evaluation sees it, but for the training split where
    nothing is read of that; its outputs are kept in `imported.npz`. A new head is fitted to those
    of the training split. Figures before the training are noted in `conversion.json`.

    Raises:
      WeightsError, ConfigError: see `read_imported`.
      DataError: more than `data.max_corrupt` images of a split cannot be read, or no training image
        of a class that a new head is for.
      NotFiniteError: outputs are not finite.
    """
    imported = read_imported(run.config, run.model, read_classes(run.workdir))
    test = DataSplits(data_settings(run.config, run.workdir)).load("test")
    sources = dict(zip(SPLITS, (run.train, run.calibration, test), strict=True))
    if not imported.new_head and run.config.convert.labels:
        del sources["train"]
    with timed(run.workdir, "outputs"):
        outputs: Outputs = _outputs(run, imported, sources)
    if not run.config.convert.labels:
        outputs = _answered(run, sources, outputs)
        run = with_labels(run)
    facts: dict[str, Any] = {"new_head": imported.new_head, "outputs": imported.outputs}
    facts |= {"labels": run.config.convert.labels, "head_strength": None}
    facts |= checksums(run.config)
    start = imported.variables
    if imported.new_head:
        with timed(run.workdir, "head"):
            start, outputs, facts["head_strength"] = _with_new_head(run, start, outputs)
    facts["before"] = {split: _figures(run, outputs[split]) for split in SPLITS[1:]}
    note_conversion(run.workdir, facts)
    fixed = facts["before"]["calibration"]["fixed"]
    words = "/".join(f"{entry['top1']:.3f}" for entry in fixed)
    log(f"{'new' if imported.new_head else 'own'} head, before training: calibration top-1 {words}")
    return replace(run, start={name: {"classifier": tree} for name, tree in start.items()})


def with_labels(run: Run) -> Run:
    """The run with the answers that are kept as labels of its images.

    Raises:
      CheckpointError: they are missing or damaged.
    """
    train, calibration = (with_answers(run.workdir, s) for s in (run.train, run.calibration))
    return replace(run, train=train, calibration=calibration)


def _outputs(run: Run, imported: Imported, sources: Mapping[str, Source]) -> dict[str, Logits]:
    """Of every source: logits, and for a new head the features as `scores` `[n, m * d]`."""
    config, data = run.config, run.config.data
    read = _features if imported.new_head else _nothing
    step = make_look_step(run.model, tuple(data.mean), tuple(data.std), read)
    variables = {name: {"classifier": tree} for name, tree in imported.variables.items()}
    variables = jax.device_put(variables, replicated_sharding(run.mesh))

    def compute(source: Source) -> Logits:
        """Runs the imported network."""
        log(f"the imported network's outputs for {len(source)} images ...")
        batch_size = config.eval.batch_size
        return evaluate_logits(
            step, variables, source, batch_size=batch_size, mesh=run.mesh, checkpoint=None
        )

    path = run.workdir / "imported.npz"
    kept = KeptOutputs(path, _key(run, imported), compute, skip_corrupt=True)
    found = {split: kept.of(split, source) for split, source in sources.items()}
    for split, source in sources.items():
        corrupt = missing(found[split], source)
        if len(corrupt) > data.max_corrupt:
            raise DataError(
                f"{len(corrupt)} {split} images cannot be read ({name_images(source, corrupt)}), "
                f"more than data.max_corrupt={data.max_corrupt}: repair them or raise it"
            )
    return found


def _key(run: Run, imported: Imported) -> str:
    fields = {name: value for name, value in flatten(run.config).items() if name in _FIELDS}
    facts = [fields, run.config.data.eval_crop, imported.columns, read_classes(run.workdir)]
    place = Path(run.config.data.dir).resolve()
    return f"weights of {imported.checksum}, {digest(json.dumps(facts))[:12]}, images in {place}"


def _features(looks: Sequence[Look]) -> jax.Array:
    """`[n, m * d]` float32, of every resolution."""
    return jnp.concatenate([look.pooled for look in looks], axis=1).astype(np.float32)


def _nothing(looks: Sequence[Look]) -> jax.Array:
    """`[n, 0]`: a head that is kept needs no features."""
    return jnp.zeros((len(looks[0].logits), 0), np.float32)


def _answered(run: Run, sources: Mapping[str, Source], outputs: Outputs) -> dict[str, Logits]:
    """The outputs with the answers at the largest resolution as labels, which are kept."""
    positions = {split: _positions(source) for split, source in sources.items()}
    label = np.full(1 + max(int(where.max()) for where in positions.values()), UNKNOWN, np.int32)
    answered = {}
    for split, found in outputs.items():
        answer = found.logits[:, 0].argmax(axis=1).astype(np.int32)
        label[positions[split][found.index]] = answer
        answered[split] = replace(found, label=answer)
    write_answers(run.workdir, label)
    return answered


def _positions(source: Source) -> np.ndarray:
    assert isinstance(source, EncodedSource)
    return source.positions


def _with_new_head(run: Run, variables: Any, outputs: Outputs) -> tuple[Any, Outputs, float]:
    """Variables and outputs with a fitted head, and how weak its penalty is."""
    num_sizes, label = len(run.model.resolutions), outputs["train"].label
    shown = f"{len(label)} images at {num_sizes} resolutions"
    log(f"fitting a head to the features of {shown} ...")
    features = {
        split: found.scores.reshape(len(found.label), num_sizes, -1)
        for split, found in outputs.items()
    }
    classes = read_classes(run.workdir)
    unseen = [name for index, name in enumerate(classes) if index not in label]
    if unseen:
        raise DataError(
            f"no training image of class {unseen[0]!r} can be read, and a new head needs some: "
            "repair them, or take the class away"
        )
    held_out = outputs["calibration"].label
    head = fit_head(features["train"], label, features["calibration"], held_out)
    arrays = {"kernel": head.kernel, "bias": head.bias}
    answered = {s: replace(f, logits=head.logits(features[s])) for s, f in outputs.items()}
    return with_head(variables, lambda _: arrays), answered, head.strength


def _figures(run: Run, found: Logits) -> dict[str, Any]:
    """Each fixed resolution, before anything is trained."""
    no_scores = np.zeros(found.logits.shape[:2], np.float32)
    records = record(found.logits, no_scores, found.weight, found.label, found.index)
    summary = summarise(records, run.model.resolutions, run.cost)
    return {name: summary[name] for name in ("num_images", "fixed")}
