"""Lists of what is there: sites, spots, devices, and gaps. All by reference or id, paged."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import asyncpg

from server.api.types import (
    GAP_REASONS,
    DeviceRow,
    ExceptionRow,
    GapRow,
    MaskRow,
    OpeningRow,
    SiteDetail,
    SiteRow,
    SpotRow,
)
from server.fleet import search
from server.fleet.search import Selection
from server.health.judgement import Condition
from server.rollup.places import Spot, UnknownPlaceError, load_histories, load_sites, load_spots
from server.rollup.rows import people
from server.rollup.sums import segments, weigh


async def sites(connection: asyncpg.Connection, *, after: str, limit: int) -> list[SiteRow]:
    """Return up to `limit` sites whose reference follows `after`."""
    rows = await connection.fetch(
        "select ref, name, time_zone, currency, opens_on, closes_on from sites "
        "where ref > $1 order by ref limit $2",
        after,
        limit,
    )
    return [SiteRow(*row) for row in rows]


async def site(connection: asyncpg.Connection, ref: str, *, now: datetime) -> SiteDetail:
    """Return one site. Raises UnknownPlaceError."""
    row = await connection.fetchrow(
        "select id, ref, name, time_zone, currency, opens_on, closes_on from sites where ref = $1",
        ref,
    )
    if row is None:
        raise UnknownPlaceError("site", ref)
    opening = await connection.fetch(
        "select weekday, opens, closes from opening_hours where site_id = $1 order by 1, 2",
        row["id"],
    )
    exceptions = await connection.fetch(
        "select day, opens, closes, note from opening_exceptions where site_id = $1 order by 1, 2",
        row["id"],
    )
    return SiteDetail(
        row["ref"],
        row["name"],
        row["time_zone"],
        row["currency"],
        row["opens_on"],
        row["closes_on"],
        [OpeningRow(*each) for each in opening],
        [ExceptionRow(*each) for each in exceptions],
        await spots(connection, sites=[ref], after="", limit=10_000, now=now),
    )


async def spots(
    connection: asyncpg.Connection,
    *,
    sites: Sequence[str],
    after: str,
    limit: int,
    now: datetime,
) -> list[SpotRow]:
    """Return up to `limit` spots, of `sites` if any are named. Raises UnknownPlaceError."""
    if sites:
        await load_sites(connection, sites)
    rows = await connection.fetch(_SPOTS, after, limit, list(sites) or None, now)
    return [SpotRow(*row) for row in rows]


async def devices(
    connection: asyncpg.Connection,
    selected: Selection,
    *,
    after: str,
    limit: int,
    now: datetime,
) -> list[DeviceRow]:
    """Return up to `limit` of the selected devices whose id follows `after`."""
    found = await search.found(connection, selected, after=after, limit=limit)
    return [
        DeviceRow(
            row["device"],
            row["kind"],
            row["model"],
            row["serial"],
            row["state"],
            row["site"],
            row["spot"],
            _text(row["enrolled_at"]),
            _text(row["stored_to"]),
            _text(row["last_stored"]),
            row["undated"],
            row["presence"],
            row["agent"],
        )
        for row in await connection.fetch(_DEVICES, [row for row, _ in found], now)
    ]


class Touching(NamedTuple):
    """Of some sites or spots, what touches a span of seconds and whose number follows `after`."""

    sites: Sequence[str]
    spots: Sequence[str]
    span: tuple[int, int]
    after: int
    limit: int


async def gaps(connection: asyncpg.Connection, asked: Touching) -> list[GapRow]:
    """Return gaps by number; those without a time come with every span."""
    by_id = {spot.id: spot for spot in await _named(connection, asked.sites, asked.spots)}
    histories = await load_histories(
        connection, list(by_id.values()), start_s=asked.span[0], end_s=asked.span[1]
    )
    cut = {spot: segments(history.calibrations) for spot, history in histories.items()}
    found: list[GapRow] = []
    for row in await connection.fetch(
        _GAPS, list(by_id), *map(_at, asked.span), asked.after, asked.limit
    ):
        spot, at = by_id[row["spot_id"]], row["from_at"]
        start_s = asked.span[0] if at is None else int(at.timestamp())
        segment = next(s for s in cut[spot.id] if s.start_s <= start_s < s.end_s)
        entered, left = weigh(row["counts"], segment.weights)
        found.append(
            GapRow(
                row["id"],
                spot.site.ref,
                spot.ref,
                row["device"],
                _text(at),
                _text(row["until_at"]),
                row["reason"],
                GAP_REASONS.get(row["reason"], ""),
                people(entered),
                people(left),
                sum(row["answers"][2::3]),
                _text(row["recorded_at"]) or "",
                _text(row["filled_at"]),
            )
        )
    return found


async def masks(connection: asyncpg.Connection, asked: Touching) -> list[MaskRow]:
    """Return masks by number; those that were declared false are none."""
    by_id = {spot.id: spot for spot in await _named(connection, asked.sites, asked.spots)}
    rows = await connection.fetch(
        _MASKS, list(by_id), *map(_at, asked.span), asked.after, asked.limit
    )
    return [
        MaskRow(
            row["id"],
            by_id[row["spot_id"]].site.ref,
            by_id[row["spot_id"]].ref,
            _text(row["from_at"]) or "",
            _text(row["until_at"]),
            row["condition"],
            Condition(row["condition"]).meaning.title,
            _text(row["set_at"]) or "",
        )
        for row in rows
    ]


async def _named(
    connection: asyncpg.Connection, sites: Sequence[str], spots: Sequence[str]
) -> list[Spot]:
    """Return the spots that are named, or those of the sites, or all. Raises UnknownPlaceError."""
    named = await load_sites(connection, sites) if sites else []
    if spots:
        return await load_spots(connection, refs=spots)
    return await load_spots(connection, sites=named or await load_sites(connection))


def _at(instant_s: int) -> datetime:
    return datetime.fromtimestamp(instant_s, UTC)


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


_SPOTS = """
    select sp.ref, si.ref, sp.name, sp.kind, d.name, dev.device
    from spots sp join sites si on si.id = sp.site_id
    left join doors d on d.id = sp.door_id
    left join assignments a on a.spot_id = sp.id and a.valid @> $4::timestamptz
    left join devices dev on dev.id = a.device_id
    where sp.ref > $1 and ($3::text[] is null or si.ref = any($3))
    order by sp.ref limit $2
