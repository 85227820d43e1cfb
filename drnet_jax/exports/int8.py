"""Exported networks in eight bits, by ONNX Runtime's quantiser, and what that changes."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from drnet_jax.exports.networks import ExportedNetwork
from drnet_jax.exports.onnx_model import IMAGES
from drnet_jax.exports.parity import Outputs, run_files
from drnet_jax.inference.decision import choose
from drnet_jax.models.glance import mixed
from drnet_jax.models.macs import ModelCost

ENDING = ".int8.onnx"
METHOD = "ONNX Runtime quantize_static: QDQ, MinMax, weights int8 by channel, values uint8"
_BATCH = 16


@dataclass(frozen=True)
class Accuracy:
    """Right answers, in %, of the float32 files and of the int8 ones.

    Attributes:
      num_images: that were compared.
      resolutions: of each resolution alone, the largest first.
      adaptive: of each image at the resolution that its files chose, by lambda.
    """

    num_images: int
    resolutions: Sequence["Top1"]
    adaptive: Sequence["AdaptiveTop1"]


@dataclass(frozen=True)
class Top1:
    """Right answers, in %."""

    float32: float
    int8: float


@dataclass(frozen=True)
class AdaptiveTop1:
    """Right answers, in %, at a lambda.

    Attributes:
      lam: lambda.
      float32: of the float32 files.
      int8: of the int8 files.
      float32_gmacs: mean cost of an image.
      int8_gmacs: the same, as the int8 files chose.
      same: images that both classified at the same resolution, in %.
    """

    lam: float
    float32: float
    int8: float
    float32_gmacs: float
    int8_gmacs: float
    same: float


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Images, a few at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self._parts = iter([images[i : i + _BATCH] for i in range(0, len(images), _BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next ones, as ONNX Runtime asks for them."""
        part = next(self._parts, None)
        return None if part is None else {IMAGES: part}


def quantise(source: Path, target: Path, images: np.ndarray) -> None:
    """Writes an exported network with its convolutions, and what is between them, in int8.

    What is before the first convolution (resizing, normalising) and after the last (the classes,
    and the head of a first look) stays in float32.

    Args:
      source: an exported `.onnx`.
      target: the file to write.
      images: `[n, h, w, 3]` uint8, on which the ranges of all values are found.
    """
    with TemporaryDirectory() as place, _without_warnings():
        prepared = Path(place) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        convolutions = [i for i, node in enumerate(nodes) if node.op_type == "Conv"]
        after = [
            node.name
            for node in nodes[convolutions[-1] + 1 :]
            # They are computed with the convolution before them.
            if node.op_type not in ("Relu", "Clip")
        ]
        quantize_static(
            prepared,
            target,
            _Batches(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[node.name for node in nodes[: convolutions[0]]] + after,
            # ONNX Runtime 1.32 cannot do it by channel.
            extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Of biases that do not fit, say: what that changes is in the accuracies."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def compare_accuracy(
    folder: Path,
    networks: Sequence[ExportedNetwork],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    cost: ModelCost,
    lambdas: Sequence[float],
    weight: Sequence[float] | None,
) -> Accuracy:
    """What both kinds of files get right.

    Args:
      folder: of the files.
      networks: what they are of.
      images: `[n, h, w, 3]` uint8.
      labels: `[n]`.
      cost: of the model.
      lambdas: at which images are given their resolutions.
      weight: `[m]` of a first look's logits in the answers; None: answers are of one look.

    Raises:
      ExportError: ONNX Runtime cannot run a file; it is named.
    """
    both = [run_files(folder, networks, images, ending) for ending in (".onnx", ENDING)]
    alone = [_percent(o.logits.argmax(2) == labels[:, None]) for o in both]
    adaptive = []
    for lam in lambdas if both[0].scores is not None else ():
        (float32, spent, chosen), (int8, int8_spent, int8_chosen) = (
            _adaptive(outputs, labels, cost, lam, weight) for outputs in both
        )
        same = float(_percent(chosen == int8_chosen))
        adaptive.append(AdaptiveTop1(lam, float32, int8, spent, int8_spent, same))
    pairs = zip(*(each.tolist() for each in alone), strict=True)
    return Accuracy(len(images), [Top1(*pair) for pair in pairs], adaptive)


def _adaptive(
    outputs: Outputs,
    labels: np.ndarray,
    cost: ModelCost,
    lam: float,
    weight: Sequence[float] | None,
) -> tuple[float, float, np.ndarray]:
    """Right answers in %, GMACs of an image, and the choices."""
    assert outputs.scores is not None
    choices = choose(outputs.scores, np.array(cost.choice_costs), lam)
    logits = outputs.logits
    if weight is not None:
        logits = mixed(logits, np.array(weight, np.float32))
    right = logits[np.arange(len(labels)), choices].argmax(1) == labels
    spent = cost.predictor + np.array(cost.choice)[choices].mean()
    return float(_percent(right)), float(spent) / 1e9, choices


def _percent(right: np.ndarray) -> np.ndarray:
    return 100 * np.asarray(right.mean(0))


def in_words(accuracy: Accuracy, resolutions: Sequence[int]) -> list[str]:
    """Lines to print.

    Args:
      accuracy: of both kinds of files.
      resolutions: in pixels, the largest first.
    """
    lines = [
        f"top-1 at {size} px: float32 {top1.float32:.1f}, int8 {top1.int8:.1f}"
        for size, top1 in zip(resolutions, accuracy.resolutions, strict=True)
    ]
    return lines + [
        f"top-1 at lambda {at.lam:.4g}: float32 {at.float32:.1f} for {at.float32_gmacs:.4g} GMACs, "
        f"int8 {at.int8:.1f} for {at.int8_gmacs:.4g}, {at.same:.1f} % at the same resolution"
        for at in accuracy.adaptive
    ]
