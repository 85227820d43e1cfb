"""Which model on which data: another key for another one."""

import json

from ml_collections import ConfigDict

from drnet_jax.checkpoints.restore import TrainedModel
from drnet_jax.data.index_cache import digest


def model_key(config: ConfigDict, restored: TrainedModel) -> str:
    """Stage, step and a digest of how the model was trained and how its images are cropped."""
    facts = json.dumps([restored.config, restored.identities, config.data.eval_crop])
    return f"{restored.stage}/{restored.step} {digest(facts)[:12]}"
