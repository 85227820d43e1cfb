"""What makes runs hard to compare, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from drnet_jax.checkpoints.answers import agreement

# Of an evaluation.
_EVALUATED = ("split", "num_images", "lambda", "stage")


def warnings(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for whatever differs between runs, their settings aside, and for unfinished ones.

    Args:
      summaries: of the runs, their `eval.json`.
    """
    found = [
        f"The runs are evaluated differently ({name}: {', '.join(values)})."
        for name in _EVALUATED
        if len(values := _values(summaries, name)) > 1
    ]
    early = sum(summary.get("finished") is False for summary in summaries)
    if early:
        found.append(
            f"{early} of the {len(summaries)} runs are evaluated before the end of their training."
        )
    agreeing = sum(bool(agreement(summary["config"])) for summary in summaries)
    if agreeing:
        found.append(
            f"{agreeing} of the {len(summaries)} runs are of pictures without labels: their top-1 "
            "is agreement with what was imported, right or wrong, no accuracy."
        )
    return found + _images(summaries) + _versions(summaries)


def _values(summaries: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return sorted({str(summary.get(name)) for summary in summaries})


def _images(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Other images; or other folders, whose pictures are called the same."""
    identities = [summary.get("identities", {}) for summary in summaries]
    other = [
        name for name in ("train", "calibration", "test") if len(_values(identities, name)) > 1
    ]
    if other:
        return [f"The runs are of different images ({', '.join(other)}): no difference is taken."]
    configs = [summary["config"] for summary in summaries]
    places = sorted({str(config["data.dir"]) for config in configs if config.get("data.dir")})
    if len(places) > 1:
        return [
            f"The runs have their images in different folders ({', '.join(places)}), where they "
            "are called the same: whether they are the same is not known."
        ]
    return []


def _versions(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What computed them."""
    made = [summary.get("environment", {}) for summary in summaries]
    names = sorted({name for environment in made for name in environment} - {"command"})
    differ = {name: values for name in names if len(values := _values(made, name)) > 1}
    if not differ:
        return []
    listed = "; ".join(f"{name}: {', '.join(values)}" for name, values in differ.items())
    return [f"The runs are evaluated on different devices or by different versions ({listed})."]
