"""The server answers what the export says, whatever way pictures come, and groups them."""

import base64
import io
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drnet_runtime import AdaptiveModel
from tests.serving import (
    CLASSES,
    MACS,
    MACS_SECOND,
    Response,
    Running,
    expected,
    png,
    serving,
    write_hand_made,
)

BOUNDARY = "a-boundary"
COLOURS = [(200, 10, 10), (10, 90, 30), (180, 200, 220), (90, 20, 80), (250, 240, 245), (1, 2, 3)]
# Of the server: pictures wait so long for company.
WAIT_MS = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hand_made(tmp_path_factory.mktemp("case") / "export")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    options = (f"--max-wait-ms={WAIT_MS}", "--max-body-mb=1", "--max-pixels=1000000")
    with serving(folder, "--max-pictures=8", *options) as running:
        yield running
        code, said = running.stop()
        assert code == 0
        assert "Traceback" not in said


def form(*parts: tuple[str, bytes, str | None]) -> bytes:
    """A form of parts: name, content, file name."""
    body = b""
    for name, content, file in parts:
        named = "" if file is None else f'; filename="{file}"'
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


FORM = f"multipart/form-data; boundary={BOUNDARY}"


def as_json(*pictures: bytes, **fields: Any) -> str:
    images = [base64.b64encode(picture).decode() for picture in pictures]
    return json.dumps({"images": images} | fields)


def check(answer: dict[str, Any], colour: tuple[int, int, int], lam: float = 0.0) -> None:
    """That it is what NumPy says of the colour."""
    wanted = expected(colour, lam)
    for name in ("label", "resolution", "looks", "gmacs"):
        assert answer[name] == wanted[name], name
    assert CLASSES[answer["class_index"]] == wanted["label"]
    assert answer["confidence"] == pytest.approx(wanted["confidence"], abs=1e-5)
    assert [entry["label"] for entry in answer["top"]] == wanted["ranked"]
    assert sum(entry["confidence"] for entry in answer["top"]) == pytest.approx(1)
    assert answer["share"] == pytest.approx(wanted["gmacs"] * 1e9 / MACS_SECOND)
    assert answer["first_look"]["label"] == wanted["first"]
    assert answer["first_look"]["confidence"] == pytest.approx(wanted["first_confidence"], abs=1e-5)


def test_json_form_and_picture_give_the_same_answers(server: Running) -> None:
    pictures = [png(colour) for colour in COLOURS]
    files = form(*((f"f{i}", picture, f"{i}.png") for i, picture in enumerate(pictures)))
    several = [
        server.ask("/classify", as_json(*pictures), "application/json"),
        server.ask("/classify", files, FORM),
    ]
    for response in several:
        assert response.status == 200
        assert len(response.json["answers"]) == len(COLOURS)
        for answer, colour in zip(response.json["answers"], COLOURS, strict=True):
            check(answer, colour)
    assert {answer["looks"] for answer in several[0].json["answers"]} == {1, 2}
    one = base64.b64encode(pictures[3]).decode()
    for response in (
        server.ask("/classify", pictures[3], "image/png"),
        server.ask("/classify", pictures[3], "application/octet-stream"),
        server.ask("/classify", json.dumps({"image": one}), "application/json"),
        server.ask(
            "/classify", json.dumps({"image": f"data:image/png;base64,{one}"}), "application/json"
        ),
    ):
        assert response.status == 200
        (answer,) = response.json["answers"]
        check(answer, COLOURS[3])


def test_answers_are_those_of_the_files(server: Running, folder: Path, tmp_path: Path) -> None:
    """Of noise as JPEG, so that decoding counts."""
    files = []
    for seed, quality in enumerate((95, 60, 20)):
        image = Image.effect_noise((60 + 10 * seed, 45), 90).convert("RGB")
        image.save(tmp_path / f"{seed}.jpg", quality=quality)
        files.append(tmp_path / f"{seed}.jpg")
    offline = AdaptiveModel.load(folder).classify_files(files)
    for file, wanted in zip(files, offline, strict=True):
        (answer,) = server.ask("/classify", file.read_bytes(), "image/jpeg").json["answers"]
        assert (answer["label"], answer["resolution"]) == (wanted.label, wanted.resolution)
        assert answer["confidence"] == pytest.approx(wanted.confidence, abs=1e-6)


