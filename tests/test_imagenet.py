"""Data sets of TFDS, ImageNet's tar files and ImageNet-100, with tiny files of the real layout."""

import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from drnet_jax.data.crops import problem
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.imagenet100 import imagenet100_classes
from drnet_jax.data.imagenet_tars import TEST_TAR, TRAIN_TAR, ImagenetTars
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import DataError, EncodedSource
from drnet_jax.data.tfds_source import TfdsDataset
from drnet_jax.runtime.files import replacing
from tests.tiny_imagenet import VALIDATION_WNIDS, check, jpeg, write_tars

ROOT = Path(__file__).parents[1]


def encoded(settings: DataSettings, split: str) -> EncodedSource:
    source = DataSplits(settings).load(split)
    assert isinstance(source, EncodedSource)
    return source


def test_the_list_of_imagenet100() -> None:
    classes = imagenet100_classes()
    assert len(set(classes)) == 100 and classes[:2] == ("n02869837", "n01749939")
    assert set(classes) <= set(VALIDATION_WNIDS)


def test_tars_are_read_as_they_are(tmp_path: Path) -> None:
    wnids = sorted(set(VALIDATION_WNIDS[:8]))
    files = write_tars(tmp_path, wnids, 8)
    settings = DataSettings("imagenet2012", dir=str(tmp_path), size=16, images_per_class=10)
    classes = DataSplits(settings).classes
    assert classes == tuple(wnids)
    train, calibration = encoded(settings, "train"), encoded(settings, "calibration")
    assert np.bincount(train.labels).tolist() == [10] * len(wnids)
    assert np.bincount(calibration.labels).tolist() == [2] * len(wnids)
    names = check(train, classes, files) + check(calibration, classes, files)
    assert len(set(names)) == 12 * len(wnids)
    assert len(check(encoded(settings, "test"), classes, files)) == 8


def test_a_missing_validation_image_shifts_no_label(tmp_path: Path) -> None:
    wnids = sorted(set(VALIDATION_WNIDS[:8]))
    files = write_tars(tmp_path, wnids, 8, leave_out=2)
    settings = DataSettings("imagenet2012", dir=str(tmp_path), size=16)
    images = ImagenetTars(tmp_path, tmp_path).read_split("test")
    assert len(images.labels) == 7
    for position, label in zip(images.positions, images.labels, strict=True):
        name = images.reader.name(position).split(":")[-1]
        content = images.reader.read(position)
        assert files[name] == (DataSplits(settings).classes[label], content)


def test_a_cut_off_tar_is_one_error(tmp_path: Path) -> None:
    write_tars(tmp_path, sorted(set(VALIDATION_WNIDS[:8])), 8)
    path = tmp_path / TEST_TAR
    path.write_bytes(b"x" * 1000 + path.read_bytes()[1000:])
    with pytest.raises(DataError, match="no whole, uncompressed tar"):
        ImagenetTars(tmp_path, tmp_path).read_split("test")


@pytest.mark.parametrize(
    "kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
)
def test_what_is_no_file_in_a_tar_is_no_class(kind: bytes, tmp_path: Path) -> None:
    """Nor is anything unpacked, wherever a name would lead."""
    write_tars(tmp_path, sorted(set(VALIDATION_WNIDS[:8])), 8)
    before = ImagenetTars(tmp_path, tmp_path)
    num_images = len(before.read_split("train").labels)
    member = tarfile.TarInfo("../n00000001.tar")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / TRAIN_TAR, "a") as tar:
        tar.addfile(member)
    images = ImagenetTars(tmp_path, tmp_path)
    assert images.classes == before.classes
    assert len(images.read_split("train").labels) == num_images
    assert not list(tmp_path.parent.glob("n0*"))


def imagenet100_tars(root: Path) -> tuple[dict[str, tuple[str, bytes]], int]:
    """All its classes, two others, and as many test images as it takes to see each class."""
    wanted = imagenet100_classes()
    last = max(VALIDATION_WNIDS.index(wnid) for wnid in wanted)
    others = sorted(set(VALIDATION_WNIDS) - set(wanted))[:2]
    files = write_tars(root, sorted([*wanted, *others]), last + 1)
    return files, sum(wnid in wanted for wnid in VALIDATION_WNIDS[: last + 1])


