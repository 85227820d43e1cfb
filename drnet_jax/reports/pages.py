"""What the HTML pages share: templates, and pictures inside the page."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from drnet_jax.data.encode import encode

# Up to this side pictures are kept to the bit.
_LOSSLESS_SIDE = 96


@dataclass(frozen=True)
class Section:
    """The pictures that were sent to one resolution.

    Attributes:
      resolution: in pixels.
      count: how many were.
      share: of all pictures, 0 to 1.
      cards: those that are shown.
    """

    resolution: int
    count: int
    share: float
    cards: Sequence[Any]


def render(template: str, content: Mapping[str, Any]) -> str:
    """A page from `drnet_jax/reports/templates`; whatever is put into it is escaped."""
    environment = Environment(
        loader=PackageLoader("drnet_jax.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` positions, evenly, the first and the last among them."""
    picked = np.linspace(0, count - 1, min(count, most)).round().astype(int)
    return [int(index) for index in picked]


def data_uri(image: np.ndarray) -> str:
    """`[h, w, 3]` uint8 as PNG; a large one, of which there may be many, as JPEG."""
    form: Literal["PNG", "JPEG"] = "PNG" if len(image) <= _LOSSLESS_SIDE else "JPEG"
    content = base64.b64encode(encode(image, form)).decode()
    return f"data:image/{form.lower()};base64,{content}"
