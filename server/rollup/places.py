"""The sites and spots that a query is about, with all that decides what their counts mean.

Every function reads what the connection's organisation may see; a reference that belongs to
someone else is as unknown as one that does not exist.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import NamedTuple

import asyncpg

from server.errors import NotFoundError
from server.rollup.opening import Calendar, Interval, Opening, Weekly, joined
from server.rollup.quality import Assigned, accounted_to

_CALENDARS: OrderedDict[tuple[str, Opening], Calendar] = OrderedDict()
_CALENDARS_MOST = 2_000
DAYS_MOST = 200_000
"""Days that the calendars of all sites remember together: some 70 MB."""
_SINCE_S, _UNTIL_S = -(1 << 40), 1 << 40


class UnknownPlaceError(NotFoundError):
    """No such site or spot, or not one of the asker's."""

    code = "unknown_place"

    def __init__(self, kind: str, ref: str) -> None:
        self.kind, self.ref = kind, ref
        super().__init__(f"no {kind} {ref!r}")


class Site(NamedTuple):
    """A store or mall, its zone and opening hours in `calendar`."""

    id: int
    ref: str
    name: str
    time_zone: str
    currency: str
    calendar: Calendar


class Spot(NamedTuple):
    """A mounted position at a site."""

    id: int
    ref: str
    name: str
    kind: str
    site: Site


