"""Batches on their way to a fused program: in pieces, by way of two places, from files."""

import mmap
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from drnet_jax.data.eval_view import EvalView
from drnet_jax.inference import fused as fused_module
from drnet_jax.inference.engine import Classified
from drnet_jax.inference.fused import FusedClassifier
from drnet_jax.inference.staging import Staging, piece_sizes
from tests.test_fused import NORMALISE, fused, made

KIND = "glance with reuse"


@pytest.mark.parametrize(
    ("shape", "platform", "sizes"),
    [
        # 36.75 MiB, of which 8 MiB a piece are four.
        ((256, 224, 224, 3), "gpu", (64, 64, 64, 64)),
        ((256, 224, 224, 3), "cpu", (256,)),
        ((1024, 224, 224, 3), "gpu", (256, 256, 256, 256)),
        # 17.2 MiB.
        ((120, 224, 224, 3), "gpu", (60, 60)),
        ((121, 224, 224, 3), "gpu", (61, 60)),
        ((32, 224, 224, 3), "gpu", (32,)),
        ((1, 224, 224, 3), "gpu", (1,)),
        # A piece has an image at least.
        ((2, 3000, 3000, 3), "gpu", (1, 1)),
    ],
)
def test_piece_sizes(shape: tuple[int, ...], platform: str, sizes: tuple[int, ...]) -> None:
    assert piece_sizes(shape, platform) == sizes


def same(got: Classified, expected: Classified) -> None:
    """In every bit."""
    for name in ("logits", "choices", "scores", "macs", "first_logits"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)


def test_a_batch_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the images, whole or not."""
    case, _ = made(KIND)
    whole = fused(KIND, 8)
    monkeypatch.setattr(fused_module, "piece_sizes", lambda *_: (3, 3, 2))
    pieces = FusedClassifier(
        case.model,
        case.variables,
        **NORMALISE,
        batch_size=8,
        capacities=whole.capacities,
        fold=False,
    )
    uploaded = pieces.upload(case.images[:8])
    assert [len(piece) for piece in uploaded] == [3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(uploaded), case.images[:8])
    for rows in (slice(0, 8), slice(20, 25)):
        got, expected = (c.classify(case.images[rows]) for c in (pieces, whole))
        np.testing.assert_array_equal(got.choices, expected.choices)
        np.testing.assert_allclose(got.logits, expected.logits, rtol=0, atol=1e-5)


def test_a_stream_is_its_batches() -> None:
    """Of any sizes, in their order, though they share two places."""
    case, _ = made(KIND)
    classifier = fused(KIND, 8)
    batches = [case.images[start : start + n] for start, n in enumerate((8, 3, 0, 8, 5, 8, 1))]
    found = list(classifier.classify_batches(batches))
    assert len(found) == len(batches)
    for (batch, got), expected in zip(found, batches, strict=True):
        assert batch is expected
        same(got, classifier.classify(expected))


def test_a_place_is_written_again_when_its_batch_is_done() -> None:
    """And the next batch is written and started while one computes."""
    case, _ = made(KIND)
    classifier: Any = copy(fused(KIND, 8))
    events: list[str] = []

    def noting(name: str, method: Any) -> Any:
        """Says so."""

        def call(*arguments: Any) -> Any:
            events.append(name)
            return method(*arguments)

        return call

    classifier._started = noting("start", classifier._started)
    classifier._finished = noting("finish", classifier._finished)
    places: list[int] = []

    def write(batch: np.ndarray, out: np.ndarray) -> tuple[int, dict[int, str]]:
        """Notes where."""
        events.append("write")
        places.append(out.ctypes.data)
        out[:8] = batch
        return 8, {}

    batches = [case.images[start : start + 8] for start in range(4)]
    assert len(list(classifier._stream(batches, write))) == 4
    begun = ["write", "start"]
    assert events == [*begun * 2, "finish", *begun, "finish", *begun, "finish", "finish"]
    assert places[:2] == places[2:] and places[0] != places[1]


def test_what_computes_is_waited_for_where_a_stream_ends_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its place in memory is then let go."""
    case, _ = made(KIND)
    waited: list[int] = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(len(x)) or wait(x))
    stream = fused(KIND, 8).classify_batches([case.images[:8]] * 3)
    next(iter(stream))
    stream.close()
    assert waited == [1]


