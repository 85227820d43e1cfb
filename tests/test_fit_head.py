"""A new head: against scikit-learn's own pipeline."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drnet_jax.training.fit_head import fit_head


def features(num_classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of two resolutions, the second one noisier; scales and means of their own."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % num_classes
    centres = np.random.default_rng(0).normal(size=(num_classes, 6))
    noise = rng.normal(size=(count, 2, 6)) * np.array([[1.0], [2.0]])
    scale = np.array([1e-2, 1.0, 30.0, 1.0, 5.0, 0.3])
    return ((centres[label][:, None] + noise) * scale + 7).astype(np.float32), label


@pytest.mark.parametrize("num_classes", [2, 4])
def test_it_is_scikit_learns(num_classes: int) -> None:
    inputs, label = features(num_classes, 120, 1)
    held_out, held_out_label = features(num_classes, 80, 2)
    head = fit_head(inputs, label, held_out, held_out_label)

    rows, targets = inputs.reshape(-1, 6).astype(float), np.repeat(label, 2)
    new_rows, new_targets = held_out.reshape(-1, 6).astype(float), np.repeat(held_out_label, 2)
    losses = {}
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        found = pipeline.fit(rows, targets).predict_proba(new_rows)
        losses[strength] = log_loss(new_targets, found)
        if strength == pytest.approx(head.strength):
            got = softmax(head.logits(held_out).reshape(-1, num_classes), axis=1)
            np.testing.assert_allclose(got, found, atol=2e-3)
    # The log-loss falls, and then rises: the strength is that of the least.
    assert min(losses, key=losses.__getitem__) == pytest.approx(head.strength)


def test_a_feature_that_never_changes_counts_for_nothing() -> None:
    inputs, label = features(3, 60, 1)
    held_out, held_out_label = features(3, 30, 2)
    inputs[..., 2] = held_out[..., 2] = 5.0
    head = fit_head(inputs, label, held_out, held_out_label)
    np.testing.assert_array_equal(head.kernel[2], 0)
    assert np.isfinite(head.bias).all()
