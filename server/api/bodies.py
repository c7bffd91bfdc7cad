"""The body of a request: JSON of one struct, at most so large, refused by the field's name."""

import re
from collections.abc import Iterator
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
        found = msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        unknown = re.search(r"unknown field `([^`]*)`", text)
        if unknown:
            raise BodyError(unknown[1][:64], text, code="unknown_field") from error
        field = re.search(r"`\$\.(\w+)|required field `(\w+)`", text)
        raise BodyError(field[1] or field[2] if field else "", text) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyError("", f"the body is no JSON: {error}") from error
    if rb"\u0000" in raw:
        _demand_text(msgspec.json.decode(raw))
    return found


def _demand_text(fields: dict[str, object]) -> None:
    """Refuse text that the database takes nowhere, not even to compare."""
    for name, value in fields.items():
        if any("\0" in text for text in _texts(value)):
            raise BodyError(name, f"`{name}` has a character that no value has: U+0000")


def _texts(value: object) -> Iterator[str]:
    """Return all text within a value of JSON, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
