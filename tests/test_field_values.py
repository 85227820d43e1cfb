"""Random values of every field, drawn from the declaration: refused in a line, or kept exactly."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from drnet_jax.config import ConfigError, default_config, flatten
from drnet_jax.config_checks import check_config
from drnet_jax.config_fields import FIELDS, Number
from drnet_jax.config_overrides import set_fields, take_overrides
from experiments.override_draws import allowed, draws, forbidden
from experiments.override_trials import CHECKED, check_draw

QUICK = settings(max_examples=300, deadline=None, derandomize=True)
NAMES = st.sampled_from(sorted(FIELDS))


@QUICK
@given(NAMES, st.data())
def test_what_a_field_allows_is_kept_exactly(name: str, data: st.DataObject) -> None:
    """From the command line; what another field does not go with is refused by its check."""
    value = data.draw(allowed(FIELDS[name]))
    values, others = take_overrides([f"--config.{name}={value}"])
    config = default_config()
    set_fields(config, values)
    kept = flatten(config)[name]
    assert kept == (list(value) if isinstance(value, tuple) else value) and not others
    assert isinstance(kept, list) or type(kept) is type(value)
    assert not FIELDS[name].complaint(value)
    try:
        check_config(config, 1)
    except ConfigError as error:
        assert "\n" not in str(error) and any(field in str(error) for field in FIELDS)


@QUICK
@given(NAMES, st.data())
def test_what_a_field_does_not_allow_is_refused(name: str, data: st.DataObject) -> None:
    """However it came there, with other fields at their defaults."""
    fields = default_config().to_dict()
    *sections, last = name.split(".")
    (fields[sections[0]] if sections else fields)[last] = data.draw(forbidden(FIELDS[name]))
    with pytest.raises(ConfigError) as caught:
        check_config(ConfigDict(fields), 1)
    assert str(caught.value).startswith(f"{name}=") and "\n" not in str(caught.value)


def test_commands_are_refused_or_kept(tmp_path: Path) -> None:
    """As the experiment judges them, of every field two; no two of the draws are alike."""
    for name in ("digits", "pictures"):
        (tmp_path / f"{name}.py").write_text(
            "from drnet_jax.config import default_config as get_config"
        )
    drawn = draws(0, 2 * len(FIELDS))
    judged = [check_draw(one, tmp_path) for one in drawn]
    assert [one for one in judged if one["outcome"] not in CHECKED] == []
    assert {one["outcome"] for one in judged} == set(CHECKED)
    assert {name for one in drawn for name in one.values} == set(FIELDS)
    assert len({str(one.values) + one.mode + one.data for one in drawn}) == len(drawn)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (Number(whole=True, above=0), 1, 0),
        (Number(least=0, below=1), 0.0, 1.0),
        (Number(above=0, most=1), 1.0, 0.0),
        (Number(above=0, optional=True), None, math.nan),
    ],
)
def test_bounds_are_drawn(field: Number, good: Any, bad: Any) -> None:
    """The outermost value that is allowed, and the first that is not."""
    for strategy, wanted in ((allowed(field), good), (forbidden(field), bad)):
        find(strategy, lambda value, to=wanted: value is to or value == to, settings=QUICK)
