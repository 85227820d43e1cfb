"""From a restored model and a configuration to an adaptive classifier."""

import jax
from ml_collections import ConfigDict

from drnet_jax.checkpoints.restore import RestoredModel, check_predictor
from drnet_jax.config import ConfigError
from drnet_jax.inference.adaptive import AdaptiveClassifier
from drnet_jax.runtime.progress import log


def adaptive_classifier(
    config: ConfigDict, restored: RestoredModel, image_size: tuple[int, int] | None
) -> AdaptiveClassifier:
    """Compiles the restored model for `config.inference.buckets`, on the first device.

    Args:
      config: with the model the checkpoint was trained with.
      restored: the model.
      image_size: height and width of the images; None: for encoded pictures.

    Raises:
      CheckpointError: the model has no trained predictor.
      ConfigError: several hosts.
    """
    check_predictor(restored)
    if jax.process_count() > 1:
        raise ConfigError("dispatch runs on one host; eval.dispatch='dense' on several")
    log("compiling every resolution and bucket ...")
    classifier = AdaptiveClassifier(
        restored.model,
        restored.variables,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        buckets=tuple(config.inference.buckets),
        image_size=image_size,
        own_sizes=image_size is None,
        fold=config.inference.fold,
    )
    if not config.inference.measure:
        return classifier
    log("measuring them ...")
    return classifier.with_times(classifier.measure())
