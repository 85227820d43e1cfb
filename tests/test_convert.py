"""A conversion, end to end: its head and figures by hand, its end when resumed, pictures alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drnet_jax.checkpoints.conversion import note_conversion
from drnet_jax.checkpoints.runs import load_run
from drnet_jax.config import ConfigError, flatten
from drnet_jax.convert import convert
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.eval_view import eval_image
from drnet_jax.data.settings import data_settings
from drnet_jax.data.sources import DataError
from drnet_jax.evaluate import restore_and_evaluate
from drnet_jax.runtime.files import write_json
from drnet_jax.train import prepare, train_stages
from drnet_jax.training.import_weights import import_weights
from tests.conversion_data import (
    conversion,
    network,
    random_variables,
    write_pictures,
    write_weights,
)

SIZES = (32, 16)
FIELDS = {"pretrain.train": "batch_norm", "checkpoint.keep_latest": 9}
NUM_STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes, and weights of a classifier of five."""
    folder = tmp_path_factory.mktemp("conversion")
    write_pictures(folder / "pictures")
    write_weights(folder / "weights.safetensors", 5)
    return folder


@pytest.fixture(scope="module")
def converted(place: Path) -> Path:
    """The workdir of a finished conversion."""
    convert(conversion(place, **FIELDS, **{"budget.max_drop": 50.0}), place / "run")
    return place / "run"


def seen(config: ConfigDict, workdir: Path, split: str) -> tuple[Any, np.ndarray]:
    """What the network takes of a split's pictures at 32 px, and their labels."""
    source = DataSplits(data_settings(config, workdir)).load(split)
    pictures = [eval_image(source, index, SIZES[0]) for index in range(len(source))]
    mean, std = np.array(config.data.mean), np.array(config.data.std)
    return jnp.asarray((np.stack(pictures) / 255 - mean) / std, jnp.float32), source.labels


