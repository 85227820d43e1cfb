"""`README.md` of a folder: a model card, with the figures that are known and no others."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from drnet_jax.budgets.calibration import BudgetError, Calibration
from drnet_jax.config import network_in_words
from drnet_jax.data.files import printable
from drnet_jax.hub.saved_model import SavedModel
from drnet_jax.runtime.environment import VERSION

_CLASSES_SHOWN = 20
# In points of top-1.
_DROP = 0.5
_HEADER = ("| | GMACs a picture | of the largest | top-1, % |", "|---|---|---|---|")
# What Markdown or HTML would take for something else.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$-])")


def model_card(
    saved: SavedModel, calibration: Calibration | None, evaluation: Mapping[str, Any] | None
) -> str:
    """The card in Markdown, with the front matter that model hubs read.

    Args:
      saved: the model.
      calibration: its lambdas; None: it has none.
      evaluation: its figures, as `find_evaluation` gives them; None: it is not evaluated.
    """
    parts = [
        _front_matter(evaluation),
        _summary(saved),
        _use(calibration),
        _figures(saved, evaluation),
    ]
    return "\n".join(parts)


def _front_matter(evaluation: Mapping[str, Any] | None) -> str:
    lines = [
        "library_name: drnet_jax",
        "pipeline_tag: image-classification",
        "tags:",
        "- image-classification",
        "- dynamic-resolution",
        "- jax",
    ]
    if evaluation is not None:
        name = _yaml(evaluation["config"]["data.name"])
        lines += [
            "model-index:",
            "- name: drnet_jax",
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {name}",
            f"      type: {name}",
            f"      split: {_yaml(evaluation['split'])}",
            "    metrics:",
            "    - type: accuracy",
            f"      value: {evaluation['top1']:.6g}",
        ]
    return "\n".join(["---", *lines, "---", ""])


def _summary(saved: SavedModel) -> str:
    sizes = saved.model.resolutions
    shown = ", ".join(_text(name) for name in saved.classes[:_CLASSES_SHOWN])
    more = "; the others are in `config.json`" if len(saved.classes) > _CLASSES_SHOWN else ""
    if len(sizes) == 1:
        does = f"Classifies pictures at {sizes[0]} px."
    else:
        first = f" after a first look at {sizes[-1]} px" if saved.model.glances else ""
        does = (
            f"Classifies every picture at its own resolution, one of {_sides(sizes)} px, which a "
            f"predictor picks{first}."
        )
    model, data = saved.config.model, _text(saved.config.data.name)
    network = _text(network_in_words(model.name, model.pruning_rates))
    return f"""# Image classifier of drnet_jax

{does} Network: {network}. Data: {data}.

{len(saved.classes)} classes: {shown}{more}.
"""


def _use(calibration: Calibration | None) -> str:
    return f"""## Use

With drnet_jax {VERSION} or later installed; FOLDER is the one that this file is in:

```python
from drnet_jax import AdaptiveClassifier

classifier = AdaptiveClassifier.from_pretrained("FOLDER")
print(classifier.classify_files(["picture.jpg"]))
```

The first call compiles the networks and may time them; for a few pictures
`from_pretrained("FOLDER", buckets=(1,), measure=False)` is ready soonest.
{"" if calibration is None else _budget(calibration)}"""


def _budget(calibration: Calibration) -> str:
    """How to spend less; nothing where so small a drop cannot be kept."""
    try:
        point = calibration.for_drop(_DROP)
    except BudgetError:
        return ""
    within = f"within {_DROP:g} points of the largest resolution's top-1"
    cost = (
        f"{point.gmacs:.4g} GMACs a picture, as {calibration.num_images:,} calibration images tell"
    )
    return f"""
As cheap as can be {within} ({cost}):

```python
lam = classifier.calibration.for_drop({_DROP:g}).lam
print(classifier.classify_files(["picture.jpg"], lam=lam))
```
"""


def _figures(saved: SavedModel, evaluation: Mapping[str, Any] | None) -> str:
    rows = list(_rows(saved, evaluation))
    table = "\n".join([*_HEADER, *rows])
    if evaluation is None:
        return f"## Figures\n\nNot evaluated. Its costs:\n\n{table}\n"
    lam = evaluation["lambda"]
    chosen = f" Choices at lambda {lam:.4g}." if lam else ""
    words = evaluation.get("controls", {}).get("verdict", "")
    verdict = f"\nThe adaptive classifier is {_text(words)}.\n" if words else ""
    data, seed = _text(evaluation["config"]["data.name"]), evaluation["config"]["seed"]
    images = f"{evaluation['num_images']:,} images of the {_text(evaluation['split'])} split"
    return f"""## Figures

On {images} of {data}, one training (seed {seed}).{chosen} GMACs: 10^9 multiply-adds.

{table}
{verdict}"""


def _rows(saved: SavedModel, evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    """A line of the table for each resolution alone, and one for the adaptive classifier."""
    sizes, costs = saved.model.resolutions, saved.cost.classifier_gmacs
    fixed = [None] * len(sizes) if evaluation is None else evaluation["fixed"]
    for size, gmacs, found in zip(sizes, costs, fixed, strict=True):
        yield _row(f"{size} px alone", (gmacs,), costs[0], found and found["top1"])
    if len(sizes) == 1:
        return
    if evaluation is None:
        spent = [gmacs + saved.cost.predictor_gmacs for gmacs in saved.cost.choice_gmacs]
        yield _row("adaptive", (min(spent), max(spent)), costs[0], None)
    else:
        yield _row("adaptive", (evaluation["gmacs"],), costs[0], evaluation["top1"])


def _row(name: str, gmacs: tuple[float, ...], largest: float, top1: float | None) -> str:
    """A line: a cost, or the least and the most, also over that of the largest resolution."""
    absolute = " to ".join(f"{value:.4g}" for value in gmacs)
    relative = " to ".join(f"{value / largest:.2f}" for value in gmacs)
    right = "not evaluated" if top1 is None else f"{100 * top1:.2f}"
    return f"| {name} | {absolute} | {relative} | {right} |"


def _sides(sizes: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"


def _yaml(text: str) -> str:
    """JSON's strings are YAML's too."""
    return json.dumps(text)


def _text(text: str) -> str:
    """A name as Markdown shows it, in one line."""
    return _MARKUP.sub(r"\\\1", printable(text))
