"""Tiny ImageNet tar files of the real layout, and the check of what was made of them.

python -m tests.tiny_imagenet write TARS
python -m tests.tiny_imagenet check TARS DATA

The second reads what TFDS's own builder prepared from them (`.ci/prepare`).
"""

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from drnet_jax.data.imagenet_tars import TEST_TAR, TRAIN_TAR, ImagenetTars
from drnet_jax.data.sources import EncodedSource
from drnet_jax.data.tfds_source import TfdsDataset

PER_CLASS = 20
VALIDATION_WNIDS = (
    Path(str(tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")))
    .read_text()
    .split()
)


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_tars(
    root: Path, wnids: list[str], num_test: int, leave_out: int = -1
) -> dict[str, tuple[str, bytes]]:
    """Both tars, without one test image; returns class and content of every file by its name."""
    files: dict[str, tuple[str, bytes]] = {}
    with tarfile.open(root / TRAIN_TAR, "w") as outer:
        for number, wnid in enumerate(wnids):
            inner_bytes = io.BytesIO()
            with tarfile.open(fileobj=inner_bytes, mode="w") as inner:
                for index in range(PER_CLASS):
                    name = f"{wnid}_{index}.JPEG"
                    files[name] = (wnid, jpeg(number * PER_CLASS + index))
                    add(inner, name, files[name][1])
            add(outer, f"{wnid}.tar", inner_bytes.getvalue())
    with tarfile.open(root / TEST_TAR, "w") as tar:
        # As in the real one, the order in the tar is not that of the names.
        for index in reversed(range(num_test)):
            if index == leave_out:
                continue
            name = f"ILSVRC2012_val_{index + 1:08}.JPEG"
            files[name] = (VALIDATION_WNIDS[index], jpeg(10_000 + index))
            add(tar, name, files[name][1])
    return files


def check(source: EncodedSource, classes: tuple[str, ...], files: dict[str, Any]) -> list[str]:
    """Every image has the content and class of its file; returns the names."""
    names = []
    for index in range(len(source)):
        name = source.name(index).replace(":", " ").split()[-1]
        wnid, content = files[name]
        sample = source[index]
        assert sample["encoded"] == content and classes[sample["label"]] == wnid
        names.append(name)
    assert len(set(names)) == len(names)
    return names


def main(action: str, tars: Path, *data: str) -> None:
    if action == "write":
        tars.mkdir(parents=True)
        write_tars(tars, sorted(set(VALIDATION_WNIDS[:8])), 8)
        return
    prepared = TfdsDataset("imagenet2012", data[0], tars / "cache")
    raw = ImagenetTars(tars, tars / "cache")
    assert len(prepared.classes) == 1000
    for split, count in (("train", 20 * len(raw.classes)), ("test", 8)):
        sets = []
        for dataset in (prepared, raw):
            images = dataset.read_split(split)
            names = [dataset.classes[label] for label in images.labels]
            contents = [images.reader.read(position) for position in images.positions]
            sets.append(sorted(zip(names, contents, strict=True)))
        assert sets[0] == sets[1] and len(sets[0]) == count, split
        print(f"{split}: {count} images and their classes are those of the tar files")
    assert "tensorflow" not in sys.modules


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
