"""The server's program: how it begins, and that it ends with all answers given."""

import http.client
import os
import re
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from drnet_runtime import AdaptiveModel
from drnet_runtime.serve import settings as serve_settings
from drnet_runtime.serve.server import run
from drnet_runtime.sessions import usable_cores
from tests.serving import Running, command, expected, png, serving, write_hand_made

COLOURS = [(200, 10, 10), (10, 90, 30), (180, 200, 220)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hand_made(tmp_path_factory.mktemp("case") / "export")


class Client(threading.Thread):
    """Asks one picture after the other until the server accepts no more."""

    def __init__(self, server: Running, colour: tuple[int, int, int]) -> None:
        super().__init__()
        self.server, self.colour = server, colour
        self.answered = 0
        self.wrong: list[object] = []

    def run(self) -> None:
        connection, picture = self.server.connect(), png(self.colour)
        while True:
            try:
                response = self.server.ask("/classify", picture, "image/png", connection)
            except ConnectionRefusedError:
                return
            # Connected to, but not yet taken by the server.
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                connection.close()
                continue
            self.answered += 1
            if response.status != 200:
                self.wrong.append(response)
            elif response.json["answers"][0]["label"] != expected(self.colour)["label"]:
                self.wrong.append(response.json)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_no_answer(folder: Path, number: signal.Signals) -> None:
    with serving(folder, "--max-wait-ms=30") as server:
        clients = [Client(server, COLOURS[i % 3]) for i in range(12)]
        for client in clients:
            client.start()
        time.sleep(0.6)
        server.process.send_signal(number)
        code, said = server.stop()
        for client in clients:
            client.join(20)
            assert not client.is_alive()
    assert code == 0
    assert [client.wrong for client in clients] == [[]] * len(clients)
    count = sum(client.answered for client in clients)
    assert count >= len(clients)
    # The server took as many as the clients had answers to.
    assert said == f"ended: {count} requests at /classify, {count} ended ({count} with 200)\n"


def test_what_waits_for_company_is_answered_after_sigterm(folder: Path) -> None:
    with serving(folder, "--max-wait-ms=1500") as server:
        answers: list[int] = []
        clients = [
            threading.Thread(
                target=lambda: answers.append(
                    server.ask("/classify", png(COLOURS[0]), "image/png").status
                )
            )
            for _ in range(5)
        ]
        for client in clients:
            client.start()
        while server.metrics()["drnet_queue_pictures"] < 5:
            time.sleep(0.02)
        code, said = server.stop()
        for client in clients:
            client.join()
    assert (code, answers) == (0, [200] * 5)
    assert "5 requests at /classify, 5 ended (5 with 200)" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_start_is_not_lost(folder: Path, number: signal.Signals) -> None:
    """Several times: what has to be met are a few milliseconds."""
    for _ in range(4):
        with serving(folder) as server:
            server.process.send_signal(number)
            said, _ = server.process.communicate(timeout=10)
            assert server.process.returncode == 0
            assert said == "ended: 0 requests at /classify, 0 ended\n"


def test_a_signal_before_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the export is loaded."""

    def load(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(AdaptiveModel, "load", load)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit) as ended:
            run(serve_settings.parse([str(folder), "--port=0"]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 0


def test_what_clients_send_fills_no_log(folder: Path) -> None:
    upgrade = (
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    with serving(folder) as server:
        for content, status in ((b"what is this\r\n\r\n", b" 400 "), (upgrade, b" 200 ")):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                connection.sendall(content)
                assert status in connection.recv(65536)
        assert server.stop() == (0, "ended: 0 requests at /classify, 0 ended\n")


def test_a_directory_of_any_name(folder: Path, tmp_path: Path) -> None:
    """Its name is printed, and bytes that are no UTF-8 cannot be."""
    odd = shutil.copytree(folder, tmp_path / os.fsdecode(b"caf\xe9"))
    with serving(odd) as server:
        assert server.ask("/health").status == 200
        assert server.stop()[0] == 0


def test_an_upload_that_does_not_go_on_is_not_waited_for(folder: Path) -> None:
    with serving(folder, "--client-seconds=1") as server:
        head = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        upload = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        upload.sendall(f"{head}Content-Length: 1000\r\n\r\nhalf".encode())
        while server.metrics()["drnet_open_requests"] < 1:
            time.sleep(0.02)
        start = time.monotonic()
        code, said = server.stop()
        assert code == 0 and "1 requests at /classify, 1 ended (1 with 408)" in said
        assert time.monotonic() - start < 4
        upload.close()


def test_draining_is_said_while_connections_are_still_taken(folder: Path) -> None:
    with serving(folder, "--drain-seconds=1") as server:
        kept = server.connect()
        assert server.ask("/health", connection=kept).json == {"status": "ready"}
        server.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 1
        while (response := server.ask("/health")).status == 200:
            assert time.monotonic() < end
        assert response.status == 503 and response.json == {"status": "draining"}
        assert server.metrics()["drnet_draining"] == 1
        answer = server.ask("/classify", png(COLOURS[0]), "image/png", kept)
        assert answer.status == 200
        # So that the client's next request goes elsewhere.
        assert answer.headers["connection"] == "close"
        assert server.stop()[0] == 0


def test_what_cannot_begin_says_why(folder: Path, tmp_path: Path) -> None:
    with serving(folder) as server:
        wrong = {
            (tmp_path / "nothing",): "nothing is no directory",
            (folder, f"--port={server.port}"): f"port {server.port}: Address already in use",
            # Of no machine: RFC 5737.
            (folder, "--host=203.0.113.1", "--port=0"): "cannot listen at 203.0.113.1, port 0",
            (folder, "--int8", "--port=0"): "has no files in int8",
            (folder, "--gmacs=1e-9"): "the default budget: a budget of 1e-09 GMACs cannot be kept",
        }
        started = {
            arguments: command(*arguments, *(() if len(arguments) > 1 else ("--port=0",)))
            for arguments in wrong
        }
        for arguments, process in started.items():
            said, _ = process.communicate(timeout=30)
            assert process.returncode == 2, said
            assert re.fullmatch(f"error: .*{re.escape(wrong[arguments])}.*\n", said), said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gmacs=1", "--drop=1"], "not allowed with"),
        (["--queue=2"], "--max-pictures 64 is above --queue 2"),
        (["--max-held-mb=1"], "--max-held-mb 1 is below --max-body-mb 16"),
        (["--max-batch=0"], "0 does not lie in 1 to inf"),
        (["--max-wait-ms=nan"], "nan does not lie in 0 to inf"),
        (["--port=http"], "invalid int value: 'http'"),
    ],
)
def test_settings_that_cannot_be(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        serve_settings.parse(["DIR", *arguments])
    assert ended.value.code == 2
    assert re.fullmatch(f"error: .*{re.escape(message)}.*\n", capsys.readouterr().err)


def test_the_default_budget(folder: Path) -> None:
    with serving(folder, "--fraction=0.4") as server:
        response = server.ask("/classify", png(COLOURS[2]), "image/png")
        assert response.json["lam"] == 9.0
        assert response.json["answers"][0]["looks"] == 1
        assert server.ask("/classify?lam=0", png(COLOURS[2]), "image/png").json["lam"] == 0
        assert server.ask("/model").json["default_lam"] == 9.0


def test_answers_are_not_held_back(folder: Path) -> None:
    """Nagle's algorithm with a delayed acknowledgement takes 40 ms."""
    with serving(folder, "--max-wait-ms=0") as server:
        connection, times = server.connect(), []
        for _ in range(60):
            start = time.perf_counter()
            server.ask("/classify", png(COLOURS[0]), "image/png", connection)
            times.append(time.perf_counter() - start)
        connection.close()
    # The first of a connection are acknowledged at once.
    assert min(times[40:]) < 0.03


def test_settings(tmp_path: Path) -> None:
    given = serve_settings.parse([str(tmp_path), "--max-wait-ms=5", "--max-body-mb=2", "--lam=3"])
    assert (given.max_wait, given.max_body, given.budget) == (0.005, 2 * 2**20, {"lam": 3.0})
    assert given.decode_threads == usable_cores()
    assert serve_settings.parse([str(tmp_path)]).budget == {}
