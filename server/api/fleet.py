"""The routes of /v1 about devices: those that a filter finds, and filters kept under a name."""

from datetime import datetime
from typing import Annotated

import msgspec

from server.api import listings
from server.api.acts import Act, ActRoute
from server.api.pages import after, page_of
from server.api.parameters import Listing, Nothing
from server.api.reads import Call, Route
from server.api.types import DeviceRow, Page
from server.errors import RefusedError
from server.fleet import search, segments
from server.fleet.filters import FIELDS, OPS, Sort, parse
from server.fleet.search import Selection
from server.fleet.segments import Follows, Segment


class DeviceListing(Listing, frozen=True, forbid_unknown_fields=True):
    """A page of devices: all, or those that a filter finds, or a segment's."""

    filter: Annotated[
        str,
        msgspec.Meta(
            description='`model = "DC2" and state = offline and firmware < 2.4`; also `or`, '
            "`not`, `in (...)`, `~` (contains), parentheses. `/v1/device-fields` lists the fields.",
        ),
    ] = ""
    segment: Annotated[str, msgspec.Meta(description="Reference of a segment, instead.")] = ""


class FieldRow(msgspec.Struct, frozen=True):
    """A field of filters; `choices` are its values where there are no others."""

    field: str
    sort: Sort
    meaning: str
    operators: list[str]
    choices: list[str]


class SegmentRecord(msgspec.Struct, frozen=True):
    """Devices under a name. live: whatever the filter finds when it is used; snapshot: those of
    `taken_at`, `devices` of them."""

    segment: str
    name: str
    filter: str
    follows: Follows
    created_at: datetime
    created_by: str
    taken_at: datetime | None
    devices: int | None


class NewSegment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A filter to be kept; whether it follows the fleet must be said."""

    name: str
    filter: str
    follows: Follows


async def _devices(call: Call, asked: DeviceListing) -> Page[DeviceRow]:
    rows = await listings.devices(
        call.connection,
        await _selected(call, asked),
        after=after(asked),
        limit=asked.limit + 1,
        now=call.now,
    )
    return page_of(asked, rows, lambda row: row.device)


async def _selected(call: Call, asked: DeviceListing) -> Selection:
    organisation = await call.organisation()
    if not asked.segment:
        return search.selection(parse(asked.filter), organisation=organisation, now=call.now)
    if asked.filter:
        raise RefusedError("bad_parameter", "send `filter` or `segment`, not both")
    found = await segments.find(call.connection, organisation, asked.segment)
    return segments.members(found, organisation=organisation, now=call.now)


async def _fields(call: Call, asked: Nothing) -> Page[FieldRow]:
    return Page(
        [
            FieldRow(name, field.sort, field.meaning, list(OPS[field.sort]), list(field.choices))
            for name, field in FIELDS.items()
        ]
    )


def _record(known: Segment) -> SegmentRecord:
    return SegmentRecord(
        *(known.ref, known.name, known.filter, known.follows, known.created_at),
        *(known.created_by, known.taken_at, known.number),
    )


async def _segments(call: Call, asked: Nothing) -> Page[SegmentRecord]:
    found = await segments.every(call.connection, await call.organisation())
    return Page([_record(each) for each in found])


async def _segment(call: Call, asked: Nothing) -> SegmentRecord:
    found = await segments.find(call.connection, await call.organisation(), call.path["ref"])
    return _record(found)


async def _add(act: Act, body: NewSegment) -> SegmentRecord:
    return _record(
        await segments.add(
            act.connection,
            act.organisation,
            name=body.name,
            text=body.filter,
            follows=body.follows,
            **act.by,
        )
    )


async def _remove(act: Act) -> SegmentRecord:
    gone = await segments.find(act.connection, act.organisation, act.ref)
    await segments.remove(act.connection, act.organisation, act.ref, **act.by)
    return _record(gone)


ROUTES: tuple[Route, ...] = (
    Route(
        *("/devices", "Devices and what they stored", DeviceListing, Page[DeviceRow], DeviceRow),
        _devices,
    ),
    Route("/device-fields", "What filters ask for", Nothing, Page[FieldRow], None, _fields),
    Route("/segments", "Filters under a name", Nothing, Page[SegmentRecord], None, _segments),
    Route("/segments/{ref}", "One segment", Nothing, SegmentRecord, None, _segment),
)
ACTS: tuple[ActRoute, ...] = (
    ActRoute("POST", "/segments", "Keep a filter", SegmentRecord, _add, NewSegment),
    ActRoute("DELETE", "/segments/{ref}", "Forget a segment", SegmentRecord, _remove),
)
