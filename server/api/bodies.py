"""The body of a request: JSON of one struct, at most so large, refused by the field's name."""

import re
from typing import TypeVar

import msgspec
from aiohttp import web

from server.api.problems import BodyError, MediaTypeError, TooLargeError

B = TypeVar("B", bound=msgspec.Struct)
MOST_BODY = 200_000


async def body_of(request: web.Request) -> bytes:
    """Return a request's body. Raises MediaTypeError, TooLargeError."""
    if request.content_type != "application/json":
        raise MediaTypeError("send the body as application/json")
    raw = await request.content.read(MOST_BODY + 1)
    while len(raw) <= MOST_BODY and not request.content.at_eof():
        raw += await request.content.read(MOST_BODY + 1 - len(raw))
    if len(raw) > MOST_BODY:
        raise TooLargeError(f"a body has at most {MOST_BODY} bytes")
    return raw


def parsed(raw: bytes, kind: type[B]) -> B:
    """Return a body as `kind`. Raises BodyError naming the field."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        unknown = re.search(r"unknown field `([^`]*)`", text)
        if unknown:
            raise BodyError(unknown[1][:64], text, code="unknown_field") from error
        field = re.search(r"`\$\.(\w+)|required field `(\w+)`", text)
        raise BodyError(field[1] or field[2] if field else "", text) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyError("", f"the body is no JSON: {error}") from error
