"""Stored configurations in today's fields, whatever version of the program wrote them."""

from collections.abc import Mapping
from typing import Any

from drnet_jax.models.arguments import canonical_arguments, default_arguments, format_arguments
from drnet_jax.models.backbone import backbones

# Fields that became arguments of the network (`model.args`, `predictor.args`), with the defaults
# they had: a stored configuration that is older still lacks some.
_FORMER_FIELDS: dict[str, dict[str, Any]] = {
    "model": {
        "width": 16,
        "width_multiplier": 1.0,
        "stem": "small",
        "zero_init_residual": False,
    },
    "predictor": {
        "stage_sizes": (1, 1, 1),
        "width": 8,
        "width_multiplier": 1.0,
        "stem": "small",
    },
}
# Of the network, before there was a choice.
_FORMER_NAMES = {"model": "resnet10", "predictor": "resnet"}


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A flattened configuration in a form in which equal networks are described equally.

    Former fields become arguments of the network, and arguments stand in the order in which the
    network declares them, without those that are its default. What does not fit a network, or names
    an unknown one, is left as it is.

    Args:
      config: as `flatten` gives it and `config.json` holds it, of any version.
    """
    found = dict(config)
    for section, former in _FORMER_FIELDS.items():
        if not any(name.startswith(f"{section}.") for name in config):
            continue
        name = found.get(f"{section}.name", _FORMER_NAMES[section])
        given = {n: found.pop(f"{section}.{n}", value) for n, value in former.items()}
        builder = backbones().get(name)
        if f"{section}.args" not in found:
            taken = given if builder is None else default_arguments(builder)
            # JSON has no tuples.
            given = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
            found[f"{section}.args"] = format_arguments(
                {n: value for n, value in given.items() if n in taken}
            )
        if builder is not None:
            found[f"{section}.args"] = _canonical(found[f"{section}.args"], builder)
    return found


def _canonical(text: str, builder: Any) -> str:
    try:
        return canonical_arguments(text, builder)
    except ValueError:
        return text
