"""The page of predictions: names are escaped, and what it shows is spread over the input."""

from html.parser import HTMLParser

import numpy as np

from drnet_jax.reports.gallery import gallery
from drnet_jax.reports.pages import spread
from drnet_jax.reports.predictions import Prediction, Unreadable


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


NAMES = [
    *("<script>alert(1)</script>.png", "\"'onerror='x'.png", "é 猫 🐈.png", "&amp;,\n;.png"),
    '"\r\n",\r.png',
]


def test_names_are_escaped() -> None:
    predictions = [Prediction(name, f"<b>{name}", 0, 0.5, 8, 0.1) for name in NAMES]
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    content = gallery(
        predictions,
        [Unreadable(f"u{NAMES[0]}", "<script>reason")],
        resolutions=(16, 8),
        shown=9,
        title="<title>",
        facts={"<i>": "</dl>"},
        pixels=lambda prediction: [pixels],
    )
    page = Page(content)
    assert not {"script", "b", "i"} & set(page.tags) and page.tags.count("title") == 1
    assert not any(name.startswith("on") for name, _ in page.attributes)
    for name in NAMES:
        assert name in page.text and f"<b>{name}" in page.text
        assert ("alt", name) in page.attributes
    for text in (f"u{NAMES[0]}", "<script>reason", "<i>", "</dl>"):
        assert text in page.text
    # Nothing is fetched: images are in the page, links lead into it.
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(value and value.startswith(("data:image/", "#px")) for value in sources)
    assert "url(" not in content and "@import" not in content


def test_spread() -> None:
    assert spread(0, 3) == [] and spread(2, 3) == [0, 1] and spread(9, 0) == []
    assert spread(9, 3) == [0, 4, 8] and spread(5, 1) == [0]
    assert len(set(spread(1000, 60))) == 60
