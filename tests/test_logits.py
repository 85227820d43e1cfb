"""Kept outputs: the figures of an image against scikit-learn, the file, and its key."""

import os
import re
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import log_loss, top_k_accuracy_score

from drnet_jax import evaluate
from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.checkpoints.model_key import model_key
from drnet_jax.checkpoints.restore import RestoredModel
from drnet_jax.config import flatten
from drnet_jax.data.folder import FileReader
from drnet_jax.data.sources import DataError, EncodedSource, Source
from drnet_jax.evaluate import restore_and_evaluate
from drnet_jax.evaluation import inputs as eval_inputs
from drnet_jax.evaluation import logits, metrics
from drnet_jax.evaluation.inputs import ModelOutputs, joined, logits_key, missing, same_names
from drnet_jax.evaluation.logits import Logits, LogitsError
from drnet_jax.evaluation.metrics import record
from drnet_jax.evaluation.outputs import evaluate_logits
from drnet_jax.models.variables import init_variables
from drnet_jax.runtime.sharding import create_mesh, replicated_sharding
from tests.random_model import randomised, write_run
from tests.small_run import small_config
from tests.synthetic import synthetic_logits, synthetic_model


def test_records_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    outputs = synthetic_logits(50, 3, 12)
    records = outputs.records()
    for side in range(3):
        p = softmax(outputs.logits[:, side].astype(float), axis=1)
        labels = np.arange(12)
        assert records.ce[:, side].mean() == pytest.approx(
            log_loss(outputs.label, p, labels=labels), rel=1e-5
        )
        for k, correct in ((1, records.top1), (5, records.answer_top5)):
            expected = top_k_accuracy_score(outputs.label, p, k=k, labels=labels)
            assert correct[:, side].mean() == pytest.approx(expected)
        np.testing.assert_allclose(records.confidence[:, side], p.max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(records.choice, outputs.scores.argmax(axis=1))


def test_margins_and_reused_first_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers have the smallest's logits added; what is said of fixed resolutions has not."""
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    plain = synthetic_logits(60, 3, 9)
    weight = np.array([0.5, 2.0, 0.0], np.float32)
    fixed, reused = plain.records(), replace(plain, weight=weight).records()
    p = np.sort(softmax(plain.logits.astype(float), axis=2), axis=2)
    answers = plain.logits + np.stack([w * plain.logits[:, 2] for w in weight], axis=1)
    rank = (-answers).argsort(axis=2) == plain.label[:, None, None]
    own = np.take_along_axis(softmax(answers, axis=2), plain.label[:, None, None], axis=2)
    for records in (fixed, reused):
        np.testing.assert_array_equal(records.top1, plain.logits.argmax(2) == plain.label[:, None])
        np.testing.assert_allclose(records.margin, p[..., -1] - p[..., -2], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(records.confidence, p[..., -1], rtol=1e-5)
    np.testing.assert_array_equal(fixed.answer_top1, fixed.top1)
    np.testing.assert_array_equal(reused.answer_top1, rank[..., 0])
    np.testing.assert_array_equal(reused.answer_top5, rank[..., :5].any(axis=2))
    np.testing.assert_allclose(reused.ce, -np.log(own[..., 0]), rtol=1e-4, atol=1e-6)
    assert (reused.answer_top1 != reused.top1).any(axis=0).tolist() == [True, True, False]


def test_of_equal_logits_the_first_class_counts() -> None:
    tied = np.array([[[1.0, 1.0, 0.0]], [[1.0, 1.0, 0.0]]], np.float32)
    got = record(tied, np.zeros((2, 1)), np.zeros(1), np.array([0, 1]), np.arange(2))
    assert got.top1.tolist() == [[True], [False]] and got.answer_top5.all()


def test_what_is_not_a_number_is_wrong() -> None:
    broken = np.array([[[np.nan, np.nan]], [[0.0, np.nan]]], np.float32)
    got = record(broken, np.zeros((2, 1)), np.zeros(1), np.array([0, 0]), np.arange(2))
    assert not got.top1.any()


def test_devices_of_joined_outputs_are_named_once() -> None:
    first = replace(synthetic_logits(3, 2, 3), device=np.array("a (JAX 1)"))
    device = np.array("b (JAX 1)")
    both = joined(first, replace(synthetic_logits(1, 2, 3, 1), device=device), [3])
    third = joined(both, replace(synthetic_logits(1, 2, 3, 2), device=device), [4])
    assert str(both.device) == str(third.device) == "a (JAX 1); b (JAX 1)"
    assert third.index.tolist() == [0, 1, 2, 3, 4]


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "logits.npz"
    outputs = synthetic_logits(5, 2, 3)
    with pytest.raises(LogitsError, match="is missing"):
        logits.load(path, "a", "test")
    logits.save(path, "a", "test", outputs)
    logits.save(path, "a", "test", outputs)
    assert logits.load(path, "a", "calibration") is None
    logits.save(path, "a", "calibration", synthetic_logits(4, 2, 3, 1))
    found, other = logits.load(path, "a", "test"), logits.load(path, "a", "calibration")
    assert found is not None and other is not None and len(other.index) == 4
    np.testing.assert_array_equal(found.logits, outputs.logits)
    np.testing.assert_array_equal(found.name, outputs.name)
    with pytest.raises(LogitsError, match=r"of another checkpoint or other data \(a; now b\)"):
        logits.load(path, "b", "test")
    # What is of another checkpoint does not stay beside what is of this one.
    logits.save(path, "b", "calibration", outputs)
    assert logits.load(path, "b", "test") is None
    whole = path.read_bytes()
    with ZipFile(content := BytesIO(), "w") as archive:
        # The dictionary is not closed.
        archive.writestr("key.npy", b"\x93NUMPY\x01\x00\x0c\x00{'descr': 12")
    for damaged in (whole[:200], b"", content.getvalue()):
        path.write_bytes(damaged)
        with pytest.raises(LogitsError, match="is damaged"):
            logits.load(path, "b", "test")


def test_the_model_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Later evaluations, calibrations and budgets come from the file, until the checkpoint changes;
    the figures are the same."""
    config = small_config()
    classes = tuple("0123456789")
    write_run(config, tmp_path, classes)
    first = restore_and_evaluate(config, tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was run again")

    with monkeypatch.context() as patch:
        patch.setattr(eval_inputs, "evaluate_logits", forbidden)
        again = restore_and_evaluate(config, tmp_path)
        assert again == first
        cheap = 1.05 * first["fixed"][-1]["gmacs"] + first["gmacs"] - first["gmacs_classifier"]
        budget = small_config(**{"budget.gmacs": cheap})
        restore_and_calibrate(budget, tmp_path)
        assert restore_and_evaluate(budget, tmp_path)["gmacs"] < first["gmacs"]
        # Fewer images.
        with pytest.raises(AssertionError, match="run again"):
            restore_and_evaluate(small_config(**{"data.eval_images": 50}), tmp_path)
    write_run(config, tmp_path, classes, step=2)
    capsys.readouterr()
    restore_and_evaluate(config, tmp_path)
    assert "of another checkpoint or other data" in capsys.readouterr().out


def encoded(folder: Path, count: int = 4) -> EncodedSource:
    """Pictures of two classes in a folder."""
    folder.mkdir()
    for index in range(count):
        Image.fromarray(np.full((20, 20, 3), 40 * index, np.uint8)).save(folder / f"{index}.png")
    reader = FileReader(tuple(folder / f"{index}.png" for index in range(count)))
    labels = np.arange(count, dtype=np.int32) % 2
    return EncodedSource(reader, np.arange(count), labels, "all", 16, (0.1, 1.0), 1.0)


def kept(source: EncodedSource, rows: list[int]) -> Logits:
    """Outputs for some images of a source."""
    names = np.array([source.name(row) for row in rows])
    versions = np.array([source.version(row) for row in rows])
    zeros = np.zeros((len(rows), 2), np.float32)
    index = np.array(rows, np.int32)
    facts = names, versions, np.array("none")
    return Logits(zeros[..., None], zeros, zeros[0], source.labels[index], index, *facts)


def test_outputs_are_used_for_the_very_same_names_only(tmp_path: Path) -> None:
    source = encoded(tmp_path / "a")
    assert same_names(kept(source, [0, 1, 2, 3]), source)
    assert not same_names(kept(encoded(tmp_path / "b"), [0, 1, 2, 3]), source)
    relabelled = replace(source, labels=source.labels[::-1])
    assert not same_names(kept(source, [0, 1, 2, 3]), relabelled)
    # An image is missing: it was corrupt then.
    some = kept(source, [0, 1, 3])
    assert same_names(some, source) and missing(some, source).tolist() == [2]


@pytest.mark.parametrize("split", ["test", "calibration"])
def test_corrupt_images_cost_no_other_image_its_outputs(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(**{"model.resolutions": (16,), "eval.batch_size": 4})
    trained = random_model(config, tmp_path / "run")
    source = encoded(tmp_path / "pictures", 7)
    whole = ModelOutputs(config, tmp_path / "whole", trained).of(split, source)
    damaged = [(path := Path(source.name(index)), path.read_bytes()) for index in (2, 5)]
    for path, _ in damaged:
        path.write_bytes(b"no picture")
    ran: list[int] = []

    def counted(step: Any, variables: Any, source: Source, **further: Any) -> Logits:
        ran.append(len(source))
        return evaluate_logits(step, variables, source, **further)

    monkeypatch.setattr(eval_inputs, "evaluate_logits", counted)
    for _ in range(2):
        words = "2 images cannot be read: .*2.png, .*5.png .the first: it is no picture.*; repair"
        with pytest.raises(DataError, match=words):
            ModelOutputs(config, tmp_path, trained).of(split, source)
    assert ran == [7]
    skipping = small_config(**flatten(config) | {"data.skip_corrupt": True})
    skipped = ModelOutputs(skipping, tmp_path, trained).of(split, source)
    assert skipped.index.tolist() == [0, 1, 3, 4, 6] and ran == [7]
    np.testing.assert_array_equal(skipped.logits, whole.logits[skipped.index])
    # One is repaired, then the other: of each of them alone the outputs are new.
    for path, content in damaged:
        path.write_bytes(content)
        found = ModelOutputs(skipping, tmp_path, trained).of(split, source)
    assert ran == [7, 1, 1]
    assert ModelOutputs(config, tmp_path, trained).of(split, source).index.tolist() == [*range(7)]
    assert ran == [7, 1, 1]
    for field in fields(Logits):
        if field.name != "version":
            np.testing.assert_array_equal(getattr(found, field.name), getattr(whole, field.name))


def test_corrupt_calibration_images_of_the_controls_are_named_and_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = encoded(tmp_path / "pictures", 4)

    class Outputs:
        """Of all images but two."""

        def of(self, split: str, source: Source, *, skip_corrupt: bool) -> Logits:
            assert split == "calibration" and skip_corrupt
            return replace(kept(source, [0, 3]), logits=np.zeros((2, 1, 10), np.float32))

    monkeypatch.setattr(evaluate, "load_split", lambda *_: source)
    arguments: Any = tmp_path, None, Outputs(), None
    found = evaluate._calibration(small_config(**{"data.max_corrupt": 2}), *arguments)
    assert found.index.tolist() == [0, 3]
    words = r"2 calibration images cannot be read \(.*1.png, .*2.png\)"
    assert re.search(words + ": the controls are computed without", capsys.readouterr().out)
    with pytest.raises(DataError, match=words + ", more than data.max_corrupt=1: repair them"):
        evaluate._calibration(small_config(**{"data.max_corrupt": 1}), *arguments)


def test_pictures_replaced_under_their_names_are_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They alone; on a copy with other times, everything. Their labels would be those of before."""
    config = small_config(**{"model.resolutions": (16,), "eval.batch_size": 4})
    trained = random_model(config, tmp_path / "run")
    source = encoded(tmp_path / "pictures", 7)
    ran: list[int] = []

    def counted(step: Any, variables: Any, source: Source, **further: Any) -> Logits:
        ran.append(len(source))
        return evaluate_logits(step, variables, source, **further)

    monkeypatch.setattr(eval_inputs, "evaluate_logits", counted)
    outputs = ModelOutputs(config, tmp_path, trained)
    first = outputs.of("test", source)
    # Of the same size in bytes, and the other way round.
    paths = [Path(source.name(index)) for index in (2, 5)]
    contents = [path.read_bytes() for path in paths]
    assert len(contents[0]) == len(contents[1]) and contents[0] != contents[1]
    for path, content in zip(paths, contents[::-1], strict=True):
        path.write_bytes(content)
    swapped = outputs.of("test", source)
    assert ran == [7, 2]
    order = [0, 1, 5, 3, 4, 2, 6]
    np.testing.assert_array_equal(swapped.logits, first.logits[order])
    # As a copy has them; and a picture that is damaged now.
    for index in range(7):
        os.utime(source.name(index), ns=(1, 1))
    Path(source.name(3)).write_bytes(b"no picture")
    capsys.readouterr()
    skipping = small_config(**flatten(config) | {"data.skip_corrupt": True})
    rest = ModelOutputs(skipping, tmp_path, trained).of("test", source)
    assert ran == [7, 2, 7] and rest.index.tolist() == [0, 1, 2, 4, 5, 6]
    assert "of other images of the test split: computed anew" in capsys.readouterr().out


def random_model(config: ConfigDict, origin: Path) -> RestoredModel:
    """Of two classes, with random weights, without a checkpoint."""
    trained = synthetic_model(config, ("a", "b"), origin)
    mesh = create_mesh()
    variables = randomised(init_variables(trained.model, jax.random.key(0)), 0)
    variables = jax.device_put(variables, replicated_sharding(mesh))
    facts = {field.name: getattr(trained, field.name) for field in fields(trained)}
    return RestoredModel(**facts, variables=variables, mesh=mesh)


def test_the_place_of_the_images_counts() -> None:
    trained = synthetic_model(small_config(), ("a", "b"), Path("run"))
    keys = {logits_key(small_config(**{"data.dir": place}), trained) for place in ("", "a", "b")}
    assert len(keys) == 3


def key_of(**fields: Any) -> str:
    """Of a model that was trained with these fields; `...`: before there was such a field."""
    trained = synthetic_model(small_config(), ("a", "b"), Path("run"))
    stored = {n: v for n, v in (trained.config | fields).items() if v is not ...}
    return model_key(small_config(), replace(trained, config=stored))


@pytest.mark.parametrize(
    "fields",
    [
        *({"log.every_steps": 50}, {"log.tensorboard": True}, {"eval.gallery": 3}),
        *({"eval.batch_size": 8}, {"checkpoint.keep_latest": 5}, {"inference.fold": False}),
        *({"budget.gmacs": 1.0}, {"benchmark.repeats": 9}, {"predict.gallery": 1}),
        *({"report.runs": ["a"]}, {"data.dir": "moved"}, {"data.num_workers": 2}),
        *({"data.max_corrupt": 3}, {"data.skip_corrupt": True}, {"model.remat": True}),
        *({"model.stock_operations": True}, {"joint.clip_norm": ...}),
    ],
    ids=str,
)
def test_what_does_not_change_a_model_leaves_its_key_alone(fields: dict[str, Any]) -> None:
    assert key_of(**fields) == key_of()


def test_what_changes_a_model_changes_its_key() -> None:
    changes = [{"seed": 1}, {"joint.eta": 0.9}, {"data.flip": True}, {"pretrain.num_epochs": 9}]
    changes += [{"data.crop_scale": [0.5, 1.0]}, {"model.statistics": "routed"}, {}]
    assert len({key_of(**fields) for fields in changes}) == len(changes)
