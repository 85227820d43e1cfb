"""Programs with fixed places as ONNX files: by their manifest alone, against words of Python."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from drnet_jax import load_classifier, load_run
from drnet_jax.budgets.calibration import BudgetError
from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.config import ConfigError
from drnet_jax.config_checks import check_config
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.export import restore_and_export
from drnet_jax.exports import fixed, fixed_parity
from drnet_jax.exports.errors import ExportError
from drnet_jax.inference import batches
from drnet_jax.runtime.checked_json import read_json
from tests.small_run import GLANCE, small_config
from tests.test_capacity import by_hand
from tests.test_export import attribute, make_run, nodes, swapped_channels

KINDS: dict[str, dict[str, Any]] = {
    "pixels": {"model.resolutions": (48, 32, 16), "predictor.size": 24},
    "glance": GLANCE | {"model.resolutions": (48, 32, 16)},
}
BATCH = 8


@dataclass
class Case:
    """A run, what was exported of it, and what JAX says of images."""

    config: Any
    run: Path
    manifest: dict[str, Any]
    images: np.ndarray
    scores: np.ndarray
    answers: np.ndarray

    def session(self, batch: int, **options: Any) -> onnxruntime.InferenceSession:
        """Of the file for batches of this size."""
        (entry,) = (entry for entry in self.manifest["fixed"] if entry["batch"] == batch)
        path = self.run / "export" / entry["file"]
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"], **options)

    @property
    def values(self) -> np.ndarray:
        """`[n, m]`: by score minus lambda times cost."""
        lam = self.manifest["fixed"][0]["lambda"]
        return self.scores - lam * np.array(self.manifest["cost"]["each"])


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    place = tmp_path_factory.mktemp("case")
    config = make_run(place, KINDS[request.param])
    restore_and_calibrate(config, place / "run")
    # So that the budget is best kept by that point itself, where all three are chosen.
    point = rewritten(place / "run", lambda point: {"top1": 1 / (1 + abs(point["lam"]))})
    config.export.update({"fixed_batches": (1, BATCH), "images": 20})
    config.budget.gmacs = point["gmacs"]
    content = restore_and_export(config, place / "run")
    images = compose("train", 60)["image"]
    engine = load_classifier(load_run(place / "run"), image_size=(64, 64), buckets=(1, 16))
    scores, logits = engine._array_engine().classify_everywhere(images)
    weight = content["choice"]["first_look_weight"]
    answers = logits if weight is None else logits + np.array(weight)[:, None] * logits[:, -1:]
    if weight is not None:
        answers[:, -1] = logits[:, -1]
    return Case(config, place / "run", content, images, scores, answers)


def rewritten(run: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Changes all points of a calibration; that of the smallest lambda above zero."""
    path = run / "calibration.json"
    content = read_json(path)
    for point in content["points"]:
        point |= change(point)
    path.write_text(json.dumps(content))
    return next(point for point in content["points"] if point["lam"] > 0)


def run(session: onnxruntime.InferenceSession, images: np.ndarray, fill: int = 0) -> Any:
    """Choices, logits and scores of the images; of a batch that is not full, padded."""
    n = len(images)
    inputs = {"images": np.full((BATCH, *images.shape[1:]), fill, np.uint8)}
    inputs["images"][:n] = images
    found = session.run(None, inputs | {"count": np.array(n, np.int32)})
    return [output[:n] for output in found]


@pytest.mark.parametrize("count", [0, 1, 5, BATCH])
def test_places_by_the_rule_and_answers_of_jax(case: Case, count: int) -> None:
    session = case.session(BATCH)
    (entry,) = (entry for entry in case.manifest["fixed"] if entry["batch"] == BATCH)
    for seed in range(6):
        rows = np.random.default_rng(seed).permutation(60)[:count]
        choices, logits, scores = run(session, case.images[rows], fill=seed)
        np.testing.assert_allclose(scores, case.scores[rows], rtol=0, atol=1e-5)
        expected = np.array(by_hand(case.values[rows], entry["capacities"], count), int)
        np.testing.assert_array_equal(choices, expected)
        np.testing.assert_allclose(logits, case.answers[rows, choices], rtol=0, atol=1e-4)


def test_one_image_gets_what_it_chooses(case: Case) -> None:
    session = case.session(1)
    (given,) = session.get_inputs()
    assert (given.name, given.shape) == ("images", [1, 64, 64, 3])
    expected = case.values.argmax(1)
    assert set(expected) == {0, 1, 2}
    for row in range(30):
        choices, logits, _ = session.run(None, {"images": case.images[[row]]})
        assert choices.tolist() == [expected[row]]
        np.testing.assert_allclose(logits[0], case.answers[row, choices[0]], rtol=0, atol=1e-4)


