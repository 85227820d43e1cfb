"""Evaluation: every image once, at every resolution, with the predictor's choice beside it."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from drnet_jax.build import batch_sharding, data_settings
from drnet_jax.config import flatten
from drnet_jax.control_figures import control_figures
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.pipeline import eval_batches
from drnet_jax.data.preprocess import normalise
from drnet_jax.data.sources import DataError, Source
from drnet_jax.inference.decision import choose
from drnet_jax.inference.load import budget_lambda
from drnet_jax.macs import model_cost
from drnet_jax.metrics import EvalRecords, by_size, hull_top1, matched_random_top1, summarise
from drnet_jax.models.drnet import DRNet
from drnet_jax.restore import RestoredModel, check_data, restore_model
from drnet_jax.writers import say, write_json

EvalStep = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]
# Edges of the table by apparent size, in pixels.
_SIZE_EDGES = (10, 14, 20, 28, 40, 57)


def make_eval_step(model: DRNet, mean: tuple[float, ...], std: tuple[float, ...]) -> EvalStep:
    """The jitted evaluation of a batch: figures of each of its n images at m resolutions."""

    @jax.jit
    def eval_step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Cross-entropies `[n, m]` in nats, hits `[n, m]` and choices `[n]` of a batch."""
        output: Any = model.apply(variables, normalise(batch["image"], mean, std))
        labels = jnp.broadcast_to(batch["label"][:, None], output.branch_logits.shape[:2])
        best = jax.lax.top_k(output.branch_logits, min(5, output.branch_logits.shape[-1]))[1]
        right = best == labels[..., None]
        return {
            "ce": optax.softmax_cross_entropy_with_integer_labels(output.branch_logits, labels),
            "top1": right[..., 0],
            "top5": right.any(-1),
            "choice": output.scores.argmax(-1),
            "scores": output.scores,
            "confidence": jax.nn.softmax(output.branch_logits.astype(jnp.float32)).max(-1),
            "index": batch["index"],
            "mask": batch["mask"],
            "corrupt": batch["corrupt"],
        }

    return eval_step


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

    Raises:
      DataError: an image cannot be decoded, and `skip_corrupt` is not set.
      RuntimeError: the input pipeline lost or repeated an image.
    """
    parts: list[dict[str, np.ndarray]] = []
    batches = eval_batches(source, batch_size=batch_size, sharding=batch_sharding(mesh))
    for batch in batches:
        record = eval_step(variables, batch)
        parts.append(multihost_utils.process_allgather(record, tiled=True))
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    corrupt = np.sort(merged["index"][merged["corrupt"]])
    check_corrupt(source, corrupt, skip=skip_corrupt)
    real = merged["mask"]
    order = np.argsort(merged["index"][real], kind="stable")
    rows = {name: values[real][order] for name, values in merged.items()}
    if not np.array_equal(rows["index"], np.setdiff1d(np.arange(len(source)), corrupt)):
        raise RuntimeError("the input pipeline lost or repeated an image")
    return EvalRecords(*(rows[field.name] for field in fields(EvalRecords)))


def check_corrupt(source: Source, corrupt: np.ndarray, *, skip: bool) -> None:
    """Stops for images that cannot be decoded.

    Raises:
      DataError: there are some, and `skip` is not set.
    """
    if len(corrupt) and not skip:
        raise DataError(
            f"{len(corrupt)} images cannot be decoded: {name_images(source, corrupt)}; repair "
            "them, or set data.skip_corrupt=True to leave them out of the evaluation"
        )


def name_images(source: Source, indices: np.ndarray) -> str:
    """The first few images of a message."""
    names = [source.name(int(index)) for index in indices[:5]]
    return ", ".join(names) + (", ..." if len(indices) > 5 else "")


def restore_and_evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """`--mode=eval`: restores a model, evaluates it, prints tables and writes `eval.json`.

    After stage 1 alone there is no trained predictor: only the fixed resolutions are given, and
    what would depend on its choices is null.

    Args:
      config: with the model the checkpoint was trained with.
      workdir: whose checkpoint is evaluated, unless `restore_from` names another; `eval.json` is
        written here.

    Raises:
      CheckpointError: no checkpoint, or one of another model.
      DataError: the data cannot be read, or has other classes.
      BudgetError: nothing is calibrated for the budget, or it cannot be kept.
    """
    restored, source = restore_and_load(config, workdir, config.eval.split)
    lam = budget_lambda(config, restored, source.image_size)
    cost = model_cost(restored.model)
    records = evaluate_densely(config, restored, source)
    if lam:
        costs = np.array(cost.classifier_gmacs)
        records = replace(records, choice=choose(records.scores, costs, lam))
    summary = summarise(records, restored.model.resolutions, cost)
    if restored.stage == "pretrain" and len(restored.model.resolutions) > 1:
        summary |= dict.fromkeys(("top1", "top5", "gmacs", "gmacs_classifier", "shares"))
    elif len(restored.model.resolutions) > 1 and config.eval.controls:
        calibration = _calibration(config, workdir, restored, records)
        summary["controls"] = control_figures(records, calibration, cost, lam)
    if summary["top1"] is not None and "apparent_size" in source.metadata:
        sizes = source.metadata["apparent_size"][records.index]
        summary["by_apparent_size"] = by_size(records, sizes, _SIZE_EDGES)
    summary["lambda"] = lam
    summary["num_corrupt"] = len(source) - len(records.index)
    summary |= {"stage": restored.stage, "checkpoint_step": restored.step}
    summary |= {"split": config.eval.split, "config": restored.config | evaluation_fields(config)}
    write_json(workdir / "eval.json", summary)
    print_tables(summary)
    say(f"wrote {workdir / 'eval.json'}")
    return summary


def _calibration(
    config: ConfigDict, workdir: Path, restored: RestoredModel, records: EvalRecords
) -> EvalRecords:
    """Records of the calibration split, without images that cannot be decoded; or `records`."""
    if config.eval.split == "calibration":
        return records
    say("controls: evaluating the calibration split too (--config.eval.controls=False: no) ...")
    source = load_split(config, workdir, restored, "calibration")
    return evaluate_densely(config, restored, source, skip_corrupt=True)


def restore_and_load(config: ConfigDict, workdir: Path, split: str) -> tuple[RestoredModel, Source]:
    """The model of `restore_from` or `workdir`, and a split of the data it was trained on.

    Raises:
      CheckpointError: no checkpoint, or one of another model.
      DataError: the data cannot be read, or is other data.
    """
    origin = Path(config.restore_from) if config.restore_from else workdir
    restored = restore_model(config, origin)
    return restored, load_split(config, workdir, restored, split)


def load_split(config: ConfigDict, workdir: Path, restored: RestoredModel, split: str) -> Source:
    """A split of the data that a model was trained on.

    Raises:
      DataError: the data cannot be read, or is other data.
    """
    splits = DataSplits(data_settings(config, workdir))
    check_data(restored.origin, splits.classes, {split: splits.identity(split)})
    return splits.load(split)


def evaluate_densely(
    config: ConfigDict, restored: RestoredModel, source: Source, *, skip_corrupt: bool = False
) -> EvalRecords:
    """`evaluate` with the settings of `config`; `skip_corrupt` where it is not set there either."""
    return evaluate(
        make_eval_step(restored.model, tuple(config.data.mean), tuple(config.data.std)),
        restored.variables,
        source,
        batch_size=config.eval.batch_size,
        mesh=restored.mesh,
        skip_corrupt=config.data.skip_corrupt or skip_corrupt,
    )


def evaluation_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields that belong to the evaluation, not to the training."""
    names = (
        "eval.",
        "budget.",
        "inference.",
        "benchmark.",
        "data.eval_",
        "data.dir",
        "data.skip_corrupt",
        "restore_from",
    )
    return {name: value for name, value in flatten(config).items() if name.startswith(names)}


