"""What every field of a configuration may be: its type, its range, and what else it must be."""

import difflib
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from drnet_jax.config import (
    GLANCE_INPUTS,
    LEAST_REPEATS,
    OBJECTIVES,
    PRUNING_CRITERIA,
    SPLITS,
    STAGES,
    TEACHERS,
    TRAINED_PARTS,
    TWO_STAGES,
)

# Counts become indices and shapes in 32 bits. Of the seed twice as much and one more is a seed too
# (`training/train_loop.py`), and Grain's have 32 bits.
_MAX_INT = 2**31 - 1
# Of a file or folder, on every usual file system.
_MAX_NAME = 255
# What float32 holds with all its digits: the program computes in it. Others would be infinite or
# zero there.
_MIN_FLOAT, _MAX_FLOAT = 2.0**-126, 2.0**127


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def complaint(self, value: Any) -> str:
        """What the value must be and is not; empty if it is."""
        return "" if isinstance(value, bool) else "must be True or False"


@dataclass(frozen=True)
class Text:
    """A string in one line, without control characters, that files and file names can have.

    Attributes:
      choices: the allowed ones; empty: any.
      empty: allow the empty string.
      path: of a file or a folder, with its `~` replaced (`config_paths.py`).
    """

    choices: tuple[str, ...] = ()
    empty: bool = True
    path: bool = False

    def complaint(self, value: Any) -> str:
        """See `Flag`."""
        if self.choices:
            known = isinstance(value, str) and value in self.choices
            return "" if known else f"must be one of {', '.join(map(repr, self.choices))}"
        if not isinstance(value, str):
            return "must be a string"
        if not _is_text(value):
            return "must be text in one line, without control characters"
        if self.path and value.startswith("~"):
            return "must name the home directory in full"
        if self.path and max(map(_num_bytes, value.split("/"))) > _MAX_NAME:
            return f"must not have names of more than {_MAX_NAME} bytes"
        return "" if value or self.empty else "must not be empty"


def _num_bytes(name: str) -> int:
    return len(name.encode(errors="surrogateescape"))


def _is_text(value: str) -> bool:
    # File names that are no UTF-8 come as halves of characters, which are written as they were.
    try:
        value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return not any(unicodedata.category(character) == "Cc" for character in value)


@dataclass(frozen=True)
class Number:
    """A finite number that float32 holds, within bounds.

    Attributes:
      whole: an integer.
      above: exclusive lower bound.
      least: inclusive lower bound.
      below: exclusive upper bound.
      most: inclusive upper bound.
      optional: allow None.
    """

    whole: bool = False
    above: float = -math.inf
    least: float = -math.inf
    below: float = math.inf
    most: float = math.inf
    optional: bool = False

    def complaint(self, value: Any) -> str:
        """See `Flag`; a bool is no number."""
        if value is None and self.optional:
            return ""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return "must be an integer" if self.whole else "must be a number"
        # Python's integers have no end, its floats do.
        if isinstance(value, int) and abs(value) > _MAX_INT:
            return f"must be at most {_MAX_INT} in size"
        if not math.isfinite(value):
            return "must be finite"
        if value and not _MIN_FLOAT <= abs(value) <= _MAX_FLOAT:
            return f"must be zero, or between {_MIN_FLOAT:.3g} and {_MAX_FLOAT:.3g} in size"
        within = self.above < value < self.below and self.least <= value <= self.most
        return "" if within else f"must {self._bounds()}"

    def _bounds(self) -> str:
        low, high = max(self.above, self.least), min(self.below, self.most)
        if math.isinf(high):
            name = "zero" if low == 0 else f"{low:g}"
            return f"be above {name}" if low == self.above else f"be {name} or more"
        opening = "(" if low == self.above else "["
        closing = ")" if high == self.below else "]"
        return f"lie in {opening}{low:g}, {high:g}{closing}"