def looks(images: Any, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and features `[n, 2, ...]` of the network before its conversion, without the file."""
    made, variables = network(num_classes), random_variables(num_classes)

    @jax.jit
    def look(resized: jax.Array) -> Any:
        return made.apply(variables, resized, resolution=32, train=False, method="look")

    found = [
        look(jax.image.resize(images, (len(images), size, size, 3), "bilinear")) for size in SIZES
    ]
    logits = np.stack([look.logits for look in found], axis=1)
    return logits, np.stack([look.pooled for look in found], axis=1)


def test_figures_before_are_those_of_a_head_by_hand(place: Path, converted: Path) -> None:
    config = conversion(place)
    noted = json.loads((converted / "conversion.json").read_text())
    images, label = seen(config, converted, "train")
    _, features = looks(images, 5)
    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(C=noted["head_strength"], max_iter=1000)
    )
    pipeline.fit(features.reshape(-1, features.shape[-1]).astype(float), np.repeat(label, 2))
    for split in ("calibration", "test"):
        images, label = seen(config, converted, split)
        _, features = looks(images, 5)
        for index, entry in enumerate(noted["before"][split]["fixed"]):
            right = (pipeline.predict(features[:, index].astype(float)) == label).mean()
            # One picture may lie on the border.
            assert entry["top1"] == pytest.approx(right, abs=1.01 / len(label))
    assert (noted["new_head"], noted["outputs"], noted["labels"]) == (True, 5, True)


def test_the_report_has_before_and_after(converted: Path) -> None:
    summary = json.loads((converted / "eval.json").read_text())
    page = (converted / "report.html").read_text()
    page = page[page.index("Before and after") :]
    noted = summary["conversion"]
    for old, new in zip(noted["before"]["test"]["fixed"], summary["fixed"], strict=True):
        row = f"<td>{100 * old['top1']:.2f}</td><td>{100 * new['top1']:.2f}</td>"
        assert f"<th>fixed {new['resolution']} px</th>{row}" in page
    assert f"<th>adaptive</th><td></td><td>{100 * summary['top1']:.2f}</td>" in page
    (times,) = noted["times"]["milliseconds"]
    assert f"<td>{times['adaptive']:.3g}</td>" in page
    assert noted["times"]["lambda"] == summary["lambda"]
    assert times["batch_size"] == 2 and len(times["fixed"]) == 2
    steps = {"outputs", "head", "pretrain", "joint", "calibration", "timing"}
    assert set(noted["seconds"]) == steps and min(noted["seconds"].values()) > 0
    assert "A new head was fitted" in page and "BatchNorm and the head" in page
    # What is chosen is within the budget on the calibration split.
    calibration = json.loads((converted / "calibration.json").read_text())
    assert summary["lambda"] in [point["lam"] for point in calibration["points"]]


def test_once_more_it_keeps_times_and_minutes(place: Path, converted: Path, tmp_path: Path) -> None:
    """At another budget the choice is timed anew, and not before that is the report's."""
    again = tmp_path / "run"
    shutil.copytree(converted, again)

    def noted() -> Any:
        """Of the copy; with how many benchmarks there are."""
        found = json.loads((again / "conversion.json").read_text())
        return found["times"], found["seconds"], len(list((again / "benchmark").iterdir()))

    times, seconds, benchmarks = noted()
    config = conversion(place, **FIELDS, **{"budget.max_drop": 50.0})
    summary = convert(config, again)
    kept, later, _ = noted()
    assert noted()[2] == benchmarks == 1 and kept == times
    assert [later[name] for name in ("calibration", "timing")] == [
        seconds[name] for name in ("calibration", "timing")
    ]
    assert summary["top1"] == json.loads((converted / "eval.json").read_text())["top1"]
    # What there was no time for is timed.
    note_conversion(again, {"times": kept | {"left_out": [64]}})
    convert(config, again)
    assert noted()[0]["left_out"] == [] and noted()[2] == 2
    convert(conversion(place, **FIELDS), again)
    assert noted()[0]["lambda"] == 0.0 != times["lambda"]
    assert noted()[1]["timing"] > seconds["timing"] and noted()[2] == 3


def test_what_is_frozen_is_the_file_s(converted: Path) -> None:
    trained = final_state(converted)["params"]["classifier"]
    before = random_variables(5)["params"]
    kernels = 0
    for layer, arrays in jax.tree_util.tree_leaves_with_path(before):
        keys = [entry.key for entry in layer]
        if keys[-1] == "kernel" and keys[0] != "fc":
            found = trained
            for key in keys:
                found = found[key]
            np.testing.assert_array_equal(found, arrays)
            kernels += 1
    assert kernels == 6
    assert not np.array_equal(trained["bn1"]["scale_32"], trained["bn1"]["scale_16"])


def test_another_target_from_the_same_training(
    place: Path, converted: Path, tmp_path: Path
) -> None:
    """Stage 2 anew, as the documentation has it: without the weights, which are stage 1's."""
    others = {
        "convert.weights": "",
        "stages": ("joint",),
        "joint.init_from": str(converted),
        "joint.alpha_fraction": 0.6,
        "predictor.objective": "spend",
    }
    train_stages(conversion(place, **FIELDS | others), tmp_path / "run")
    first, again = (
        ocp.load((run / "joint" / "1").resolve()) for run in (converted, tmp_path / "run")
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        again["params"]["classifier"],
        first["params"]["classifier"],
    )
    offset = again["collections"]["fitted"]["predictor"]["offset"]
    assert offset[0] != 0
    np.testing.assert_array_equal(first["collections"]["fitted"]["predictor"]["offset"], [0, 0])


def final_state(workdir: Path) -> Any:
    return ocp.load((workdir / "pretrain" / str(NUM_STEPS)).resolve())


@pytest.mark.parametrize("left", [-1, 0, 3])
def test_it_resumes_from_any_step(
    left: int, place: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the start's checkpoint from the kept features; the end is equal to the bit."""
    resumed = tmp_path / "run"
    shutil.copytree(converted, resumed)
    for name in ("joint", *(f"pretrain/{step}" for step in range(left + 1, NUM_STEPS + 1))):
        shutil.rmtree(resumed / name, ignore_errors=True)
    for name in ("pretrain_finished.json", "joint_finished.json"):
        (resumed / name).unlink()
    train_stages(conversion(place, **FIELDS), resumed)
    jax.tree.map(np.testing.assert_array_equal, final_state(resumed), final_state(converted))
    assert ("train split: outputs from" in capsys.readouterr().out) == (left < 0)


def test_another_file_under_the_same_name(place: Path, converted: Path, tmp_path: Path) -> None:
    """The run would not see it; one that is gone is not needed any more."""
    resumed, weights = tmp_path / "run", tmp_path / "weights.safetensors"
    shutil.copytree(converted, resumed)
    config = conversion(place, **FIELDS | {"convert.weights": str(weights)})
    write_json(resumed / "config.json", flatten(config))
    prepare(config, resumed)
    write_weights(weights, 3)
    with pytest.raises(ConfigError, match="weights.safetensors' is not the file that the run"):
        prepare(config, resumed)
    shutil.copy(place / "weights.safetensors", weights)
    prepare(config, resumed)


def test_names_that_are_corrected_before_the_first_step(place: Path, tmp_path: Path) -> None:
    """Outputs of other columns of the head are not those that are kept."""
    names = tmp_path / "classes.txt"
    config = conversion(place, **FIELDS, **{"convert.classes": str(names)})
    found = []
    for text in ("zero\none\ntwo\nfour\nfive\n", "five\nfour\nzero\none\ntwo\n"):
        names.write_text(text)
        run = import_weights(prepare(config, tmp_path / "run"))
        with np.load(tmp_path / "run" / "imported.npz") as kept:
            found.append(kept["test/logits"])
            # Nothing is fitted to them.
            assert "train/logits" not in kept
        images, _ = seen(config, tmp_path, "test")
        columns = [text.split().index(name) for name in ("one", "two", "zero")]
        want = looks(images, 5)[0][..., columns]
        np.testing.assert_allclose(found[-1], want, atol=1e-3)
        kernel = run.start["params"]["classifier"]["fc"]["kernel"]
        np.testing.assert_array_equal(
            kernel, random_variables(5)["params"]["fc"]["kernel"][:, np.array(columns)]
        )
    assert not np.allclose(*found, atol=1e-2)


def test_a_class_of_unreadable_pictures_gets_no_new_head(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "pictures", tmp_path / "pictures")
    for picture in (tmp_path / "pictures" / "two").iterdir():
        picture.write_bytes(b"no picture")
    fields = {"data.dir": str(tmp_path / "pictures"), "data.max_corrupt": 50}
    with pytest.raises(DataError, match="no training image of class 'two' can be read"):
        train_stages(conversion(place, **FIELDS, **fields), tmp_path / "run")


@pytest.fixture(scope="module")
def unlabelled(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ConfigDict, dict[str, Any], Path]:
    """Configuration, evaluation and workdir of a run whose pictures have no labels.

    15 of the 60 to train with cannot be read.
    """
    folder = tmp_path_factory.mktemp("unlabelled")
    shutil.copytree(place / "pictures", folder / "pictures")
    fields = {"convert.labels": False, "data.dir": str(folder / "pictures")}
    fields |= {"pretrain.schedule": "cosine", "pretrain.train": "auto"}
    config = conversion(place, **FIELDS | fields)
    # A target, as configs/convert.py has.
    config.joint.alpha_fraction = 0.6
    train = DataSplits(data_settings(config, folder)).load("train")
    assert len(train) == 60
    for index in range(15):
        (folder / "pictures" / train.name(index)).write_bytes(b"no picture")
    train_stages(config, folder / "run")
    return config, restore_and_evaluate(config, folder / "run"), folder / "run"


def test_unreadable_pictures_without_labels_shorten_the_epoch(
    unlabelled: tuple[ConfigDict, dict[str, Any], Path],
) -> None:
    """The learning rate ends where the training ends, and resumes there."""
    config, _, workdir = unlabelled
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = {
        x["step"]: x["learning_rate_classifier"] for x in lines if "learning_rate_classifier" in x
    }
    # Of 60 pictures 45 are left, 2 batches of 20 instead of 3.
    base = config.pretrain.base_learning_rate
    want = [base * (1 + np.cos(np.pi * step / 3)) / 2 for step in range(4)]
    assert [rates[step] for step in range(1, 5)] == pytest.approx(want, abs=1e-9)


def test_a_training_that_makes_it_worse_is_not_used(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = conversion(place, **FIELDS, **{"pretrain.base_learning_rate": 30.0})
    train_stages(config, tmp_path)
    assert f"joint: starting from step 0 of {tmp_path / 'pretrain'}" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {
        line["step"]: line["calibration_objective"]
        for line in lines
        if line["stage"] == "pretrain" and "calibration_objective" in line
    }
    before = json.loads((tmp_path / "conversion.json").read_text())["before"]["calibration"]
    assert min(found, key=found.__getitem__) == 0
    assert found[0] == pytest.approx(sum(1 - entry["top1"] for entry in before["fixed"]))
    assert len(found) == 1 + config.pretrain.num_epochs
    (first,) = (line for line in lines if line["step"] == 0)
    fixed = [entry["top1"] for entry in before["fixed"]]
    assert first["calibration_fixed_top1"] == pytest.approx(fixed)


def test_pictures_without_labels(unlabelled: tuple[ConfigDict, dict[str, Any], Path]) -> None:
    """Their labels are what the network says at the largest size; it keeps head and classes."""
    config, summary, workdir = unlabelled
    images, no_label = seen(config, workdir, "test")
    assert not no_label.any()
    logits, _ = looks(images, 5)
    with np.load(workdir / "logits.npz") as kept:
        np.testing.assert_array_equal(kept["test/label"], logits[:, 0].argmax(axis=1))
        choice = kept["calibration/scores"].argmax(axis=1)
    small, large = (entry["gmacs"] for entry in reversed(summary["fixed"]))
    assert np.where(choice == 0, small + large, small).mean() <= 0.6 * large
    noted = summary["conversion"]
    agreement = (logits[:, 1].argmax(axis=1) == logits[:, 0].argmax(axis=1)).mean()
    found = [entry["top1"] for entry in noted["before"]["test"]["fixed"]]
    assert found == pytest.approx([1.0, agreement], abs=1.01 / len(images))
    # Nothing of the largest size is trained.
    assert found[0] == summary["fixed"][0]["top1"] == 1.0
    page = (workdir / "report.html").read_text()
    assert "Trained: BatchNorm at the smaller sizes, nothing of the largest." in page
    assert (noted["new_head"], noted["labels"]) == (False, False)
    assert load_run(workdir).classes == tuple(f"class {index}" for index in range(5))
    said = "top-1 is agreement with the imported network at 32 px, right or wrong, no accuracy"
    assert f"The pictures have no labels: {said}" in page
