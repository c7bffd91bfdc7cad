"""One installation: a claim with all that its pages show.

Read as the desk, which sees one organisation; what the device has told comes by the API's role.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec

from server.provisioning.technician import Claimed
from server.tech.refusals import refused
from server.tech.walk import LONGEST_MS, MOST_TAPS, Cell, Result, Tap, Way, compare

USUAL_FRAME = timedelta(minutes=5)
_SLACK_MS = 120_000  # by which a phone's clock may be off


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk test as the phone told it; `result` is what came out, once that is written down."""

    begun_ms: int
    until_ms: int
    taps: tuple[Tap, ...]
    result: Result | None = None

    def stored(self) -> str:
        """Return it as `technician_claims.walk` holds it."""
        return json.dumps(
            {
                "begun_ms": self.begun_ms,
                "until_ms": self.until_ms,
                "taps": [[tap.at_ms, tap.way.value] for tap in self.taps],
            }
        )


@dataclass(frozen=True, slots=True)
class Installation:
    """A claim, where and what it is about."""

    row: int
    ref: str
    user_ref: str
    technician: str
    created_at: datetime
    since: datetime
    claimed: Claimed
    device_row: int
    device: str
    serial: str
    kind: str
    model: str
    state: str
    spot: str
    spot_row: int
    spot_name: str
    door: str
    purpose: str
    height_cm: int | None
    site: str
    site_name: str
    address: str
    time_zone: str
    replaces: str
    walk: Walk | None
    signed_off_at: datetime | None
    signed_off_by: str

    @property
    def counts(self) -> bool:
        """Whether there is anything to walk through."""
        return self.kind == "counter"


@dataclass(frozen=True, slots=True)
class Told:
    """What a device has told of a stretch of time; `due`: when its next frame may be here."""

    told_to: datetime | None
    due: datetime | None
    cell_s: int
    cells: tuple[Cell, ...]


_SELECT = """
select t.id, t.ref, u.ref as user_ref, coalesce(nullif(u.name, ''), u.email) as technician,
  t.created_at, t.since, t.expires_at, t.used_at, t.ended_at, d.id as device_row, d.device,
  d.serial, d.kind, d.model, d.state, p.ref as spot, p.id as spot_row, p.name as spot_name,
  coalesce(o.name, '') as door, coalesce(m.purpose, '') as purpose, m.height_cm, s.ref as site,
  s.name as site_name, s.address, s.time_zone,
  coalesce(nullif(r.serial, ''), r.device, '') as replaces, t.walk, t.signed_off_at,
  t.signed_off_by
from technician_claims t
join users u on u.id = t.user_id
join devices d on d.id = t.device_id
join spots p on p.id = t.spot_id
join sites s on s.id = p.site_id
left join doors o on o.id = p.door_id
left join mountings m on m.spot_id = p.id and m.valid @> $1::timestamptz
left join devices r on r.id = t.replaces_id
"""


async def installation(
    connection: asyncpg.Connection, ref: str, *, now: datetime
) -> Installation | None:
    """Return the claim of that ref; None if the organisation has none. As the desk."""
    row = await connection.fetchrow(f"{_SELECT} where t.ref = $2", now, ref)
    return None if row is None else _read(row, now=now)


async def begun(
    connection: asyncpg.Connection, site: int, *, now: datetime, within: timedelta
) -> list[Installation]:
    """Return what was begun at a site lately and is neither signed off nor ended. As the desk."""
    rows = await connection.fetch(
        f"{_SELECT} where p.site_id = $2 and t.created_at > $3 and t.ended_at is null "
        "and t.signed_off_at is null and d.admitted "
        "and (t.used_at is not null or t.expires_at > $1) "
        "order by t.id desc limit 20",
        *(now, site, now - within),
    )
    return [_read(row, now=now) for row in rows]


def _read(row: asyncpg.Record, *, now: datetime) -> Installation:
    claimed = Claimed.OPEN
    if row["used_at"] is not None:
        claimed = Claimed.USED
    elif row["ended_at"] is not None:
        claimed = Claimed.ENDED
    elif row["expires_at"] <= now:
        claimed = Claimed.EXPIRED
    return Installation(
        row=row["id"],
        claimed=claimed,
        walk=None if row["walk"] is None else _read_walk(row["walk"]),
        **{name: row[name] for name in _AS_READ},
    )