"""
_DEVICES = """
    select d.device, d.kind, d.model, d.serial, d.state, si.ref as site, sp.ref as spot,
           d.enrolled_at, b.stored_to, b.last_stored, p.state as presence, p.agent,
           (select count(*) from my_undated u where u.device_id = d.id)::int as undated
    from devices d join presences p on p.device_id = d.id
    left join assignments a on a.device_id = d.id and a.valid @> $2::timestamptz
    left join spots sp on sp.id = a.spot_id left join sites si on si.id = sp.site_id
    left join lateral (
        select max(stored_to) as stored_to, max(last_stored) as last_stored
        from my_boots where device_id = d.id
    ) b on true
    where d.id = any($1::int[]) order by d.device
"""
_GAPS = """
    select g.id, g.spot_id, d.device, g.from_at, g.until_at, g.reason, g.counts, g.answers,
           g.recorded_at, g.filled_at
    from gaps g join devices d on d.id = g.device_id
    where g.spot_id = any($1::int[]) and g.id > $4
      and (g.from_at is null or (g.from_at < $3 and coalesce(g.until_at, g.from_at) >= $2))
    order by g.id limit $5
"""
_MASKS = """
    select id, spot_id, condition, from_at, until_at, set_at from masks
    where spot_id = any($1::int[]) and id > $4 and withdrawn_at is null
      and from_at < $3 and (until_at is null or until_at > $2)
    order by id limit $5
"""
