"""Content: what our content service says to devices, as JSON in one canonical form.

Keys sorted, no spaces, UTF-8 as it is, no fraction anywhere; every document names its format. So
each has one hash, and a signature over it is over what it says. Whatever is none is refused with a
`Fault`, and where in it. Questionnaires, plans and codes are such documents.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NoReturn

FORMAT = 1
MAX_TEXT = 300
SIGNER = "urn:vestibule:service:svc-content"
"""The name of the one certificate that may sign what devices show."""
Json = Mapping[str, object]


class Fault(StrEnum):
    """Why a document or an envelope is refused."""

    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    NOT_CANONICAL = "not_canonical"
    UNKNOWN_FORMAT = "unknown_format"
    BAD_FIELD = "bad_field"
    BAD_TEXT = "bad_text"
    BAD_FLOW = "bad_flow"
    BAD_SCHEDULE = "bad_schedule"
    WRONG_DEVICE = "wrong_device"
    WRONG_DIGEST = "wrong_digest"
    UNTRUSTED = "untrusted"


class ContentError(ValueError):
    """What is refused, and `where` in it."""

    def __init__(self, fault: Fault, where: str, message: str) -> None:
        self.fault = fault
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)


def canonical(value: object) -> bytes:
    """Return a JSON value in its one form; ContentError if it has none."""
    try:
        _whole(value)
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ContentError(Fault.NOT_JSON, "", f"no JSON value: {error}") from error


def _whole(value: object) -> None:
    if isinstance(value, float):
        raise ValueError("fractions have no one form")
    if isinstance(value, Mapping):
        for each in value.values():
            _whole(each)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            _whole(each)


# -- a document's values -----------------------------------------------------------------------


def document(
    content: bytes, most: int, *, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Json:
    """Return a document in canonical form and of our format."""
    value = parsed(content, most)
    if canonical(value) != content:
        raise ContentError(Fault.NOT_CANONICAL, "", "expected canonical JSON")
    if not isinstance(value, dict):
        bad("", "expected an object")
    if value.get("format") != FORMAT or value["format"] is True:
        raise ContentError(Fault.UNKNOWN_FORMAT, "format", f"expected {FORMAT}")
    return fields_of(value, "", needed, optional)


def parsed(content: bytes, most: int) -> object:
    if len(content) > most:
        raise ContentError(Fault.TOO_LARGE, "", f"{len(content)} bytes; at most {most}")
    try:
        value: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ContentError(Fault.NOT_JSON, "", f"expected JSON: {error}") from error
    return value


def bad(where: str, message: str) -> NoReturn:
    raise ContentError(Fault.BAD_FIELD, where, message)


def fields_of(
    value: object, where: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Json:
    if not isinstance(value, dict):
        bad(where, "expected an object")
    for name in needed:
        if name not in value:
            bad(f"{where}.{name}".lstrip("."), "is missing")
    for name in value:
        if name not in (*needed, *optional):
            bad(f"{where}.{str(name)[:40]}".lstrip("."), "is not known")
    return value


def list_of(value: object, where: str, least: int, most: int) -> list[object]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        bad(where, f"expected a list of {least} to {most}")
    return value


def integer(value: object, where: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        bad(where, f"expected a whole number from {low} to {high}")
    return value


def text_of(value: object, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise ContentError(
            Fault.BAD_TEXT, where, f"expected 1 to {MAX_TEXT} characters that can be printed"
        )
    return value


def matching(pattern: re.Pattern[str], value: object, where: str, expected: str) -> str:
    """Return a text that a pattern matches whole; ContentError: what was expected."""
    text = text_of(value, where)
    if not pattern.fullmatch(text):
        bad(where, f"expected {expected}")
    return text


def long_text(value: object, where: str) -> bytes:
    if not isinstance(value, str):
        bad(where, "expected text")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ContentError(Fault.BAD_TEXT, where, "expected text") from error


def signature_of(value: object) -> bytes:
    try:
        return base64.b64decode(text_of(value, "signature"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ContentError(Fault.BAD_FIELD, "signature", "expected base64") from error
