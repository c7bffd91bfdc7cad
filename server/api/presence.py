"""The routes of /v1 about how devices are: their presence and why, what happened, their metrics."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec

from server.api.acts import Act, ActRoute
from server.api.pages import after, page_of
from server.api.parameters import (
    AsFormat,
    Listing,
    Nothing,
    Sites,
    read_cursor,
    span_of,
    write_cursor,
)
from server.api.problems import ParameterError
from server.api.reads import Call, Route
from server.api.types import Page
from server.health import limits, reads
from server.health.limits import LEAST_S, MOST_S, SECOND
from server.health.presence import Limits, State
from server.health.reads import DeviceState
from server.health.stability import Stability, measured
from server.rollup.buckets import instant
from server.rollup.places import load_sites

_MOST_SPAN = timedelta(days=400)

_From = Annotated[
    str, msgspec.Meta(description="First day or moment, UTC.", examples=["2026-03-01"])
]
_To = Annotated[
    str, msgspec.Meta(description="End, exclusive; as `from`.", examples=["2026-03-02"])
]


class PresenceListing(Listing, frozen=True, forbid_unknown_fields=True):
    """A page of devices with their presence."""

    state: Annotated[
        tuple[State, ...], msgspec.Meta(description="Of these states alone; none: all.")
    ] = ()
    site: Sites = ()


class PresenceRow(msgspec.Struct, frozen=True):
    """How a device is; `since` when, `why` in one sentence.

    `state` is as it was last known; while nobody can tell, `why` says so first. `until` is when it
    means to be back from a goodbye. `heartbeat_at`, `data_at` are as of its last look.
    """

    device: str
    state: State
    since: str
    why: str
    session: str
    session_at: str | None
    reason: str
    until: str | None
    heartbeat_at: str | None
    data_at: str | None
    last_stored: str | None
    agent: str
    kind: str
    model: str
    site: str | None
    spot: str | None


class DeviceDetail(msgspec.Struct, frozen=True):
    """One device: who it is and how it is."""

    device: str
    serial: str
    lifecycle: str
    heartbeat_limit_s: int
    data_limit_s: int
    presence: PresenceRow


class DeviceEventListing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page of what happened, the latest first."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000, description="The most of a page.")] = 200
    cursor: Annotated[str | None, msgspec.Meta(description="`next` of the page before.")] = None


class DeviceEventRow(msgspec.Struct, frozen=True):
    """Something that happened to a device: connected, lost, goodbye, boot, version, state."""

    event: int
    device: str
    at: str
    kind: str
    state: str
    reason: str
    detail: dict[str, float | str]


class SeriesParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A range of a device's metrics, in at most `points` stretches each."""

    since: _From = msgspec.field(name="from")
    until: _To = msgspec.field(name="to")
    name: Annotated[
        tuple[str, ...], msgspec.Meta(description="Metrics, by name; none: all of them.")
    ] = ()
    points: Annotated[int, msgspec.Meta(ge=1, le=2_000)] = reads.POINTS
    format: AsFormat = None


class DeviceMetricRow(msgspec.Struct, frozen=True):
    """A metric in one stretch of time."""

    device: str
    metric: str
    at: str
    mean: float
    least: float
    most: float


class StabilityParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A range of days; events are kept for 90."""

    since: _From = msgspec.field(name="from")
    until: _To = msgspec.field(name="to")
    format: AsFormat = None


class StabilityRow(msgspec.Struct, frozen=True):
    """Of one model and version: `connected` is the share of the hours in which it should have been.

    Goodbyes, and stretches in which nobody could tell, are expected of nobody. `crash_free` is the
    share of hours of use without a crash.
    """

    model: str
    agent: str
    devices: int
    expected_hours: float
    connected_hours: float
    connected: float | None
    crashes: int
    hours: int
    crash_free_hours: int
    crash_free: float | None


class LimitsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For how long a device's signals may be missing."""

    heartbeat_s: Annotated[int, msgspec.Meta(ge=LEAST_S, le=MOST_S)]
    data_s: Annotated[int, msgspec.Meta(ge=LEAST_S, le=MOST_S)]


class LimitsRecord(msgspec.Struct, frozen=True):
    """A device's limits."""

    device: str
    heartbeat_s: int
    data_s: int


async def _presences(call: Call, asked: PresenceListing) -> Page[PresenceRow]:
    await load_sites(call.connection, asked.site)  # names that are none are refused
    rows = await reads.states(
        call.connection,
        now=call.now,
        after=after(asked),
        limit=asked.limit + 1,
        wanted=asked.state,
        sites=asked.site,
    )
    return page_of(asked, [_row(found) for found in rows], lambda row: row.device)


