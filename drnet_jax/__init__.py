"""Dynamic Resolution Network (Zhu et al., NeurIPS 2021) in JAX: what a program may use.

Names are imported when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drnet_jax.budgets.calibration import BudgetError, Calibration
    from drnet_jax.checkpoints.checkpoint import CheckpointError
    from drnet_jax.checkpoints.restore import RestoredModel
    from drnet_jax.checkpoints.runs import load_run
    from drnet_jax.config import ConfigError, default_config
    from drnet_jax.config_files import load_config
    from drnet_jax.data.sources import DataError
    from drnet_jax.hub.classifier import AdaptiveClassifier
    from drnet_jax.inference.engine import Classified
    from drnet_jax.library import (
        export_classifier,
        load_calibration,
        load_classifier,
        save_pretrained,
    )
    from drnet_jax.models.create import create_model
    from drnet_jax.models.drnet import DRNet
    from drnet_jax.pretrained.errors import WeightsError
    from drnet_jax.pretrained.weights import load_weights

__all__ = [
    "AdaptiveClassifier",
    "BudgetError",
    "Calibration",
    "CheckpointError",
    "Classified",
    "ConfigError",
    "DRNet",
    "DataError",
    "RestoredModel",
    "WeightsError",
    "create_model",
    "default_config",
    "export_classifier",
    "load_calibration",
    "load_classifier",
    "load_config",
    "load_run",
    "load_weights",
    "save_pretrained",
]
_MODULES = {
    "AdaptiveClassifier": "hub.classifier",
    "BudgetError": "budgets.calibration",
    "Calibration": "budgets.calibration",
    "CheckpointError": "checkpoints.checkpoint",
    "Classified": "inference.engine",
    "ConfigError": "config",
    "DRNet": "models.drnet",
    "DataError": "data.sources",
    "RestoredModel": "checkpoints.restore",
    "WeightsError": "pretrained.errors",
    "create_model": "models.create",
    "default_config": "config",
    "export_classifier": "library",
    "load_calibration": "library",
    "load_classifier": "library",
    "load_config": "config_files",
    "load_run": "checkpoints.runs",
    "load_weights": "pretrained.weights",
    "save_pretrained": "library",
}


def __getattr__(name: str) -> Any:
    """One of `__all__`, at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
