"""Images of a report: the answers that every choice of a resolution leads to."""

import os.path
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from drnet_jax.evaluation.logits import Logits
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.models.glance import mixed
from drnet_jax.reports.pages import Section, data_uri, spread

# From an index in the source and a side in pixels to the picture at that size; None: unreadable.
Pixels = Callable[[int, int], np.ndarray | None]


@dataclass(frozen=True)
class Saying:
    """The answer of one choice of a resolution.

    Attributes:
      resolution: in pixels.
      label: the class's name.
      confidence: its softmax.
      correct: whether it is the image's own class.
    """

    resolution: int
    label: str
    confidence: float
    correct: bool


@dataclass(frozen=True)
class ReportCard:
    """An image of the report.

    Attributes:
      name: of the image: its path, say, in the folder that all are in.
      image: a data URI, at the resolution it was classified at.
      label: its own class.
      chosen: the answer, at the chosen resolution.
      first: what the first look said before it; None without a second look.
      others: the answers that other choices would have led to.
    """

    name: str
    image: str
    label: str
    chosen: Saying
    first: Saying | None
    others: list[Saying]


class CardMaker:
    """Makes the cards of images by their row in the logits.

    Args:
      logits: of the evaluated split.
      records: of the same images, with the choices.
      resolutions: in pixels.
      classes: their names, in the order of the logits.
      pixels: the picture at a resolution.
      glances: every image got a first look at the last resolution.
    """

    def __init__(
        self,
        logits: Logits,
        records: EvalRecords,
        resolutions: Sequence[int],
        classes: Sequence[str],
        pixels: Pixels,
        *,
        glances: bool = False,
    ) -> None:
        self._logits = logits
        self._records = records
        self._resolutions = resolutions
        self._classes = classes
        self._pixels = pixels
        self._glances = glances
        # What the paths of all images have in common says nothing of one of them.
        folders = {os.path.dirname(name) for name in logits.name.tolist()}
        self._common = os.path.commonpath(folders) if all(folders) else ""

    def sections(self, most: int) -> list[Section]:
        """At most so many images of every resolution, spread evenly."""
        choice = self._records.choice
        sections = []
        for index, resolution in enumerate(self._resolutions):
            rows = np.flatnonzero(choice == index)
            cards = self.cards(rows[spread(len(rows), most)])
            sections.append(Section(resolution, len(rows), len(rows) / len(choice), cards))
        return sections

    def cards(self, rows: Iterable[int]) -> list[ReportCard]:
        """The cards of these rows, but of pictures that cannot be read any more."""
        cards = (self._card(int(row)) for row in rows)
        return [card for card in cards if card is not None]

    def _card(self, row: int) -> ReportCard | None:
        chosen = int(self._records.choice[row])
        sayings = self._sayings(row)
        label = int(self._logits.label[row])
        image = self._pixels(int(self._logits.index[row]), self._resolutions[chosen])
        if image is None:
            return None
        others = sayings[:chosen] + sayings[chosen + 1 :]
        first = others.pop() if self._glances and chosen < len(others) else None
        return ReportCard(
            name=str(self._logits.name[row]).removeprefix(self._common).lstrip("/"),
            image=data_uri(image),
            label=self._classes[label],
            chosen=sayings[chosen],
            first=first,
            others=others,
        )

    def _sayings(self, row: int) -> list[Saying]:
        answers = mixed(self._logits.logits[row : row + 1], self._logits.weight)[0]
        probabilities = softmax(answers.astype(float), axis=1)
        best = probabilities.argmax(axis=1)
        return [
            Saying(size, self._classes[k], float(p[k]), bool(k == int(self._logits.label[row])))
            for size, k, p in zip(self._resolutions, best, probabilities, strict=True)
        ]


def hardest(records: EvalRecords, most: int) -> np.ndarray:
    """Rows of the images that are wrong where another choice is correct, surest first.

    Sure are the wrong answer and the correct one: the product of their confidences counts, each
    that of a look alone.
    """
    wrong = ~records.chosen(records.answer_top1)
    correct = np.where(records.answer_top1, records.confidence, 0).max(axis=1)
    sure = np.where(wrong, records.chosen(records.confidence) * correct, 0)
    order = np.argsort(-sure, kind="stable")[:most]
    return order[sure[order] > 0]