def test_streams_share_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another takes the same two, also after one that ended early; two at once have four.

    Each of whole pages, which can be pinned by themselves.
    """
    case, _ = made(KIND)
    classifier: Any = copy(fused(KIND, 8))
    classifier._free = []
    places: list[Staging] = []
    monkeypatch.setattr(
        fused_module, "Staging", lambda *given: places.append(Staging(*given)) or places[-1]
    )
    batches = [case.images[start : start + 8] for start in range(3)]
    for _ in range(2):
        assert len(list(classifier.classify_batches(batches))) == 3
    stream = classifier.classify_batches(batches)
    next(stream)
    stream.close()
    assert len(places) == 2
    one, other = (classifier.classify_batches(batches) for _ in range(2))
    for (_, got), (_, also), batch in zip(one, other, batches, strict=True):
        expected = classifier.classify(batch)
        same(got, expected)
        same(also, expected)
    assert len(places) == 4
    assert all(place.images.ctypes.data % mmap.PAGESIZE == 0 for place in places)


def pictures(folder: Path, images: np.ndarray) -> list[Path]:
    """One file an image."""
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_files_are_decoded_into_the_places(tmp_path: Path) -> None:
    """As images in memory; what cannot be read is named, and black."""
    case, _ = made(KIND)
    classifier = fused(KIND, 8)
    paths = pictures(tmp_path, case.images[:20])
    paths[9].write_bytes(b"no picture")
    paths[10].unlink()
    batches = [paths[:8], paths[8:16], paths[16:]]
    found = list(classifier.classify_files(batches, EvalView(48, 1.0)))
    assert [files for files, _ in found] == batches
    images = case.images[:20].copy()
    images[9:11] = 0
    for (_, got), start in zip(found, (0, 8, 16), strict=True):
        same(got, classifier.classify(images[start : start + 8][: len(got.labels)]))
    assert [sorted(got.problems) for _, got in found] == [[], [1, 2], []]
    assert found[1][1].problems[2] == "No such file or directory"


def test_bad_streams(tmp_path: Path) -> None:
    case, _ = made(KIND)
    classifier = fused(KIND, 8)
    with pytest.raises(ValueError, match="9 images are more than batch_size=8"):
        list(classifier.classify_batches([case.images[:9]]))
    for count in (7, 9):
        with pytest.raises(ValueError, match=f"{count} images are no batch of batch_size=8"):
            classifier.upload(case.images[:count])
    view = EvalView(48, 1.0)
    with pytest.raises(ValueError, match="9 images are more than batch_size=8"):
        list(classifier.classify_files([[tmp_path] * 9], view))
    # At once, before anything is asked for.
    with pytest.raises(ValueError, match="make the classifier with image_size=.32, 32"):
        classifier.classify_files([], EvalView(32, 1.0))
    with pytest.raises(ValueError, match="threads=0 must be an integer, 1 or more"):
        classifier.classify_files([], view, threads=0)


def test_pinned_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """By the client of a device that is no CPU, as long as the place lives."""
    calls: list[tuple[str, int, int]] = []

    def device(platform: str, **methods: Any) -> Any:
        """With a client that has these methods."""
        return SimpleNamespace(platform=platform, client=SimpleNamespace(**methods))

    able = {
        "dma_map": lambda address, size: calls.append(("map", address, size)),
        "dma_unmap": lambda address: calls.append(("unmap", address, 0)),
    }
    place = Staging((2, 4, 4, 3), device("gpu", **able))
    address = place.images.ctypes.data
    assert place.pinned and calls == [("map", address, 96)]
    del place
    assert calls[1:] == [("unmap", address, 0)]

    def refuse(*_: int) -> None:
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: DmaMap")

    assert not Staging((2, 4, 4, 3), device("gpu", dma_map=refuse)).pinned
    assert not Staging((2, 4, 4, 3), device("gpu")).pinned
    out = capsys.readouterr().out
    assert "host memory is not pinned, uploads take longer: UNIMPLEMENTED: DmaMap" in out
    assert out.count("is not pinned") == 2
    assert not Staging((2, 4, 4, 3), device("cpu", **able)).pinned and len(calls) == 2
