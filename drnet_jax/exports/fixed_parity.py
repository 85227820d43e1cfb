"""Whether an exported program with fixed places says what JAX's says, on real images."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from drnet_jax.exports.fixed import CHOICES, FixedProgram
from drnet_jax.exports.networks import LOGITS, SCORES
from drnet_jax.exports.onnx_model import COUNT, IMAGES
from drnet_jax.exports.parity import TIE, Agreement, compare_values, onnx_runtime
from drnet_jax.inference.fused import FusedClassifier


def compare_fixed(
    engine: FusedClassifier, program: FixedProgram, path: Path, images: np.ndarray
) -> Agreement:
    """Compares a file with JAX, on full batches and on one that is padded.

    Choices have to be those of JAX's rule for the file's own scores, and those of JAX itself where
    the scores of a batch differ by 1e-5 or more: one tie may move several images.

    Args:
      engine: the program in JAX, compiled.
      program: what was exported.
      path: the file.
      images: `[n, h, w, 3]` uint8; of fewer than a batch some come twice.

    Raises:
      ExportError: ONNX Runtime cannot run it.
    """
    run = onnx_runtime(path)
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    num_choices = num_ties = num_wrong = 0
    for part in _batches(images, program.batch):
        n = len(part)
        # Of images that would take places if they could.
        padding = images[np.arange(n, program.batch) % len(images)]
        inputs = {IMAGES: np.concatenate([part, padding]), COUNT: np.array(n, np.int32)}
        found = run({name: inputs[name] for name in program.inputs})
        expected = engine.classify(part)
        choices, scores = found[CHOICES][:n], found[SCORES][:n]
        by_rule = program.choose(found[SCORES], n)
        # Of scores that are no numbers none is that near.
        near = bool((abs(scores - expected.scores) < TIE).all())
        same = choices == expected.choices
        wrong = (choices != by_rule) | (~same & (not near))
        num_wrong += int(wrong.sum())
        num_ties += int((~same & ~wrong).sum())
        num_choices += n
        pairs["scores"].append((scores, expected.scores))
        pairs["logits"].append((found[LOGITS][:n][same], expected.logits[same]))
    columns = {name: tuple(zip(*parts, strict=True)) for name, parts in pairs.items()}
    differences, tolerances, problems = compare_values(
        {name: (np.concatenate(a), np.concatenate(b)) for name, (a, b) in columns.items()}
    )
    if num_wrong:
        problems.insert(0, f"{num_wrong} of {num_choices} choices differ")
    return Agreement(len(images), differences, tolerances, 1, num_choices, num_ties, problems)


def _batches(images: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """All images in full batches, and half of a batch."""
    for start in range(0, len(images), batch):
        rows = np.arange(start, start + batch) % len(images)
        yield images[rows]
    if batch > 1:
        yield images[np.arange(batch // 2) % len(images)]
