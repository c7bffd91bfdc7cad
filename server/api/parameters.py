"""Query parameters, typed: a struct per route is what is parsed, and what the OpenAPI page says."""

import base64
import binascii
import hashlib
import json
import re
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated, TypeVar

import msgspec
from aiohttp import web

from server.api.problems import ParameterError
from server.errors import NotFoundError
from server.feedback.query import Basis
from server.rollup.answer import By, CountQuery, Position
from server.rollup.buckets import Size
from server.rollup.quality import Scope

EARLIEST, LATEST = 1990, 2100
_END = 1 << 63
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


class Format(StrEnum):
    """How the answer is written."""

    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


_From = Annotated[
    str,
    msgspec.Meta(
        description="First moment: a date, a local time of the site (`2026-03-29T09:00`), or a "
        "time with offset. Buckets at the edges are whole.",
        examples=["2026-03-01"],
    ),
]
_To = Annotated[
    str, msgspec.Meta(description="End, exclusive; as `from`.", examples=["2026-04-01"])
]
_Ref = Annotated[str, msgspec.Meta(min_length=1)]
Sites = Annotated[tuple[_Ref, ...], msgspec.Meta(description="Site references; none: all.")]
_Spots = Annotated[tuple[_Ref, ...], msgspec.Meta(description="Spot references; none: all.")]
_Limit = Annotated[int, msgspec.Meta(ge=1, le=50_000, description="The most rows of this page.")]
_Cursor = Annotated[
    str | None, msgspec.Meta(description="`next` of the page before, with the same parameters.")
]
AsFormat = Annotated[
    Format | None, msgspec.Meta(description="Instead of the Accept header: json, csv, parquet.")
]
_Scope = Annotated[Scope, msgspec.Meta(description="All hours, or the sites' opening hours alone.")]

InCurrency = Annotated[
    str, msgspec.Meta(pattern="^[A-Z]{3}$", description="In which to add up, by each day's rate.")
]


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


class Listing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page of a list."""

    limit: _Limit = 1_000
    cursor: _Cursor = None
    format: AsFormat = None


class SpotListing(Listing, frozen=True, forbid_unknown_fields=True):
    """A page of spots."""

    site: Sites = ()


class Spanned(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A range of time at some sites."""

    since: _From = msgspec.field(name="from")
    until: _To = msgspec.field(name="to")
    site: Sites = ()
    limit: _Limit = 20_000
    cursor: _Cursor = None
    format: AsFormat = None

    @property
    def span(self) -> tuple[date | datetime, date | datetime]:
        """`from` and `to` as dates or times. Raises ParameterError."""
        return span_of(self.since, self.until)


