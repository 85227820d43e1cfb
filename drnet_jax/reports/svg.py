"""Matplotlib figures as SVG inside a page: their text takes the page's colour, light or dark."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by the colour-blind too, and legible on light and dark.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#8a8f98"
MARKERS = "osD^vPX*"
# Stands for the page's text colour until the figure is written.
_TEXT = "#010203"
_COMMON: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.alpha": 0.15,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.parse_math": False,
}
_PAGE: Any = {
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.titlecolor": _TEXT,
    "grid.color": _TEXT,
    "svg.fonttype": "none",
    "svg.hashsalt": "drnet",
    "text.color": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
}


@contextmanager
def page_style() -> Iterator[None]:
    """Within it figures are drawn for a page."""
    with mpl.rc_context(_COMMON | _PAGE):
        yield


@contextmanager
def plot_style() -> Iterator[None]:
    """Within it figures are drawn for a file of their own, black on white."""
    with mpl.rc_context(_COMMON | {"grid.color": "black"}):
        yield


def to_svg(figure: Figure, description: str) -> Markup:
    """The figure as an `<svg>` element, scaled to the width of what it is in.

    Args:
      figure: drawn within `page_style`.
      description: for those who do not see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
    # The page sets the size; the viewBox keeps the proportions.
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    label = Markup.escape(description)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))
