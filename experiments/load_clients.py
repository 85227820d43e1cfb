"""Clients of the server: requests, malformed ones and aborted uploads, each answer checked."""

import base64
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# Shares of requests by kind; the rest are single pictures as they are.
SHARES = {"json": 0.1, "form": 0.1, "malformed": 0.1, "aborted": 0.05}
_BOUNDARY = "load-test"
# Further tries where the server says that it is full.
_TRIES = 20
# Of bytes that are no request of the interface, what they are and how they are refused.
_MALFORMED = (
    (b"{", "application/json", 400),
    (b'{"images": ["a*b"]}', "application/json", 400),
    (b"", "image/png", 400),
    (b"neither a picture", "image/png", 422),
    (b"x", "text/plain", 415),
    (b"no form", f"multipart/form-data; boundary={_BOUNDARY}", 400),
)


@dataclass(frozen=True)
class Picture:
    """A picture and what the export says of it, at each lambda of the test.

    Attributes:
      encoded: the file.
      answers: by lambda: label, resolution and looks; None where two choices are worth the same.
      confidences: by lambda, of the label.
    """

    encoded: bytes
    answers: dict[float, tuple[str, int, int] | None]
    confidences: dict[float, float]


@dataclass
class Outcome:
    """What clients saw, one or several.

    Attributes:
      statuses: of responses.
      kinds: of requests.
      seconds: from a request to its answer, of those with an answer of 200.
      pictures: that were answered.
      wrong: answers that differ from the export's, and other surprises.
      lost: connections that ended without a response.
      ties: answers that were not compared.
      gmacs: of all answers.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    pictures: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    ties: int = 0
    gmacs: float = 0.0

    def add(self, other: "Outcome") -> None:
        """Takes in what another client saw."""
        self.statuses += other.statuses
        self.kinds += other.kinds
        self.seconds += other.seconds
        self.pictures += other.pictures
        self.wrong += other.wrong
        self.lost += other.lost
        self.ties += other.ties
        self.gmacs += other.gmacs


class Client(threading.Thread):
    """One connection, one request after the other.

    Args:
      port: of the server on this machine.
      pictures: to send.
      numbers: of its requests: each says what it is. Shared by all clients.
      until_refused: goes on until the server accepts no connection, and counts what is lost.
    """

    def __init__(
        self,
        port: int,
        pictures: Sequence[Picture],
        numbers: Iterable[int],
        *,
        until_refused: bool = False,
    ) -> None:
        super().__init__()
        self._port = port
        self._pictures = pictures
        self._numbers = numbers
        self._until_refused = until_refused
        self._connection = self._connect()
        self.outcome = Outcome()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)

    def run(self) -> None:
        for number in self._numbers:
            draw = random.Random(number)
            kind = _kind(draw.random())
            self.outcome.kinds[kind] += 1
            try:
                getattr(self, f"_{kind}")(draw)
            except ConnectionRefusedError:
                self.outcome.kinds[kind] -= 1
                if not self._until_refused:
                    self.outcome.wrong.append("the connection was refused")
                break
            except (http.client.HTTPException, OSError) as error:
                self.outcome.lost += 1
                if not self._until_refused:
                    self.outcome.wrong.append(f"{kind}: {type(error).__name__} {error}")
                self._connection.close()
        self._connection.close()

    def _raw(self, draw: random.Random) -> None:
        picture, lam = self._drawn(draw)
        self._classify(f"?lam={lam}", picture.encoded, "image/jpeg", [picture], lam)

    def _json(self, draw: random.Random) -> None:
        picture, lam = self._drawn(draw)
        text = base64.b64encode(picture.encoded).decode()
        self._classify(
            "", json.dumps({"image": text, "lam": lam}), "application/json", [picture], lam
        )

    def _form(self, draw: random.Random) -> None:
        """Of three pictures."""
        _, lam = self._drawn(draw)
        pictures = draw.choices(self._pictures, k=3)
        body = b""
        for name, picture in enumerate(pictures):
            body += f"--{_BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
            body += f'name="{name}"; filename="{name}"\r\n\r\n'.encode()
            body += picture.encoded + b"\r\n"
        body += f"--{_BOUNDARY}--\r\n".encode()
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
        self._classify(f"?lam={lam}", body, kind, pictures, lam)

    def _malformed(self, draw: random.Random) -> None:
        body, kind, wanted = draw.choice(_MALFORMED)
        status, content = self._ask("", body, kind)
        if status != wanted:
            self.outcome.wrong.append(f"{body!r} as {kind} gave {status}: {content}")

    def _aborted(self, draw: random.Random) -> None:
        """Half of a picture, on a connection of its own, which is closed or reset."""
        picture, _ = self._drawn(draw)
        head = (
            "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(picture.encoded)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as connection:
            if draw.random() < 0.5:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.sendall(head.encode() + picture.encoded[: len(picture.encoded) // 2])

    def _drawn(self, draw: random.Random) -> tuple[Picture, float]:
        picture = draw.choice(self._pictures)
        return picture, draw.choice(list(picture.answers))

    def _classify(
        self, query: str, body: bytes | str, kind: str, pictures: Sequence[Picture], lam: float
    ) -> None:
        start = time.perf_counter()
        status, content = self._ask(query, body, kind)
        if status != 200:
            self.outcome.wrong.append(f"{status}: {content}")
            return
        self.outcome.seconds.append(time.perf_counter() - start)
        answers = content["answers"]
        if len(answers) != len(pictures) or content["lam"] != lam:
            self.outcome.wrong.append(f"{len(answers)} answers at lambda {content['lam']}")
            return
        for answer, picture in zip(answers, pictures, strict=True):
            self._compare(answer, picture, lam)

    def _compare(self, answer: dict[str, Any], picture: Picture, lam: float) -> None:
        self.outcome.pictures += 1
        self.outcome.gmacs += answer["gmacs"]
        wanted = picture.answers[lam]
        if wanted is None:
            self.outcome.ties += 1
            return
        found = (answer["label"], answer["resolution"], answer["looks"])
        difference = abs(answer["confidence"] - picture.confidences[lam])
        if found != wanted or difference > 1e-4:
            self.outcome.wrong.append(f"{found} in place of {wanted}, confidence off {difference}")

    def _ask(self, query: str, body: bytes | str, kind: str) -> tuple[int, Any]:
        for _ in range(_TRIES):
            self._connection.request("POST", f"/classify{query}", body, {"Content-Type": kind})
            response = self._connection.getresponse()
            content = json.loads(response.read())
            self.outcome.statuses[response.status] += 1
            if response.status != 503:
                break
            time.sleep(float(response.headers["Retry-After"]))
        return response.status, content


def _kind(draw: float) -> str:
    for kind, share in SHARES.items():
        if draw < share:
            return kind
        draw -= share
    return "raw"


class Numbers:
    """Numbers that several threads take from, each one once."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = iter(numbers)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._lock:
            return next(self._numbers)


def run_clients(clients: Sequence[Client]) -> Outcome:
    """What they saw, once all have ended."""
    for client in clients:
        client.start()
    total = Outcome()
    for client in clients:
        client.join()
        total.add(client.outcome)
    return total
