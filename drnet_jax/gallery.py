"""Predictions by resolution as one HTML file that needs nothing else."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from drnet_jax.predictions import Prediction, Unreadable

# Up to this side pictures are kept to the bit.
_LOSSLESS_SIDE = 96
_JPEG_QUALITY = 95
_UNREADABLE_SHOWN = 50


@dataclass(frozen=True)
class Card:
    """A picture of the gallery.

    Attributes:
      prediction: what is said of it.
      image: a data URI.
    """

    prediction: Prediction
    image: str


@dataclass(frozen=True)
class Section:
    """The pictures of one resolution.

    Attributes:
      resolution: in pixels.
      count: how many pictures chose it.
      share: of all pictures, 0 to 1.
      cards: those that are shown.
    """

    resolution: int
    count: int
    share: float
    cards: list[Card]


def gallery(
    predictions: Sequence[Prediction],
    unreadable: Sequence[Unreadable],
    *,
    resolutions: Sequence[int],
    shown: int,
    title: str,
    facts: Mapping[str, str],
    pixels: Callable[[Prediction], np.ndarray | None],
) -> str:
    """Renders the page.

    Args:
      predictions: of every picture, at least one, in order.
      unreadable: the others.
      resolutions: the candidates, in pixels.
      shown: pictures of every resolution, at most, spread evenly over the input.
      title: of the page.
      facts: what was run, by what to call it.
      pixels: what the classifier saw, `[r, r, 3]` uint8; None: the picture is not shown.
    """
    sections = [_section(predictions, side, shown, pixels) for side in resolutions]
    environment = Environment(
        loader=PackageLoader("drnet_jax"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("gallery.html").render(
        title=title,
        facts=facts,
        sections=sections,
        unreadable=unreadable[:_UNREADABLE_SHOWN],
        num_unreadable=len(unreadable),
    )


def _section(
    predictions: Sequence[Prediction],
    resolution: int,
    shown: int,
    pixels: Callable[[Prediction], np.ndarray | None],
) -> Section:
    mine = [prediction for prediction in predictions if prediction.resolution == resolution]
    cards = []
    for index in spread(len(mine), shown):
        image = pixels(mine[index])
        if image is not None:
            cards.append(Card(mine[index], data_uri(image)))
    return Section(resolution, len(mine), len(mine) / len(predictions), cards)


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` positions, evenly, the first and the last among them."""
    picked = np.linspace(0, count - 1, min(count, most)).round().astype(int)
    return [int(index) for index in picked]


def data_uri(image: np.ndarray) -> str:
    """`[h, w, 3]` uint8 as PNG; a large one, of which there may be many, as JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if len(image) <= _LOSSLESS_SIDE:
        form, (_, encoded) = "png", cv2.imencode(".png", bgr)
    else:
        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        form, (_, encoded) = "jpeg", cv2.imencode(".jpg", bgr, options)
    return f"data:image/{form};base64,{base64.b64encode(encoded.tobytes()).decode()}"
