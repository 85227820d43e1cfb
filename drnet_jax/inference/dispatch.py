"""Dispatch of batches: score, choose, queue per resolution, run in buckets, return in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from drnet_jax.inference.decision import choose
from drnet_jax.inference.images import BatchT, Images, PartT, Problems
from drnet_jax.inference.programs import Program
from drnet_jax.models.glance import mixed

# Buckets that are started and not waited for, at most: what keeps a device busy, and bounds the
# memory that their images take there.
_IN_FLIGHT = 8
T = TypeVar("T")


class OpenBatch(Generic[PartT]):
    """A batch between its first program and its result.

    Attributes:
      caller: what the caller gets back beside the result.
      parts: its n images, as the predictor sees them.
      problems: by row, why an image cannot be read.
      scores: `[n, m]`, the predictor's.
      first: `[n, k]`, logits of a first look; None without one.
      choices: `[n]`, index of the chosen resolution.
      logits: `[n, k]`, filled row by row.
      missing: rows of `logits` that are not there yet.
    """

    def __init__(
        self,
        caller: Any,
        parts: Sequence[PartT],
        problems: Problems,
        outputs: Sequence[jax.Array],
        *,
        m: int,
        k: int,
        glances: bool,
    ) -> None:
        self.caller = caller
        self.parts = parts
        self.problems = problems
        self._outputs = outputs
        count = sum(part.count for part in parts)
        self.scores = np.zeros((count, m), np.float32)
        self.first = np.empty((count, k), np.float32) if glances else None
        self.choices = np.zeros(count, np.int64)
        self.logits = np.empty((count, k), np.float32)
        self.missing = count

    def wait_for_predictor(self) -> None:
        """Waits for the predictor: the host needs the choices to start the classifiers."""
        if self._outputs:
            pairs = zip(self._outputs, self.parts, strict=True)
            outputs = np.concatenate([np.asarray(out)[: part.count] for out, part in pairs])
            m = self.scores.shape[1]
            self.scores = outputs[:, -m:]
            if self.first is not None:
                self.first = outputs[:, :-m]

    def fill(self, rows: np.ndarray, logits: np.ndarray) -> None:
        """Puts logits `[k, classes]` into their rows `[k]`."""
        self.logits[rows] = logits
        self.missing -= len(rows)


@dataclass(frozen=True)
class Segment(Generic[PartT]):
    """Rows `[k]` of a batch that chose the same resolution."""

    batch: OpenBatch[PartT]
    rows: np.ndarray


class Queue(Generic[PartT]):
    """Images of one resolution, by batch."""

    def __init__(self) -> None:
        self._segments: deque[Segment[PartT]] = deque()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, segment: Segment[PartT]) -> None:
        """Adds images at the end."""
        if len(segment.rows):
            self._segments.append(segment)
            self._length += len(segment.rows)

    def take(self, count: int) -> list[Segment[PartT]]:
        """The first `count` images, or as many as there are."""
        taken: list[Segment[PartT]] = []
        while count and self._segments:
            segment = self._segments.popleft()
            first, rest = segment.rows[:count], segment.rows[count:]
            if len(rest):
                self._segments.appendleft(Segment(segment.batch, rest))
            taken.append(Segment(segment.batch, first))
            count -= len(first)
            self._length -= len(first)
        return taken

    def count_of(self, batches: Sequence[OpenBatch[PartT]]) -> int:
        """How many images are of these batches."""
        return sum(len(segment.rows) for segment in self._segments if segment.batch in batches)


class Dispatch(Generic[BatchT, PartT]):
    """One pass of batches through the programs.

    Args:
      images: where the programs get the images from.
      predictor: its program; None with one resolution.
      classifiers: the classifier's, per resolution.
      num_classes: k.
      costs: `[m]`, what each choice costs, as `choose` takes it.
      weight: `[m]`, of the first look's logits in every answer, see `mixed`; None: the predictor is
        no first look.
      lam: lambda of `choose`.
      max_waiting: batches that may wait for full buckets; 0: none does.
      check: takes a batch as the caller has it, outputs `[n, ...]` of its images, and what is
        unreadable; it raises what to stop for.
    """

    def __init__(
        self,
        images: Images[BatchT, PartT],
        predictor: Program | None,
        classifiers: Sequence[Program],
        *,
        num_classes: int,
        costs: np.ndarray,
        weight: np.ndarray | None,
        lam: float,
        max_waiting: int,
        check: Callable[[Any, np.ndarray, Problems], None],
    ) -> None:
        self._check = check
        self._images = images
        self._predictor = predictor
        self._classifiers = classifiers
        self._num_classes = num_classes
        self._costs = costs
        self._weight = weight
        self._lam = lam
        self._max_waiting = max_waiting
        self._queues: list[Queue[PartT]] = [Queue() for _ in classifiers]
        self._open: deque[OpenBatch[PartT]] = deque()
        # By choice, what was started.
        self._in_flight: deque[tuple[int, jax.Array, list[Segment[PartT]]]] = deque()

    def run(self, batches: Iterable[tuple[T, BatchT]]) -> Iterator[tuple[T, OpenBatch[PartT]]]:
        """Classifies batches, each with what the caller gets back beside it; in order."""
        for done in self._run(batches):
            yield done.caller, done

    def _run(self, batches: Iterable[tuple[Any, BatchT]]) -> Iterator[OpenBatch[PartT]]:
        """The batches, in order, with their logits."""
        scored: OpenBatch[PartT] | None = None
        for caller, batch in batches:
            # Before this batch's choices are waited for: the device has the next predictor to run
            # ahead of this batch's classifiers.
            following = self._score(caller, batch)
            if scored is not None:
                yield from self._advance(scored)
            scored = following
        if scored is not None:
            yield from self._advance(scored)
        self._start_all()
        yield from self._finished(len(self._open))

    def _score(self, caller: Any, batch: BatchT) -> OpenBatch[PartT]:
        """Starts the predictor on a batch."""
        plan = (self._predictor or self._classifiers[0]).plan
        parts, problems = self._images.open(batch, plan.split(len(batch)))
        outputs = [self._predictor.run(part.images) for part in parts] if self._predictor else []
        m, k, glances = len(self._classifiers), self._num_classes, self._weight is not None
        return OpenBatch(caller, parts, problems, outputs, m=m, k=k, glances=glances)

    def _advance(self, scored: OpenBatch[PartT]) -> Iterator[OpenBatch[PartT]]:
        """Queues a batch by its choices, starts what is to start and gives what is done."""
        scored.wait_for_predictor()
        for outputs in (scored.scores, scored.first):
            if outputs is not None:
                self._check(scored.caller, outputs, scored.problems)
        scored.choices = choose(scored.scores, self._costs, self._lam)
        self._open.append(scored)
        for choice, queue in enumerate(self._queues):
            rows = np.flatnonzero(scored.choices == choice)
            if scored.first is not None and choice == len(self._queues) - 1:
                scored.fill(rows, scored.first[rows])
            else:
                queue.put(Segment(scored, rows))
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
            self._start(choice, queue.count_of(oldest))

    def _start_all(self) -> None:
        """Starts whatever waits."""
        for choice, queue in enumerate(self._queues):
            self._start(choice, len(queue))

    def _start(self, choice: int, count: int) -> None:
        """Starts the first images of a queue; others fill a bucket that would be padded."""
        program = self._classifiers[choice]
        for bucket in program.plan.split(count):
            segments = self._queues[choice].take(bucket)
            rows = [(segment.batch.parts, segment.rows) for segment in segments]
            images = self._images.gather(choice, bucket, rows)
            self._in_flight.append((choice, program.run(images), segments))
            if len(self._in_flight) > _IN_FLIGHT:
                self._collect()

    def _collect(self) -> None:
        """Waits for the oldest bucket and hands its rows to their batches."""
        choice, output, segments = self._in_flight.popleft()
        # The program of a first look has its scores after the logits.
        logits = np.asarray(output)[:, : self._num_classes]
        done = 0
        for segment in segments:
            following = done + len(segment.rows)
            answers = self._answers(choice, logits[done:following], segment)
            segment.batch.fill(segment.rows, answers)
            done = following

    def _answers(self, choice: int, logits: np.ndarray, segment: Segment[PartT]) -> np.ndarray:
        """What logits `[k, classes]` of a segment come to with those of a first look."""
        first = segment.batch.first
        if first is None or self._weight is None:
            return logits
        looks = np.stack([logits, first[segment.rows]], axis=1)
        return mixed(looks, self._weight[[choice, -1]])[:, 0]

    def _finished(self, count: int) -> Iterator[OpenBatch[PartT]]:
        """The oldest `count` batches, which are all started."""
        for _ in range(count):
            batch = self._open.popleft()
            while batch.missing:
                self._collect()
            self._check(batch.caller, batch.logits, batch.problems)
            yield batch