async def _device(call: Call, asked: Nothing) -> DeviceDetail:
    found = await reads.find(call.connection, call.path["ref"], now=call.now)
    kept = found.presence.limits
    return DeviceDetail(
        found.device,
        found.serial,
        found.lifecycle,
        int(kept.heartbeat.total_seconds()),
        int(kept.data.total_seconds()),
        _row(found),
    )


async def _events(call: Call, asked: DeviceEventListing) -> Page[DeviceEventRow]:
    device = call.path["ref"]
    before = None if asked.cursor is None else int(read_cursor(asked)[1])
    found = await reads.timeline(call.connection, device, before=before, limit=asked.limit + 1)
    rows = [
        DeviceEventRow(
            *(each.number, device, _text(each.at) or "", each.kind, each.state, each.reason),
            dict(each.detail),
        )
        for each in found
    ]
    more = len(rows) > asked.limit
    rows = rows[: asked.limit]
    return Page(rows, write_cursor(asked, ("", rows[-1].event)) if more else None)


async def _metrics(call: Call, asked: SeriesParameters) -> Page[DeviceMetricRow]:
    device = call.path["ref"]
    since, until = _span(asked.since, asked.until)
    names = asked.name or await reads.metric_names(call.connection, device, since)
    found = await reads.series(
        call.connection, device, names, since=since, until=until, points=asked.points
    )
    return Page(
        [
            DeviceMetricRow(device, name, _text(p.at) or "", p.mean, p.least, p.most)
            for name, points in found.items()
            for p in points
        ]
    )


async def _stability(call: Call, asked: StabilityParameters) -> Page[StabilityRow]:
    since, until = _span(asked.since, asked.until)
    found = await measured(call.connection, since=since, until=min(until, max(call.now, since)))
    return Page([_stable(each) for each in found])


def _stable(found: Stability) -> StabilityRow:
    return StabilityRow(
        found.model,
        found.agent,
        found.devices,
        round(found.expected_h, 3),
        round(found.connected_h, 3),
        None if found.connected is None else round(found.connected, 5),
        found.crashes,
        found.hours,
        found.crash_free_hours,
        None if found.crash_free is None else round(found.crash_free, 5),
    )


async def _edit_limits(act: Act, body: LimitsBody) -> LimitsRecord:
    wanted = Limits(body.heartbeat_s * SECOND, body.data_s * SECOND)
    made = await limits.edit(act.connection, act.organisation, act.ref, wanted, **act.by)
    return LimitsRecord(act.ref, made.heartbeat // SECOND, made.data // SECOND)


def _row(found: DeviceState) -> PresenceRow:
    presence = found.presence
    return PresenceRow(
        found.device,
        presence.state,
        _text(presence.since) or "",
        found.why,
        presence.session.value,
        _text(presence.session_at),
        presence.reason,
        _text(presence.until),
        _text(presence.heartbeat_at),
        _text(presence.data_at),
        _text(found.last_stored),
        found.agent,
        found.kind,
        found.model,
        found.site,
        found.spot,
    )


def _span(since: str, until: str) -> tuple[datetime, datetime]:
    """Return a range as instants. Raises ParameterError."""
    first, last = (
        datetime.fromtimestamp(instant("UTC", each), UTC) for each in span_of(since, until)
    )
    if last - first > _MOST_SPAN:
        raise ParameterError("to", f"expected at most {_MOST_SPAN.days} days")
    return first, last


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")


ROUTES = (
    Route(
        "/presence",
        "How devices are, since when and why",
        PresenceListing,
        Page[PresenceRow],
        PresenceRow,
        _presences,
    ),
    Route("/devices/{ref}", "One device and how it is", Nothing, DeviceDetail, None, _device),
    Route(
        "/devices/{ref}/events",
        "What happened to a device, the latest first",
        DeviceEventListing,
        Page[DeviceEventRow],
        None,
        _events,
    ),
    Route(
        "/devices/{ref}/metrics",
        "A device's metrics over time",
        SeriesParameters,
        Page[DeviceMetricRow],
        DeviceMetricRow,
        _metrics,
    ),
    Route(
        "/stability",
        "Crash-free hours and connected time, by model and version",
        StabilityParameters,
        Page[StabilityRow],
        StabilityRow,
        _stability,
    ),
)
ACTS = (
    ActRoute(
        "PUT",
        "/devices/{ref}/limits",
        "How long a device's signals may be missing",
        LimitsRecord,
        _edit_limits,
        LimitsBody,
    ),
)
