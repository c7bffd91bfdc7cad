"""How an answer is written: JSON, CSV or Parquet, with an ETag, and 304 for who has it already."""

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from enum import Enum

import msgspec
from aiohttp import web

from server.api.parameters import Format
from server.api.parquet import MEDIA_TYPE, available, to_parquet
from server.api.problems import NotInstalledError

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_CSV = "text/csv"
_KINDS = {"application/json": Format.JSON, _CSV: Format.CSV, MEDIA_TYPE: Format.PARQUET}
NEXT_CURSOR = "X-Next-Cursor"
"""Where the page after a question that was a body says its cursor, CSV having no room for it."""


def wanted_format(request: web.Request, asked: Format | None) -> Format:
    """Return what the `format` parameter says, else what the Accept header names first.

    Raises NotInstalledError if that is Parquet alone and what writes it is not installed.
    """
    accept = request.headers.get("Accept", "")
    names = [part.split(";")[0].strip() for part in accept.split(",")]
    wanted = [asked] if asked is not None else [_KINDS[name] for name in names if name in _KINDS]
    for kind in wanted:
        if kind is not Format.PARQUET or available():
            return kind
    if wanted:
        raise NotInstalledError("this server writes no Parquet: install the extra `parquet`")
    return Format.JSON


def respond(
    request: web.Request,
    answer: msgspec.Struct,
    *,
    kind: Format,
    row: type[msgspec.Struct] | None = None,
) -> web.Response:
    """Return `answer`, or 304 if the caller's If-None-Match says it is known; no write ever is.

    `row` is the type of the answer's rows, None for what has no rows and is always JSON.
    """
    following: str | None = getattr(answer, "next", None)
    charset: str | None = "utf-8"
    if kind is Format.CSV and row is not None:
        body, content_type = to_csv(answer, row), _CSV
    elif kind is Format.PARQUET and row is not None:
        body, content_type, charset = to_parquet(answer, row), MEDIA_TYPE, None
    else:
        body, content_type = msgspec.json.encode(answer), "application/json"
    version = getattr(answer, "version", "")  # what an edit is to have seen comes first
    etag = f'"{version}{"-" if version else ""}{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Vary": "Accept, Authorization, Cookie",
    }
    if following is not None and request.method == "GET":
        url = request.rel_url.update_query(cursor=following)
        headers["Link"] = f'<{url}>; rel="next"'
    elif following is not None:
        headers[NEXT_CURSOR] = following
    reads = request.method in ("GET", "HEAD") or row is not None
    known = request.headers.get("If-None-Match", "") if reads else ""
    if known.strip() == "*" or etag in [each.strip() for each in known.split(",")]:
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type=content_type, charset=charset, headers=headers)


def to_csv(answer: msgspec.Struct, row: type[msgspec.Struct]) -> bytes:
    """Return the rows of `answer.data` as CSV; null is empty, never 0.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    rows: Sequence[msgspec.Struct] = getattr(answer, "data", ())
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([field.encode_name for field in msgspec.structs.fields(row)])
    for at in range(0, len(rows), _AT_ONCE):
        columns = zip(*map(msgspec.structs.astuple, rows[at : at + _AT_ONCE]), strict=True)
        writer.writerows(zip(*map(_column, columns), strict=True))
    return out.getvalue().encode()


def _column(values: tuple[object, ...]) -> Iterable[object]:
    """Return a column's values as they are written: looked at by kind, as most need nothing."""
    kinds = set(map(type, values))
    if kinds <= _AS_THEY_ARE:
        return values
    if kinds <= _PLAIN:
        told = {text for text in set(values) if isinstance(text, str)}
        if not any(text.startswith(_FORMULA) for text in told):
            return values
    return map(_text, values)


_AS_THEY_ARE = {int, float, bool, type(None)}
_PLAIN = {str, type(None)}
_AT_ONCE = 2_000


def _text(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return "'" + value if value.startswith(_FORMULA) else value
    if isinstance(value, (list, tuple)):
        return _text(";".join(str(each) for each in value))
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict):
        return _text(";".join(f"{key}={each}" for key, each in value.items()))
    return value