@dataclass(frozen=True, slots=True)
class Calibration:
    """How one line's raw counts become visits in [start_s, end_s); factor in ten-thousandths."""

    id: int
    line: int
    start_s: int
    end_s: int
    reversed: bool
    factor_e4: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Counts that are known to be missing between two instants: in, out by line."""

    start_s: int
    end_s: int
    counts: tuple[int, ...]
    reason: str


class History(NamedTuple):
    """What happened to a spot in a range: devices (in order, apart), calibrations, gaps."""

    assigned: tuple[Interval, ...] = ()
    accounted_s: int = _UNTIL_S
    calibrations: tuple[Calibration, ...] = ()
    gaps: tuple[Gap, ...] = ()


def calendar_of(zone: str, opening: Opening) -> Calendar:
    """Return the shared calendar of these rules, so that its days are computed once."""
    key = zone, opening
    found = _CALENDARS.get(key)
    if found is None:
        found = _CALENDARS[key] = Calendar(zone, opening)
    else:
        _CALENDARS.move_to_end(key)
    return found


def forget_calendars() -> None:
    """Forget the calendars that were asked for longest ago, if all together are too many."""
    days = sum(each.remembered for each in _CALENDARS.values())
    while len(_CALENDARS) > _CALENDARS_MOST or (days > DAYS_MOST and len(_CALENDARS) > 1):
        _, oldest = _CALENDARS.popitem(last=False)
        days -= oldest.remembered


async def load_sites(
    connection: asyncpg.Connection, refs: Sequence[str] = (), *, ids: Sequence[int] = ()
) -> list[Site]:
    """Return the named sites (none named: all), by reference. Raises UnknownPlaceError."""
    rows = await connection.fetch(_SITES, list(refs) or None, list(ids) or None)
    if missing := set(refs) - {row["ref"] for row in rows}:
        raise UnknownPlaceError("site", min(missing))
    wanted = [row["id"] for row in rows]
    weekly: dict[int, Weekly] = {}
    for sites, *columns in await connection.fetch(_HOURS, wanted):
        by_weekday: list[list[Interval]] = [[] for _ in range(7)]
        for weekday, opens, closes in zip(*columns, strict=True):
            by_weekday[weekday].append((opens, closes))
        weekly |= dict.fromkeys(sites, tuple(map(tuple, by_weekday)))
    exceptions: dict[int, dict[date, list[Interval]]] = defaultdict(dict)
    for site, day, opens, closes in await connection.fetch(_EXCEPTIONS, wanted):
        hours = exceptions[site].setdefault(day, [])
        if opens is not None:
            hours.append((opens, closes))
    forget_calendars()
    calendars: dict[tuple[object, ...], Calendar] = {}  # most sites share theirs with others
    found: list[Site] = []
    for key, ref, name, zone, currency, opens_on, closes_on in rows:
        hours_of = weekly.get(key)
        if key in exceptions:
            calendar = _calendar(zone, hours_of, opens_on, closes_on, exceptions[key])
        else:
            rules = zone, id(hours_of), opens_on, closes_on
            if rules not in calendars:
                calendars[rules] = _calendar(zone, hours_of, opens_on, closes_on, {})
            calendar = calendars[rules]
        found.append(Site(key, ref, name, zone, currency, calendar))
    return found


def _calendar(
    zone: str,
    weekly: Weekly | None,
    opens_on: date | None,
    closes_on: date | None,
    exceptions: Mapping[date, Sequence[Interval]],
) -> Calendar:
    closed = tuple((day, tuple(hours)) for day, hours in exceptions.items())
    return calendar_of(zone, Opening(weekly, closed, opens_on, closes_on))


async def load_spots(
    connection: asyncpg.Connection,
    *,
    kind: str | None = None,
    sites: Sequence[Site] = (),
    refs: Sequence[str] = (),
    ids: Sequence[int] = (),
) -> list[Spot]:
    """Return the spots of `sites`, or those named; by site, then by reference."""
    if refs or ids:
        rows = await connection.fetch(_SPOTS, None, list(refs) or None, kind, list(ids) or None)
        if missing := set(refs) - {row["ref"] for row in rows}:
            raise UnknownPlaceError("spot" if kind is None else f"{kind} spot", min(missing))
        sites = await load_sites(connection, ids=list({row["site_id"] for row in rows}))
    else:
        rows = await connection.fetch(_SPOTS, [site.id for site in sites], None, kind, None)
    by_id = {site.id: site for site in sites}
    spots = [Spot(key, ref, name, what, by_id[site]) for key, ref, name, what, site in rows]
    return sorted(spots, key=lambda spot: (spot.site.ref, spot.ref))


class Told(NamedTuple):
    """What the database tells of spots in a range; `histories` makes sense of it."""

    spots: Sequence[int]
    gaps: Sequence[asyncpg.Record]
    assignments: Sequence[asyncpg.Record]


Calibrations = Mapping[int, Sequence[Calibration]]
"""Those of each spot that has any, by line and time."""


async def load_histories(
    connection: asyncpg.Connection, spots: Sequence[Spot], *, start_s: int, end_s: int
) -> dict[int, History]:
    """Return the spots' histories within [start_s, end_s)."""
    ids, span = [spot.id for spot in spots], (start_s, end_s)
    calibrations = await load_calibrations(connection, ids, span=span)
    return histories(await read_histories(connection, ids, span=span), calibrations)


async def read_histories(
    connection: asyncpg.Connection, spots: Sequence[int], *, span: tuple[int, int]
) -> Told:
    """Read what `histories` makes sense of."""
    gaps = await connection.fetch(_GAPS, spots, *_between(span))
    stood = await connection.fetch(_ASSIGNMENTS, spots, *_between(span))
    return Told(spots, gaps, stood)


async def load_calibrations(
    connection: asyncpg.Connection, spots: Sequence[int], *, span: tuple[int, int]
) -> Calibrations:
    """Return the calibrations of `spots` within [start, end) in seconds."""
    calibrations: dict[int, list[Calibration]] = defaultdict(list)
    for spot, key, line, low, high, turned, factor in await connection.fetch(
        _CALIBRATIONS, spots, *_between(span)
    ):
        calibrations[spot].append(
            Calibration(
                key,
                line,
                _SINCE_S if low is None else low,
                _UNTIL_S if high is None else high,
                turned,
                factor,
            )
        )
    return calibrations


def _between(span: tuple[int, int]) -> tuple[datetime, datetime]:
    return datetime.fromtimestamp(span[0], UTC), datetime.fromtimestamp(span[1], UTC)