def test_classes_of_any_name(folder: Path, tmp_path: Path) -> None:
    """As folders have them: in another script, and in bytes that are no UTF-8."""
    names = ["\u732b", os.fsdecode(b"caf\xe9"), "<b>"]
    copy = Path(shutil.copytree(folder, tmp_path / "export"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"classes": names}))
    with serving(copy) as server:
        assert server.ask("/model").json["classes"] == names
        for colour, name in zip(((200, 0, 0), (0, 200, 0), (0, 0, 200)), names, strict=True):
            response = server.ask("/classify", png(colour), "image/png")
            assert response.json["answers"][0]["label"] == name


def test_every_request_has_its_own_budget(server: Running) -> None:
    colour = COLOURS[2]
    picture = png(colour)
    # The table's rows: all of 0.0015 GMACs, of 0.001, of 0.0005.
    for name, value, lam in (
        ("lam", 0.75, 0.75),
        ("lam", -3, -3),
        ("gmacs", 0.0012, 1.0),
        ("fraction", 0.4, 9.0),
        ("drop", 0.0, 0.0),
        ("drop", 15, 1.0),
    ):
        for response in (
            server.ask(f"/classify?{name}={value}", picture, "image/png"),
            server.ask("/classify", as_json(picture, **{name: value}), "application/json"),
            server.ask(
                "/classify", form(("x", picture, "x"), (name, str(value).encode(), None)), FORM
            ),
        ):
            assert response.status == 200, response.body
            assert response.json["lam"] == lam
            check(response.json["answers"][0], colour, lam)
    assert expected(colour, 0.75)["looks"] == 2 and expected(colour, 9.0)["looks"] == 1


def test_requests_share_model_calls_and_keep_their_answers(server: Running) -> None:
    before = server.metrics()
    count = 40

    def ask(index: int) -> None:
        colour, lam = COLOURS[index % len(COLOURS)], float(index % 3)
        response = server.ask(f"/classify?lam={lam}", png(colour), "image/png")
        assert response.json["lam"] == lam
        check(response.json["answers"][0], colour, lam)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(ask, range(count)))
    after = server.metrics()
    pictures = difference(before, after, "drnet_batch_pictures_sum")
    calls = difference(before, after, "drnet_batch_pictures_count")
    assert pictures == count
    assert calls <= count / 2