def test_as_the_same_program_in_jax(case: Case) -> None:
    """And as the manifest has it: lambda and shares of the budget."""
    entry = case.manifest["fixed"][1]
    point = load_classifier(load_run(case.run)).calibration.for_gmacs(case.config.budget.gmacs)
    assert (entry["lambda"], entry["shares"]) == (point.lam, list(point.shares))
    assert entry["budget"] == {"gmacs": case.config.budget.gmacs}
    classifier = load_classifier(load_run(case.run), image_size=(64, 64))
    fused = classifier.fused(BATCH, shares=point.shares, lam=point.lam)
    assert entry["capacities"] == list(fused.capacities or ())
    for rows in (np.arange(BATCH), np.arange(20, 23)):
        expected = fused.classify(case.images[rows])
        choices, logits, _ = run(case.session(BATCH), case.images[rows])
        np.testing.assert_array_equal(choices, expected.choices)
        np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=1e-4)


def test_only_the_branch_that_is_taken_runs(case: Case, tmp_path: Path) -> None:
    """Counted by ONNX Runtime's profile: the convolutions of one classifier."""
    counted = {}
    for choice in range(3):
        row = np.flatnonzero(case.values.argmax(1) == choice)[0]
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / str(choice))
        session = case.session(1, sess_options=options)
        session.run(None, {"images": case.images[[row]]})
        events = json.loads(Path(session.end_profiling()).read_text())
        counted[choice] = sum(
            event.get("cat") == "Node" and event["args"].get("op_name", "").endswith("Conv")
            for event in events
        )
    # A classifier has 1 + 2 + 3 of them, the predictor 1 + 2; a first look is a classifier.
    glances = case.manifest["choice"]["first_look_weight"] is not None
    assert counted == ({0: 12, 1: 12, 2: 6} if glances else {0: 9, 1: 9, 2: 9})