class Ranged(Spanned, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A range of time at some sites or spots."""

    spot: _Spots = ()


class Bucketed(Ranged, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A range in buckets."""

    bucket: Annotated[Size, msgspec.Meta(description="How long a bucket is.")] = Size.DAY
    scope: _Scope = Scope.ALL
    by: Annotated[By, msgspec.Meta(description="A row per site or per spot.")] = By.SITE

    def query(self) -> CountQuery:
        """Return the question in the rollup's terms. Raises ParameterError."""
        since, until = self.span
        position = None if self.cursor is None else read_cursor(self)
        return CountQuery(
            self.bucket, since, until, self.scope, self.by, self.site, self.spot, self.limit,
            None if position is None else Position(str(position[0]), int(position[1])),
        )  # fmt: skip


class CountParameters(Bucketed, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Counts in buckets; `finer_than_readings` where readings are longer than the buckets.

    A site's row counts people at its perimeter, so that nobody counts twice: doors side by side are
    added up; of doors in series the outermost with a counter counts; counters of passages, zones
    and checkouts do not. That is as at the end of the range. A spot's row is of that spot alone, a
    site's row of spots that were named of those.
    """


class FeedbackParameters(Bucketed, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Kiosk results in buckets of 15m and larger; `limit` counts buckets, not questions."""

    basis: Annotated[
        Basis,
        msgspec.Meta(description="All presses, or those that the filter of misuse kept."),
    ] = Basis.RAW


class ConversionParameters(Spanned, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sales against visits, by site and local day."""


class GapParameters(Ranged, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known to be missing."""


class MaskParameters(Ranged, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was counted and is not true."""


P = TypeVar("P", bound=msgspec.Struct)


def parse(request: web.Request, kind: type[P]) -> P:
    """Return the request's query as `kind`. Raises ParameterError naming the parameter."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    values: dict[str, object] = {}
    for name in dict.fromkeys(request.query):
        given = request.query.getall(name)
        if name not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise ParameterError(
                name[:64], f"no parameter {name[:64]!r}; known: {known}", code="unknown_parameter"
            )
        if name != "cursor" and any("\0" in text for text in given):
            raise ParameterError(name, f"`{name}` has a character that no value has: U+0000")
        if isinstance(fields[name].default, tuple):
            values[name] = parts = [part for text in given for part in text.split(",")]
            if "" in parts:  # from a variable that was empty, say: all is not what was meant
                raise ParameterError(name, f"`{name}` has an empty value; leave it out for all")
        elif len(given) > 1:
            raise ParameterError(name, f"`{name}` was given {len(given)} times, expected once")
        else:
            values[name] = given[0]
    for name, field in fields.items():
        if field.required and name not in values:
            raise ParameterError(name, f"`{name}` is required")
    try:
        found = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        named = re.search(r"`\$\.(\w+)", str(error))
        name = named[1] if named else ""
        raise ParameterError(name, f"`{name}`: {str(error).split(' - at')[0]}") from error
    for name in values:
        if getattr(found, fields[name].name) is None:  # so msgspec reads the text `null`
            raise ParameterError(name, f"`{name}`: leave it out instead of {values[name]!r}")
    return found


def path_of(request: web.Request) -> dict[str, str]:
    """Return what a request's path names. Raises NotFoundError for what no name is."""
    found = dict(request.match_info)
    if any("\0" in name for name in found.values()):  # the database does not even compare it
        raise NotFoundError("there is nothing of this name")
    return found


def write_cursor(parameters: msgspec.Struct, position: tuple[object, ...]) -> str:
    """Return an opaque cursor for `position`, bound to the question's other parameters."""
    text = json.dumps([_bound(parameters), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(parameters: msgspec.Struct) -> list[str | int]:
    """Return the position in `parameters.cursor`. Raises ParameterError (bad_cursor)."""
    text: str = getattr(parameters, "cursor", None) or ""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        bound, *position = msgspec.json.decode(raw, type=list[str | int])
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise ParameterError("cursor", "this is not a cursor", code="bad_cursor") from error
    if bound != _bound(parameters) or len(position) != 2 or not isinstance(position[1], int):
        raise ParameterError("cursor", "this cursor is of another question", code="bad_cursor")
    if "\0" in str(position[0]) or not 0 <= position[1] < _END:
        raise ParameterError("cursor", "this is not a cursor of ours", code="bad_cursor")
    return position


def _bound(parameters: msgspec.Struct) -> str:
    """Return a digest of all that decides the order and content of the pages."""
    values = {
        key: value
        for key, value in msgspec.to_builtins(parameters).items()
        if key not in ("cursor", "limit", "format")
    }
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def span_of(since: str, until: str) -> tuple[date | datetime, date | datetime]:
    """Return `from` and `to` as dates or times. Raises ParameterError."""
    low, high = _when("from", since), _when("to", until)
    if _comparable(low) >= _comparable(high):
        raise ParameterError("to", f"`to` ({until}) must be later than `from` ({since})")
    return low, high


def _when(name: str, text: str) -> date | datetime:
    """Return a date, or a time with or without offset. Raises ParameterError."""
    try:
        found = date.fromisoformat(text) if _DATE.fullmatch(text) else datetime.fromisoformat(text)
    except ValueError as error:
        hint = " (write + as %2B in a URL)" if " " in text else ""
        raise ParameterError(
            name,
            f"`{name}`: expected a date or a time such as 2026-03-29T09:00, got {text!r}{hint}",
        ) from error
    if not EARLIEST <= found.year <= LATEST:
        raise ParameterError(name, f"`{name}`: expected {EARLIEST} to {LATEST}, got {found.year}")
    return found


def _comparable(value: date | datetime) -> datetime:
    """Return a time to order by, local times as if UTC: only nonsense is refused by it."""
    if not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value if value.tzinfo else value.replace(tzinfo=UTC)
