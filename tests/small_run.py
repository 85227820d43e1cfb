"""A configuration that trains both stages in seconds."""

from typing import Any

from ml_collections import ConfigDict

from configs.tiny import get_config

OVERRIDES = {
    "model.name": "resnet",
    "model.args": "stage_sizes=(1, 1), width=4, stem='small'",
    "model.resolutions": (32, 16),
    "predictor.args": "stage_sizes=(1,), width=4, stem='small'",
    "data.train_images": 320,
    "data.eval_images": 70,
    "pretrain.batch_size": 40,
    "joint.batch_size": 40,
    "eval.batch_size": 40,
    "inference.buckets": (1, 16),
    "inference.measure": False,
    "checkpoint.every_steps": 3,
    "log.every_steps": 1,
    "log.tensorboard": False,
}
# Of a model that takes a first look and adds what it said to what the second says.
GLANCE = {
    "predictor.kind": "glance",
    "predictor.inputs": ("margin", "entropy", "norm_logit", "pooled"),
    "model.reuse": "logits",
}


def small_config(**further: Any) -> ConfigDict:
    """With further fields by their dotted names."""
    config = get_config()
    config.update_from_flattened_dict(OVERRIDES | further)
    return config
