"""Predictions by resolution as one HTML file that needs nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drnet_jax.reports.pages import Section, data_uri, render, spread
from drnet_jax.reports.predictions import Prediction, Unreadable

_UNREADABLE_SHOWN = 50


@dataclass(frozen=True)
class Card:
    """A picture of the gallery.

    Attributes:
      prediction: its row of the table.
      images: data URIs, of every look in turn.
    """

    prediction: Prediction
    images: Sequence[str]


def gallery(
    predictions: Sequence[Prediction],
    unreadable: Sequence[Unreadable],
    *,
    resolutions: Sequence[int],
    shown: int,
    title: str,
    facts: Mapping[str, str],
    pixels: Callable[[Prediction], Sequence[np.ndarray] | None],
) -> str:
    """Renders the page.

    Args:
      predictions: of every picture, at least one, in order.
      unreadable: the others.
      resolutions: the candidates, in pixels.
      shown: pictures per resolution, at most, spread evenly over the input.
      title: of the page.
      facts: what was run, by what to call it.
      pixels: what the classifier saw, `[r, r, 3]` uint8, look by look; None: the picture is not
        shown.
    """
    sections = [_section(predictions, side, shown, pixels) for side in resolutions]
    content = {
        "title": title,
        "facts": facts,
        "sections": sections,
        "unreadable": unreadable[:_UNREADABLE_SHOWN],
        "num_unreadable": len(unreadable),
    }
    return render("gallery.html", content)


def _section(
    predictions: Sequence[Prediction],
    resolution: int,
    shown: int,
    pixels: Callable[[Prediction], Sequence[np.ndarray] | None],
) -> Section:
    mine = [prediction for prediction in predictions if prediction.resolution == resolution]
    cards = []
    for index in spread(len(mine), shown):
        images = pixels(mine[index])
        if images is not None:
            cards.append(Card(mine[index], [data_uri(image) for image in images]))
    return Section(resolution, len(mine), len(mine) / len(predictions), cards)
