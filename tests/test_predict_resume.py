"""Predictions that are interrupted and resumed: as if they had not been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from drnet_jax.config import ConfigError
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.inference.encoded import EncodedImages
from drnet_jax.inference.engine import InferenceEngine
from drnet_jax.predict import restore_and_predict
from drnet_jax.runtime.checked_json import read_json
from tests.pictures import png
from tests.random_model import write_run
from tests.small_run import OVERRIDES, small_config

MAIN = Path(__file__).parents[1] / "main.py"
NUM_IMAGES, BATCH = 37, 8
FIELDS = {"predict.gallery": 2, "eval.batch_size": BATCH}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained")
    write_run(small_config(), workdir, tuple("0123456789"))
    return workdir


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, every tenth of which is none."""
    root = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(compose("test", NUM_IMAGES)["image"]):
        (root / name(number)).write_bytes(b"" if number % 10 == 3 else png(image))
    return root


@pytest.fixture(scope="module")
def whole(workdir: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that was not interrupted."""
    output = tmp_path_factory.mktemp("whole")
    restore_and_predict(config_for(root, output), workdir)
    return contents(output)


# The program, for which reading the last picture takes forever.
STUCK = f"""
import sys, time
sys.path.insert(0, {str(MAIN.parent)!r})
from drnet_jax.cli import run
from drnet_jax.inference import encoded
read = encoded.read_picture
encoded.read_picture = lambda path: time.sleep(1e6) if path.name == "36.png" else read(path)
run()
"""


def name(number: int) -> str:
    return f"{number:02}.png"


def config_for(root: Path, output: Path, **further: Any) -> Any:
    places = {"predict.input": str(root), "predict.output": str(output)}
    return small_config(**(FIELDS | places | further))


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


class Interruption:
    """Stops the run before a batch is decoded, as Ctrl-C does; names what is decoded before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded: list[str] = []
        self.stop_at: int | None = None
        original = EncodedImages.open

        def opened(images: EncodedImages, batch: Any, buckets: Any) -> Any:
            if self.stop_at is not None and len(self.decoded) >= self.stop_at:
                raise KeyboardInterrupt
            self.decoded += [path.name for path in batch]
            return original(images, batch, buckets)

        monkeypatch.setattr(EncodedImages, "open", opened)


@pytest.fixture
def interruption(monkeypatch: pytest.MonkeyPatch) -> Interruption:
    return Interruption(monkeypatch)


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_resumed(
    workdir: Path,
    root: Path,
    whole: dict[str, bytes],
    interruption: Interruption,
    tmp_path: Path,
    cut: int,
) -> None:
    """After whole batches; with half a last row; and with a batch of which some rows are there."""
    output = tmp_path / "output"
    config = config_for(root, output)
    # What is left of a run that was killed before its first row.
    output.mkdir()
    (output / ".predict.json.left.tmp").write_text("{")
    interruption.stop_at = 4 * BATCH
    with pytest.raises(KeyboardInterrupt):
        restore_and_predict(config, workdir)
    table = output / "predictions.csv"
    # Two batches have their results when the fifth is read: 03.png and 13.png cannot be read.
    assert len(table.read_bytes().splitlines()) == 1 + 2 * BATCH - 2
    written = table.read_bytes()[: -cut or None]
    table.write_bytes(written)

    interruption.stop_at, interruption.decoded = None, []
    summary = restore_and_predict(config, workdir)
    first = BATCH * (1 if cut else 2)
    assert interruption.decoded == [name(number) for number in range(first, NUM_IMAGES)]
    assert contents(output) == whole
    assert whole["predictions.csv"].startswith(written)
    rows = whole["unreadable.csv"].splitlines()
    assert [row.split(b",")[0] for row in rows] == [b"file", *(b"%d3.png" % i for i in range(4))]
    assert (summary["num_images"], summary["num_unreadable"]) == (NUM_IMAGES - 4, 4)


def test_what_is_written_is_kept_and_the_pictures_stay_the_same(
    workdir: Path, root: Path, interruption: Interruption, tmp_path: Path
) -> None:
    """Rows are not computed again, a picture that goes is unreadable, and one that comes is not.

    A row of a picture that is replaced would be wrong.
    """
    moving, output = tmp_path / "moving", tmp_path / "output"
    shutil.copytree(root, moving)
    config = config_for(moving, output, **{"predict.format": "jsonl", "inference.measure": True})
    interruption.stop_at = 4 * BATCH
    with pytest.raises(KeyboardInterrupt):
        restore_and_predict(config, workdir)
    table = output / "predictions.jsonl"
    marked = table.read_text().replace('"class_index": ', '"class_index": 1')
    table.write_text(marked)
    times = json.loads((output / "predict.json").read_text())["bucket_seconds"]
    for number in (2, 30):
        (moving / name(number)).unlink()
    shutil.copy(root / name(0), moving / "10b.png")
    # One whose row is written is replaced, and one that is not reached yet.
    written = (moving / name(5)).stat()
    for number in (5, 35):
        shutil.copyfile(root / name(number - 1), moving / name(number))
    with pytest.raises(ConfigError, match=r"results of 1 pictures that were changed .*\(05.png\)"):
        restore_and_predict(config, workdir)
    shutil.copyfile(root / name(5), moving / name(5))
    os.utime(moving / name(5), ns=(written.st_atime_ns, written.st_mtime_ns))

    interruption.stop_at = None
    measured: list[InferenceEngine] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InferenceEngine, "measure", measured.append)
        restore_and_predict(config, workdir)
    # The buckets are planned by the times of the first run, which the results depend on.
    state = json.loads((output / "predict.json").read_text())
    assert not measured and state["bucket_seconds"] == times and times is not None
    assert table.read_text().startswith(marked)
    rows = [json.loads(line)["file"] for line in table.read_text().splitlines()]
    lost = {3, 13, 23, 33, 30}
    assert rows == [name(number) for number in range(NUM_IMAGES) if number not in lost]
    assert "30.png,No such file or directory\n" in (output / "unreadable.csv").read_text()


