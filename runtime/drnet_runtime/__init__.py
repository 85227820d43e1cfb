"""Classifies pictures with what drnet_jax exported, each at its own resolution (docs/runtime.md).

from drnet_runtime import AdaptiveModel
model = AdaptiveModel.load("DIRECTORY")
answers = model.classify_files(["cat.jpg"], model.lam_for(drop=0.5))
"""

from drnet_runtime.budgets import Calibration, Point
from drnet_runtime.errors import BudgetError, ExportDirectoryError, PictureError
from drnet_runtime.model import AdaptiveModel
from drnet_runtime.results import Answer, Result

__all__ = [
    "AdaptiveModel",
    "Answer",
    "BudgetError",
    "Calibration",
    "ExportDirectoryError",
    "PictureError",
    "Point",
    "Result",
]