@dataclass(frozen=True)
class Items:
    """A tuple, or a list.

    Attributes:
      item: what each element is.
      length: how many there are; None: one or more.
      empty: allow none.
    """

    item: Text | Number
    length: int | None = None
    empty: bool = False

    def complaint(self, value: Any) -> str:
        """See `Flag`."""
        if not isinstance(value, (tuple, list)):
            return "must be a tuple"
        if self.length is not None and len(value) != self.length:
            return f"must have {self.length} elements"
        if not value and not self.empty:
            return "must have one element or more"
        for element in value:
            complaint = self.item.complaint(element)
            if complaint:
                return f"has the element {element!r}, which {complaint}"
        return ""


Field = Flag | Text | Number | Items

_POSITIVE = Number(above=0)
_POSITIVE_INT = Number(whole=True, above=0)
_COUNT = Number(whole=True, least=0)
_ZERO_OR_MORE = Number(least=0)
_BELOW_ONE = Number(least=0, below=1)
_SHARE = Number(above=0, below=1)
_FRACTION = Number(above=0, most=1)
_BUDGET = Number(least=0, optional=True)
_SIZES = Items(_POSITIVE_INT)
_SIDE = Number(whole=True, above=0, most=2**14)
_NAME = Text(empty=False)
_PATH = Text(path=True)

