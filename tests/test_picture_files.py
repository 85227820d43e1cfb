"""What of a folder is read: by training, by prediction, and whatever lies in it."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.picture_sizes import check_sizes, read_sizes, write_sizes
from drnet_jax.config import SPLITS, ConfigError
from drnet_jax.data.crops import problem
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.files import describe, list_pictures, printable, read_picture
from drnet_jax.data.index_cache import cached
from drnet_jax.data.pipeline import eval_host_batches, train_batches
from drnet_jax.data.settings import DataSettings, check_places
from drnet_jax.data.sources import DataError, EncodedSource
from drnet_jax.evaluation import logits
from drnet_jax.evaluation.logits import Logits, LogitsError
from drnet_jax.predict import restore_and_predict
from drnet_jax.runtime.sharding import batch_sharding, create_mesh
from drnet_jax.sweeps.plan import Sweep, make_plan
from drnet_jax.train import prepare, train_and_evaluate
from tests.small_run import small_config


def write(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (value, 0, 0)).save(path)


def load(root: Path, split: str) -> EncodedSource:
    source = DataSplits(DataSettings("folder", dir=str(root), size=16)).load(split)
    assert isinstance(source, EncodedSource)
    return source


def names(source: EncodedSource, root: Path) -> list[str]:
    paths = [Path(source.name(index)) for index in range(len(source))]
    return [path.relative_to(root).as_posix() for path in paths]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Splits with everything that may lie in a folder beside pictures."""
    root = tmp_path / "data"
    for split in ("train", "test", "valid"):
        for name in ("ant", "bee"):
            for number in range(2):
                write(root / split / name / f"{number}.png", 40 * number)
    ant = root / "train" / "ant"
    for suffix in ("jfif", "JPE", "bmp", "tif", "tiff", "gif", "webp", "avif", "jp2", "ppm"):
        write(ant / f"more.{suffix}")
    for name in ("young/1.png", "young/deep/2.jpg"):
        write(ant / name)
    (ant / "young" / "list.csv").touch()
    (ant / "notes.txt").touch()
    (ant / "README").touch()
    (ant / "film.mp4").touch()
    (ant / "dead.jpg").symlink_to("nowhere")
    (ant / "round.png").symlink_to("round.png")
    os.mkfifo(ant / "camera.jpg")
    (ant / "linked.jpg").symlink_to("camera.jpg")
    (ant / "endless.png").symlink_to("/dev/zero")
    (ant / "up").symlink_to(ant)
    (ant / ".hidden.jpg").touch()
    write(root / "train" / "beside.png")
    write(root / "dev" / "ant" / "1.png")
    (root / "labels.json").touch()
    # A class may be a link, and a picture too.
    (tmp_path / "elsewhere").mkdir()
    (root / "train" / "bee").rename(tmp_path / "elsewhere" / "bee")
    (root / "train" / "bee").symlink_to(tmp_path / "elsewhere" / "bee")
    (ant / "same.png").symlink_to("0.png")
    return root


