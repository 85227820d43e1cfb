"""Bodies: what is left of them in memory, and what is not passed over."""

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from drnet_runtime.serve.bodies import parse_body
from drnet_runtime.serve.errors import RequestError

SIZE = 1_000_000
FORM = "multipart/form-data; boundary=b"


def form(*files: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
    return b"".join(head + content + b"\r\n" for content in files) + b"--b--\r\n"


def refused(kind: str, body: bytes) -> RequestError:
    with pytest.raises(RequestError) as found:
        parse_body(kind, body, {}, 8)
    return found.value


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
        assert parse_body(FORM, whole, {}, 8).pictures == [b"x" * SIZE]

    def parse_in_part() -> None:
        try:
            parse_body(FORM, whole[:-9], {}, 8)
        except RequestError as error:
            assert error.status == 400
        else:
            raise AssertionError

    for work in (parse, parse_in_part):
        left, most = memory(work)
        assert left < SIZE / 10
        assert most < 4 * SIZE


def test_a_form_that_is_cut_off_is_not_half_answered() -> None:
    assert len(parse_body(FORM, form(b"one", b"two"), {}, 8).pictures) == 2
    for lost in (3, 6, 9, 12):
        error = refused(FORM, form(b"one", b"two")[:-lost])
        assert error.status == 400 and "last boundary" in error.message
