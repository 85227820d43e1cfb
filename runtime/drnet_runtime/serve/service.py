"""From a request at /classify to its answer."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request

from drnet_runtime import AdaptiveModel, PictureError
from drnet_runtime.serve.admission import Admission, Held
from drnet_runtime.serve.answers import answer_of
from drnet_runtime.serve.batching import Batcher
from drnet_runtime.serve.bodies import Asked, parse_body, read_body
from drnet_runtime.serve.budget import lambda_of
from drnet_runtime.serve.metrics import Metrics
from drnet_runtime.serve.settings import Settings

_T = TypeVar("_T")


class Service:
    """A model at the service of one event loop.

    Args:
      model: the export.
      settings: limits, threads, the default budget.

    Attributes:
      default: lambda of requests that state no budget.
      metrics: of what it did.
      draining: it is about to end.

    Raises:
      RequestError: the default budget cannot be kept.
    """

    def __init__(self, model: AdaptiveModel, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.default = lambda_of(model, settings.budget)
        self.draining = False
        self._admission = admission = Admission(settings.queue, settings.max_held)
        # What it does is bounded by the admission's places and bytes.
        self._pool = ThreadPoolExecutor(settings.decode_threads, "decode")
        self.metrics = metrics = Metrics(model)
        self._batcher = batcher = Batcher(
            model.classify, settings.max_batch, settings.max_wait, metrics.called
        )
        for name, help, value in (
            ("queue_pictures", "Waiting for their model call.", lambda: batcher.num_waiting),
            ("accepted_pictures", "Not answered yet.", lambda: admission.pictures),
            ("held_bytes", "Of requests not answered yet.", lambda: admission.num_bytes),
            ("open_requests", "At /classify, not answered yet.", lambda: admission.requests),
            ("draining", "1 after SIGTERM.", lambda: self.draining),
        ):
            metrics.watch(name, help, value)

    async def run(self) -> None:
        """Answers, until it is cancelled."""
        try:
            await self._batcher.run()
        finally:
            self._pool.shutdown()
            self._batcher.close()

    async def classify(self, request: Request) -> tuple[int, dict[str, Any]]:
        """Status and content of the answer to a request.

        422 where none of its pictures can be read; of several the others are answered.

        Raises:
          RequestError: it is not answered, and why.
          ClientDisconnect: the client has gone before its request was there.
        """
        with self._admission.request() as held:
            asked = await self._read(request, held)
            held.add_pictures(len(asked.pictures))
            lam = lambda_of(self.model, asked.budget) if asked.budget else self.default
            # All of them end before the places are given back, whatever one of them raises.
            found = await asyncio.gather(
                *(self._answer(picture, lam) for picture in asked.pictures), return_exceptions=True
            )
        answers: list[dict[str, Any]] = []
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
            answers.append(answer)
        readable = any("error" not in answer for answer in answers)
        return 200 if readable else 422, {"answers": answers, "lam": lam}

    async def _read(self, request: Request, held: Held) -> Asked:
        settings = self.settings
        body = await read_body(request, held, settings.max_body, settings.client_seconds)
        kind = request.headers.get("content-type", "")
        query = request.query_params.multi_items()
        return await self._in_pool(lambda: parse_body(kind, body, query, settings.max_pictures))

    async def _answer(self, encoded: bytes, lam: float) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            image = await self._in_pool(
                lambda: self.model.decode(encoded, max_pixels=self.settings.max_pixels)
            )
        except PictureError as error:
            self.metrics.unreadable.inc()
            return {"error": str(error)}
        self.metrics.decode_seconds.observe(time.perf_counter() - start)
        result, index = await self._batcher.classify(image, lam)
        self.metrics.answered(result, index)
        return answer_of(self.model, result, index)

    async def _in_pool(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
