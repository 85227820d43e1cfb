"""Pruning, end to end: a training, a pruned one from it, and whatever is done with that one."""

import json
import shutil
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from drnet_jax import AdaptiveClassifier, load_classifier, load_run
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.restore import read_classes, write_data
from drnet_jax.checkpoints.runs import is_finished
from drnet_jax.config import SPLITS, ConfigError
from drnet_jax.convert import convert
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.data.sources import DataError
from drnet_jax.evaluate import restore_and_evaluate, restore_and_evaluate_bucketed
from drnet_jax.library import save_pretrained
from drnet_jax.train import prepare, train_and_evaluate, train_stages
from tests.small_run import GLANCE, small_config
from tests.test_pruning import by_definition

RATES = (0.5, 0.25)
# Of 4 and 8, which the two stages of the small run have.
LEFT = {"layer1_0": 2, "layer2_0": 6}
NUM_STEPS = 16


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage 1, with moving averages."""
    workdir = tmp_path_factory.mktemp("origin")
    train_stages(small_config(stages=("pretrain",), **{"pretrain.ema_decay": 0.5}), workdir)
    return workdir


def pruned(origin: Path, **further: Any) -> ConfigDict:
    fields = {
        "model.pruning_rates": RATES,
        "pretrain.init_from": str(origin),
        "pretrain.pruning_criterion": "l1",
        "checkpoint.keep_latest": 9,
    }
    return small_config(**fields | further)


@pytest.fixture(scope="module")
def run(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pruned, fine-tuned, and with a predictor trained on it."""
    workdir = tmp_path_factory.mktemp("run")
    train_and_evaluate(pruned(origin), workdir)
    return workdir


def state(workdir: Path, stage: str, step: int) -> Any:
    return ocp.load((workdir / stage / str(step)).resolve())


def test_it_starts_from_the_filters_that_are_left(origin: Path, run: Path) -> None:
    """Step 0 has those of the moving averages, and every resolution's BatchNorm of them."""
    averages = state(origin, "pretrain", NUM_STEPS)["ema"]
    before, after = (
        {
            path: np.asarray(leaf)
            for part in ("params", "collections")
            for path, leaf in flax.traverse_util.flatten_dict({part: found[part]}).items()
        }
        for found in (averages, state(run, "pretrain", 0))
    )
    assert before.keys() == after.keys()
    norms = 0
    for path, leaf in before.items():
        block, layer = path[-3], path[-2]
        if block in LEFT:
            kernel = before["params", "classifier", block, "conv1", "kernel"]
            kept = by_definition(kernel, "l1", LEFT[block])
            if layer in ("conv1", "bn1"):
                leaf = leaf[..., kept]
                norms += layer == "bn1"
            elif layer == "conv2":
                leaf = leaf[:, :, kept]
        np.testing.assert_array_equal(after[path], leaf, err_msg=str(path))
    # Of two blocks and two resolutions: mean, variance, scale and bias.
    assert norms == 16


def test_its_cost_is_what_is_left(run: Path) -> None:
    """By hand, at 32 and at 16 px: stem, two blocks, the second one's shortcut, the last layer."""
    summary = json.loads((run / "eval.json").read_text())
    stem, first, second = 27 * 4, 2 * 9 * 4 * 2, 9 * 4 * 6 + 9 * 6 * 8 + 4 * 8
    want = [positions * (16 * stem + 16 * first + 4 * second) + 80 for positions in (16, 4)]
    assert [entry["gmacs"] for entry in summary["fixed"]] == pytest.approx(
        [macs / 1e9 for macs in want]
    )
    assert is_finished(run, "pretrain") and is_finished(run, "joint")