_AS_READ = tuple(
    found.name for found in fields(Installation) if found.name not in ("row", "claimed", "walk")
)


def _read_walk(stored: str) -> Walk:
    held = json.loads(stored)
    taps = tuple(Tap(at_ms, Way(way)) for at_ms, way in held["taps"])
    result = held.get("result")
    return Walk(
        held["begun_ms"],
        held["until_ms"],
        taps,
        None if result is None else msgspec.convert(result, Result),
    )


async def told(
    connection: asyncpg.Connection, found: Installation, *, since: datetime, until: datetime
) -> Told:
    """Return what the device at the spot has told of [since, until). As the API's role."""
    told_to = await connection.fetchval(
        "select max(stored_to) from my_boots where device_id = $1", found.device_row
    )
    reversed_lines = {
        row["line"]
        for row in await connection.fetch(
            "select line from calibrations where spot_id = $1 and reversed "
            "and valid @> $2::timestamptz",
            *(found.spot_row, since),
        )
    }
    rows = await connection.fetch(
        "select time, lead_ms, span_ms, line, interval_s, counts from my_readings "
        "where spot = $1 and line >= 0 and time > $2::timestamptz - interval '1 day' "
        "and time < $3 order by time",
        *(found.spot_row, since, until),
    )
    cell_s = rows[-1]["interval_s"] if rows else 60
    sums: dict[int, list[int]] = {}
    for row in rows:
        turned = row["line"] in reversed_lines
        begins = round(row["time"].timestamp()) * 1000
        for number in range(len(row["counts"]) // 2):
            start_ms = begins + number * row["interval_s"] * 1000
            if start_ms >= since.timestamp() * 1000:
                into = sums.setdefault(start_ms, [0, 0])
                into[turned] += row["counts"][2 * number]
                into[not turned] += row["counts"][2 * number + 1]
    return Told(
        told_to,
        None if told_to is None else told_to + _usual_frame(rows),
        cell_s,
        tuple(Cell(start_ms, *both) for start_ms, both in sorted(sums.items())),
    )


def _usual_frame(rows: Sequence[asyncpg.Record]) -> timedelta:
    """Return how long a frame with people in it takes: quiet ones are longer, and tell nothing."""
    if not rows:
        return USUAL_FRAME
    return min(USUAL_FRAME, timedelta(milliseconds=rows[-1]["span_ms"]))


def result_of(walk: Walk, heard: Told) -> Result:
    """Compare a walk test with what the device has told."""
    return compare(
        walk.taps,
        heard.cells,
        begun_ms=walk.begun_ms,
        until_ms=walk.until_ms or None,
        told_to_ms=0 if heard.told_to is None else round(heard.told_to.timestamp() * 1000),
        cell_ms=heard.cell_s * 1000,
    )


def read_walk(
    begun_ms: int, until_ms: int, taps: Sequence[tuple[int, str]], *, now: datetime
) -> Walk:
    """Return what a phone sent as a walk test (`until_ms` 0: it goes on). RefusedError."""
    now_ms = round(now.timestamp() * 1000)
    end_ms = until_ms or max(now_ms, begun_ms)
    if not (0 < begun_ms <= end_ms <= begun_ms + LONGEST_MS and len(taps) <= MOST_TAPS):
        raise refused("bad_walk")
    if end_ms > now_ms + _SLACK_MS and until_ms:
        raise refused("bad_walk")
    try:
        read = tuple(sorted(Tap(at_ms, Way(way)) for at_ms, way in taps))
    except ValueError as error:
        raise refused("bad_walk") from error
    if read and not (begun_ms - _SLACK_MS <= read[0].at_ms <= read[-1].at_ms <= end_ms + _SLACK_MS):
        raise refused("bad_walk")
    return Walk(begun_ms, until_ms, read)


def stretch(walk: Walk, *, now: datetime) -> tuple[datetime, datetime]:
    """Return from when to when readings are to be asked for."""
    since = datetime.fromtimestamp(walk.begun_ms / 1000, UTC)
    until = datetime.fromtimestamp(walk.until_ms / 1000, UTC) if walk.until_ms else now
    return since, until


def plain(result: Result) -> dict[str, object]:
    """Return a result as JSON holds it."""
    built: dict[str, object] = msgspec.to_builtins(result)
    return built
