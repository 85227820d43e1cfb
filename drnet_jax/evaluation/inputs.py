"""What an evaluation starts from: a trained model, the splits of its data, its outputs for them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from drnet_jax.checkpoints.answers import with_answers
from drnet_jax.checkpoints.finite import rows_not_finite
from drnet_jax.checkpoints.model_key import model_key
from drnet_jax.checkpoints.picture_sizes import check_sizes
from drnet_jax.checkpoints.restore import (
    RestoredModel,
    TrainedModel,
    check_data,
    find_model,
    restore_variables,
)
from drnet_jax.config import EVALUATION_FIELDS, flatten
from drnet_jax.data.crops import problem
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import data_settings
from drnet_jax.data.sources import Source, part
from drnet_jax.evaluation import logits
from drnet_jax.evaluation.logits import Logits, LogitsError
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.evaluation.outputs import check_corrupt, evaluate_logits, make_eval_step
from drnet_jax.inference.batches import check_batches
from drnet_jax.runtime.progress import log

_BY_IMAGE = ("logits", "scores", "label", "index", "name", "version")


def find_and_load(config: ConfigDict, workdir: Path, split: str) -> tuple[TrainedModel, Source]:
    """The model of `restore_from` or `workdir`, and a split of the data it was trained on.

    Raises:
      CheckpointError: no checkpoint, or one of another model.
      ConfigError: batches that do not fit into the memory.
      DataError: the data cannot be read, or is other data.
    """
    origin = Path(config.restore_from) if config.restore_from else workdir
    trained = find_model(config, origin)
    source = load_split(config, workdir, trained, split)
    check_batches(config, "eval.batch_size", source.image_size, jax.device_count())
    return trained, source


def restore_and_load(config: ConfigDict, workdir: Path, split: str) -> tuple[RestoredModel, Source]:
    """As `find_and_load`, with the variables of the model."""
    trained, source = find_and_load(config, workdir, split)
    return restore_variables(trained), source


def load_split(config: ConfigDict, workdir: Path, trained: TrainedModel, split: str) -> Source:
    """A split of the data that a model was trained on.

    Raises:
      DataError: the data cannot be read, or is other data.
    """
    labelled = bool(trained.config["convert.labels"])
    splits = DataSplits(data_settings(config, workdir, labelled=labelled))
    classes = splits.classes if labelled else trained.classes
    check_data(trained.origin, classes, {split: splits.identity(split)})
    check_sizes(trained.origin, {split: splits.sizes(split)}, config.data.max_corrupt)
    source = splits.load(split)
    return source if labelled else with_answers(trained.origin, source)


class KeptOutputs:
    """Outputs for the splits of a data set: from a file where it has them.

    Other outputs are computed and kept there too, before anything is said of images that cannot be
    decoded: once those are repaired, they alone are computed. So are images that were changed under
    the same name, which the size of their files and the time of the last change tell: on a copy
    with other times everything is computed anew. A file of another key is not used, and replaced.

    Args:
      path: of the file.
      key: of all that the outputs depend on but the images.
      compute: runs the network over every image of a source.
      skip_corrupt: images that cannot be decoded are left out, instead of an error.
      keep: write the file.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        compute: Callable[[Source], Logits],
        *,
        skip_corrupt: bool,
        keep: bool = True,
    ) -> None:
        self._path = path
        self._key = key
        self._compute = compute
        self._skip_corrupt = skip_corrupt
        self._keep = keep

    def of(self, split: str, source: Source, *, skip_corrupt: bool = False) -> Logits:
        """The outputs for a split, which are computed where they are not known.

        Raises:
          DataError: an image cannot be decoded, and none is to be left out; or none can.
          CheckpointError: the checkpoint is damaged or of another model, or outputs are not finite.
        """
        known = self._load(split, source)
        if known is None:
            known = self._compute(source)
            self._save(split, known)
        else:
            log(f"{split} split: outputs from {self._path}")
            lacking = [i for i in missing(known, source).tolist() if not problem(source, i)]
            if lacking:
                log(f"and of {len(lacking)} images that it lacks, or had before they were changed")
                known = joined(known, self._compute(part(source, lacking)), lacking)
                self._save(split, known)
        skip_corrupt = skip_corrupt or self._skip_corrupt
        check_corrupt(source, missing(known, source), skip=skip_corrupt)
        return known

    def _save(self, split: str, found: Logits) -> None:
        if not self._keep:
            return
        try:
            logits.save(self._path, self._key, split, found)
        except OSError as error:
            log(f"{self._path} is not written, the next time they are computed anew: {error}")

    def _load(self, split: str, source: Source) -> Logits | None:
        # Several processes may not see the same file, and have to do the same.
        if not self._path.exists() or jax.process_count() > 1:
            return None
        try:
            known = logits.load(self._path, self._key, split)
        except LogitsError as error:
            log(f"{error}: computed anew")
            return None
        if known is None:
            return None
        if len(rows_not_finite(known.logits, known.scores)):
            log(f"{self._path} has outputs that are not finite: computed anew")
            return None
        if same_names(known, source) and len((same := of_unchanged(known, source)).index):
            return same
        log(f"{self._path} is of other images of the {split} split: computed anew")
        return None


