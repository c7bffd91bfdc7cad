"""Recounts: people counted by a person at a spot, beside what its counter says of the same minutes.

What the counter says is read when it is asked for, calibrated as everywhere: counts that come late
are compared as they come, and a block is compared only when all of it was observed. Walk tests that
a technician's sheet was signed off with are recounts too (`my_walk_tests`). `server.insight.
accuracy` says what follows from it all.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import asyncpg

from server.audit.log import record
from server.errors import ConflictError, NotFoundError
from server.fleet import checks
from server.fleet.checks import FieldError
from server.fleet.register import new_ref
from server.insight.accuracy import (
    Accuracy,
    Block,
    Part,
    Standing,
    State,
    assess,
    combined,
    expires,
    state_of,
)
from server.rollup.perimeter import load_perimeters
from server.rollup.places import load_sites

METHODS = ("manual", "video")
WALK = "walk test"
BLOCK = timedelta(minutes=15)
MOST_BLOCKS = 96
MOST_PEOPLE = 5_000
_RECENT = timedelta(days=28)
_SEND_KEY = re.compile(r"[A-Za-z0-9-]{8,64}")
_LAST_ZONE = timedelta(hours=12)  # by which a day ends later than in UTC, at most


@dataclass(frozen=True, slots=True)
class Counted:
    """People in and out in the quarter of an hour from `from_at` on, as a person counted them."""

    from_at: datetime
    entered: int
    departed: int


@dataclass(frozen=True, slots=True)
class Recount:
    """What somebody counted at a spot."""

    ref: str
    spot: str
    method: str
    counted_by: str
    recorded_at: datetime
    blocks: tuple[Counted, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """A block by eye beside the counter's; `counted_*` None unless it was compared."""

    recount: str
    method: str
    counted_by: str
    spot_id: int
    from_at: datetime
    until_at: datetime
    entered: int
    departed: int
    counted_in: float | None
    counted_out: float | None
    lines: tuple[int, ...]
    state: State


@dataclass(frozen=True, slots=True)
class CountingError:
    """By how much a site's visits are off: of people in, at all of its counters together.

    `bias` is counted / people - 1; `relative_se` the standard error of its logarithm. Both are 0,
    and mean nothing, where `audited_on` is None: some counter of the site was never audited.
    """

    relative_se: float
    bias: float
    audited_on: date | None


NEVER = CountingError(0.0, 0.0, None)


async def counting_errors(
    connection: asyncpg.Connection, site_ids: Sequence[int], *, day: date
) -> dict[int, CountingError]:
    """Return the counting error of each site as it was known on `day`. As the API's role.

    A site's counters are those of its perimeter, each with its share of the last 28 days' visits.
    """
    errors = dict.fromkeys(site_ids, NEVER)
    ever = [row[0] for row in await connection.fetch(_RECOUNTED, list(site_ids))]
    if not ever:
        return errors
    sites = await load_sites(connection, ids=ever)
    end_s = int(datetime.combine(day + timedelta(days=1), time.min, UTC).timestamp())
    span = end_s - round(_RECENT.total_seconds()), end_s
    spans = dict.fromkeys((site.id for site in sites), span)
    perimeters = await load_perimeters(connection, sites, spans=spans)
    spots = [spot for perimeter in perimeters.values() for spot in perimeter.spots]
    visits = dict(await connection.fetch(_VISITS, spots, day - _RECENT, day))
    found = await accuracies(connection, spots, day=day)
    parts = {
        site: [Part(float(visits.get(spot, 0)), found.get(spot)) for spot in perimeter.spots]
        for site, perimeter in perimeters.items()
    }
    for site, its_parts in parts.items():
        bias, relative_se, audited_on = combined(its_parts)
        errors[site] = CountingError(relative_se, bias, audited_on)
    return errors


async def accuracies(
    connection: asyncpg.Connection, spot_ids: Sequence[int], *, day: date
) -> dict[int, Accuracy]:
    """Return by spot what recounts up to `day` say of it; a spot without any is left out."""
    zones = dict(await connection.fetch(_ZONES, list(spot_ids)))
    blocks: dict[int, list[Compared]] = {}
    for each in await compared(connection, spot_ids, day=day):
        if each.state is State.COMPARED:
            blocks.setdefault(each.spot_id, []).append(each)
    return await asyncio.to_thread(
        lambda: {spot: accuracy_of(its, zones[spot]) for spot, its in blocks.items()}
    )


