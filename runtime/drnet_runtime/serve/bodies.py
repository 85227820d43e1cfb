"""What a request asks for: its body, read within limits, and the pictures and budget in it."""

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser
from starlette.requests import Request

from drnet_runtime.serve.admission import Held
from drnet_runtime.serve.budget import NAMES
from drnet_runtime.serve.errors import RequestError

# Of a form: a budget is a number.
_MAX_FIELD = 64


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
      pictures: encoded ones.
      budget: by name, as given.
    """

    pictures: list[bytes]
    budget: dict[str, Any]


async def read_body(request: Request, held: Held, max_bytes: int, seconds: float) -> bytes:
    """The body of a request, counted as it arrives.

    Args:
      held: where its bytes are counted.
      max_bytes: of it.
      seconds: for it to arrive.

    Raises:
      RequestError: 413: it is larger; 408: it takes longer; 503: there is no room for it.
      ClientDisconnect: the client has gone.
    """
    length = request.headers.get("content-length", "")
    # What is stated saves an upload in vain; what arrives is what counts.
    if length.isascii() and length.isdigit() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > max_bytes:
                    raise _too_large(max_bytes)
                held.add_bytes(len(chunk))
                body += chunk
    except TimeoutError:
        raise RequestError(408, f"the request took longer than {seconds:g} s to arrive") from None
    return bytes(body)


def parse_body(
    content_type: str, body: bytes, query: Sequence[tuple[str, str]], max_pictures: int
) -> Asked:
    """Pictures and budget of a body: JSON, a form of files, or an encoded picture as it is.

    Args:
      content_type: the header.
      query: names and values of the address; may state a budget too.
      max_pictures: of a request.

    Raises:
      RequestError: 400: it is not what it says, or has no picture, or fields that are not known;
        413: too many pictures; 415: another type.
    """
    header = Message()
    header["content-type"] = content_type
    kind = header.get_content_type() if content_type else ""
    if kind == "application/json":
        asked = _from_json(body, max_pictures)
    elif kind == "multipart/form-data":
        boundary = header.get_boundary()
        if not boundary:
            raise RequestError(400, "the form's Content-Type has no boundary")
        asked = _from_form(body, boundary, max_pictures)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        asked = Asked([body] if body else [], {})
    else:
        raise RequestError(
            415,
            "send application/json, multipart/form-data, or a picture as image/* or "
            f"application/octet-stream, not {content_type or 'a body without Content-Type'!r:.80}",
        )
    _check_names(name for name, _ in query)
    budget = dict(asked.budget)
    for name, value in query:
        if name in budget:
            raise RequestError(400, f"{name} is stated twice")
        budget[name] = value
    if not asked.pictures:
        raise RequestError(400, "there is no picture in the request")
    return Asked(asked.pictures, budget)


def _from_json(body: bytes, max_pictures: int) -> Asked:
    """Of `{"image": BASE64}` or `{"images": [BASE64, ...]}`."""
    # Two for each picture, since data URLs have one, and one for each budget. Millions of small
    # values would take 22 times the memory of their text, and stop all threads while they are made.
    if body.count(b",") > 2 * max_pictures + len(NAMES):
        raise RequestError(
            413,
            f"more than {max_pictures} pictures in a request, or what is no picture: send several, "
            "of pictures as base64 text",
        )
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is no JSON: {error}") from error
    if not isinstance(content, dict) or ("image" in content) == ("images" in content):
        raise RequestError(400, "the JSON must be an object with either image or images")
    given = [content.pop("image")] if "image" in content else content.pop("images")
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise RequestError(400, "image must be base64 text, images a list of such texts")
    if len(given) > max_pictures:
        raise _too_many(max_pictures)
    _check_names(content)
    return Asked([_from_base64(text) for text in given], content)


def _from_base64(text: str) -> bytes:
    # A page's canvas and file readers give data URLs.
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"a picture is no base64 (without line breaks): {error}") from error


def _from_form(body: bytes, boundary: str, max_pictures: int) -> Asked:
    """Every file of a form is a picture, every field a budget."""
    pictures: list[bytes] = []
    budget: dict[str, str] = {}

    def add_picture(file: File) -> None:
        # At once: a form may have any number of parts, each of which takes time.
        if len(pictures) == max_pictures:
            raise _too_many(max_pictures)
        file.file_object.seek(0)
        pictures.append(file.file_object.read())
        file.close()

    def add_budget(field: Field) -> None:
        name = (field.field_name or b"").decode(errors="replace")
        _check_names([name])
        if name in budget:
            raise RequestError(400, f"{name} is stated twice")
        budget[name] = (field.value or b"")[:_MAX_FIELD].decode(errors="replace")

    ends: list[bool] = []
    # Its bytes are held anyway: nothing goes to the disk.
    config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    kind, parser = "multipart/form-data", None
    try:
        parser = FormParser(
            kind, add_budget, add_picture, lambda: ends.append(True), boundary, config=config
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise RequestError(400, f"the form cannot be read: {error}") from error
    finally:
        # It refers to itself: the last file would stay in memory until the garbage is collected.
        if parser is not None:
            parser.parser = None
    if not ends:
        # The parser passes over what is cut off.
        raise RequestError(400, "the form ends without its last boundary")
    return Asked(pictures, budget)


def _too_large(max_bytes: int) -> RequestError:
    """(In a variable beside the body it would hold itself, and by its frame the body.)"""
    return RequestError(413, f"the request is larger than {max_bytes / 2**20:g} MB")


def _too_many(max_pictures: int) -> RequestError:
    return RequestError(413, f"more than {max_pictures} pictures in a request: send several")


def _check_names(names: Any) -> None:
    for name in names:
        if name not in NAMES:
            raise RequestError(
                400, f"{name!r:.40} is not known; a budget is one of {', '.join(NAMES)}"
            )