class ModelOutputs(KeptOutputs):
    """A model's outputs for the splits of its data, in `logits.npz` (`eval.keep_logits`).

    Args:
      config: with the model the checkpoint was trained with.
      workdir: where the file is.
      trained: the model; its variables are read when they are first needed.
    """

    def __init__(self, config: ConfigDict, workdir: Path, trained: TrainedModel) -> None:
        super().__init__(
            workdir / "logits.npz",
            logits_key(config, trained),
            self._run_model,
            skip_corrupt=config.data.skip_corrupt,
            keep=config.eval.keep_logits,
        )
        self._config = config
        self._trained = trained
        self._restored = trained if isinstance(trained, RestoredModel) else None
        mean, std = tuple(config.data.mean), tuple(config.data.std)
        self._eval_step = make_eval_step(trained.model, mean, std)

    def _run_model(self, source: Source) -> Logits:
        """Over every image of the source."""
        if self._restored is None:
            self._restored = restore_variables(self._trained)
        return evaluate_logits(
            self._eval_step,
            self._restored.variables,
            source,
            batch_size=self._config.eval.batch_size,
            mesh=self._restored.mesh,
            checkpoint=self._trained.checkpoint,
        )


def with_origin(records: EvalRecords, source: Source) -> EvalRecords:
    """The records with the origin of every image, where the source knows it."""
    origin = source.metadata.get("origin")
    return records if origin is None else replace(records, origin=origin[records.index])


def same_names(known: Logits, source: Source) -> bool:
    """Whether these are of images of a source, by name and class; it may have more."""
    if not len(known.index) or known.index.max() >= len(source):
        return False
    names = [source.name(int(index)) for index in known.index]
    if not np.array_equal(known.name, names):
        return False
    return np.array_equal(known.label, source.labels[known.index])


def of_unchanged(known: Logits, source: Source) -> Logits:
    """Those of the images that have not been changed since under the same name."""
    same = known.version == [source.version(int(index)) for index in known.index]
    rows = {name: getattr(known, name)[same] for name in _BY_IMAGE}
    return Logits(**rows, weight=known.weight, device=known.device)


def missing(known: Logits, source: Source) -> np.ndarray:
    """Indices of the images of a source whose outputs are not known."""
    return np.setdiff1d(np.arange(len(source)), known.index)


def joined(known: Logits, further: Logits, indices: Sequence[int]) -> Logits:
    """Outputs of the same split together, in the order of the source.

    Args:
      known: of some images.
      further: of `part(source, indices)`, or of some of them.
      indices: which images those are in the source.
    """
    further = replace(further, index=np.array(indices, np.int32)[further.index])
    order = np.argsort(np.concatenate([known.index, further.index]))
    rows = {n: np.concatenate([getattr(known, n), getattr(further, n)])[order] for n in _BY_IMAGE}
    # Those that are known may be of several devices already.
    devices = sorted({*str(known.device).split("; "), *str(further.device).split("; ")})
    return Logits(**rows, weight=known.weight, device=np.array("; ".join(devices)))


def logits_key(config: ConfigDict, trained: TrainedModel) -> str:
    """Of a checkpoint, and of where its images are."""
    place = Path(config.data.dir).resolve() if config.data.dir else "no directory"
    return f"{model_key(config, trained)} of {trained.saved_at}, images in {place}"


def evaluation_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields that belong to the evaluation, not to the training."""
    fields = flatten(config).items()
    return {name: value for name, value in fields if name.startswith(EVALUATION_FIELDS)}
