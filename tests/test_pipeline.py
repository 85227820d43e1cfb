"""Batches: the same stream whatever the workers and the step it starts at; corrupt images."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.pipeline import TrainBatch, eval_batches, train_batches
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import ArraySource, Source
from drnet_jax.runtime.sharding import batch_sharding, create_mesh

SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, so that no two crops are equal; two pictures of `bee` are cut off."""
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (root / name).mkdir()
        for number in range(20):
            pixels = rng.integers(0, 256, (24, 30, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.jpg", quality=95)
    for number in (3, 11):
        path = root / "bee" / f"{number:02}.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    return root


def source(folder: Path, split: str = "train") -> Source:
    fractions = {"calibration_fraction": 0.1, "test_fraction": 0.1}
    return DataSplits(DataSettings("folder", dir=str(folder), size=SIZE, **fractions)).load(split)


def take(source: Source, count: int, *, start: int = 0, workers: int = 0) -> list[TrainBatch]:
    batches = train_batches(
        source,
        batch_size=8,
        seed=5,
        start_step=start,
        sharding=batch_sharding(create_mesh()),
        num_workers=workers,
    )
    taken = [next(batches) for _ in range(count)]
    # Copies, so that no memory of the workers is held.
    taken = [TrainBatch(jax.tree.map(np.array, b.arrays), np.array(b.corrupt)) for b in taken]
    batches.close()
    return taken


def assert_equal(left: list[TrainBatch], right: list[TrainBatch]) -> None:
    for one, other in zip(left, right, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.arrays, other.arrays)
        np.testing.assert_array_equal(one.corrupt, other.corrupt)


def test_the_stream_depends_on_the_seed_alone(folder: Path) -> None:
    """Two epochs and more by threads and by two processes, and from a later step on."""
    whole = take(source(folder), 10)
    assert_equal(take(source(folder), 10, workers=2), whole)
    assert_equal(take(source(folder), 3, start=7), whole[7:])
    assert_equal(take(source(folder), 3, start=7, workers=1), whole[7:])


def test_an_epoch_holds_every_image_once_and_each_time_cropped_anew(folder: Path) -> None:
    whole = source(folder)
    assert len(whole) == 32
    two = [batch.arrays for batch in take(whole, 8)]
    labels = np.concatenate([arrays["label"] for arrays in two]).reshape(2, 32)
    assert np.bincount(labels[0]).tolist() == np.bincount(labels[1]).tolist() == [16, 16]
    assert not np.array_equal(labels[0], labels[1])
    images = np.concatenate([arrays["image"][arrays["mask"]] for arrays in two])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_corrupt_images_are_masked_and_named(folder: Path) -> None:
    whole = source(folder)
    cut_off = {str(folder / "bee" / f"{number:02}.jpg") for number in (3, 11)}
    mine = {index for index in range(len(whole)) if whole.name(index) in cut_off}
    batches = take(whole, 4)
    found = np.concatenate([batch.corrupt for batch in batches])
    assert sorted(found.tolist()) == sorted(mine) and mine
    for batch in batches:
        mask = batch.arrays["mask"]
        assert (~mask).sum() == len(batch.corrupt)
        assert not batch.arrays["image"][~mask].any()
        assert batch.arrays["image"][mask].any(axis=(1, 2, 3)).all()


def test_evaluation_sees_every_image_once_in_order(folder: Path) -> None:
    whole = source(folder)
    sharding = batch_sharding(create_mesh())
    batches = [
        jax.tree.map(np.array, batch)
        for batch in eval_batches(whole, batch_size=12, sharding=sharding)
    ]
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert len(joined["mask"]) == 36
    seen = joined["mask"] | joined["corrupt"]
    np.testing.assert_array_equal(joined["index"][seen], np.arange(32))
    np.testing.assert_array_equal(joined["label"][seen], whole.labels)
    assert joined["corrupt"].sum() in (1, 2) and not (joined["mask"] & joined["corrupt"]).any()


def test_images_in_memory_need_no_mask() -> None:
    images = np.arange(12 * 4 * 4 * 3, dtype=np.uint8).reshape(12, 4, 4, 3)
    batch = take(ArraySource(images, np.arange(12, dtype=np.int32), "twelve"), 1)[0]
    assert set(batch.arrays) == {"image", "label"} and not len(batch.corrupt)
    np.testing.assert_array_equal(batch.arrays["image"], images[batch.arrays["label"]])


def test_batches_of_one_image() -> None:
    """As many as the endless stream has indices."""
    whole = ArraySource(np.zeros((3, 4, 4, 3), np.uint8), np.arange(3, dtype=np.int32), "three")
    batches = train_batches(
        whole,
        batch_size=1,
        seed=0,
        start_step=1,
        sharding=NamedSharding(Mesh(jax.devices()[:1], ("data",)), PartitionSpec()),
        num_workers=0,
    )
    labels = [int(next(batches).arrays["label"][0]) for _ in range(5)]
    batches.close()
    # The rest of an epoch, and a whole one.
    assert len(set(labels[:2])) == 2 and sorted(labels[2:]) == [0, 1, 2]
