"""Bodies: what is left of them in memory, and what is not passed over."""

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import pytest

from drnet_runtime.serve.admission import Admission
from drnet_runtime.serve.bodies import parse_body, read_body
from drnet_runtime.serve.errors import RequestError

SIZE = 1_000_000
FORM = "multipart/form-data; boundary=b"


def form(*files: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
    return b"".join(head + content + b"\r\n" for content in files) + b"--b--\r\n"


def refused(kind: str, body: bytes) -> RequestError:
    with pytest.raises(RequestError) as found:
        parse_body(kind, body, [], 8)
    return found.value


class Upload:
    """A request whose body comes in parts."""

    headers: ClassVar = {}

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    async def stream(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part


def memory(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that a call leaves behind, and that it had at most; garbage is not collected."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()


def test_nothing_of_a_form_stays_in_memory() -> None:
    whole = form(b"x" * SIZE)

    def parse() -> None:
        assert parse_body(FORM, whole, [], 8).pictures == [b"x" * SIZE]

    def parse_in_part() -> None:
        try:
            parse_body(FORM, whole[:-9], [], 8)
        except RequestError as error:
            assert error.status == 400
        else:
            raise AssertionError

    for work in (parse, parse_in_part):
        left, most = memory(work)
        assert left < SIZE / 10
        assert most < 4 * SIZE


def test_a_form_that_is_cut_off_is_not_half_answered() -> None:
    assert len(parse_body(FORM, form(b"one", b"two"), [], 8).pictures) == 2
    for lost in (3, 6, 9, 12):
        error = refused(FORM, form(b"one", b"two")[:-lost])
        assert error.status == 400 and "last boundary" in error.message


def test_nothing_of_a_body_that_is_too_large_stays_in_memory() -> None:
    admission = Admission(1, 10 * SIZE)

    async def read() -> None:
        upload: Any = Upload(b"x" * SIZE, b"x")
        with admission.request() as held:
            try:
                await read_body(upload, held, SIZE, 5.0)
            except RequestError as error:
                assert error.status == 413 and admission.num_bytes == SIZE
            else:
                raise AssertionError

    left, _ = memory(lambda: asyncio.run(read()))
    assert left < SIZE / 2


def test_json_of_many_values_is_refused_before_it_is_read() -> None:
    """As Python's objects it would take twenty times its size."""
    body = b'{"images": [' + b"[]," * (SIZE // 3) + b"[]]}"

    def parse() -> None:
        error = refused("application/json", body)
        assert error.status == 413 and "more than 8 pictures" in error.message

    _, most = memory(parse)
    assert most < SIZE


def test_as_many_pictures_as_are_allowed_in_json() -> None:
    """Each as a data URL, which has a comma too."""
    urls = ["data:image/png;base64,eA=="] * 8
    content = {"images": urls, "lam": 1, "drop": 2}
    asked = parse_body("application/json", json.dumps(content).encode(), [], 8)
    assert asked.pictures == [b"x"] * 8 and asked.budget == {"lam": 1, "drop": 2}


def test_a_budget_that_is_stated_twice() -> None:
    with pytest.raises(RequestError, match="lam is stated twice"):
        parse_body("image/png", b"x", [("lam", "1"), ("lam", "2")], 8)
