"""What has to hold of a file that is decoded, whatever is in it; Pillow alone is the reference."""

import hashlib
import io
import os
import time
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from drnet_jax.data.decode import CorruptImageError, decode_crop, random_crop_box
from drnet_jax.data.eval_view import EvalView
from experiments.mutation_runs import Outcome, peak_mebibytes
from experiments.picture_mutations import REFUSED, MutatedPicture, make

SIZE, FRACTION, SCALE = 64, 0.875, (0.08, 1.0)
# A picture of as many pixels as Pillow takes (179 million), of 4 bytes, and its copy in RGB.
MEMORY_MIB = 1500
# Mean difference of 255 from Pillow's own crop: where nothing is decoded at a reduced scale that is
# rounding; where it is, damaged pixels, which have no even colours, differ most.
EXACT, REDUCED = 1.0, 3.0


@dataclass
class PictureOutcome(Outcome):
    """What came of a picture.

    Attributes:
      difference: mean, of 255, from Pillow's crop.
      messages: lines on stderr.
    """

    difference: float = 0.0
    messages: int = 0


def check(seed: int, index: int, folder: Path) -> PictureOutcome:
    """Decodes a file as evaluation and as training do, each twice, and compares.

    Args:
      seed: see `make`.
      index: likewise.
      folder: has the file that stderr goes to, which libraries in C write to.
    """
    messages = _redirected_stderr(folder)
    picture = make(seed, index)
    outcome = PictureOutcome(index, picture.form, picture.mutation)
    written = messages.stat().st_size
    before = peak_mebibytes(reset=True)
    start = time.process_time()
    with warnings.catch_warnings():
        # Every time, not once a place.
        warnings.simplefilter("always", append=True)
        seen = [_evaluated(picture, outcome) for _ in range(2)]
        cropped = [_trained(picture, (seed, index), outcome) for _ in range(2)]
    outcome.seconds = round(time.process_time() - start, 4)
    outcome.mebibytes = round(peak_mebibytes() - before, 1)
    said = messages.read_bytes()[written:].decode(errors="replace").splitlines()
    # libtiff says on stderr what is wrong with a picture, in a line or some, and cannot be told not
    # to by Pillow's means; Pillow raises the same.
    outcome.messages = len(said)
    if said and outcome.form != "TIFF":
        outcome.findings.append(f"{len(said)} lines on stderr: {said[0]}")
    if outcome.mebibytes > MEMORY_MIB:
        outcome.findings.append(f"memory grew by {outcome.mebibytes:.0f} MiB")
    for first, second in (seen, cropped):
        if not _same(first, second):
            outcome.findings.append("another result from the same bytes")
    if isinstance(seen[0], np.ndarray) != isinstance(cropped[0], np.ndarray):
        outcome.findings.append("training and evaluation disagree whether it is corrupt")
    _note(seen[0], outcome)
    if isinstance(cropped[0], np.ndarray):
        outcome.digest += hashlib.sha256(cropped[0].tobytes()).hexdigest()[:8]
    _compare(picture, seen[0], outcome)
    return outcome


def _evaluated(picture: MutatedPicture, outcome: PictureOutcome) -> np.ndarray | str:
    """As evaluation and predictions see it: the pixels, or why there are none."""
    view = EvalView(SIZE, FRACTION)
    return _checked(lambda: view.decode(picture.content), outcome)


def _trained(
    picture: MutatedPicture, seed: tuple[int, int], outcome: PictureOutcome
) -> np.ndarray | str:
    """A training crop."""
    rng = np.random.default_rng(seed)
    return _checked(
        lambda: decode_crop(picture.content, lambda w, h: random_crop_box(rng, w, h, SCALE), SIZE),
        outcome,
    )


def _checked(decode: Any, outcome: PictureOutcome) -> np.ndarray | str:
    try:
        pixels = decode()
    except CorruptImageError as error:
        text = str(error)
        if not text.strip() or "\n" in text or len(text) > 200:
            outcome.findings.append(f"a reason that is no line: {text!r}")
        if "memory" in text:
            outcome.findings.append(f"too little memory: {text}")
        return text
    # Nothing else may come out: that is what is looked for.
    except BaseException as error:
        outcome.findings.append(f"{type(error).__name__}: {error}")
        return f"{type(error).__name__}: {error}"
    if pixels.shape != (SIZE, SIZE, 3) or pixels.dtype != np.uint8:
        outcome.findings.append(f"{pixels.dtype} of {pixels.shape}")
    return pixels


def _same(first: np.ndarray | str, second: np.ndarray | str) -> bool:
    if isinstance(first, str) or isinstance(second, str):
        return isinstance(first, str) and isinstance(second, str) and first == second
    return np.array_equal(first, second)


def _note(seen: np.ndarray | str, outcome: PictureOutcome) -> None:
    if isinstance(seen, str):
        outcome.reason = seen
    else:
        outcome.read = True
        outcome.digest = hashlib.sha256(seen.tobytes()).hexdigest()[:8]


def _compare(picture: MutatedPicture, seen: np.ndarray | str, outcome: PictureOutcome) -> None:
    """With Pillow alone: both can read it, or neither can, and then the pixels are the same."""
    reference = _reference(picture.content)
    if isinstance(reference, str):
        if outcome.read:
            outcome.findings.append(f"decoded, where Pillow says: {reference}")
        return
    form, upright = reference
    if form in REFUSED:
        if outcome.read:
            outcome.findings.append(f"decoded, of format {form}")
        return
    if isinstance(seen, str):
        outcome.findings.append(f"corrupt ({seen}), where Pillow decodes a {form}")
        return
    width, height = upright.size
    side = max(1, round(FRACTION * min(width, height)))
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    want = np.asarray(upright.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
    outcome.difference = round(float(np.abs(seen.astype(int) - want).mean()), 3)
    if outcome.difference > (REDUCED if side >= 2 * SIZE else EXACT):
        outcome.findings.append(f"{outcome.difference} of 255 off Pillow's pixels, {side} px")


def _reference(content: bytes) -> tuple[str, Image.Image] | str:
    """Format and upright RGB picture, or what Pillow says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content))
            form = picture.format or ""
            picture.load()
            upright = _upright(picture)
            if upright.mode.startswith("I"):
                values = np.asarray(upright).astype(int) >> 8
                upright = Image.fromarray(values.clip(0, 255).astype(np.uint8))
            return form, upright.convert("RGB")
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _upright(picture: Image.Image) -> Image.Image:
    """As EXIF says, where it can be read."""
    try:
        return ImageOps.exif_transpose(picture)
    # Whatever it raises for damaged EXIF: the pixels may be whole, and count as upright then.
    except Exception:
        return picture


@cache
def _redirected_stderr(folder: Path) -> Path:
    """That of libraries in C too, into a file."""
    path = folder / "stderr"
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    return path
