"""A model's outputs for every image of a source, at every resolution."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from drnet_jax.checkpoints.finite import NotFiniteError, rows_finite
from drnet_jax.data.crops import problem
from drnet_jax.data.files import printable
from drnet_jax.data.pipeline import eval_batches
from drnet_jax.data.preprocess import normalise
from drnet_jax.data.sources import DataError, Source
from drnet_jax.evaluation.judging import judge
from drnet_jax.evaluation.logits import Logits
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.glance import Look
from drnet_jax.models.variables import first_look_weight, reuse_weight
from drnet_jax.runtime.sharding import batch_sharding

EvalStep = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]
Rows = dict[str, np.ndarray]


# One function for equal arguments: both stages and the evaluation after them trace and compile it
# once.
@lru_cache(maxsize=1)
def make_eval_step(model: DRNet, mean: tuple[float, ...], std: tuple[float, ...]) -> EvalStep:
    """The jitted forward pass of a batch: n images at all m resolutions, and the predictor."""

    @jax.jit
    def eval_step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """As `_with_batch`."""
        output: Any = model.apply(variables, normalise(batch["image"], mean, std))
        return _with_batch(output.branch_logits, output.scores, batch)

    return eval_step


def make_look_step(
    model: DRNet,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    read: Callable[[Sequence[Look]], jax.Array],
) -> EvalStep:
    """As `make_eval_step`, with what `read` takes of the looks in the place of the scores.

    Args:
      read: from the looks at all m resolutions, the largest first, to `[n, f]`.
    """

    @jax.jit
    def look_step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """As `_with_batch`."""
        images = normalise(batch["image"], mean, std)
        looks: Any = model.apply(variables, images, train=False, method="look_everywhere")
        logits = jnp.stack([look.logits for look in looks], axis=1)
        return _with_batch(logits, read(looks), batch)

    return look_step


def _with_batch(
    logits: jax.Array, scores: jax.Array, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Float32 logits `[n, m, k]`, scores `[n, f]`, whether both are `finite`, `[n]`, and the batch.

    Without its images.
    """
    rest = {name: batch[name] for name in ("label", "index", "mask", "corrupt")}
    logits = logits.astype(np.float32)
    return {"logits": logits, "scores": scores, "finite": rows_finite(logits, scores), **rest}


@jax.jit
def judged(outputs: dict[str, jax.Array], weight: jax.Array | None) -> dict[str, jax.Array]:
    """A step's outputs with the figures of `judge` in the place of the logits.

    These stay on the devices: of an image with k classes at m resolutions they are `4 m k` bytes,
    and what is left `19 m + 15`. A program of its own, so that the step is the one that the
    evaluation takes too.
    """
    rest = {name: values for name, values in outputs.items() if name != "logits"}
    return rest | judge(outputs["logits"], outputs["scores"], outputs["label"], weight)


def evaluate(
    eval_step: EvalStep,
    variables: Any,
    source: Source,
    *,
    batch_size: int,
    mesh: Mesh,
    skip_corrupt: bool = False,
) -> EvalRecords:
    """Records every image of `source` exactly once, whatever the batch size and device count.

    Without images that cannot be decoded, if `skip_corrupt` is set.

    Raises:
      DataError: an image cannot be decoded, and `skip_corrupt` is not set; or none can.
      NotFiniteError: outputs are not finite.
      RuntimeError: the input pipeline lost or repeated an image.
    """
    weight = first_look_weight(variables)

    def step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The outputs without their logits, which no record needs."""
        return judged(eval_step(variables, batch), weight)

    parts = [*_outputs(step, variables, source, batch_size, mesh, None)]
    columns = {
        field.name: np.concatenate([part[field.name] for part in parts])
        for field in fields(EvalRecords)
        if field.name != "origin"
    }
    records = EvalRecords(**columns)
    corrupt = np.setdiff1d(np.arange(len(source)), records.index)
    check_corrupt(source, corrupt, skip=skip_corrupt)
    return records.take(np.argsort(records.index, kind="stable"))


def evaluate_logits(
    eval_step: EvalStep,
    variables: Any,
    source: Source,
    *,
    batch_size: int,
    mesh: Mesh,
    checkpoint: Path | None,
) -> Logits:
    """The outputs for every image of `source` that can be decoded.

    Raises:
      DataError: none can be decoded.
      NotFiniteError: outputs are not finite; the message names the images and `checkpoint`.
      RuntimeError: the input pipeline lost or repeated an image.
    """
    # Before they are read: of what is replaced meanwhile, the outputs are computed anew next time.
    versions = np.array([source.version(index) for index in range(len(source))], np.str_)
    rows: Rows = {}
    seen = np.zeros(len(source), bool)
    for part in _outputs(eval_step, variables, source, batch_size, mesh, checkpoint):
        seen[part["index"]] = True
        for name in ("logits", "scores", "label", "index"):
            values = part[name]
            # Filled in place: joining parts would take twice the memory.
            whole = rows.setdefault(name, np.empty((len(source), *values.shape[1:]), values.dtype))
            whole[part["index"]] = values
    if not seen.all():
        rows = {name: values[seen] for name, values in rows.items()}
    weight = reuse_weight(variables, rows["logits"].shape[1])
    names = np.array([source.name(int(index)) for index in rows["index"]], np.str_)
    device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    versions = versions[rows["index"]]
    return Logits(**rows, weight=weight, name=names, version=versions, device=np.array(device))


def _outputs(
    step: EvalStep,
    variables: Any,
    source: Source,
    batch_size: int,
    mesh: Mesh,
    checkpoint: Path | None,
) -> Iterator[Rows]:
    """The real images of every batch; in the end it is checked that each came once.

    Raises:
      NotFiniteError: outputs are not finite.
    """
    seen: list[np.ndarray] = []
    corrupt: list[np.ndarray] = []
    for batch in eval_batches(source, batch_size=batch_size, sharding=batch_sharding(mesh)):
        rows = multihost_utils.process_allgather(step(variables, batch), tiled=True)
        real = rows["mask"]
        seen.append(rows["index"][real])
        corrupt.append(rows["index"][rows["corrupt"]])
        rows = {name: values[real] for name, values in rows.items()}
        bad = np.flatnonzero(~rows["finite"])
        if len(bad):
            raise NotFiniteError(name_images(source, rows["index"][bad]), checkpoint, bad)
        yield rows
    wanted = np.setdiff1d(np.arange(len(source)), np.concatenate(corrupt))
    if not len(wanted):
        raise DataError(f"none of the {len(source)} images can be read: repair them")
    if not np.array_equal(np.sort(np.concatenate(seen)), wanted):
        raise RuntimeError("the input pipeline lost or repeated an image")


def check_corrupt(source: Source, corrupt: np.ndarray, *, skip: bool) -> None:
    """Stops for images that cannot be decoded.

    Raises:
      DataError: there are some, and `skip` is not set.
    """
    if len(corrupt) and not skip:
        why = problem(source, int(corrupt[0]))
        raise DataError(
            f"{len(corrupt)} images cannot be read: {name_images(source, corrupt)}"
            f"{f' (the first: {why})' if why else ''}; repair them, or set data.skip_corrupt=True "
            "to leave them out of the evaluation"
        )


def name_images(source: Source, indices: np.ndarray) -> str:
    """The first few images of a message."""
    names = [printable(source.name(int(index))) for index in indices[:5]]
    return ", ".join(names) + (", ..." if len(indices) > 5 else "")