def histories(told: Told, calibrations: Calibrations) -> dict[int, History]:
    """Return the history of each spot that was asked about; of many, that is for a thread."""
    gaps: dict[int, list[Gap]] = defaultdict(list)
    device_gaps: dict[tuple[int, int], list[Interval]] = defaultdict(list)
    for spot, device, low, high, reason, counts in told.gaps:
        gaps[spot].append(Gap(low, high, tuple(counts), reason))
        device_gaps[spot, device].append((low, high))
    assigned: dict[int, list[Assigned]] = defaultdict(list)
    for spot, device, low, high, stored_to_s in told.assignments:
        assigned[spot].append(
            Assigned(
                _SINCE_S if low is None else low,
                _UNTIL_S if high is None else high,
                stored_to_s,
                tuple(device_gaps.get((spot, device), ())) if device_gaps else (),
            )
        )
    return {
        spot: _history(assigned.get(spot, ()), calibrations.get(spot, ()), gaps.get(spot, ()))
        for spot in told.spots
    }


def _history(
    assigned: Sequence[Assigned], calibrations: Sequence[Calibration], gaps: Sequence[Gap]
) -> History:
    stood = tuple((a.start_s, a.end_s) for a in assigned)
    return History(
        stood if len(stood) == 1 else joined(stood),
        min(map(accounted_to, assigned), default=_UNTIL_S),
        tuple(calibrations),
        tuple(gaps),
    )


_SITES = """
    select id, ref, name, time_zone, currency, opens_on, closes_on from sites
    where ($1::text[] is null or ref = any($1)) and ($2::int[] is null or id = any($2))
    order by ref
"""
_HOURS = """
    with hours as (
        select site_id, array_agg(weekday order by weekday, opens) as weekdays,
               array_agg(opens order by weekday, opens) as opens,
               array_agg(closes order by weekday, opens) as closes
        from opening_hours where site_id = any($1::int[]) group by site_id)
    select array_agg(site_id), weekdays, opens, closes from hours group by weekdays, opens, closes
"""
_EXCEPTIONS = """
    select site_id, day, opens, closes from opening_exceptions where site_id = any($1::int[])
    order by site_id, day, opens
"""
_SPOTS = """
    select id, ref, name, kind, site_id from spots
    where ($1::int[] is null or site_id = any($1)) and ($2::text[] is null or ref = any($2))
      and ($3::text is null or kind = $3) and ($4::int[] is null or id = any($4))
"""
_ASSIGNMENTS = """
    with stood as materialized (
        select spot_id, device_id, valid from assignments
        where spot_id = any($1::int[]) and valid && tstzrange($2, $3)),
    stored as (
        select device_id, max(stored_to) as stored_to from my_boots
        where device_id = any(array(select device_id from stood)) group by device_id)
    select spot_id, device_id, extract(epoch from nullif(lower(valid), '-infinity'))::bigint,
           extract(epoch from nullif(upper(valid), 'infinity'))::bigint,
           extract(epoch from stored_to)::bigint
    from stood left join stored using (device_id) order by spot_id, lower(valid) nulls first
"""
_CALIBRATIONS = """
    select spot_id, id, line,
           ceil(extract(epoch from nullif(lower(valid), '-infinity')) / 900)::bigint * 900,
           ceil(extract(epoch from nullif(upper(valid), 'infinity')) / 900)::bigint * 900,
           reversed, (factor * 10000)::int
    from calibrations where spot_id = any($1::int[]) and valid && tstzrange($2, $3)
    order by spot_id, line, lower(valid) nulls first
"""
_GAPS = """
    select spot_id, device_id, floor(extract(epoch from from_at))::bigint,
           ceil(extract(epoch from until_at))::bigint, reason, counts
    from gaps
    where spot_id = any($1::int[]) and until_at > $2 and from_at < $3 and filled_at is null
      and reason <> 'totals'
    order by from_at
"""