def accuracy_of(blocks: Sequence[Compared], zone: str) -> Accuracy:
    """Return what the compared ones of a spot's blocks say together."""
    good = [each for each in blocks if each.state is State.COMPARED]
    last = max((each.until_at for each in good), default=None)
    return assess(
        [
            Block(
                each.from_at.timestamp() * (-1 if each.method == WALK else 1),
                each.entered,
                each.departed,
                each.counted_in or 0.0,
                each.counted_out or 0.0,
            )
            for each in good
        ],
        on=None if last is None else last.astimezone(ZoneInfo(zone)).date(),
    )


async def compared(
    connection: asyncpg.Connection, spot_ids: Sequence[int], *, day: date
) -> list[Compared]:
    """Return every block of the spots' recounts up to `day`, the latest first."""
    end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1) + _LAST_ZONE
    not_before = datetime.combine(expires(day), datetime.min.time(), UTC)
    ids = list(spot_ids)
    rows = await connection.fetch(_BLOCKS, ids, end)
    rows += await connection.fetch(_WALKS, ids, end)
    if not rows:
        return []
    then = await _standings(connection, [(r["spot_id"], r["from_at"], r["until_at"]) for r in rows])
    known = sorted({row["spot_id"] for row in rows})
    now = await _standings(connection, [(spot, end, end) for spot in known])
    factors = await _factors(connection, known)
    standing = dict(zip(known, now, strict=True))
    return await asyncio.to_thread(_all_compared, rows, then, standing, factors, not_before)


def _all_compared(
    rows: Sequence[asyncpg.Record],
    then: Sequence[Standing],
    now: Mapping[int, Standing],
    factors: dict[int, tuple[int, bool, Decimal]],
    not_before: datetime,
) -> list[Compared]:
    found = [
        _compared(row, standing, now[row["spot_id"]], factors, not_before)
        for row, standing in zip(rows, then, strict=True)
    ]
    return sorted(found, key=lambda each: (each.from_at, each.recount), reverse=True)


def _compared(
    row: asyncpg.Record,
    then: Standing,
    now: Standing,
    factors: dict[int, tuple[int, bool, Decimal]],
    not_before: datetime,
) -> Compared:
    state = state_of(
        then=then,
        now=now,
        at=row["from_at"],
        not_before=not_before,
        whole=row["whole"],
        resolution_s=row["resolution_s"],
        accounted=row["accounted"],
    )
    in_force = [factors[each] for each in then.calibrations]
    lines: tuple[int, ...] = ()
    if row["method"] == WALK:
        both = Decimal(row["counted_in"]), Decimal(row["counted_out"])
        if state is State.COMPARED and any(factor != 1 for _, _, factor in in_force):
            state = State.SCALED
    else:
        both, lines = _calibrated(row["counts"], in_force)
    good = state is State.COMPARED
    return Compared(
        *(row["ref"], row["method"], row["counted_by"], row["spot_id"]),
        *(row["from_at"], row["until_at"], row["entered"], row["departed"]),
        float(both[0]) if good else None,
        float(both[1]) if good else None,
        lines,
        state,
    )


def _calibrated(
    counts: Sequence[int | None], in_force: Sequence[tuple[int, bool, Decimal]]
) -> tuple[tuple[Decimal, Decimal], tuple[int, ...]]:
    """Return people in and out over all lines, and which lines there are."""
    reading = {line: (turned, factor) for line, turned, factor in in_force}
    entered = left = Decimal(0)
    lines: list[int] = []
    for line in range(4):
        one, other = counts[2 * line], counts[2 * line + 1]
        if one is None and other is None:
            continue
        lines.append(line)
        turned, factor = reading.get(line, (False, Decimal(1)))
        ways = (other or 0, one or 0) if turned else (one or 0, other or 0)
        entered += factor * ways[0]
        left += factor * ways[1]
    return (entered, left), tuple(lines)


