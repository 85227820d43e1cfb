"""`--config.eval.dispatch=bucketed`: evaluation at DRNet's own cost, one resolution an image."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from drnet_jax.data.pipeline import eval_host_batches
from drnet_jax.data.sources import DataError, Sample, Source
from drnet_jax.eval_inputs import evaluation_fields, restore_and_load
from drnet_jax.inference.adaptive import AdaptiveClassifier, Classified
from drnet_jax.inference.load import adaptive_classifier, budget_lambda
from drnet_jax.macs import GIGA
from drnet_jax.outputs import check_corrupt
from drnet_jax.writers import say, write_json

# Batches that may wait for full buckets.
_MAX_WAITING = 16


def restore_and_evaluate_bucketed(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Restores a model, evaluates it by dispatch and writes `eval_bucketed.json`.

    Without the fixed resolutions and what is compared with them: nothing but the chosen resolution
    is computed. On one device.

    Raises:
      ConfigError: several hosts.
      CheckpointError: no checkpoint, one of another model, or no trained predictor.
      DataError: the data cannot be read, or is other data.
      BudgetError: nothing is calibrated for the budget, or it cannot be kept.
    """
    restored, source = restore_and_load(config, workdir, config.eval.split)
    lam = budget_lambda(config, restored, source.image_size)
    engine = adaptive_classifier(config, restored, source.image_size)
    start = time.perf_counter()
    labels, got, corrupt = classify_source(engine, source, config.eval.batch_size, lam)
    seconds = time.perf_counter() - start
    check_corrupt(source, corrupt, skip=config.data.skip_corrupt)
    if not len(labels):
        raise DataError(f"no image of the {config.eval.split} split can be decoded")
    best = np.argsort(-got.logits, axis=1, kind="stable")[:, :5] == labels[:, None]
    counts = np.bincount(got.choices, minlength=len(engine.resolutions))
    gmacs = float(got.macs.mean()) / GIGA
    summary = {
        "num_images": len(labels),
        "top1": float(best[:, 0].mean()),
        "top5": float(best.any(axis=1).mean()),
        "gmacs": gmacs,
        "gmacs_classifier": gmacs - engine.cost.predictor_gmacs,
        "resolutions": engine.resolutions.tolist(),
        "shares": (counts / len(labels)).tolist(),
        "lambda": lam,
        "images_per_second": len(labels) / seconds,
        "num_corrupt": len(corrupt),
        "stage": restored.stage,
        "checkpoint_step": restored.step,
        "split": config.eval.split,
        "config": restored.config | evaluation_fields(config),
    }
    path = workdir / "eval_bucketed.json"
    write_json(path, summary)
    _print(summary)
    say(f"wrote {path}")
    return summary


def classify_source(
    engine: AdaptiveClassifier, source: Source, batch_size: int, lam: float
) -> tuple[np.ndarray, Classified, np.ndarray]:
    """Streams every image of `source` through the classifier.

    Returns:
      Labels `[n]` of the images that can be decoded, what was found of them, in the order of the
      source, and the indices of the others.
    """
    labels: list[np.ndarray] = []
    corrupt: list[np.ndarray] = []

    def images(batches: Iterator[Sample]) -> Iterator[np.ndarray]:
        """The real images of every batch; labels and corrupt ones are noted on the way."""
        for batch in batches:
            labels.append(batch["label"][batch["mask"]])
            corrupt.append(batch["index"][batch["corrupt"]])
            yield batch["image"][batch["mask"]]

    batches = eval_host_batches(source, batch_size=batch_size)
    results = engine.classify_batches(images(batches), lam=lam, max_waiting=_MAX_WAITING)
    return *_joined(list(results), labels), np.concatenate(corrupt)


def _joined(results: list[Classified], labels: list[np.ndarray]) -> tuple[np.ndarray, Classified]:
    names = ("logits", "choices", "scores", "resolutions", "macs")
    fields = [np.concatenate([getattr(result, name) for result in results]) for name in names]
    return np.concatenate(labels), Classified(*fields)


def _print(summary: dict[str, Any]) -> None:
    say(f"\n{summary['num_images']} images of the {summary['split']} split, by dispatch")
    say(
        f"DRNet: top-1 {100 * summary['top1']:.2f} %, {summary['gmacs']:.5f} GMACs, "
        f"{summary['images_per_second']:.0f} images/s, input included"
    )
    chosen = zip(summary["resolutions"], summary["shares"], strict=True)
    say("shares: " + ", ".join(f"{size} px {100 * share:.1f} %" for size, share in chosen))
    say(
        "the fixed resolutions, the hull and the random control are not computed: "
        "--config.eval.dispatch=dense has them"
    )
