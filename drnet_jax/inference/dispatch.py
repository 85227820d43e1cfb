"""The way of images through an adaptive classifier: score, choose, queue, run, back in order."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np

from drnet_jax.inference.decision import choose
from drnet_jax.inference.programs import Program, Run

# Buckets that are started and not waited for, at most: what keeps a device busy, and bounds the
# memory that their images take there.
_IN_FLIGHT = 8


class OpenBatch:
    """A batch on its way.

    Attributes:
      images: `[n, h, w, 3]` uint8.
      scores: `[n, m]`, the predictor's.
      choices: `[n]`, index of the chosen resolution.
      logits: `[n, k]`, filled row by row.
    """

    def __init__(self, images: np.ndarray, score_runs: list[Run], m: int, num_classes: int) -> None:
        self.images = images
        self._score_runs = score_runs
        self.scores = np.zeros((len(images), m), np.float32)
        self.choices = np.zeros(len(images), np.int64)
        self.logits = np.empty((len(images), num_classes), np.float32)
        self.missing = len(images)

    def wait_for_choices(self, gmacs: np.ndarray, lam: float) -> None:
        """The one time that the host waits for a batch before it starts the classifiers."""
        if self._score_runs:
            self.scores = np.concatenate([run.wait() for run in self._score_runs])
        self.choices = choose(self.scores, gmacs, lam)


# One image: its batch, and its row there.
Ticket = tuple[OpenBatch, int]


class Dispatch:
    """One pass of batches through the programs.

    Args:
      predictor: its program; None with one resolution.
      classifiers: the classifier's, at every resolution.
      num_classes: k.
      gmacs: `[m]`, the classifier's cost at every resolution.
      lam: lambda of `choose`.
      max_waiting: batches that may wait for full buckets; 0: none does.
    """

    def __init__(
        self,
        predictor: Program | None,
        classifiers: tuple[Program, ...],
        *,
        num_classes: int,
        gmacs: np.ndarray,
        lam: float,
        max_waiting: int,
    ) -> None:
        self._predictor = predictor
        self._classifiers = classifiers
        self._num_classes = num_classes
        self._gmacs = gmacs
        self._lam = lam
        self._max_waiting = max_waiting
        self._queues: list[deque[Ticket]] = [deque() for _ in classifiers]
        self._open: deque[OpenBatch] = deque()
        self._in_flight: deque[tuple[Run, list[Ticket]]] = deque()

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[OpenBatch]:
        """The batches, in order, with their logits."""
        scored: OpenBatch | None = None
        for batch in batches:
            # Before this batch's choices are waited for: the device has the next predictor to run
            # ahead of this batch's classifiers.
            following = self._score(batch)
            if scored is not None:
                yield from self._advance(scored)
            scored = following
        if scored is not None:
            yield from self._advance(scored)
        self._start_all()
        yield from self._finished(len(self._open))

    def _score(self, images: np.ndarray) -> OpenBatch:
        """Starts the predictor on a batch."""
        runs = []
        if self._predictor is not None and len(images):
            runs = self._predictor.start(images)
        return OpenBatch(images, runs, len(self._classifiers), self._num_classes)

    def _advance(self, scored: OpenBatch) -> Iterator[OpenBatch]:
        """Queues a batch by its choices, starts what is to start and gives what is done."""
        scored.wait_for_choices(self._gmacs, self._lam)
        self._open.append(scored)
        for row, choice in enumerate(scored.choices.tolist()):
            self._queues[choice].append((scored, row))
        if self._max_waiting == 0:
            self._start_all()
            # This batch's classifiers run while the one before is handed out.
            yield from self._finished(len(self._open) - 1)
            return
        for choice, program in enumerate(self._classifiers):
            while len(self._queues[choice]) >= program.plan.best:
                self._start(choice, program.plan.best)
        too_many = len(self._open) - self._max_waiting
        if too_many > 0:
            self._start_oldest(too_many)
            yield from self._finished(too_many)

    def _start_oldest(self, count: int) -> None:
        """What the oldest batches wait for is started in smaller buckets."""
        oldest = list(self._open)[:count]
        for choice, queue in enumerate(self._queues):
            late = sum(1 for batch, _ in queue if batch in oldest)
            if late:
                self._start(choice, late)

    def _start_all(self) -> None:
        """Starts whatever waits."""
        for choice, queue in enumerate(self._queues):
            if queue:
                self._start(choice, len(queue))

    def _start(self, choice: int, count: int) -> None:
        """Starts the first images of a queue."""
        queue = self._queues[choice]
        tickets = [queue.popleft() for _ in range(count)]
        parts = []
        for batch, group in groupby(tickets, key=lambda ticket: ticket[0]):
            parts.append(batch.images[[row for _, row in group]])
        images = parts[0] if len(parts) == 1 else np.concatenate(parts)
        for run in self._classifiers[choice].start(images):
            self._in_flight.append((run, tickets[: run.count]))
            tickets = tickets[run.count :]
            if len(self._in_flight) > _IN_FLIGHT:
                self._collect()

    def _collect(self) -> None:
        """Waits for the oldest bucket and hands its rows to their batches."""
        run, tickets = self._in_flight.popleft()
        for (batch, row), logits in zip(tickets, run.wait(), strict=True):
            batch.logits[row] = logits
            batch.missing -= 1

    def _finished(self, count: int) -> Iterator[OpenBatch]:
        """The oldest `count` batches, which are all started."""
        for _ in range(count):
            batch = self._open.popleft()
            while batch.missing:
                self._collect()
            yield batch