async def _standings(
    connection: asyncpg.Connection, wanted: Sequence[tuple[int, datetime, datetime]]
) -> list[Standing]:
    """Return what stood at each spot, mounted and read how, throughout each stretch."""
    rows = await connection.fetch(
        _STANDINGS,
        [spot for spot, _, _ in wanted],
        [since for _, since, _ in wanted],
        [until for _, _, until in wanted],
    )
    return [Standing(row[0], row[1], tuple(row[2])) for row in rows]


async def _factors(
    connection: asyncpg.Connection, spots: list[int]
) -> dict[int, tuple[int, bool, Decimal]]:
    rows = await connection.fetch(
        "select id, line, reversed, factor from calibrations where spot_id = any($1::int[])", spots
    )
    return {row["id"]: (row["line"], row["reversed"], row["factor"]) for row in rows}


# -- writing ------------------------------------------------------------------------------------


async def add(
    connection: asyncpg.Connection,
    organisation: int,
    spot: str,
    *,
    method: str,
    counted_by: str,
    blocks: Sequence[Counted],
    actor: str,
    now: datetime,
    send_key: str | None = None,
) -> Recount:
    """Keep what somebody counted; sent again with the same `send_key`, it is kept once.

    As the desk. Raises NotFoundError, FieldError, ConflictError for the key of another recount.
    """
    row = await connection.fetchrow(
        "select id, kind from spots where organisation_id = $1 and ref = $2", organisation, spot
    )
    if row is None or row["kind"] != "counter":
        raise NotFoundError(f"no counter {spot!r}")
    checks.one_of(method, METHODS, "method")
    counted_by = checks.name(counted_by, "counted_by")
    blocks = _checked(blocks, now=now)
    if send_key is not None and not _SEND_KEY.fullmatch(send_key):
        raise FieldError("key", "expected 8 to 64 letters, digits and dashes")
    ref = new_ref("recount")
    recount = await connection.fetchval(
        "insert into recounts (organisation_id, ref, spot_id, method, counted_by, recorded_by, "
        "recorded_at, send_key) values ($1, $2, $3, $4, $5, $6, $7, $8) "
        "on conflict (organisation_id, send_key) do nothing returning id",
        *(organisation, ref, row["id"], method, counted_by, actor, now, send_key),
    )
    if recount is None:
        return await _known(connection, organisation, spot, str(send_key), blocks)
    await connection.executemany(
        "insert into recount_blocks (organisation_id, recount_id, from_at, entered, departed) "
        "values ($1, $2, $3, $4, $5)",
        [(organisation, recount, b.from_at, b.entered, b.departed) for b in blocks],
    )
    await record(
        connection,
        actor=actor,
        act="recount recorded",
        subject=spot,
        detail={
            "recount": ref,
            "method": method,
            "blocks": [[b.from_at.isoformat(), b.entered, b.departed] for b in blocks],
        },
        organisation=organisation,
        now=now,
    )
    return Recount(ref, spot, method, counted_by, now, tuple(blocks))


async def _known(
    connection: asyncpg.Connection,
    organisation: int,
    spot: str,
    send_key: str,
    blocks: Sequence[Counted],
) -> Recount:
    """Return the recount that was kept under a key. Raises ConflictError if it is another."""
    row = await connection.fetchrow(
        "select r.id, r.ref, p.ref as spot, r.method, r.counted_by, r.recorded_at from recounts r "
        "join spots p on p.id = r.spot_id where r.organisation_id = $1 and r.send_key = $2",
        *(organisation, send_key),
    )
    kept = await connection.fetch(
        "select from_at, entered, departed from recount_blocks where recount_id = $1 order by 1",
        row["id"],
    )
    if row["spot"] != spot or [Counted(*each) for each in kept] != list(blocks):
        raise ConflictError("another recount was kept under this key")
    return Recount(
        *(row["ref"], spot, row["method"], row["counted_by"], row["recorded_at"]), tuple(blocks)
    )


