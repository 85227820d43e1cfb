"""Random values for the fields of a configuration, as command lines have them, and what they say.

What a field may be is declared once, in `drnet_jax/config_fields.py`; values that it may have, and
values that it may not have, are drawn from that declaration by Hypothesis. `reading` says what a
text means without the program's own parser: Python's literals, and for texts the text itself.
"""

import ast
import itertools
import json
import math
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from drnet_jax.config import default_config, flatten
from drnet_jax.config_fields import FIELDS, Field, Flag, Items, Number, Text
from drnet_jax.models.backbone import backbones

DEFAULTS = flatten(default_config())
_NAMES = sorted(FIELDS)
Values = st.SearchStrategy[Any]
# In which modes a field is tried, by prefixes of its name; the first that fits counts.
_MODES = (
    (("eval.dispatch",), ("eval",)),
    (("eval.", "data.skip_corrupt", "data.eval_"), ("eval", "train")),
    (("restore_from",), ("eval", "calibrate", "benchmark", "predict", "train")),
    (("inference.",), ("eval", "benchmark", "predict", "calibrate")),
    (("budget.",), ("calibrate", "eval", "predict", "export")),
    (("benchmark.",), ("benchmark",)),
    (("predict.",), ("predict",)),
    (("export.",), ("export",)),
    (("convert.",), ("convert", "train")),
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
_DATA = ("digits_on_photos", "folder", "imagenet100", "cifar10", "imagenet2012", "mnist:3")
# What a network of a few pixels takes.
_SMALL = (1, 2, 4, 8, 8, 8, 16, 16, 24, 32)
# What the declaration says of every number (`Number.complaint`).
_MAX_INT = 2**31 - 1
_MIN_FLOAT, _MAX_FLOAT = 2.0**-126, 2.0**127
# Neither control characters nor halves of surrogates; as a path also no quotes, no `~`, no folder.
_CHARACTERS = st.characters(exclude_categories=("Cc", "Cs"))
_IN_PATHS = st.characters(categories=("L", "N"), include_characters=" _-.")
_OTHER_TYPES = (b"x", 1j, {1}, (None,), ((1,),), (1, True), object)


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


def allowed(field: Field) -> Values:
    """Values that the declaration of a field allows."""
    match field:
        case Flag():
            return st.booleans()
        case Text(choices=choices) if choices:
            return st.sampled_from(choices)
        case Text(empty=empty, path=path):
            return st.text(_IN_PATHS if path else _CHARACTERS, min_size=not empty, max_size=50)
        case Number(optional=True):
            return st.none() | _numbers(field)
        case Number():
            return _numbers(field)
        case Items(item=item, length=None, empty=empty):
            return st.lists(allowed(item), min_size=not empty, max_size=4).map(tuple)
        case Items(item=item, length=length):
            return st.tuples(*[allowed(item)] * (length or 0))


def _numbers(field: Number) -> Values:
    """Small ones, any, and those at the bounds."""
    low, high = max(field.least, field.above), min(field.most, field.below)
    if field.whole:
        first = int(max(field.least, field.above + 1))
        last = int(min(field.most, field.below - 1, _MAX_INT))
        small = [number for number in _SMALL if first <= number <= last]
        return st.sampled_from([first, *small]) | st.integers(first, last)
    assert low >= 0, "no field has negative numbers"
    exact = st.floats(
        max(low, _MIN_FLOAT),
        min(high, _MAX_FLOAT),
        exclude_min=low == field.above and low > 0,
        exclude_max=high == field.below < math.inf,
    )
    usual = st.floats(-4, 1).map(lambda power: round(10**power, 6))
    usual = usual.filter(lambda value: low < value < high)
    within = usual | exact
    return within | st.just(0.0) if low == 0 and field.least == 0 else within


def forbidden(field: Field) -> Values:
    """Values that it does not allow: of other types, lengths and sizes."""
    others = st.sampled_from(_OTHER_TYPES)
    match field:
        case Flag():
            return others | st.sampled_from((0, 1, None, "", "x", 0.5))
        case Text():
            return others | st.sampled_from((None, True, 1, 0.5, ("a",))) | _texts(field)
        case Number():
            wrong = [True, False, "", "x", (), math.nan, math.inf, -math.inf, 10**400, 1e300]
            wrong += [] if field.optional else [None]
            return others | st.sampled_from(wrong) | _beyond(field)
        case Items(item=item, length=length, empty=empty):
            wrong = [None, True, 1, 0.5, "", "x"] + ([] if empty else [()])
            element = forbidden(item).flatmap(
                lambda bad: st.lists(allowed(item), max_size=3).map(lambda good: (*good, bad))
            )
            longer = st.lists(allowed(item), min_size=(length or 0) + 1, max_size=5).map(tuple)
            return st.sampled_from(wrong) | element | (longer if length else element)


def _texts(field: Text) -> Values:
    """With control characters; none of the choices; empty; a name that no file system has."""
    wrong = st.sampled_from(("a\nb", "a\0", "\x1b[0m", "\x85", "\ud800"))
    if field.choices:
        known = field.choices
        wrong |= st.sampled_from(known).map(str.upper).filter(lambda text: text not in known)
        wrong |= st.text(_CHARACTERS).filter(lambda text: text not in known)
    if field.path:
        wrong |= st.sampled_from(("x" * 256, "a/" + "é" * 128))
    return wrong if field.empty else wrong | st.just("")


def _beyond(field: Number) -> Values:
    """Out of its bounds by as little as there is, or by any amount; too fine for float32."""
    low, high = max(field.least, field.above), min(field.most, field.below)
    if field.whole:
        first = int(max(field.least, field.above + 1))
        last = int(min(field.most, field.below - 1, _MAX_INT))
        near = st.sampled_from((first - 1, last + 1, 1e300, 1.0, 0.5))
        return near | st.integers(max_value=first - 1) | st.integers(min_value=last + 1)
    closest = [1e-300, low if low == field.above else math.nextafter(low, -math.inf)]
    if high < math.inf:
        closest.append(high if high == field.below else math.nextafter(high, math.inf))
    below = st.floats(max_value=low, exclude_max=True, allow_infinity=False)
    above = st.floats(min_value=min(high, _MAX_FLOAT), exclude_min=True)
    return st.sampled_from(closest) | below | above


@cache
def texts(name: str) -> st.SearchStrategy[str]:
    """What may be written for a field: what it allows, what it does not, and anything."""
    field = FIELDS[name]
    good = allowed(field)
    if isinstance(field, Text) and field.path:
        good = st.sampled_from(_PATHS)
    elif name.endswith(".args"):
        good = st.sampled_from(_ARGUMENTS)
    elif name in ("model.name", "predictor.name"):
        good = st.sampled_from(sorted(backbones()))
    elif name == "data.name":
        good = st.sampled_from(_DATA)
    written = good.map(str)
    if isinstance(field, Items):
        bare = good.map(lambda value: str(value).replace(" ", "").strip("()") or "()")
        written = written | written | bare
    return st.one_of(written, written, forbidden(field).map(str), st.sampled_from(_ODD))


@st.composite
def _commands(draw: st.DrawFn, first: str) -> tuple[str, str, dict[str, str]]:
    """Mode, data and one to three fields, the first of which names the mode."""
    more = draw(st.lists(_related(first) | st.sampled_from(_NAMES), max_size=2))
    values = {name: draw(texts(name)) for name in dict.fromkeys((first, *more))}
    modes = next(modes for prefixes, modes in _MODES if first.startswith(prefixes))
    folder = first.startswith("data.") and draw(st.booleans())
    return draw(st.sampled_from(modes)), "pictures" if folder else "digits", values


@cache
def _related(name: str) -> st.SearchStrategy[str]:
    section = name.split(".")[0]
    return st.sampled_from([other for other in _NAMES if other.split(".")[0] == section])


def draws(number: int, count: int) -> list[Draw]:
    """The commands of a seed, always the same with the same version of Hypothesis.

    Args:
      number: the seed.
      count: of commands; every field comes first equally often, and no two commands are alike.
    """
    share = math.ceil(count / len(_NAMES))
    by_field = [_different(number, name, share) for name in _NAMES]
    # Of all fields in turns.
    mixed = [command for turn in zip(*by_field, strict=True) for command in turn]
    return [Draw(place, *command) for place, command in enumerate(mixed[:count])]


def _different(number: int, first: str, count: int) -> list[tuple[str, str, dict[str, str]]]:
    """So many different commands of a field."""
    found: dict[str, tuple[str, str, dict[str, str]]] = {}
    for turn in itertools.count():
        for command in _some(f"{number} {first} {turn}", first, count):
            found.setdefault(json.dumps(command), command)
        if len(found) >= count:
            return list(found.values())[:count]


def _some(key: str, first: str, count: int) -> list[tuple[str, str, dict[str, str]]]:
    found = []

    @seed(key)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_commands(first))
    def collect(command: tuple[str, str, dict[str, str]]) -> None:
        found.append(command)

    collect()
    return found


def reading(name: str, text: str) -> list[Any]:
    """What a text may mean as the value of a field: no value, or any of these."""
    field = FIELDS[name]
    if isinstance(field, Text):
        return [_path(text) if _is_path(field) else text]
    if isinstance(field, Flag):
        words = {True: ("true", "yes", "1"), False: ("false", "no", "0")}
        return [value for value, known in words.items() if text.lower() in known]
    if isinstance(field, Items):
        items = _tuple_reading(text, words=isinstance(field.item, Text))
        return [list(map(_path, items)) if _is_path(field.item) else items]
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


def _is_path(field: Field) -> bool:
    return isinstance(field, Text) and field.path


def _path(item: Any) -> Any:
    return os.path.expanduser(item) if isinstance(item, str) else item


def _tuple_reading(text: str, *, words: bool) -> list[Any]:
    """`words`: one that stands without quotes, brackets and commas is an element as it is."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return [text]
    if words and not set(text) & set("()[]'\","):
        return [text]
    return list(value) if isinstance(value, (tuple, list)) else [value]
