"""What the server holds is bounded, and clients that are slow or go away leave nothing behind."""

import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving import Response, Running, expected, png, serving, write_hand_made

COLOUR = (200, 10, 10)
QUEUE, CONNECTIONS = 4, 40
# Of the server: how long pictures wait for company, and clients may take.
WAIT, CLIENT_SECONDS = 1.0, 1.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = write_hand_made(tmp_path_factory.mktemp("case") / "export")
    with serving(
        folder,
        f"--queue={QUEUE}",
        f"--max-pictures={QUEUE}",
        f"--max-wait-ms={1000 * WAIT}",
        f"--client-seconds={CLIENT_SECONDS}",
        f"--max-connections={CONNECTIONS}",
        "--max-body-mb=0.5",
        "--max-held-mb=0.75",
    ) as running:
        yield running
        code, said = running.stop()
        assert code == 0
        assert "Traceback" not in said


def until(is_so: Callable[[], bool], seconds: float = 5.0) -> None:
    """Waits for what must become so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_empty(server: Running) -> bool:
    found = server.metrics()
    gauges = ("queue_pictures", "accepted_pictures", "held_bytes", "open_requests")
    return not any(found[f"drnet_{gauge}"] for gauge in gauges)


def raw(server: Running, content: bytes) -> socket.socket:
    """A connection on which something is sent, as it is."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(content)
    return connection


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection; a reset is its end too."""
    content = b""
    try:
        while part := connection.recv(65536):
            content += part
    except ConnectionResetError:
        pass
    connection.close()
    return content


def head(length: int, kind: str = "image/png") -> bytes:
    return (
        f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_a_full_queue_is_said_at_once(server: Running) -> None:
    picture = png(COLOUR)

    def ask(_: int) -> tuple[Response, float]:
        start = time.monotonic()
        return server.ask("/classify", picture, "image/png"), time.monotonic() - start

    with ThreadPoolExecutor(3 * QUEUE) as pool:
        found = list(pool.map(ask, range(3 * QUEUE)))
    answered = [response for response, _ in found if response.status == 200]
    refused = [(response, taken) for response, taken in found if response.status == 503]
    assert len(answered) == QUEUE and len(refused) == 2 * QUEUE
    for response in answered:
        assert response.json["answers"][0]["label"] == expected(COLOUR)["label"]
    for response, taken in refused:
        assert int(response.headers["retry-after"]) >= 1
        assert "queue is full" in response.json["error"]
        assert taken < WAIT
    # The places are free again, all of them.
    images = json.dumps({"images": [b64encode(picture).decode()] * QUEUE})
    assert len(server.ask("/classify", images, "application/json").json["answers"]) == QUEUE
    assert is_empty(server)


def test_a_large_body_is_refused_by_what_it_states(server: Running) -> None:
    connection = raw(server, head(600_000))
    assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    connection.close()


def test_a_large_body_is_refused_by_what_arrives(server: Running) -> None:
    """It states no length, and would go on without end."""
    connection = raw(
        server,
        b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
    )
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for _ in range(20):
        connection.sendall(chunk)
    # The answer comes before the end of the body, which the server throws away meanwhile.
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"larger than 0.5 MB" in answer
    assert is_empty(server)
    # But not for ever.
    until(lambda: closed(connection, chunk), 4 * CLIENT_SECONDS)


def closed(connection: socket.socket, further: bytes) -> bool:
    try:
        connection.sendall(further)
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def test_bytes_of_all_requests_are_bounded(server: Running) -> None:
    first = raw(server, head(450_000) + b"x" * 400_000)
    until(lambda: server.metrics()["drnet_held_bytes"] >= 400_000)
    response = server.ask("/classify", b"x" * 420_000, "image/png")
    assert response.status == 503 and int(response.headers["retry-after"]) >= 1
    assert "bytes" in response.json["error"]
    first.sendall(b"x" * 50_000)
    # No picture, but read.
    assert first.recv(65536).startswith(b"HTTP/1.1 422 ")
    first.close()
    assert is_empty(server)


def test_aborted_uploads_leave_nothing(server: Running) -> None:
    before = server.metrics()
    for _ in range(30):
        raw(server, head(100_000) + b"x" * 20_000).close()
    until(lambda: is_empty(server))
    count = 'drnet_requests_total{path="/classify",status="499"}'
    until(lambda: server.metrics()[count] - before.get(count, 0) == 30)
    after = server.metrics()
    assert after["process_open_fds"] <= before["process_open_fds"] + 1


def test_clients_that_leave_before_their_answer(server: Running) -> None:
    picture = png(COLOUR)
    before = server.metrics()["drnet_batch_pictures_sum"]
    for _ in range(QUEUE):
        raw(server, head(len(picture)) + picture).close()
    until(lambda: is_empty(server))
    # What was accepted is classified, whoever listens.
    assert server.metrics()["drnet_batch_pictures_sum"] == before + QUEUE


def test_slow_clients_are_not_waited_for(server: Running) -> None:
    """Of heads and bodies that do not end; a byte now and then does not help."""
    opened = time.monotonic()
    silent, headless, bodiless = (
        raw(server, content) for content in (b"", b"POST /classify HTT", head(1000) + b"x")
    )
    dripping = raw(server, head(1000))
    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append(everything(dripping)))
    reader.start()
    try:
        while reader.is_alive() and time.monotonic() < opened + 10:
            dripping.sendall(b"x")
            time.sleep(0.1)
    except OSError:
        pass
    reader.join()
    assert b" 408 " in answers[0] and b"longer than 1 s" in answers[0]
    assert everything(silent) == everything(headless) == b""
    assert b" 408 " in everything(bodiless)
    assert CLIENT_SECONDS / 2 < time.monotonic() - opened < 4 * CLIENT_SECONDS
    assert is_empty(server)


def test_a_connection_serves_many_requests(server: Running) -> None:
    """Also after refused ones."""
    connection = server.connect()
    assert server.ask("/classify", b"", "image/png", connection).status == 400
    assert server.ask("/health", connection=connection).status == 200
    assert server.ask("/classify", b"x", "text/plain", connection).status == 415
    answer = server.ask("/classify", png(COLOUR), "image/png", connection)
    assert answer.json["answers"][0]["label"] == expected(COLOUR)["label"]
    connection.close()


def test_more_connections_than_may_be_are_refused(server: Running) -> None:
    before = server.metrics()["process_open_fds"]
    idle = [raw(server, b"") for _ in range(CONNECTIONS)]
    try:
        # They are taken in their order.
        response = server.ask("/health")
        assert response.status == 503 and int(response.headers["retry-after"]) >= 1
    finally:
        for connection in idle:
            connection.close()
    until(lambda: server.ask("/health").status == 200)
    until(lambda: server.metrics()["process_open_fds"] <= before)