def print_tables(summary: dict[str, Any]) -> None:
    """Prints what was reached, at which cost, beside what needs no predictor."""
    largest = summary["fixed"][0]

    def row(name: str, top1: float, gmacs: float) -> str:
        """One line: top-1 in %, GMACs, and these over the largest resolution's."""
        relative = gmacs / largest["gmacs"]
        return f"{name:<28}{100 * top1:8.2f}{gmacs:12.5f}{relative:10.2f}"

    say(f"\n{summary['num_images']} images of the {summary['split']} split")
    say(f"{'':<28}{'top-1 %':>8}{'GMACs':>12}{'of largest':>12}".rstrip())
    for entry in summary["fixed"]:
        say(row(f"fixed {entry['resolution']}", entry["top1"], entry["gmacs"]))
    if len(summary["fixed"]) == 1:
        return
    if summary["top1"] is None:
        say("no predictor is trained yet: stage 1 gives the fixed resolutions only")
        return
    say(row("DRNet (with predictor)", summary["top1"], summary["gmacs"]))
    say(row("hull of fixed, same cost", hull_top1(summary, summary["gmacs"]), summary["gmacs"]))
    say(row("random, same shares", matched_random_top1(summary), summary["gmacs_classifier"]))
    controls: dict[str, Any] = summary.get("controls", {})
    if controls:
        figures = {name: entry["value"] for name, entry in controls["intervals"].items()}
        say(row("confidence cascade", figures["cascade"], controls["gmacs"]["cascade"]))
        say(row("oracle", figures["oracle"], controls["gmacs"]["oracle"]))
    chosen = zip(summary["resolutions"], summary["shares"], strict=True)
    say("shares: " + ", ".join(f"{size} px {100 * share:.1f} %" for size, share in chosen))
    if controls:
        say(f"DRNet is {controls['verdict']}")
    if "by_apparent_size" in summary:
        _print_by_apparent_size(summary)


def _print_by_apparent_size(summary: dict[str, Any]) -> None:
    shares = "".join(f"{f'to {size} px':>10}" for size in summary["resolutions"])
    fixed = "".join(f"{f'at {size}':>8}" for size in summary["resolutions"])
    say(f"\n{'digit side':<12}{'images':>8}{shares}{'DRNet %':>10}{fixed}")
    for row in summary["by_apparent_size"]:
        low, high = row["pixels"]
        say(
            f"{f'{low}-{high} px':<12}{row['num_images']:>8}"
            + "".join(f"{100 * share:>9.1f}%" for share in row["shares"])
            + f"{100 * row['top1']:>10.1f}"
            + "".join(f"{100 * top1:>8.1f}" for top1 in row["fixed_top1"])
        )
