"""Pictures of several requests in one model call."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from drnet_runtime import Result
from drnet_runtime.serve.batching import Batcher


def result_of(images: np.ndarray, lams: np.ndarray) -> Result:
    """Logits that tell the image and its lambda."""
    n = len(images)
    ones = np.ones(n, np.int64)
    logits = np.stack([images[:, 0, 0, 0], lams], axis=1).astype(np.float32)
    return Result(logits, ones, ones, ones, ones, None, None)


class Model:
    """Counts its calls, and waits for `go` in each."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, images: np.ndarray, lams: np.ndarray) -> Result:
        self.sizes.append(len(images))
        assert self.go.wait(5)
        if (images == 255).any():
            raise FloatingPointError("not finite")
        return result_of(images, lams)


def image(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


def run(batcher: Batcher, work: Coroutine[Any, Any, None]) -> None:
    """The work, beside the batcher."""

    async def both() -> None:
        running = asyncio.create_task(batcher.run())
        try:
            async with asyncio.timeout(10):
                await work
        finally:
            running.cancel()
            batcher.close()

    asyncio.run(both())


async def check(batcher: Batcher, values: range) -> None:
    """That each gets its own answer."""
    answers = await asyncio.gather(*(batcher.classify(image(v), v / 2) for v in values))
    for value, (result, index) in zip(values, answers, strict=True):
        np.testing.assert_array_equal(result.logits[index], [value, value / 2])


def test_calls_have_at_most_so_many_pictures() -> None:
    model, seen = Model(), list[tuple[int, int]]()
    batcher = Batcher(model, 4, 0.05, lambda n, waited, _: seen.append((n, len(waited))))
    run(batcher, check(batcher, range(10)))
    assert model.sizes == [4, 4, 2]
    assert seen == [(4, 4), (4, 4), (2, 2)]
    assert batcher.num_waiting == 0


def test_what_arrives_during_a_call_is_for_the_next() -> None:
    model = Model()
    batcher = Batcher(model, 100, 0.0, lambda *_: None)

    async def work() -> None:
        model.go.clear()
        first = asyncio.create_task(check(batcher, range(1)))
        while not model.sizes:
            await asyncio.sleep(0.001)
        others = asyncio.create_task(check(batcher, range(1, 8)))
        while batcher.num_waiting < 7:
            await asyncio.sleep(0.001)
        model.go.set()
        await first
        await others

    run(batcher, work())
    assert model.sizes == [1, 7]


def test_a_call_that_fails_is_told_to_its_pictures_alone() -> None:
    model = Model()
    batcher = Batcher(model, 2, 0.05, lambda *_: None)

    async def work() -> None:
        found = await asyncio.gather(
            *(batcher.classify(image(v), 0.0) for v in (255, 1, 2, 3)), return_exceptions=True
        )
        assert [isinstance(f, FloatingPointError) for f in found] == [True, True, False, False]

    run(batcher, work())


def test_a_request_that_was_given_up_costs_the_others_nothing() -> None:
    model = Model()
    batcher = Batcher(model, 3, 5.0, lambda *_: None)

    async def work() -> None:
        given_up = asyncio.create_task(batcher.classify(image(9), 0.0))
        await asyncio.sleep(0)
        given_up.cancel()
        await check(batcher, range(2))
        with pytest.raises(asyncio.CancelledError):
            await given_up

    run(batcher, work())
    assert model.sizes == [3]