def test_on_another_device_a_line_says_what_differs(
    workdir: Path,
    root: Path,
    interruption: Interruption,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Buckets that are not given are those of the device: here of the classifiers at 32 px."""
    output = tmp_path / "output"
    config = config_for(root, output, **{"inference.buckets": ()})

    def resumed(stop_at: int | None, *buckets: int) -> str:
        """Runs until so many pictures more are decoded; what it prints."""
        sizes = {16: (1, 4), 32: buckets}
        monkeypatch.setattr("drnet_jax.inference.engine.default_buckets", lambda n, *_: sizes[n])
        interruption.stop_at, interruption.decoded = stop_at, []
        if stop_at is None:
            restore_and_predict(config, workdir)
        else:
            with pytest.raises(KeyboardInterrupt):
                restore_and_predict(config, workdir)
        return capsys.readouterr().out

    assert "begun on" not in resumed(4 * BATCH, 1, 4, 16)
    begun = read_json(output / "predict.json")
    sizes = [[1, 4, 16] if side == 32 else [1, 4] for side in (config.predictor.size, 32, 16)]
    assert begun["device"] == {"kind": "cpu", "buckets": sizes}
    assert "begun on" not in resumed(0, 1, 4, 16)
    line = "it was begun on cpu (buckets 1/4/16 and 1/4), this is cpu (buckets 1/4): results agree"
    assert f"\n{line} up to rounding\n" in resumed(0, 1, 4)
    content = begun | {"device": begun["device"] | {"kind": "NVIDIA H100"}}
    (output / "predict.json").write_text(json.dumps(content))
    assert "begun on NVIDIA H100 (buckets 1/4/16 and 1/4), this is cpu" in resumed(None, 1, 4, 16)
    # The record is of the beginning, and the rows are all there.
    content = read_json(output / "predict.json")
    assert content["finished"] and content["device"]["kind"] == "NVIDIA H100"
    assert len((output / "predictions.csv").read_bytes().splitlines()) == 1 + NUM_IMAGES - 4


def test_only_the_page_is_missing(
    workdir: Path,
    root: Path,
    whole: dict[str, bytes],
    interruption: Interruption,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And nothing is compiled for it, nor any speed given."""
    output = tmp_path / "output"
    with monkeypatch.context() as patch:
        patch.setattr("drnet_jax.predict.write_text", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            restore_and_predict(config_for(root, output), workdir)
    assert len(interruption.decoded) == NUM_IMAGES and "images/s" in capsys.readouterr().out
    monkeypatch.setattr("drnet_jax.predict.file_classifier", lambda *_: 1 / 0)
    summary = restore_and_predict(config_for(root, output), workdir)
    assert contents(output) == whole and len(interruption.decoded) == NUM_IMAGES
    printed = capsys.readouterr().out
    assert summary["images_per_second"] is None
    assert "33 pictures, " in printed and "GMACs each\n" in printed and "images/s" not in printed


def test_killed(workdir: Path, root: Path, tmp_path: Path) -> None:
    """By SIGKILL, while the last picture is read, of a disk that does not answer."""
    output = tmp_path / "output"
    config = config_for(root, output)
    overrides = OVERRIDES | FIELDS
    overrides |= {"predict.input": str(root), "predict.output": str(output)}
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", STUCK, "--mode=predict", f"--workdir={workdir}"),
            f"--config={MAIN.parent / 'configs' / 'tiny.py'}",
            *(f"--config.{field}={value}" for field, value in overrides.items()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        unreadable = output / "unreadable.csv"
        deadline = time.monotonic() + 120
        # Of the second batch of five, whose results come before the fifth is read.
        while not unreadable.exists() or b"13.png" not in unreadable.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(ConfigError, match="writes predictions to .*output since"):
            restore_and_predict(config, workdir)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    written = (output / "predictions.csv").read_bytes()
    restore_and_predict(config, workdir)
    again = tmp_path / "again"
    restore_and_predict(config_for(root, again), workdir)
    assert contents(output) == contents(again)
    assert contents(again)["predictions.csv"].startswith(written) and written.count(b"\n") > BATCH


@pytest.fixture(scope="module")
def begun(workdir: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder whose run was interrupted."""
    output = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        Interruption(patch).stop_at = 4 * BATCH
        with pytest.raises(KeyboardInterrupt):
            restore_and_predict(config_for(root, output), workdir)
    return output


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"predict.format": "jsonl"}, "format 'csv', now 'jsonl': run it as it was begun"),
        ({"eval.batch_size": 12}, "eval.batch_size 8, now 12"),
        ({"inference.buckets": (1, 8)}, r"inference.buckets \[1, 16\], now \[1, 8\]"),
        ({"inference.fold": False}, "inference.fold True, now False"),
        ({"data.eval_crop": 0.5}, "model 'joint/1 .*', now 'joint/1 .*'"),
    ],
)
def test_another_job_is_refused(
    workdir: Path, root: Path, begun: Path, fields: dict[str, Any], words: str
) -> None:
    before = contents(begun)
    with pytest.raises(ConfigError, match=f"holds an unfinished job with {words}") as error:
        restore_and_predict(config_for(root, begun, **fields), workdir)
    assert "--config.predict.output=" in str(error.value) and "\n" not in str(error.value)
    assert contents(begun) == before


def test_another_input_or_checkpoint_is_refused(
    workdir: Path, root: Path, begun: Path, tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path / "copy")
    with pytest.raises(ConfigError, match="with input '.*pictures.*', now '.*copy'"):
        restore_and_predict(config_for(tmp_path / "copy", begun), workdir)
    write_run(small_config(), tmp_path / "run", tuple("0123456789"), step=2)
    with pytest.raises(ConfigError, match="with model 'joint/1 .*', now 'joint/2 .*; saved_at"):
        restore_and_predict(config_for(root, begun), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: [*table, *table[1:3]], "in another order"),
        (lambda table: [*table[:2], *table[3:]], "rows are missing"),
        (lambda table: [table[0], table[2], table[1], *table[3:]], "in another order"),
        (
            lambda table: [table[0], b"x" + table[1], *table[2:]],
            "'x00.png' is none of",
        ),
        (lambda table: [b"x" + table[0], *table[1:]], "its header is not file,label"),
        (lambda table: [table[0], b'"x"' + table[1], *table[2:]], "expected after"),
    ],
)
def test_other_tables_are_refused(
    workdir: Path, root: Path, begun: Path, tmp_path: Path, change: Any, words: str
) -> None:
    output = tmp_path / "output"
    shutil.copytree(begun, output)
    table = output / "predictions.csv"
    table.write_bytes(b"".join(change(table.read_bytes().splitlines(keepends=True))))
    before = contents(output)
    with pytest.raises(ConfigError, match=rf"are not what this job wrote \(.*{words}.*remove the"):
        restore_and_predict(config_for(root, output), workdir)
    assert contents(output) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"finished": false}', "null"])
def test_a_damaged_or_foreign_folder_is_refused(
    workdir: Path, root: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "predictions.csv").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not overwritten: give another folder"):
        restore_and_predict(config_for(root, tmp_path), workdir)
    (tmp_path / "predict.json").write_text(content)
    with pytest.raises(ConfigError, match="predict.json cannot be read .*give another folder"):
        restore_and_predict(config_for(root, tmp_path), workdir)


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [("predict", 75, "run the same command to resume"), ("benchmark", 2, "nothing is kept")],
)
def test_an_interruption_says_what_is_kept(
    mode: str, status: int, words: str, tmp_path: Path
) -> None:
    code = (
        f"from drnet_jax import cli, {mode}\n"
        "def job(*_): raise KeyboardInterrupt\n"
        f"{mode}.restore_and_{mode} = job\n"
        "cli.run()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, f"--mode={mode}", f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=MAIN.parent,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert result.returncode == status
    assert result.stderr.splitlines() == [f"error: interrupted; {words}"]