def test_imagenet100_from_the_tars_in_a_read_only_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its classes only, in the order of the list; the index goes to the cache."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    files, num_test = imagenet100_tars(data)
    settings = DataSettings("imagenet100", dir=str(data), cache_dir=cache, size=16)
    # The tests may run as root, whom no mode keeps out.

    def refuse(path: Path) -> Any:
        if path.parent == data:
            raise PermissionError("read-only")
        return replacing(path)

    monkeypatch.setattr("drnet_jax.data.index_cache.replacing", refuse)
    classes = DataSplits(settings).classes
    assert classes == imagenet100_classes()
    train = encoded(settings, "train")
    assert np.bincount(train.labels).tolist() == [18] * 100
    check(train, classes, files)
    test = encoded(settings, "test")
    assert len(check(test, classes, files)) == num_test
    assert len(list(cache.glob("*.npz"))) == 2 and not list(data.glob("*.npz"))
    monkeypatch.setattr("tarfile.TarFile.extractfile", None)
    np.testing.assert_array_equal(encoded(settings, "train").labels, train.labels)


class ImagenetLike(tfds.core.GeneratorBasedBuilder):
    """Writes what TFDS's own builder writes, which needs TensorFlow."""

    VERSION = tfds.core.Version("5.1.0")
    name = "imagenet2012"
    files: dict[str, tuple[str, bytes]] = {}

    def _info(self) -> tfds.core.DatasetInfo:
        wnids = sorted({wnid for wnid, _ in self.files.values()})
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=wnids),
                "file_name": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _: Any) -> dict[str, Any]:
        train = [name for name in self.files if not name.startswith("ILSVRC")]
        rest = [name for name in self.files if name.startswith("ILSVRC")]
        return {
            "train": self._generate_examples(train),
            "validation": self._generate_examples(rest),
            "test": self._generate_examples(["unlabelled"]),
        }

    def _generate_examples(self, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in names:
            wnid, content = self.files.get(name, (-1, jpeg(0)))
            yield name, {"image": io.BytesIO(content), "label": wnid, "file_name": name}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A data directory of TFDS with an imagenet2012 that has 102 classes."""
    root = tmp_path_factory.mktemp("tfds")
    files, _ = imagenet100_tars(tmp_path_factory.mktemp("tars"))
    wnids = {wnid for name, (wnid, _) in files.items() if not name.startswith("ILSVRC")}
    ImagenetLike.files = {name: file for name, file in files.items() if file[0] in wnids}
    builder = ImagenetLike(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
    return root, ImagenetLike.files


def test_prepared_imagenet_and_imagenet100(prepared: tuple[Path, dict[str, Any]]) -> None:
    root, files = prepared
    whole = DataSettings("imagenet2012", dir=str(root), size=16)
    assert len(DataSplits(whole).classes) == 102
    # The unlabelled test split is not used.
    num_test = sum(name.startswith("ILSVRC") for name in files)
    assert len(check(encoded(whole, "test"), DataSplits(whole).classes, files)) == num_test
    hundred = DataSettings("imagenet100", dir=str(root), size=16, images_per_class=15)
    assert DataSplits(hundred).classes == imagenet100_classes()
    train = encoded(hundred, "train")
    assert np.bincount(train.labels).tolist() == [15] * 100
    check(train, DataSplits(hundred).classes, files)


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        ("dataset_info.json", lambda content: b""),
        ("dataset_info.json", lambda content: content[: len(content) // 2]),
        ("dataset_info.json", lambda content: b"\xff" * 100),
        ("dataset_info.json", lambda content: b"[]"),
        ("*train.array_record*", lambda content: b""),
        ("*train.array_record*", lambda content: bytes(len(content))),
        ("*train.array_record*", lambda content: content[: len(content) // 2]),
        ("*train.array_record*", None),
    ],
)
def test_a_damaged_data_set_of_tfds_is_one_error(
    prepared: tuple[Path, dict[str, Any]],
    pattern: str,
    change: Callable[[bytes], bytes] | None,
    tmp_path: Path,
) -> None:
    """Whatever the libraries below raise; the line names the data set, its place and the remedy."""
    shutil.copytree(prepared[0], tmp_path / "tfds")
    (path,) = (tmp_path / "tfds").glob(f"imagenet2012/*/{pattern}")
    content = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes(change(content))
    for kept in path.parent.glob("*_labels_*.npz"):
        kept.unlink()
    settings = DataSettings("imagenet2012", dir=str(tmp_path / "tfds"), size=16)
    words = (
        "data set 'imagenet2012.*' in .*tfds.* is damaged, or files of it are missing .* anew what"
    )
    with pytest.raises(DataError, match=words) as error:
        DataSplits(settings).load("train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), MemoryError(), ImportError("x")])
def test_what_is_wrong_with_the_machine_is_no_damage(
    error: Exception,
    prepared: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody is told to prepare 144 GB anew."""
    raised = DataError if isinstance(error, ImportError) else type(error)
    words = "a package that cannot be imported .x." if raised is DataError else None

    def fail(*_: Any, **__: Any) -> None:
        raise error

    data_set = TfdsDataset("imagenet2012", str(prepared[0]), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ImagenetLike, "as_data_source", fail)
        with pytest.raises(raised, match=words):
            data_set.read_split("train")
    with monkeypatch.context() as patch:
        patch.setattr(tfds, "builder", fail)
        with pytest.raises(raised, match=words):
            TfdsDataset("imagenet2012", str(prepared[0]), tmp_path)


def test_a_damaged_record_is_a_corrupt_image(
    prepared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """While it is read; what was kept of the files before is not used for those of today."""
    shutil.copytree(prepared[0], tmp_path / "tfds")
    (path,) = (tmp_path / "tfds").glob("imagenet2012/*/*train.array_record*")
    settings = DataSettings("imagenet2012", dir=str(tmp_path / "tfds"), size=16)
    train = encoded(settings, "train")
    version, identity = train.version(0), train.identity
    content = bytearray(path.read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    path.write_bytes(content)
    assert sum(bool(problem(train, index)) for index in range(len(train))) > 0
    with pytest.raises(DataError, match="is damaged"):
        encoded(settings, "train")
    # Copied anew, with another time.
    shutil.copyfile(next(prepared[0].glob("imagenet2012/*/*train.array_record*")), path)
    again = encoded(settings, "train")
    assert again.version(0) != version and again.identity == identity


class TinySet(ImagenetLike):
    """Another process does not know its code, and reads it from its files alone."""

    name = "tiny_set"


def test_tfds_is_read_without_tensorflow(tmp_path: Path) -> None:
    wnids = VALIDATION_WNIDS[:2]
    names = [f"{wnid}_{number}.JPEG" for wnid in wnids for number in range(20)]
    TinySet.files = {name: (name[:9], jpeg(index)) for index, name in enumerate(names)}
    TinySet.files["ILSVRC_1"], TinySet.files["ILSVRC_2"] = ((wnid, jpeg(99)) for wnid in wnids)
    TinySet._split_generators = lambda self, _: {
        "train": self._generate_examples(names),
        "validation": self._generate_examples(["ILSVRC_1", "ILSVRC_2"]),
    }
    TinySet(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    code = (
        "import sys; from drnet_jax.data.datasets import *; "
        f"s = DataSettings('tiny_set', dir={str(tmp_path)!r}); "
        "sources = [DataSplits(s).load(split) for split in ('train', 'calibration', 'test')]; "
        "assert len(sources[2][0]['encoded']) > 100; assert 'tensorflow' not in sys.modules; "
        "print(*map(len, sources))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["36", "4", "2"]


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.prepare imagenette/320px-v2 --data_dir=DIR"):
        DataSplits(DataSettings("imagenette/320px-v2", dir=str(tmp_path))).load("train")
    with pytest.raises(DataError, match="neither digits_on_photos, folder, imagenet100 nor"):
        DataSplits(DataSettings("imagnet", dir=str(tmp_path))).load("train")
    write_tars(tmp_path, ["n02869837", "n01749939"], 1)
    with pytest.raises(DataError, match="lacks 98 classes"):
        DataSplits(DataSettings("imagenet100", dir=str(tmp_path))).load("train")
    (tmp_path / TEST_TAR).unlink()
    with pytest.raises(DataError, match=f"lacks {TEST_TAR}"):
        DataSplits(DataSettings("imagenet2012", dir=str(tmp_path))).load("train")
