"""--mode=export: what the files and the manifest say alone is what the run says in JAX."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from drnet_jax import cli, export, load_classifier, load_run
from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.checkpoints.measured_cost import write_measured
from drnet_jax.config import ConfigError
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.data.sources import DataError
from drnet_jax.export import restore_and_export
from drnet_jax.exports import files as exporter
from drnet_jax.exports.errors import ExportError
from drnet_jax.library import save_pretrained
from drnet_jax.models.macs import MeasuredCost
from drnet_jax.runtime.checked_json import read_json
from tests.random_model import write_run
from tests.small_run import GLANCE, small_config

CLASSES = tuple("0123456789")
KINDS: dict[str, dict[str, Any]] = {
    "pixels, with a max-pool": {
        "model.args": "stage_sizes=(1, 1), width=4, stem='imagenet'",
        "model.resolutions": (48, 32, 16),
        "predictor.size": 24,
        "data.mean": (0.4, 0.5, 0.6),
        "inference.fold": False,
    },
    "one BatchNorm, by time, in bfloat16": {
        "model.resolution_aware": False,
        "joint.cost": "ms",
        "model.dtype": "bfloat16",
    },
    "glance, SAME padding": GLANCE
    | {
        "model.name": "efficientnet_lite0",
        "model.args": "width_multiplier=0.25",
        "model.resolutions": (48, 32),
        "model.reuse": "none",
        "predictor.objective": "correctness",
    },
    "glance with reuse": GLANCE,
    "one resolution": {"model.resolutions": (32,)},
}
ONE = "glance with reuse"


@dataclass
class Case:
    """A run, and what was exported of it."""

    config: Any
    run: Path
    output: Path
    content: dict[str, Any]


def make_run(place: Path, fields: dict[str, Any]) -> Any:
    config = small_config(**fields)
    single = len(config.model.resolutions) == 1
    write_run(config, place / "run", CLASSES, stage="pretrain" if single else "joint")
    if config.joint.cost == "ms":
        write_measured(place / "run", MeasuredCost((0.3, 0.1), 0.25, "here"))
    return config


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    place = tmp_path_factory.mktemp("case")
    config = make_run(place, KINDS[request.param])
    config.export.images = 30
    if request.param == ONE:
        restore_and_calibrate(config, place / "run")
    content = restore_and_export(config, place / "run")
    (place / "elsewhere").mkdir()
    shutil.move(place / "run" / "export", place / "elsewhere")
    return Case(config, place / "run", place / "elsewhere" / "export", content)


def classified(
    folder: Path, images: np.ndarray, lam: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By the manifest alone, image by image: logits, resolutions and multiply-adds."""
    manifest = json.loads((folder / "manifest.json").read_text())
    sessions, roles = {}, {}
    for network in manifest["networks"]:
        path = folder / network["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == network["sha256"]
        assert path.stat().st_size == network["bytes"]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [output.name for output in session.get_outputs()] == network["outputs"]
        (given,) = session.get_inputs()
        assert (given.name, given.shape) == (manifest["input"]["name"], manifest["input"]["shape"])
        sessions[network["role"], network["resolution"]] = session
        roles[network["role"]] = network["resolution"]
    resolutions, costs = manifest["resolutions"], np.array(manifest["cost"]["each"])
    answers, chosen, spent = [], [], []
    for image in images:
        batch = {"images": image[None]}
        choice, first = 0, None
        for role in ("predictor", "first_look"):
            if role in roles:
                found = sessions[role, roles[role]].run(None, batch)
                scores = found[-1][0].astype(np.float64)
                values = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
                choice = int(np.argmax(values - lam * costs))
                first = found[0][0] if role == "first_look" else None
        if first is not None and choice == len(resolutions) - 1:
            answers.append(first)
        else:
            (logits,) = sessions["classifier", resolutions[choice]].run(None, batch)
            weight = manifest["choice"]["first_look_weight"]
            answers.append(logits[0] + (0 if first is None else weight[choice] * first))
        chosen.append(resolutions[choice])
        spent.append(manifest["cost"]["macs"][choice])
    return np.stack(answers), np.array(chosen), np.array(spent)


def test_the_folder_alone_classifies_as_the_run(case: Case) -> None:
    images = compose("train", 12)["image"]
    config = case.config.copy_and_resolve_references()
    run = load_run(case.run)
    classifier = load_classifier(run, image_size=(64, 64), buckets=(1, 4))
    # What is exported computes in float32, and bfloat16 has two digits.
    exact = config.model.dtype == "float32"
    costs = np.array(classifier.cost.choice_costs)
    for lam in (0.0, 8.0):
        expected = classifier.classify(images, lam=lam)
        logits, resolutions, macs = classified(case.output, images, lam)
        same = resolutions == expected.resolutions
        tolerance = 1e-4 if exact else 0.3
        np.testing.assert_allclose(logits[same], expected.logits[same], rtol=0, atol=tolerance)
        np.testing.assert_array_equal(macs[same], expected.macs[same])
        if exact:
            # Deep networks of random weights say nearly the same of all images.
            values = np.sort(expected.scores - lam * costs, axis=1)
            tied = values[:, -1] - values[:, -min(2, len(costs))] < 1e-5
            assert (same | tied & (len(costs) > 1)).all()
            assert same.sum() >= 6


def test_the_manifest(case: Case) -> None:
    found = read_json(case.output / "manifest.json")
    assert found == json.loads(json.dumps(case.content))
    assert found["usable"] and not (case.output / "UNUSABLE.txt").exists()
    assert found["classes"] == list(CLASSES)
    assert found["resolutions"] == list(case.config.model.resolutions)
    assert found["preprocessing"]["inside"]["mean"] == list(case.config.data.mean)
    assert found["preprocessing"]["inside"]["std"] == list(case.config.data.std)
    cost = load_run(case.run).cost
    assert found["cost"]["each"] == list(cost.choice_costs)
    assert found["cost"]["unit"] == cost.unit
    files = [network["file"] for network in found["networks"]]
    assert sorted(path.name for path in case.output.iterdir()) == sorted([*files, "manifest.json"])
    sides = [
        network["resolution"] for network in found["networks"] if "logits" in network["outputs"]
    ]
    assert sorted(sides, reverse=True) == found["resolutions"]
    parity = found["parity"]
    assert parity["num_images"] == 30 and parity["problems"] == []
    assert parity["differences"].keys() == parity["tolerances"].keys()
    for name, difference in parity["differences"].items():
        assert 0 <= difference <= parity["tolerances"][name]
    # Float32's rounding, and not zero: the two were computed apart.
    assert max(parity["differences"].values()) > 0
    path = case.run / "calibration.json"
    if not path.exists():
        assert found["calibration"] is None
        return
    points = read_json(path)["points"]
    assert [point["lambda"] for point in found["calibration"]["points"]] == [
        p["lam"] for p in points
    ]
    assert parity["num_lambdas"] == 1 + len(points)
    assert parity["num_choices"] == 30 * parity["num_lambdas"]
    larger, smaller = cost.choice_costs
    for point, known in zip(found["calibration"]["points"], points, strict=True):
        assert point["threshold"] == pytest.approx(known["lam"] * (larger - smaller))
        assert {n: point[n] for n in ("gmacs", "top1", "shares", "lost", "won")} == {
            n: known[n] for n in ("gmacs", "top1", "shares", "lost", "won")
        }


def nodes(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def attribute(node: onnx.NodeProto, name: str) -> Any:
    (found,) = (attribute for attribute in node.attribute if attribute.name == name)
    return found


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (found,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def swapped_channels(model: onnx.ModelProto) -> None:
    tensor = constant(model, nodes(model, "Conv")[0].input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, ::-1], tensor.name))


def wrong_pad(model: onnx.ModelProto) -> None:
    pads = attribute(nodes(model, "Conv")[0], "pads").ints
    assert list(pads) == [1, 1, 1, 1]
    pads[:] = [2, 2, 0, 0]


def no_pad_of_the_pool(model: onnx.ModelProto) -> None:
    """jax2onnx's: the window starts a row and a column further on."""
    pads = attribute(nodes(model, "MaxPool")[0], "pads").ints
    pads[:] = [0, 0, 2, 2]


def other_mean(model: onnx.ModelProto) -> None:
    tensor = constant(model, nodes(model, "Sub")[0].input[1])
    values = numpy_helper.to_array(tensor) + np.float32(1e-3)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def not_a_number(model: onnx.ModelProto) -> None:
    tensor = constant(model, nodes(model, "Conv")[0].input[1])
    values = np.full_like(numpy_helper.to_array(tensor), np.nan)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize(
    ("broken", "fields", "network"),
    [
        (swapped_channels, {}, "classifier_32"),
        (swapped_channels, {}, "predictor_32"),
        (wrong_pad, {}, "classifier_16"),
        (no_pad_of_the_pool, KINDS["pixels, with a max-pool"], "classifier_32"),
        (other_mean, GLANCE, "first_look_16"),
        (not_a_number, GLANCE, "first_look_16"),
        (not_a_number, GLANCE | {"export.int8": True}, "first_look_16"),
    ],
)
def test_a_broken_export_is_found_and_marked(
    broken: Any,
    fields: dict[str, Any],
    network: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_run(tmp_path, fields)
    whole = exporter.onnx_model

    def export_broken(*args: Any, name: str, **kwargs: Any) -> onnx.ModelProto:
        model = whole(*args, name=name, **kwargs)
        if name == network:
            broken(model)
        return model

    monkeypatch.setattr(exporter, "onnx_model", export_broken)
    monkeypatch.setattr(cli, "logging", Mock())
    monkeypatch.setattr("drnet_jax.runtime.allocator.keep_freed_memory", lambda: None)
    given = cli.parse_flags(["--mode=export", f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(SystemExit) as ended:
        cli._main(config, given)
    assert ended.value.code == 2
    output = tmp_path / "run" / "export"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {output} does not agree with JAX and is marked as unusable: ")
    found = read_json(output / "manifest.json")
    assert not found["usable"]
    assert (output / "UNUSABLE.txt").read_text().splitlines() == found["parity"]["problems"]
    named = "scores" if network.startswith("predictor") else f"logits at {network[-2:]} px"
    assert any(problem.startswith(named) for problem in found["parity"]["problems"])
    monkeypatch.undo()
    # A new folder is asked for: this one is not replaced.
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        restore_and_export(config, tmp_path / "run")


def test_of_one_image_too_every_batch_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run(tmp_path, {"export.images": 1})
    whole = exporter.onnx_model
    with monkeypatch.context() as context:
        context.setattr(exporter, "onnx_model", lambda *a, **k: whole(*a, **k, batch_size=1))
        with pytest.raises(ExportError, match="ONNX Runtime cannot run predictor_32.onnx: "):
            restore_and_export(config, tmp_path / "run")
    assert restore_and_export(config, tmp_path / "run")["parity"]["num_images"] == 1


def test_a_folder_of_a_model_gives_the_same_files(tmp_path: Path) -> None:
    config = make_run(tmp_path, GLANCE)
    expected = restore_and_export(config, tmp_path / "run")
    save_pretrained(load_run(tmp_path / "run"), tmp_path / "folder")
    # Of the configuration only the data count: the model is the folder's.
    other = small_config(**{"export.output": str(tmp_path / "out")})
    other.restore_from = str(tmp_path / "folder")
    found = restore_and_export(other, tmp_path / "nothing")
    for name in ("networks", "classes", "cost", "choice", "model", "input"):
        assert found[name] == expected[name]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (tmp_path / "run" / "export").iterdir()
    )

    other.export.output = str(tmp_path / "another")
    other.data.name = "folder"
    with pytest.raises(ConfigError, match="'digits_on_photos', and data.name='folder' is conf"):
        restore_and_export(other, tmp_path / "nothing")
    other.data.name = "digits_on_photos"
    content = json.loads((tmp_path / "folder" / "config.json").read_text())
    content["classes"][0] = "nought"
    del content["crc32"]
    (tmp_path / "folder" / "config.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="of the classes nought, 1, 2, 3, 4, ..., and the data"):
        restore_and_export(other, tmp_path / "nothing")
    assert not (tmp_path / "another").exists()


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_run(tmp_path, {})
    with monkeypatch.context() as context:
        context.setattr(export, "find_spec", lambda name: None if name == "onnx" else name)
        with pytest.raises(ConfigError, match="needs onnx: pip install -r requirements-export"):
            restore_and_export(config, tmp_path / "run")
    with monkeypatch.context() as context:
        context.setattr("jax.local_devices", Mock(side_effect=RuntimeError("Unknown backend cpu")))
        with pytest.raises(ConfigError, match="on the CPU, which JAX_PLATFORMS leaves out: unset"):
            restore_and_export(config, tmp_path / "run")
    unknown = Mock(side_effect=ExportError("the operation 'fft' of JAX"))
    with monkeypatch.context() as context:
        context.setattr(exporter, "onnx_model", unknown)
        with pytest.raises(ExportError, match="'fft'"):
            restore_and_export(config, tmp_path / "run")
    # Nothing that could be taken for an export.
    assert [path.name for path in (tmp_path / "run").glob("*export*")] == []
    config.data.name, config.data.dir = "folder", str(tmp_path)
    with pytest.raises(ConfigError, match="give --config.export.output a folder outside"):
        restore_and_export(config, tmp_path / "run")