async def withdraw(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> None:
    """Let a recount count no more; it stays written down. Raises NotFoundError."""
    spot = await connection.fetchval(
        "update recounts r set withdrawn_at = coalesce(withdrawn_at, $3) from spots p "
        "where p.id = r.spot_id and r.organisation_id = $1 and r.ref = $2 returning p.ref",
        *(organisation, ref, now),
    )
    if spot is None:
        raise NotFoundError(f"no recount {ref!r}")
    await record(
        connection,
        actor=actor,
        act="recount withdrawn",
        subject=spot,
        detail={"recount": ref},
        organisation=organisation,
        now=now,
    )


def _checked(blocks: Sequence[Counted], *, now: datetime) -> list[Counted]:
    if not 0 < len(blocks) <= MOST_BLOCKS:
        raise FieldError("blocks", f"expected 1 to {MOST_BLOCKS} blocks, got {len(blocks)}")
    seen: set[datetime] = set()
    for number, block in enumerate(blocks):
        name = f"blocks[{number}]"
        checks.sensible(block.from_at.date(), f"{name}.from")
        if block.from_at.timestamp() % BLOCK.total_seconds():
            raise FieldError(f"{name}.from", "a block begins on a quarter of an hour")
        if block.from_at + BLOCK > now:
            raise FieldError(f"{name}.from", "this quarter of an hour is not over")
        if block.from_at in seen:
            raise FieldError(f"{name}.from", "this quarter of an hour is there twice")
        seen.add(block.from_at)
        for field, count in (("in", block.entered), ("out", block.departed)):
            if not 0 <= count <= MOST_PEOPLE:
                raise FieldError(f"{name}.{field}", f"expected 0 to {MOST_PEOPLE}, got {count}")
    return sorted(blocks, key=lambda block: block.from_at)


_ZONES = """
    select p.id, s.time_zone from spots p join sites s on s.id = p.site_id
    where p.id = any($1::int[])
"""
_VISITS = """
    select spot, sum(coalesce(in0, 0) + coalesce(in1, 0) + coalesce(in2, 0) + coalesce(in3, 0))
    from my_rollup_day where spot = any($1::int[]) and day > $2 and day <= $3 group by 1
"""
_RECOUNTED = """
    select distinct site_id from spots where site_id = any($1::int[])
      and id in (select spot_id from recounts union all select spot_id from my_walk_tests)
"""
_BLOCKS = """
    select r.ref, r.method, r.counted_by, r.spot_id, b.from_at,
           b.from_at + interval '15 minutes' as until_at, b.entered, b.departed,
           array[q.in0, q.out0, q.in1, q.out1, q.in2, q.out2, q.in3, q.out3] as counts,
           coalesce(bit_count((q.observed & ~coalesce(q.masked, 0))::bit(64)) = 60, false) as whole,
           coalesce(q.resolution_s, 0)::int as resolution_s,
           exists (select from gaps g where g.spot_id = r.spot_id and g.filled_at is null
                   and g.from_at < b.from_at + interval '15 minutes' and g.until_at > b.from_at)
           or coalesce((select max(k.stored_to) from my_boots k where k.device_id = a.device_id)
                       >= b.from_at + interval '15 minutes', a.device_id is null) as accounted
    from recounts r join recount_blocks b on b.recount_id = r.id
    left join my_rollup_15m q on q.spot = r.spot_id and q.bucket = b.from_at
    left join assignments a on a.spot_id = r.spot_id and a.valid @> b.from_at
    where r.spot_id = any($1::int[]) and r.withdrawn_at is null and b.from_at < $2
"""
_WALKS = """
    select ref, 'walk test' as method, signed_off_by as counted_by, spot_id, from_at, until_at,
           entered, departed, counted_in, counted_out, true as whole, 0 as resolution_s,
           true as accounted
    from my_walk_tests where spot_id = any($1::int[]) and from_at < $2
"""
_STANDINGS = """
    select (select a.id from assignments a where a.spot_id = w.spot
              and a.valid @> tstzrange(w.since, w.until, '[]')),
           (select m.id from mountings m where m.spot_id = w.spot and m.valid @> w.since),
           array(select c.id from calibrations c where c.spot_id = w.spot and c.valid @> w.since
                 order by c.id)
    from unnest($1::int[], $2::timestamptz[], $3::timestamptz[])
      with ordinality as w(spot, since, until, n) order by w.n
"""