def difference(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after[name] - before[name]


def test_a_picture_that_cannot_be_read(server: Running) -> None:
    before = server.metrics()
    response = server.ask("/classify", as_json(png(COLOURS[0]), b"none"), "application/json")
    assert response.status == 200
    check(response.json["answers"][0], COLOURS[0])
    assert response.json["answers"][1] == {"error": "it is no picture of a known format"}
    alone = server.ask("/classify", png(COLOURS[0])[:60], "image/png")
    assert alone.status == 422
    assert set(alone.json["answers"][0]) == {"error"}
    assert difference(before, server.metrics(), "drnet_unreadable_pictures_total") == 2


def bomb(side: int) -> bytes:
    """A PNG of few bytes that claims to be large and black."""
    content = bytearray(png((0, 0, 0)))
    size = side.to_bytes(4, "big")
    content[16:24] = size + size
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def test_bombs_are_refused_before_they_are_decoded(server: Running) -> None:
    before = server.metrics()["process_resident_memory_bytes"]
    for side, message in ((2000, "more than the 1000000 allowed"), (60000, "")):
        start = time.perf_counter()
        response = server.ask("/classify", bomb(side), "image/png")
        assert response.status == 422
        assert message in response.json["answers"][0]["error"]
        assert time.perf_counter() - start < 2
    assert server.metrics()["process_resident_memory_bytes"] - before < 50e6
    whole = io.BytesIO()
    Image.new("L", (1000, 1000)).save(whole, "PNG")
    assert server.ask("/classify", whole.getvalue(), "image/png").status == 200


MALFORMED: dict[str, tuple[str, bytes | str, str | None, int, str]] = {
    "no JSON": ("", b"{", "application/json", 400, "no JSON"),
    "not UTF-8": ("", b"\xff\xfe\xfd", "application/json", 400, "no JSON"),
    "deep JSON": ("", b"[" * 100_000, "application/json", 400, ""),
    "a list": ("", b"[]", "application/json", 400, "image or images"),
    "both": ("", b'{"image": "", "images": []}', "application/json", 400, "either image"),
    "a number": ("", b'{"image": 7}', "application/json", 400, "base64 text"),
    "no base64": ("", b'{"image": "a*b"}', "application/json", 400, "no base64"),
    "no pictures": ("", b'{"images": []}', "application/json", 400, "no picture"),
    "another field": ("", b'{"image": "", "lambda": 1}', "application/json", 400, "'lambda'"),
    "a budget of text": ("", as_json(b"x", lam="many"), "application/json", 400, "finite number"),
    "a huge budget": ("", as_json(b"x", lam=10**400), "application/json", 400, "finite number"),
    "NaN": ("?lam=nan", b"x", "image/png", 400, "finite number"),
    "true": ("", as_json(b"x", lam=True), "application/json", 400, "finite number"),
    "two budgets": ("?lam=1&drop=2", b"x", "image/png", 400, "one budget"),
    "twice": ("?lam=1", as_json(b"x", lam=1), "application/json", 400, "twice"),
    "in vain": ("?gmacs=1e-9", b"x", "image/png", 422, "0.0005 to 0.0015"),
    "twice in the query": ("?lam=1&lam=2", b"x", "image/png", 400, "lam is stated twice"),
    "another query": ("?lamda=1", b"x", "image/png", 400, "'lamda'"),
    "empty": ("", b"", "image/png", 400, "no picture"),
    "no type": ("", b"x", None, 415, "without Content-Type"),
    "another type": ("", b"x", "text/plain", 415, "text/plain"),
    "no boundary": ("", b"x", "multipart/form-data", 400, "boundary"),
    "an open form": ("", form(("a", b"x", "a"))[:-30], FORM, 400, ""),
    "no form": ("", b"what is this", FORM, 400, "form cannot be read"),
    "a field": ("", form(("a", b"x", None)), FORM, 400, "'a' is not known"),
    "nine pictures": ("", as_json(*[b"x"] * 9), "application/json", 413, "more than 8"),
    "many parts": ("", form(*[("a", b"", "a")] * 10_000), FORM, 413, "more than 8"),
    "many texts": ("", as_json(*[b""] * 100_000), "application/json", 413, "more than 8"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_told_why(server: Running, name: str) -> None:
    query, body, kind, status, message = MALFORMED[name]
    response = server.ask(f"/classify{query}", body, kind)
    assert response.status == status, response.body
    assert message in response.json["error"]
    assert server.ask("/health").json == {"status": "ready"}


def test_other_addresses_and_methods(server: Running) -> None:
    assert server.ask("/nowhere").status == 404
    assert server.ask("/classify").status == 405
    assert "error" in server.ask("/classify").json
    assert server.ask("/health", b"x").status == 405


def test_metrics_add_up(folder: Path) -> None:
    """Of a server of their own, from its first request on."""
    with serving(folder) as server:
        answers: list[dict[str, Any]] = []
        lock = threading.Lock()

        def ask(index: int) -> Response:
            response = server.ask("/classify", png(COLOURS[index % 6]), "image/png")
            with lock:
                answers.extend(response.json["answers"])
            return response

        with ThreadPoolExecutor(4) as pool:
            assert {r.status for r in pool.map(ask, range(30))} == {200}
        refused = [server.ask("/classify", b"", "image/png").status for _ in range(3)]
        assert refused == [400] * 3
        found = server.metrics()
    for size in (16, 8):
        pictures = sum(answer["resolution"] == size for answer in answers)
        assert found[f'drnet_pictures_total{{resolution="{size}"}}'] == pictures > 0
    twice = sum(answer["looks"] == 2 for answer in answers)
    assert found["drnet_second_looks_total"] == twice
    spent = twice * MACS[0] + (30 - twice) * MACS[1]
    assert found["drnet_macs_spent_total"] == spent
    assert found["drnet_macs_at_largest_total"] == 30 * MACS_SECOND
    assert found["drnet_macs_saved"] == 30 * MACS_SECOND - spent
    assert found['drnet_requests_total{path="/classify",status="200"}'] == 30
    assert found['drnet_requests_total{path="/classify",status="400"}'] == 3
    assert found["drnet_request_seconds_count"] == 33
    assert found["drnet_decode_seconds_count"] == found["drnet_wait_seconds_count"] == 30
    assert found["drnet_batch_pictures_sum"] == 30
    assert found["drnet_model_seconds_count"] == found["drnet_batch_pictures_count"]
    for gauge in ("queue_pictures", "accepted_pictures", "held_bytes", "open_requests"):
        assert found[f"drnet_{gauge}"] == 0
