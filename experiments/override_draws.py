"""Random values for the fields of a configuration, as command lines have them, and what they say.

The values depend on a seed alone. `reading` says what a text means without the program's own
parser: Python's literals, and for texts the text itself.
"""

import ast
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from drnet_jax.config import default_config, flatten
from drnet_jax.config_fields import FIELDS, Field, Flag, Items, Number, Text
from drnet_jax.models.backbone import backbones

DEFAULTS = flatten(default_config())
# In which modes a field is tried, by prefixes of its name; the first that fits counts.
_MODES = (
    (("eval.dispatch",), ("eval",)),
    (("eval.", "data.skip_corrupt", "data.eval_"), ("eval", "train")),
    (("restore_from",), ("eval", "calibrate", "benchmark", "predict", "train")),
    (("inference.",), ("eval", "benchmark", "predict", "calibrate")),
    (("budget.",), ("calibrate", "eval", "predict")),
    (("benchmark.",), ("benchmark",)),
    (("predict.",), ("predict",)),
    (("report.",), ("report",)),
    (("data.", "model.", "predictor."), ("train", "train", "eval")),
    (("",), ("train",)),
)
# Written where any other value may be.
_ODD = (
    *("", " ", "None", "none", "null", "nan", "NaN", "inf", "-inf", "Infinity", "1e400", "-1e400"),
    *("-1", "0", "-0.0", "1", "2", "True", "False", "true", "yes", "1e3", "0x10", "1_000", "07"),
    *("5.0", "+5", " 5 ", "5 ", "'1'", '"1"', "1,2", "(1,2", "1)", "()", "(1,)", "[]", "[1, 2]"),
    *("{}", "{1: 2}", "(1, 'a', None)", "(None,)", "((1,),)", "(nan,)", "(1e400,)", "(True, 1)"),
    *("2147483647", "2147483648", "-2147483649", "9" * 30, "1e-300", "1e-45", "1e300", "3.5e38"),
    *("lambda: 0", "__import__('os')", "range(3)", "1+1", "1j", "b'x'", "a/b", "../x", "~", "."),
    *("a b", "a=b", "=", "%s", "{0}", "\\n", "line\nline", "tab\tbed", "ünïcode", "🙂", "١٢", "½"),
    *("x" * 300, "--mode=eval", "$HOME", "*", "'", '"', "#", ";", "\u200b", "e\u0301"),
)
_PATHS = (
    "{run}",
    "{pictures}",
    "{run}/config.json",
    "{missing}",
    "{missing}/ünï côde",
    "/dev/null",
)
_ARGUMENTS = (
    *("", "width=4", "width=4, stem='small'", "stem=small", "stage_sizes=(1,), width=4"),
    *("width=0", "width=-1", "width=4.5", "width=nan", "width=1e3", "width=True", "depth=3"),
    *("stage_sizes=(1, 1), width=4, stem='small'", "stage_sizes=()", "stage_sizes=(0,)"),
    *("width=4, width=5", "4", "width", "width=", "stem='none'", "zero_init_residual=True"),
    *("width_multiplier=0.25", "width_multiplier=1e-9", "width_multiplier=inf", "width=10**9"),
    *("width=1000000", "**{}", "width=4)", "stage_sizes=(1, 'a')", "width=4 # small"),
    *("stage_sizes=[1]", "stage_sizes=(1,)*3", "width=4; import os"),
)


@dataclass(frozen=True)
class Draw:
    """One command.

    Attributes:
      number: of the draw.
      mode: of the program.
      data: `'digits'`, the embedded data, or `'pictures'`, a folder.
      values: text of every field that is set.
    """

    number: int
    mode: str
    data: str
    values: dict[str, str]


def draw(seed: int, number: int) -> Draw:
    """The command of a number: one to three fields, the first of which names the mode."""
    rng = np.random.default_rng((seed, number))
    names = list(FIELDS)
    # Every field comes first equally often.
    first = names[number % len(names)]
    related = [name for name in names if name.split(".")[0] == first.split(".")[0]]
    chosen = [first]
    for _ in range(int(rng.choice(3, p=(0.6, 0.3, 0.1)))):
        chosen.append(str(rng.choice(related if rng.random() < 0.7 else names)))
    modes = next(modes for prefixes, modes in _MODES if first.startswith(prefixes))
    values = {name: _text(name, rng) for name in dict.fromkeys(chosen)}
    data = "pictures" if first.startswith("data.") and rng.random() < 0.6 else "digits"
    return Draw(number, str(rng.choice(modes)), data, values)