def test_dispatch_and_a_folder(origin: Path, run: Path, tmp_path: Path) -> None:
    dense = json.loads((run / "eval.json").read_text())
    bucketed = restore_and_evaluate_bucketed(pruned(origin), run)
    for name in ("num_images", "top1", "top5", "shares"):
        assert bucketed[name] == dense[name], name
    images = compose("test", 9)["image"][:, 16:48, 16:48]
    save_pretrained(load_run(run), tmp_path / "folder")
    named = "resnet pruned by 0.5/0.25"
    assert named in (run / "report.html").read_text()
    assert f"Network: {named}" in (tmp_path / "folder" / "README.md").read_text()
    found = AdaptiveClassifier.from_pretrained(tmp_path / "folder").classify(images)
    want = load_classifier(load_run(run)).classify(images)
    np.testing.assert_array_equal(found.logits, want.logits)


def test_another_network_is_not_this_one(origin: Path, run: Path) -> None:
    for rates in ((), (0.5, 0.5)):
        with pytest.raises(CheckpointError, match=r"model.pruning_rates: \[0.5, 0.25\] -> "):
            restore_and_evaluate(pruned(origin, **{"model.pruning_rates": rates}), run)


def test_it_goes_on_without_the_run_it_came_from(origin: Path, run: Path, tmp_path: Path) -> None:
    """From step 0; the end is equal to the bit."""
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    for name in ("joint", *(f"pretrain/{step}" for step in range(1, NUM_STEPS + 1))):
        shutil.rmtree(resumed / name, ignore_errors=True)
    for name in ("pretrain_finished.json", "joint_finished.json"):
        (resumed / name).unlink()
    hidden = origin.with_name("hidden")
    origin.rename(hidden)
    try:
        train_stages(pruned(origin), resumed)
    finally:
        hidden.rename(origin)
    for stage in ("pretrain", "joint"):
        jax.tree.map(
            np.testing.assert_array_equal,
            state(resumed, stage, NUM_STEPS),
            state(run, stage, NUM_STEPS),
        )


def test_a_first_look_on_it(origin: Path, run: Path, tmp_path: Path) -> None:
    """Stage 2 alone, with the fields of the run that it starts from."""
    fields = {**GLANCE, "predictor.objective": "correctness", "joint.alpha_fraction": None}
    fields |= {"stages": ("joint",), "joint.init_from": str(run), "eval.controls": False}
    summary = train_and_evaluate(pruned(origin, **fields), tmp_path / "run")
    small, large = (entry["gmacs"] for entry in reversed(summary["fixed"]))
    assert 0.99 * small <= summary["gmacs"] <= 1.01 * (small + large)


def test_further_pruning(origin: Path, run: Path, tmp_path: Path) -> None:
    """From a pruned run, and not back."""
    further = {"pretrain.init_from": str(run), "stages": ("pretrain",)}
    prepare(pruned(origin, **further | {"model.pruning_rates": (0.5, 0.75)}), tmp_path / "more")
    for rates in ((), (0.5, 0.0), (0.25, 0.75)):
        config = pruned(origin, **further | {"model.pruning_rates": rates})
        words = rf"wants filters that {run} lacks, which was trained with \(0.5, 0.25\)"
        with pytest.raises(ConfigError, match=words):
            prepare(config, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_what_it_cannot_start_from(origin: Path, tmp_path: Path) -> None:
    """Each is one error before anything is written."""
    other = tmp_path / "other"
    shutil.copytree(origin, other)
    write_data(other, read_classes(origin), dict.fromkeys(SPLITS, "other images"))
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"pretrain.init_from": str(tmp_path)}, CheckpointError, "no finished stage 1 in"),
        (
            {"model.args": "stage_sizes=(1, 1), width=8, stem='small'"},
            CheckpointError,
            "holds another model than the configured one",
        ),
        ({"model.resolutions": (32, 24)}, CheckpointError, r"model.resolutions: \[32, 16\] ->"),
        ({"pretrain.init_from": str(other)}, DataError, "images of train and calibration and test"),
    ]
    for fields, error, words in cases:
        with pytest.raises(error, match=words):
            prepare(pruned(origin, **fields), tmp_path / "run")
    with pytest.raises(ConfigError, match="--mode=convert needs weights"):
        convert(pruned(origin), tmp_path / "run")
    assert not (tmp_path / "run").exists()