def test_the_manifest(case: Case) -> None:
    assert case.manifest["usable"] and case.manifest["parity"]["problems"] == []
    names = {path.name for path in (case.run / "export").iterdir()}
    one, several = case.manifest["fixed"]
    assert (one["batch"], one["capacities"], one["macs"]) == (1, None, None)
    assert (one["inputs"], several["inputs"]) == (["images"], ["images", "count"])
    assert sum(several["capacities"]) == several["batch"] == BATCH
    each = case.manifest["cost"]["macs"]
    spent = zip(several["capacities"], each, strict=True)
    assert several["macs"] == sum(places * macs for places, macs in spent)
    for entry in (one, several):
        content = (case.run / "export" / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(content) == entry["bytes"] and entry["file"] in names
        assert entry["outputs"] == ["choices", "logits", "scores"]
        assert max(entry["parity"]["differences"].values()) > 0
    # 20 images: in three full batches, and four in one that is not.
    assert several["parity"]["num_choices"] == 3 * BATCH + BATCH // 2
    assert one["parity"]["num_choices"] == 20


def worst_first(model: onnx.ModelProto) -> None:
    for node in nodes(model, "TopK"):
        attribute(node, "largest").i = 1


def all_are_real(model: onnx.ModelProto) -> None:
    """The count is not asked for."""
    count = numpy_helper.from_array(np.array(BATCH, np.int32), "eight")
    model.graph.initializer.append(count)
    for node in model.graph.node:
        node.input[:] = ["eight" if name == "count" else name for name in node.input]


def other_answers(model: onnx.ModelProto) -> None:
    """Those of one resolution go to the first images, whoever has its places."""
    (node, *_) = reversed(nodes(model, "ScatterND"))
    rows = numpy_helper.from_array(np.arange(2)[:, None], "first_rows")
    model.graph.initializer.append(rows)
    node.input[1] = "first_rows"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (worst_first, r"fixed_8: \d+ of 28 choices differ"),
        (all_are_real, r"fixed_8: \d of 28 choices differ"),
        (other_answers, "fixed_8: logits differ by"),
        (swapped_channels, "fixed_8: (scores|logits|.* choices) differ"),
    ],
)
def test_a_broken_program_is_found_and_marked(
    broken: Callable[[onnx.ModelProto], None],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_run(tmp_path, {})
    restore_and_calibrate(config, tmp_path / "run")
    rewritten(tmp_path / "run", lambda point: {"shares": [0.75, 0.25]})
    config.export.update({"fixed_batches": (BATCH,), "images": 24})
    whole = fixed.onnx_model

    def export_broken(*args: Any, **kwargs: Any) -> onnx.ModelProto:
        model = whole(*args, **kwargs)
        broken(model)
        return model

    monkeypatch.setattr(fixed, "onnx_model", export_broken)
    with pytest.raises(ExportError, match=f"marked as unusable: {words}"):
        restore_and_export(config, tmp_path / "run")
    found = read_json(tmp_path / "run" / "export" / "manifest.json")
    assert not found["usable"] and found["fixed"][0]["parity"]["problems"]
    said = (tmp_path / "run" / "export" / "UNUSABLE.txt").read_text().splitlines()
    assert said == found["parity"]["problems"]


@pytest.mark.parametrize(
    ("distance", "choices", "ties", "wrong"),
    [
        (2e-6, [1, 0, 1], 2, 0),
        (2e-5, [1, 0, 1], 0, 2),
        # Not by the rule for its own scores.
        (0.0, [1, 1, 1], 0, 1),
        (np.nan, [1, 0, 1], 0, 2),
    ],
)
def test_ties(
    distance: float,
    choices: list[int],
    ties: int,
    wrong: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two images of one score: which of them gets the place is rounding's to say."""
    scores = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    found = scores.copy()
    found[1, 0] += distance
    answers = np.zeros((3, 4), np.float32)
    expected = SimpleNamespace(choices=np.array([0, 1, 1]), scores=scores, logits=answers)
    program: Any = SimpleNamespace(
        batch=3,
        inputs=("images", "count"),
        choose=lambda given, n: np.array(by_hand(given - np.zeros(2), (1, 2), n)),
    )
    outputs = {"choices": np.array(choices), "scores": found, "logits": answers}
    monkeypatch.setattr(fixed_parity, "onnx_runtime", lambda path: lambda inputs: outputs)
    monkeypatch.setattr(fixed_parity, "_batches", lambda images, batch: [images])
    engine: Any = SimpleNamespace(classify=lambda images: expected)
    agreement = fixed_parity.compare_fixed(
        engine,
        program,
        Path("x"),
        np.zeros((3, 4, 4, 3), np.uint8),
    )
    assert agreement.num_ties == ties
    said = [f"{wrong} of 3 choices differ"] if wrong else []
    assert [text for text in agreement.problems if "choices" in text] == said


def test_what_it_is_made_for(tmp_path: Path) -> None:
    """Without a budget lambda 0; places need a calibration, one image of lambda 0 does not."""
    config = make_run(tmp_path, {})
    config.export.update({"fixed_batches": (1, 4), "images": 2})
    with pytest.raises(BudgetError, match="run --mode=calibrate"):
        restore_and_export(config, tmp_path / "run")
    config.export.fixed_batches = (1,)
    config.budget.gmacs = 1.0
    with pytest.raises(BudgetError, match="run --mode=calibrate"):
        restore_and_export(config, tmp_path / "run")
    assert not (tmp_path / "run" / "export").exists()
    config.budget.gmacs = None
    (entry,) = restore_and_export(config, tmp_path / "run")["fixed"]
    assert (entry["lambda"], entry["shares"], entry["budget"]) == (0, None, {})
    restore_and_calibrate(config, tmp_path / "run")
    config.export.update({"fixed_batches": (4,), "output": str(tmp_path / "out")})
    (entry,) = restore_and_export(config, tmp_path / "run")["fixed"]
    points = read_json(tmp_path / "run" / "calibration.json")["points"]
    (expected,) = (point["shares"] for point in points if point["lam"] == 0)
    assert (entry["lambda"], entry["shares"], entry["budget"]) == (0, expected, {})


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fields, words in (
        ({"export.fixed_batches": (8, 1, 8)}, r"fixed_batches=\(8, 1, 8\) must name no size twice"),
        ({"export.fixed_batches": (0,)}, "which must lie in"),
        ({"budget.gmacs": 1.0}, "budget.gmacs is of programs with fixed places"),
        ({"budget.ms": 1.0, "export.fixed_batches": (1,)}, "budget.ms is the time of JAX's"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_config(small_config(**fields), 1, "export")
    config = make_run(tmp_path, {})
    with monkeypatch.context() as context:
        context.setattr(batches, "device_memory", lambda: 10**6)
        config.export.fixed_batches = (1, 512)
        with pytest.raises(ConfigError, match=r"fixed_batches=\(1, 512\): 512 images of 64x64 px"):
            restore_and_export(config, tmp_path / "run")
    config = make_run(tmp_path / "single", {"model.resolutions": (32,)})
    config.export.fixed_batches = (4,)
    with pytest.raises(ConfigError, match=r"fixed_batches=\(4,\) is of models that choose"):
        restore_and_export(config, tmp_path / "single" / "run")
    assert not list(tmp_path.glob("**/export"))