def _text(name: str, rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.4:
        return str(rng.choice(np.array(_ODD, dtype=object)))
    if name in ("restore_from", "joint.init_from", "data.dir", "predict.input", "predict.output"):
        return str(rng.choice(_PATHS))
    if name.endswith(".args"):
        return str(rng.choice(_ARGUMENTS))
    if name in ("model.name", "predictor.name"):
        return str(rng.choice(list(backbones())))
    if name == "data.name":
        known = ("digits_on_photos", "folder", "imagenet100", "cifar10", "imagenet2012", "mnist:3")
        return str(rng.choice(known))
    value = _value(FIELDS[name], DEFAULTS[name], rng, edge=kind < 0.6)
    text = str(value)
    if isinstance(value, tuple) and rng.random() < 0.2:
        text = text.replace(" ", "").strip("()") or "()"
    return text


def _value(field: Field, default: Any, rng: np.random.Generator, *, edge: bool) -> Any:
    """In range, or at an edge of it and just beyond."""
    if isinstance(field, Flag):
        return bool(rng.integers(2))
    if isinstance(field, Text):
        choices = field.choices or ("word", "two words")
        word = str(rng.choice(choices))
        return word.upper() if edge else word
    if isinstance(field, Items):
        inner = default[0] if default else 1.0
        length = field.length or int(rng.integers(1, 4))
        if edge:
            length = max(0, length + int(rng.integers(-1, 2)))
        items = [
            _value(field.item, inner, rng, edge=edge and rng.random() < 0.5) for _ in range(length)
        ]
        if edge and items and rng.random() < 0.3:
            items[-1] = [None, "a", True, 0.5, (1,), math.inf][int(rng.integers(6))]
        numbers = all(isinstance(item, (int, float)) for item in items)
        return tuple(sorted(items, reverse=True) if numbers and rng.random() < 0.7 else items)
    return _number(field, rng, edge=edge)


def _number(field: Number, rng: np.random.Generator, *, edge: bool) -> Any:
    low = field.least if math.isfinite(field.least) else field.above
    high = field.most if math.isfinite(field.most) else field.below
    if edge:
        edges = [bound for bound in (low, high) if math.isfinite(bound)] or [0]
        bound = float(rng.choice(edges))
        step = float(rng.choice((-1, 0, 1))) * (1 if field.whole else 1e-6)
        return int(bound + step) if field.whole else bound + step
    if field.whole:
        # Sizes that a network of a few pixels takes, and others.
        return int(rng.choice((1, 2, 4, 8, 8, 8, 16, 16, 24, 32, int(rng.integers(1, 2000)))))
    if math.isfinite(high) and math.isfinite(low):
        return round(float(rng.uniform(low, high)), 4)
    return round(float(10 ** rng.uniform(-4, 1)), 6) * float(rng.choice((1, 1, 1, 1e-6, 1e6)))


def reading(name: str, text: str) -> list[Any]:
    """What a text may mean as the value of a field: no value, or any of these."""
    field = FIELDS[name]
    if isinstance(field, Text):
        return [_path(text) if field.path else text]
    if isinstance(field, Flag):
        words = {True: ("true", "yes", "1"), False: ("false", "no", "0")}
        return [value for value, known in words.items() if text.lower() in known]
    if isinstance(field, Items):
        items = _tuple_reading(text)
        paths = isinstance(field.item, Text) and field.item.path
        return [list(map(_path, items)) if paths else items]
    found: list[Any] = [None] if text == "None" and field.optional else []
    for parse in (lambda: int(text), lambda: int(text, 16), lambda: int(text, 8)):
        if field.whole and (not found or text.lower().startswith(("0x", "0o"))):
            try:
                found.append(parse())
            except ValueError:
                continue
    if not field.whole:
        try:
            found.append(float(text))
        except ValueError:
            pass
    return found


def _path(item: Any) -> Any:
    return os.path.expanduser(item) if isinstance(item, str) else item


def _tuple_reading(text: str) -> list[Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        # A word without quotes.
        return [text]
    return list(value) if isinstance(value, (tuple, list)) else [value]
