"""A model as a folder: the same answers as its run's, to the bit, wherever the folder is."""

import json
import re
import shutil
import struct
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from drnet_jax import AdaptiveClassifier, load_calibration, load_classifier, load_run
from drnet_jax.budgets.calibration import BudgetError
from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.measured_cost import write_measured
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.evaluate import restore_and_evaluate
from drnet_jax.hub.saved_model import find_evaluation
from drnet_jax.library import save_pretrained
from drnet_jax.models.macs import MeasuredCost
from drnet_jax.predict import restore_and_predict
from drnet_jax.reports.predictions import Prediction, Unreadable
from drnet_jax.runtime.checked_json import read_json
from tests.pictures import png
from tests.random_model import write_run
from tests.small_run import GLANCE, small_config
from tests.test_predict import read_csv

CLASSES = tuple("0123456789")
NUM_IMAGES = 23
KINDS: dict[str, dict[str, Any]] = {
    "pixels": {"predictor.size": 24, "data.mean": (0.4, 0.5, 0.6), "inference.fold": False},
    "one BatchNorm, by time": {"model.resolution_aware": False, "joint.cost": "ms"},
    "glance": GLANCE | {"model.reuse": "none", "predictor.objective": "correctness"},
    "glance with reuse": GLANCE,
    "one resolution": {"model.resolutions": (32,)},
}


@dataclass
class Case:
    """A run, and its folder, which was moved since."""

    config: Any
    run: Path
    folder: Path

    @cached_property
    def loaded(self) -> AdaptiveClassifier:
        return AdaptiveClassifier.from_pretrained(self.folder)


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(tmp_path_factory.mktemp("case"), KINDS[request.param])