_STAGE: dict[str, Field] = {
    "num_epochs": _POSITIVE_INT,
    "batch_size": _POSITIVE_INT,
    "accumulate": _POSITIVE_INT,
    "optimizer": Text(("sgd", "adamw", "rmsprop")),
    "base_learning_rate": _POSITIVE,
    "schedule": Text(("step", "cosine", "constant")),
    "warmup_epochs": _ZERO_OR_MORE,
    "decay_epochs": _POSITIVE_INT,
    "decay_rate": _POSITIVE,
    "momentum": _BELOW_ONE,
    "weight_decay": _ZERO_OR_MORE,
    "decay_all": Flag(),
    "clip_norm": _ZERO_OR_MORE,
    "label_smoothing": _BELOW_ONE,
    "ema_decay": _BELOW_ONE,
}
# What every field may be, by its dotted name; `drnet_jax/config_defaults.py` says what it means.
FIELDS: Mapping[str, Field] = {
    "seed": _COUNT,
    "stages": Items(Text(STAGES)),
    "restore_from": _PATH,
    "model.name": _NAME,
    "model.args": Text(),
    "model.pruning_rates": Items(_BELOW_ONE, empty=True),
    "model.resolutions": Items(_SIDE),
    "model.resolution_aware": Flag(),
    "model.statistics": Text(("all", "routed")),
    "model.reuse": Text(("none", "logits")),
    "model.min_samples": _POSITIVE_INT,
    "model.dtype": Text(("float32", "bfloat16")),
    "model.remat": Flag(),
    "model.stock_operations": Flag(),
    "predictor.kind": Text(("pixels", "glance")),
    "predictor.objective": Text(OBJECTIVES),
    "predictor.inputs": Items(Text(GLANCE_INPUTS)),
    "predictor.name": _NAME,
    "predictor.args": Text(),
    "predictor.size": _SIDE,
    "data.name": _NAME,
    "data.dir": _PATH,
    "data.num_classes": _COUNT,
    "data.calibration_fraction": _SHARE,
    "data.test_fraction": _SHARE,
    "data.split_seed": _COUNT,
    "data.num_workers": Number(whole=True, least=0, most=2**10),
    "data.crop_scale": Items(_FRACTION, length=2),
    "data.eval_crop": _FRACTION,
    "data.max_corrupt": _COUNT,
    "data.skip_corrupt": Flag(),
    "data.flip": Flag(),
    # In 0..1, as the pixels are then: values in 0..255 would go unnoticed.
    "data.mean": Items(Number(least=0, most=1), length=3),
    "data.std": Items(Number(least=1 / 255, most=1), length=3),
    "data.images_per_class": _COUNT,
    "data.train_images": _COUNT,
    "data.eval_images": _COUNT,
    "convert.weights": _PATH,
    "convert.classes": _PATH,
    "convert.head": Text(("auto", "keep", "new")),
    "convert.labels": Flag(),
    **{f"{stage}.{name}": field for stage in TWO_STAGES for name, field in _STAGE.items()},
    "pretrain.distillation": _ZERO_OR_MORE,
    "pretrain.teacher": Text(TEACHERS),
    "pretrain.train": Text(TRAINED_PARTS),
    "pretrain.batch_statistics": Flag(),
    "pretrain.init_from": _PATH,
    "pretrain.pruning_criterion": Text(PRUNING_CRITERIA),
    "joint.init_from": _PATH,
    "joint.fit_split": Text(("calibration", "train")),
    "joint.predictor_lr_scale": _POSITIVE,
    "joint.branch_weight": _ZERO_OR_MORE,
    "joint.eta": _ZERO_OR_MORE,
    "joint.cost": Text(("macs", "ms")),
    "joint.alpha": Number(above=0, optional=True),
    "joint.alpha_fraction": Number(above=0, most=1, optional=True),
    "joint.tau": _POSITIVE,
    "joint.tau_decay": _POSITIVE,
    "joint.tau_min": _POSITIVE,
    "eval.batch_size": _POSITIVE_INT,
    "eval.split": Text(SPLITS),
    "eval.dispatch": Text(("dense", "bucketed")),
    "eval.controls": Flag(),
    "eval.keep_logits": Flag(),
    "eval.gallery": _COUNT,
    "inference.buckets": Items(_POSITIVE_INT, empty=True),
    "inference.fold": Flag(),
    "inference.measure": Flag(),
    "budget.gmacs": _BUDGET,
    "budget.ms": _BUDGET,
    "budget.max_drop": Number(least=0, most=100, optional=True),
    "budget.batch_size": Number(whole=True, least=0, most=2**14),
    "budget.confidence": _BELOW_ONE,
    "benchmark.batch_sizes": _SIZES,
    "benchmark.gmacs": Items(_POSITIVE, empty=True),
    # Fewer give no interval.
    "benchmark.repeats": Number(whole=True, least=LEAST_REPEATS),
    "benchmark.seconds": _ZERO_OR_MORE,
    "benchmark.max_seconds": _ZERO_OR_MORE,
    "predict.input": _PATH,
    "predict.output": _PATH,
    "predict.format": Text(("csv", "jsonl")),
    "predict.gallery": _COUNT,
    "predict.workers": Number(whole=True, least=0, most=2**10),
    "export.output": _PATH,
    "export.fixed_batches": Items(Number(whole=True, above=0, most=2**14), empty=True),
    "export.stablehlo": Flag(),
    "export.split": Text(SPLITS),
    "export.images": _COUNT,
    "export.int8": Flag(),
    "export.int8_images": _COUNT,
    "report.runs": Items(Text(empty=False, path=True), empty=True),
    "checkpoint.keep_latest": _POSITIVE_INT,
    "checkpoint.every_steps": _COUNT,
    "log.every_steps": _POSITIVE_INT,
    "log.tensorboard": Flag(),
}


def unknown_field(name: str, known: Iterable[str]) -> str:
    """What to say of a field that there is not, with the one that may be meant."""
    known = sorted(known)
    if any(field.startswith(f"{name}.") for field in known):
        return f"config field {name!r} is a section: set the fields in it, one by one"
    close = difflib.get_close_matches(name, known, n=1)
    if not close:
        last = {field.split(".")[-1]: field for field in known}
        found = difflib.get_close_matches(name.split(".")[-1], last, n=1)
        close = [last[field] for field in found]
    hint = f"did you mean {close[0]!r}?" if close else "drnet_jax/config_defaults.py lists them all"
    return f"unknown config field {name!r}; {hint}"