def test_training_reads_or_names_every_file(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = names(load(tree, "train"), tree)
    suffixes = "JPE avif bmp gif jfif jp2 ppm tif tiff webp".split()
    ant = ["0.png", "1.png", *(f"more.{suffix}" for suffix in suffixes), "same.png"]
    expected = [f"train/ant/{name}" for name in ant] + ["train/bee/0.png", "train/bee/1.png"]
    assert train == expected
    (line,) = capsys.readouterr().out.splitlines()
    # labels.json, dev/ant/1.png, beside.png; in ant: two pictures and a list deeper, three files
    # of other suffixes or none, two dead links, two pipes, a device and a loop.
    assert line.startswith(f"left out of {tree}: 15 files (")
    kinds = dict(part.rsplit(" ", 1) for part in line.split("(")[1].split(")")[0].split(", "))
    assert kinds == {
        "no regular file": "3",
        "link to nothing": "2",
        "in a folder of a class": "2",
        "in no class": "2",
        "folder listed already": "1",
        **dict.fromkeys((".csv", ".txt", "no suffix", ".mp4", ".json"), "1"),
    }
    assert ": train/ant/README, train/ant/camera.jpg, train/ant/dead.jpg, " in line
    # With test beside it, valid serves for calibration; of what is read anew, nothing is said.
    assert names(load(tree, "calibration"), tree)[0] == "valid/ant/0.png"
    assert names(load(tree, "test"), tree)[0] == "test/ant/0.png"
    load(tree, "train")
    assert line not in capsys.readouterr().out


def test_valid_is_the_test_split_where_there_is_no_other(tree: Path) -> None:
    (tree / "test").rename(tree / "later")
    assert {name.split("/")[0] for name in names(load(tree, "test"), tree)} == {"valid"}


def test_prediction_reads_the_same_files_and_deeper_ones(tree: Path) -> None:
    found = list_pictures(tree / "train")
    mine = [picture.name for picture in found.pictures]
    trained = [name.removeprefix("train/") for name in names(load(tree, "train"), tree)]
    assert sorted(mine) == sorted(
        [*trained, "beside.png", "ant/young/1.png", "ant/young/deep/2.jpg"]
    )
    assert mine == sorted(mine, key=lambda name: name.split("/"))
    line = describe(found.left_out, tree / "train")
    assert "10 files (no regular file 3, link to nothing 2, " in line and "\n" not in line
    assert all(
        picture.size == (tree / "train" / picture.name).stat().st_size for picture in found.pictures
    )


def test_links_in_a_circle_come_to_an_end(tmp_path: Path) -> None:
    """Each folder is listed once, by its own name if it has one here."""
    for name in ("a", "b"):
        write(tmp_path / "root" / name / "1.png")
    write(tmp_path / "outside" / "2.png")
    (tmp_path / "root" / "a" / "b").symlink_to("../b")
    (tmp_path / "root" / "b" / "a").symlink_to("../a")
    (tmp_path / "root" / "0").symlink_to("../outside")
    (tmp_path / "outside" / "back").symlink_to("../root")
    found = list_pictures(tmp_path / "root")
    assert [picture.name for picture in found.pictures] == ["0/2.png", "a/1.png", "b/1.png"]
    assert [(file.name, file.kind) for file in found.left_out] == [
        (name, "folder listed already") for name in ("0/back", "a/b", "b/a")
    ]


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def as_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


def as_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Path.unlink, "No such file"),
        (as_pipe, "it is no regular file"),
        (as_endless, "it is no regular file"),
        (as_socket, ""),
        (as_folder, ""),
        (as_huge, "it is larger than 1 GiB"),
    ],
)
def test_a_picture_that_becomes_something_else_is_left_out(
    change: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    """In training, also by processes, and in evaluation; what is left of an epoch is read."""
    for name in ("ant", "bee"):
        for number in range(10):
            write(tmp_path / name / f"{number}.png", 10 * number + 5)
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    for source in (train, test):
        change(Path(source.name(1)))
        assert words in problem(source, 1) != ""
        with pytest.raises(OSError):
            read_picture(Path(source.name(1)))
    (batch,) = eval_host_batches(test, batch_size=4)
    assert batch["index"][batch["corrupt"]].tolist() == [1]
    assert batch["mask"].tolist() == [True, False, True, True]
    batches = train_batches(
        train,
        batch_size=len(train) // 4 * 4,
        seed=0,
        start_step=0,
        sharding=batch_sharding(create_mesh()),
        num_workers=2 if change is Path.unlink else 0,
    )
    corrupt = np.concatenate([next(batches).corrupt for _ in range(2)])
    batches.close()
    assert set(corrupt.tolist()) == {1}


def test_names_in_one_line() -> None:
    assert printable("é ü 猫 =1,2") == "é ü 猫 =1,2"
    assert printable("a\r\nb\t" + os.fsdecode(b"\xff")) == r"a\r\nb\t\udcff"


def picture_config(root: Path, **further: object) -> object:
    fields = {"data.name": "folder", "data.dir": str(root), "data.train_images": 0}
    fields |= {"data.eval_images": 0, "pretrain.batch_size": 4, "joint.batch_size": 4}
    return small_config(**fields | further)


@pytest.mark.parametrize("place", ["", "runs/x", "deep/../runs", "link/runs"])
def test_nothing_is_written_into_a_folder_of_pictures(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    for name in ("ant", "bee"):
        for number in range(12):
            write(root / name / f"{number}.png", number)
    (tmp_path / "link").symlink_to(root)
    workdir = tmp_path / place if place.startswith("link") else root / place
    before = sorted(tmp_path.rglob("*"))
    words = "is in the folder of pictures data.dir=.*: give --workdir a folder outside"
    for check in (check_places, prepare, train_and_evaluate):
        with pytest.raises(ConfigError, match=words):
            check(picture_config(root), workdir)
    monkeypatch.chdir(root)
    with pytest.raises(ConfigError, match=words):
        check_places(picture_config(Path(".")), Path("runs/folder"))
    with pytest.raises(ConfigError, match=words):
        make_plan(Sweep("tiny", {"a": {"b": {}}}), picture_config(root), workdir)
    fields = {"predict.input": str(root), "predict.output": str(workdir)}
    words = "predict.input=.*: give --config.predict.output a folder outside"
    with pytest.raises(ConfigError, match=words):
        restore_and_predict(small_config(**fields), tmp_path / "run")
    fields["predict.output"] = str(tmp_path / "out")
    with pytest.raises(ConfigError, match="predict.input=.*: give --workdir a folder outside"):
        restore_and_predict(small_config(**fields), workdir)
    assert sorted(tmp_path.rglob("*")) == before
    check_places(picture_config(root), tmp_path / "runs")


def test_a_few_pictures_may_have_been_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More were replaced. A copy with other times is the same."""
    sizes = {split: np.arange(100, 110) for split in ("train", "calibration", "test")}
    check_sizes(tmp_path, sizes, 0)
    write_sizes(tmp_path, sizes)
    check_sizes(tmp_path, sizes, 0)
    assert not capsys.readouterr().out
    now = {split: values.copy() for split, values in sizes.items()}
    now["test"][[2, 5]] = 1
    check_sizes(tmp_path, {"train": now["train"]}, 0)
    check_sizes(tmp_path, now, 2)
    assert "have other sizes than" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"replaced under .* \(2 of test; more .*max_corrupt=1"):
        check_sizes(tmp_path, now, 1)
    path = tmp_path / "picture_sizes.npz"
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="picture_sizes.npz is damaged"):
        check_sizes(tmp_path, sizes, 0)


def test_a_damaged_index_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = np.arange(1000)
    path = tmp_path / "index.npz"
    cached("index", [tmp_path], lambda: array)
    whole = path.read_bytes()
    # A single bit of the numbers, too.
    flipped = whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]
    for content in (b"", b"PK", whole[:-30], flipped):
        path.write_bytes(content)
        np.testing.assert_array_equal(cached("index", [tmp_path], lambda: array), array)
    assert capsys.readouterr().err.count("index.npz is damaged") == 4
    np.testing.assert_array_equal(cached("index", [tmp_path], lambda: array[:0]), array)


def test_flipped_bits_of_array_files_are_damage(tmp_path: Path) -> None:
    """Of a cache, of kept outputs and of sizes: it is damaged, or reads the same."""
    path = tmp_path / "index.npz"
    array = np.arange(3)
    cached("index", [tmp_path], lambda: array)
    for _ in flipped_bits(path):
        np.testing.assert_array_equal(cached("index", [tmp_path], lambda: array), array)
    path = tmp_path / "picture_sizes.npz"
    write_sizes(tmp_path, {split: array for split in SPLITS})
    for _ in flipped_bits(path):
        with suppress(CheckpointError):
            np.testing.assert_array_equal(read_sizes(tmp_path)["train"], array)
    path, text = tmp_path / "logits.npz", np.array(["a"])
    rows = np.ones((1, 1, 1), np.float32), np.ones((1, 1), np.float32)
    rows = *rows, np.zeros(1, np.float32), array[:1], array[:1], text, text, text[0]
    logits.save(path, "key", "test", Logits(*rows))
    for _ in flipped_bits(path):
        with suppress(LogitsError):
            known = logits.load(path, "key", "test")
            assert known is None or known.logits == 1


def flipped_bits(path: Path) -> Iterator[None]:
    """The file with each bit of a part flipped in turn: flags and methods of its first array."""
    whole = path.read_bytes()
    begin = whole.index(b"PK\1\2")
    for bit in range(8 * begin, 8 * (begin + 12)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        yield