def make(place: Path, fields: dict[str, Any]) -> Case:
    config, run = small_config(**fields), place / "run"
    single = len(config.model.resolutions) == 1
    write_run(config, run, CLASSES, stage="pretrain" if single else "joint")
    if config.joint.cost == "ms":
        write_measured(run, MeasuredCost((0.3, 0.1), 0.25, "here"))
    save_pretrained(load_run(run), place / "first")
    (place / "elsewhere").mkdir()
    (place / "first").rename(place / "elsewhere" / "folder")
    return Case(config, run, place / "elsewhere" / "folder")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return compose("test", NUM_IMAGES)["image"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(images):
        (root / f"{number:02}.png").write_bytes(png(image))
    return root


def test_images_in_memory(case: Case, images: np.ndarray) -> None:
    squares = images[:, 16:48, 16:48]
    expected = load_classifier(load_run(case.run))
    found = case.loaded
    assert (found.classes, found.resolutions, found.cost) == (
        expected.classes,
        expected.resolutions,
        expected.cost,
    )
    multiple = len(found.resolutions) > 1
    for lam in (0.0, 5.0, 500.0) if multiple else (0.0,):
        wanted, got = (c.classify(squares, lam=lam) for c in (expected, found))
        for name in ("logits", "choices", "scores", "resolutions", "macs", "first_logits"):
            np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
        if multiple and not lam:
            assert set(got.choices) == {0, 1}
    batches = [squares[:9], squares[9:]]
    pairs = zip(*(c.classify_batches(batches) for c in (expected, found)), strict=True)
    for (_, wanted), (_, got) in pairs:
        np.testing.assert_array_equal(got.logits, wanted.logits)


def test_one_program_a_batch(case: Case, images: np.ndarray) -> None:
    """As exact dispatch, where the shares are those of the batch."""
    expected = case.loaded.classify(images[:8, 16:48, 16:48], lam=5.0)
    shares = np.bincount(expected.choices, minlength=len(case.loaded.resolutions)).tolist()
    fused = case.loaded.fused(8, shares=shares, lam=5.0)
    got = fused.classify(images[:8, 16:48, 16:48])
    np.testing.assert_array_equal(got.choices, expected.choices)
    np.testing.assert_array_equal(got.macs, expected.macs)
    np.testing.assert_allclose(got.logits, expected.logits, rtol=0, atol=1e-4)
    m = len(shares)
    for batch_size, other in ((8, None), (1, shares), (8, [1.0] * (m + 1))):
        words = rf"shares={re.escape(repr(other))} must be those of {m} resolutions"
        if (m, other) != (1, None):
            with pytest.raises(ValueError, match=words):
                case.loaded.fused(batch_size, shares=other)


def test_files(case: Case, pictures: Path, tmp_path: Path) -> None:
    """The table that the run predicts, row by row, and what cannot be read in its place."""
    config = case.config.copy_and_resolve_references()
    config.predict.input, config.predict.output = str(pictures), str(tmp_path / "out")
    config.predict.gallery = 0
    restore_and_predict(config, case.run)
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    files = sorted(pictures.iterdir())
    found = case.loaded.classify_files(files, batch_size=config.eval.batch_size)
    assert [row.file for row in found] == [str(file) for file in files]
    for row, expected in zip(found, rows, strict=True):
        written = {name: str(value) for name, value in asdict(row).items()}
        assert written == expected | {"file": row.file}
    mixed = case.loaded.classify_files([str(tmp_path / "none.png"), files[0]], batch_size=1)
    assert mixed == [
        Unreadable(str(tmp_path / "none.png"), "No such file or directory"),
        mixed[1],
    ]
    assert isinstance(mixed[1], Prediction) and mixed[1].file == found[0].file


def test_the_same_bytes_again(case: Case, tmp_path: Path) -> None:
    case.loaded.save_pretrained(tmp_path / "again")
    save_pretrained(load_run(case.run), tmp_path / "third")
    files = sorted(path.name for path in case.folder.iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]
    for other in ("again", "third"):
        assert sorted(path.name for path in (tmp_path / other).iterdir()) == files
        for name in files:
            assert (tmp_path / other / name).read_bytes() == (case.folder / name).read_bytes()


def test_the_weights_by_hand(case: Case) -> None:
    """Eight bytes of length, a header in JSON, then float32 values, as the format says."""
    data = (case.folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "flax"}
    expected = {
        "/".join(entry.key for entry in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(load_run(case.run).variables)
    }
    assert header.keys() == expected.keys()
    values = data[8 + length :]
    for name, array in header.items():
        start, end = array["data_offsets"]
        found = np.frombuffer(values[start:end], "<f4").reshape(array["shape"])
        assert array["dtype"] == "F32"
        np.testing.assert_array_equal(found, expected[name])


def test_budgets_and_figures(tmp_path: Path, images: np.ndarray) -> None:
    """Those of the run; and the card has what eval.json says, and no path of the machine."""
    case = make(tmp_path, KINDS["glance with reuse"])
    case.config.eval.controls = False
    restore_and_calibrate(case.config, case.run)
    restore_and_evaluate(case.config, case.run)
    run = load_run(case.run)
    save_pretrained(run, tmp_path / "folder")
    shutil.move(case.run, tmp_path / "gone")
    classifier = AdaptiveClassifier.from_pretrained(tmp_path / "folder")
    known = load_calibration(load_run(tmp_path / "gone"))
    assert classifier.calibration.points == known.points
    dearest, cheapest = known.points[0], known.points[-1]
    middle = (dearest.gmacs + cheapest.gmacs) / 2
    drop = 100 * (dearest.lost - dearest.won) / known.num_images + 1
    assert classifier.calibration.for_gmacs(middle) == known.for_gmacs(middle)
    assert classifier.calibration.for_drop(drop) == known.for_drop(drop)
    # The times of the device on which it is used, in its setting.
    with pytest.raises(BudgetError, match="no times are measured: .* with measure=True"):
        classifier.calibration.for_ms(1e6)
    timed = AdaptiveClassifier.from_pretrained(tmp_path / "folder", buckets=(1,), measure=True)
    assert timed.calibration.times is None
    found = timed.compile(arrays=True).calibration
    assert found.times is not None and "buckets 1, images 32x32, folded" in found.times.setting
    first, (second, _) = found.times.table.predictor, found.times.table.classifiers
    assert first is not None
    spent_ms = [1000 * (first[1] + point.shares[0] * second[1]) for point in (dearest, cheapest)]
    assert found.for_ms(spent_ms[0] * 1.001) == known.for_gmacs(1e6)
    assert found.for_ms(spent_ms[1] * 1.001).shares == cheapest.shares
    spent = [
        classifier.classify(images[:, ::2, ::2], lam=point.lam).macs.mean() / 1e9
        for point in (dearest, cheapest)
    ]
    assert spent == [pytest.approx(dearest.gmacs), pytest.approx(cheapest.gmacs)]

    summary = read_json(tmp_path / "gone" / "eval.json")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert f"On {summary['num_images']:,} images of the test split of digits\\_on\\_photos" in card
    largest = summary["fixed"][0]["gmacs"]
    for entry in summary["fixed"]:
        name, top1 = f"{entry['resolution']} px alone", f"{100 * entry['top1']:.2f}"
        assert (
            f"| {name} | {entry['gmacs']:.4g} | {entry['gmacs'] / largest:.2f} | {top1} |" in card
        )
    cost = f"{summary['gmacs']:.4g} | {summary['gmacs'] / largest:.2f}"
    assert f"| adaptive | {cost} | {100 * summary['top1']:.2f} |" in card
    assert f"value: {summary['top1']:.6g}\n" in card
    for path in (tmp_path / "folder").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()

    classifier.save_pretrained(tmp_path / "again")
    files = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert files == [
        *("README.md", "calibration.json", "config.json", "eval.json", "model.safetensors"),
    ]
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()


def test_what_is_of_another_model_is_left_out_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures are those of this checkpoint or none; a budget is of this model or an error."""
    case = make(tmp_path, {})
    with pytest.raises(
        BudgetError, match=r"calibration.json is missing: run --mode=calibrate on its run"
    ):
        _ = case.loaded.calibration
    with pytest.raises(BudgetError, match=r"calibration.json is missing: run --mode=calibrate"):
        _ = load_classifier(load_run(case.run)).calibration
    case.config.eval.controls = False
    restore_and_evaluate(case.config, case.run)
    restore_and_calibrate(case.config, case.run)
    write_run(case.config, case.run, CLASSES, step=2)
    content = read_json(case.run / "calibration.json")
    content["points"][0]["lam"] = -(10**400)
    (case.run / "calibration.json").rename(tmp_path / "calibration.json")
    (case.run / "calibration.json").write_text(json.dumps(content))
    with pytest.raises(BudgetError, match="damaged .* an integer of 401 digits"):
        save_pretrained(load_run(case.run), tmp_path / "second")
    (case.run / "calibration.json").unlink()
    save_pretrained(load_run(case.run), tmp_path / "second")
    assert "eval.json is not known to be of joint/2" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == [
        *("README.md", "config.json", "model.safetensors"),
    ]
    assert "Not evaluated." in (tmp_path / "second" / "README.md").read_text()
    summary = read_json(case.run / "eval.json") | {"model": "joint/2", "top1": None}
    saved = replace(case.loaded._saved, origin=case.run, key="joint/2")
    (case.run / "eval.json").write_text(json.dumps(summary | {"top1": 0.5}))
    assert find_evaluation(saved) is not None
    (case.run / "eval.json").write_text(json.dumps(summary))
    assert find_evaluation(saved) is None
    for place in (case.run, tmp_path / "second"):
        shutil.copy(tmp_path / "calibration.json", place)
    with pytest.raises(BudgetError, match="is of joint/1 .*, and the model is joint/2"):
        save_pretrained(load_run(case.run), tmp_path / "third")
    assert not (tmp_path / "third").exists()
    with pytest.raises(BudgetError, match="is of joint/1 .*: run --mode=calibrate on its run"):
        _ = AdaptiveClassifier.from_pretrained(tmp_path / "second").calibration


def blocks(document: str) -> list[str]:
    """The blocks of Python in a document."""
    text = (Path(__file__).parents[1] / document).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


def test_the_snippets_of_the_documents(
    tmp_path: Path,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Written as the second one says, and read as the first one says, and as the README does."""
    use, fuse, stream, save = blocks("docs/inference.md")
    *_, readme = blocks("README.md")
    monkeypatch.chdir(tmp_path)
    write_run(small_config(), Path("runs/digits_on_photos"), CLASSES)
    restore_and_calibrate(small_config(), Path("runs/digits_on_photos"))
    for name, image in zip(("cat.jpg", "dog.png"), images, strict=False):
        Path(name).write_bytes(png(image))
    exec(compile(save, "save", "exec"), {})
    names: dict[str, Any] = {}
    exec(compile(use, "use", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in printed[-2:]] == [
        "Prediction(file='cat.jpg'",
        "Prediction(file='dog.png'",
    ]
    squares = names["images"] = images[:, 16:48, 16:48]
    exec(compile(fuse, "fuse", "exec"), names)
    exact = names["classifier"].classify(squares, lam=names["point"].lam)
    # A batch that is far from full has a place for every choice.
    np.testing.assert_array_equal(names["result"].choices, exact.choices)
    np.testing.assert_allclose(names["result"].logits, exact.logits, rtol=1e-3, atol=1e-4)
    names["batches_of_paths"] = [[Path("cat.jpg")], [Path("dog.png")]]
    # Pictures of its data are larger than the largest resolution.
    larger = AdaptiveClassifier.from_pretrained("FOLDER", image_size=(64, 64))
    names["fused"] = larger.fused(2, shares=names["point"].shares, lam=0.0)
    capsys.readouterr()
    exec(compile(stream, "stream", "exec"), names)
    streamed = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert streamed == [re.search("label='(.*?)'", line)[1] for line in printed[-2:]]
    Path("FOLDER").rename("before")
    exec(compile(readme, "readme", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == f"[{', '.join(printed[-2:])}]"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    case = make(tmp_path, {})
    before = {path: path.read_bytes() for path in case.folder.iterdir()}
    words = "Errno 17. the folder holds .*, and nothing is overwritten: name another folder"
    with pytest.raises(FileExistsError, match=words):
        save_pretrained(load_run(case.run), case.folder)
    with pytest.raises(FileExistsError, match=words):
        case.loaded.save_pretrained(case.folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden").write_text("mine")
    with pytest.raises(FileExistsError, match="holds '.hidden'"):
        case.loaded.save_pretrained(tmp_path / "empty")
    assert {path: path.read_bytes() for path in case.folder.iterdir()} == before


def test_a_run_without_a_predictor_is_refused(tmp_path: Path) -> None:
    write_run(small_config(), tmp_path / "run", CLASSES, stage="pretrain")
    with pytest.raises(CheckpointError, match="holds stage 1 only, without a trained predictor"):
        save_pretrained(load_run(tmp_path / "run"), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_arguments(tmp_path: Path, images: np.ndarray, pictures: Path) -> None:
    case = make(tmp_path, {})
    classifier = AdaptiveClassifier.from_pretrained(
        case.folder, image_size=(48, 40), buckets=(2,), measure=False
    )
    shown = images[:3, :48, :40]
    expected = load_classifier(load_run(case.run), image_size=(48, 40), buckets=(2,))
    np.testing.assert_array_equal(
        classifier.classify(shown).logits, expected.classify(shown).logits
    )
    assert classifier.classify_files([]) == []
    with pytest.raises(
        TypeError, match="revision, bucket: not for .*folder, which is on this mach"
    ):
        AdaptiveClassifier.from_pretrained(case.folder, revision="v1", bucket=(2,))
    with pytest.raises(ValueError, match="must be a sequence of paths: put it in a list"):
        classifier.classify_files(pictures / "00.png")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size=0 must be an integer, 1 or more"):
        classifier.classify_files([pictures / "00.png"], batch_size=0)
    with pytest.raises(ValueError, match="lam=nan must be a finite number"):
        classifier.classify_files([pictures / "00.png"], lam=float("nan"))
    with pytest.raises(ValueError, match=r"buckets=\(\) must be one or more"):
        AdaptiveClassifier.from_pretrained(case.folder, buckets=())
