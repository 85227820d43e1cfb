"""One model call for the pictures of several requests that arrive within milliseconds.

Pictures of any resolution share a call: the model itself groups what goes to the same network.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from drnet_runtime import Result

Classify = Callable[[np.ndarray, np.ndarray], Result]
# Called with the pictures of a call, the seconds each waited for it, and those it took.
Observe = Callable[[int, list[float], float], None]


@dataclass(frozen=True)
class _Waiting:
    image: np.ndarray
    lam: float
    since: float
    # The result of its call, and its place therein.
    answer: "asyncio.Future[tuple[Result, int]]"


class Batcher:
    """Groups pictures into model calls, of which one runs at a time.

    A call starts when `max_batch` pictures are there, or the first of them has waited `max_wait`
    seconds; what arrives while one runs is for the next. For one event loop.
    """

    def __init__(
        self, classify: Classify, max_batch: int, max_wait: float, observe: Observe
    ) -> None:
        self._classify = classify
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")

    @property
    def num_waiting(self) -> int:
        """Pictures whose call has not begun."""
        return len(self._waiting)

    async def classify(self, image: np.ndarray, lam: float) -> tuple[Result, int]:
        """The result of the call that an image is part of, and its place therein.

        Args:
          image: uint8 `[s, s, 3]`.
          lam: lambda of this image.

        Raises:
          Exception: whatever the model raised on the call.
        """
        loop = asyncio.get_running_loop()
        item = _Waiting(image, lam, loop.time(), loop.create_future())
        self._waiting.append(item)
        self._arrived.set()
        return await item.answer

    async def run(self) -> None:
        """Classifies what arrives, until it is cancelled."""
        while True:
            batch = await self._next_batch()
            loop = asyncio.get_running_loop()
            start = loop.time()
            try:
                images = np.stack([item.image for item in batch])
                lams = np.array([item.lam for item in batch])
                result = await loop.run_in_executor(self._thread, self._classify, images, lams)
            except Exception as error:
                for item in batch:
                    if not item.answer.done():
                        item.answer.set_exception(error)
                continue
            waited = [start - item.since for item in batch]
            self._observe(len(batch), waited, loop.time() - start)
            for index, item in enumerate(batch):
                # That of a request which was given up is cancelled.
                if not item.answer.done():
                    item.answer.set_result((result, index))

    def close(self) -> None:
        """Ends the thread of the model."""
        self._thread.shutdown()

    async def _next_batch(self) -> list[_Waiting]:
        while not self._waiting:
            await self._next_arrival(None)
        deadline = self._waiting[0].since + self._max_wait
        while len(self._waiting) < self._max_batch:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or not await self._next_arrival(left):
                break
        count = min(len(self._waiting), self._max_batch)
        return [self._waiting.popleft() for _ in range(count)]

    async def _next_arrival(self, seconds: float | None) -> bool:
        """Whether one arrives within so many seconds."""
        self._arrived.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True
