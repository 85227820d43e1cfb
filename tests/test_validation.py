"""What an epoch is validated by is reduced on the devices, and is what the host makes of logits."""

from dataclasses import fields
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from drnet_jax.checkpoints.finite import NotFiniteError
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.pipeline import abstract_eval_batch
from drnet_jax.data.settings import DataSettings
from drnet_jax.evaluation import outputs
from drnet_jax.evaluation.judging import judge
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.evaluation.outputs import evaluate, evaluate_logits, judged, make_eval_step
from drnet_jax.models.create import create_model
from drnet_jax.models.variables import abstract_variables, init_variables
from drnet_jax.runtime.sharding import batch_sharding, create_mesh
from tests.random_model import randomised
from tests.small_run import small_config

SHALLOW: dict[str, Any] = {
    "model.name": "resnet",
    "model.args": "stage_sizes=(1,), width=4, stem=small",
    "model.resolutions": (32, 24, 16),
    "predictor.size": 16,
}
REUSE = {"predictor.kind": "glance", "model.reuse": "logits"}


@pytest.mark.parametrize("further", [{}, REUSE])
def test_records_are_those_of_the_logits_and_only_they_cross(
    further: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On four devices, the last batch padded. Records of logits are tested in `test_logits.py`."""
    config = small_config(**SHALLOW | further)
    model = create_model(config, 10)
    source = DataSplits(DataSettings("digits_on_photos", eval_images=50)).load("test")
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    variables: Any = randomised(init_variables(model, jax.random.key(0)), 3)
    step = make_eval_step(model, mean, std)
    given: Any = {"batch_size": 32, "mesh": create_mesh()}
    expected = evaluate_logits(step, variables, source, **given, checkpoint=None).records()

    crossed: list[int] = []
    gather = multihost_utils.process_allgather

    def counted(tree: Any, **options: Any) -> Any:
        crossed.append(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        return gather(tree, **options)

    monkeypatch.setattr(outputs.multihost_utils, "process_allgather", counted)
    found = evaluate(step, variables, source, **given)
    assert crossed == [32 * (19 * 3 + 15)] * 2
    for field in fields(EvalRecords):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if ours is not None and ours.dtype == np.float32:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=field.name)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
    assert len(set(found.choice.tolist())) > 1
    assert (found.answer_top1 != found.top1).any() == bool(further)

    variables["params"]["classifier"]["fc"]["bias"] += np.float32(np.inf)
    with pytest.raises(NotFiniteError, match="not finite for image 0, image 1, .*, [.]{3}$"):
        evaluate(step, variables, source, **given)


@pytest.mark.parametrize("under_jit", [False, True])
def test_a_tie_a_nan_and_a_single_class(under_jit: bool) -> None:
    """By hand; of NumPy's arrays, and traced."""
    judging: Any = jax.jit(judge) if under_jit else judge
    logits = np.array([[[2, 2, 0]], [[2, 2, 0]], [[np.nan, 0, 1]], [[0, np.nan, -1]]], np.float32)
    label = np.array([0, 1, 0, 0], np.int32)
    found = judging(logits, np.zeros((4, 1), np.float32), label, None)
    assert found["top1"].tolist() == [[True], [False], [False], [False]]
    # A tie has no lead; a softmax of 2 e^0 + e^-2.
    np.testing.assert_array_equal(found["margin"][:2], np.zeros((2, 1)))
    softmax = 1 / (2 + np.exp(-2))
    np.testing.assert_allclose(found["confidence"][:2], [[softmax]] * 2, rtol=1e-6)
    np.testing.assert_allclose(found["ce"][:2], [[-np.log(softmax)]] * 2, rtol=1e-6)
    alone = judging(np.ones((1, 1, 1), np.float32), np.zeros((1, 1)), label[:1], None)
    assert (alone["margin"].item(), alone["confidence"].item()) == (0, 1)
    assert alone["answer_top5"].item() and alone["ce"].item() == 0


@pytest.mark.parametrize(("sizes", "crossing"), [((32, 24, 16), 72), ((48, 40, 32, 24, 16), 110)])
def test_bytes_of_an_image_do_not_grow_with_the_classes(
    sizes: tuple[int, ...], crossing: int
) -> None:
    """With ImageNet's thousand they were 12,022 and 20,030."""
    config = small_config(**SHALLOW | {"model.resolutions": sizes})
    model = create_model(config, 1000)
    source = DataSplits(DataSettings("digits_on_photos", eval_images=50)).load("test")
    step = make_eval_step(model, tuple(config.data.mean), tuple(config.data.std))
    batch = abstract_eval_batch(source, 8, batch_sharding(create_mesh()))
    given = jax.eval_shape(step, abstract_variables(model), batch)

    def of_an_image(tree: Any) -> float:
        leaves = jax.tree.leaves(tree)
        return sum(np.dtype(leaf.dtype).itemsize * leaf.size for leaf in leaves) / 8

    assert of_an_image(given) == 4 * len(sizes) * 1001 + 11
    assert of_an_image(jax.eval_shape(judged, given, None)) == crossing == 19 * len(sizes) + 15
