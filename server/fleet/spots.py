"""A site's spots, how they are mounted, and how their lines are read. Audited as they are made.

What a spot is for and how high it hangs is effective-dated, and so is the reading of its lines: a
change holds from a moment on, and what was counted before is read as it was.
"""

from dataclasses import dataclass, replace
from datetime import datetime

import asyncpg

from server.audit.log import record
from server.errors import ConflictError, NotFoundError
from server.fleet import checks
from server.fleet.checks import FieldError, Known, TakenError, contents
from server.fleet.doors import lock_site
from server.fleet.register import By, Recorder, added, changed, lock_organisation, new_ref

KINDS = ("counter", "kiosk")
PURPOSES = ("entrance", "passage", "zone", "exit", "checkout")
FACTORS = (0.1, 10.0)


@dataclass(frozen=True, slots=True)
class Spot:
    """A mounted position; `door` by its ref. The kind is for ever; the rest is as of now."""

    name: str
    kind: str
    door: str | None = None
    purpose: str = "entrance"
    height_cm: int | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a line of a spot is read from `since` on (None: always)."""

    line: int
    reversed: bool
    factor: float
    reason: str
    since: datetime | None


_SPOT = """
select p.site_id, p.id, p.ref, p.name, p.kind, d.ref as door,
       coalesce(m.purpose, 'entrance') as purpose, m.height_cm
from spots p left join doors d on d.id = p.door_id
left join mountings m on m.spot_id = p.id and m.valid @> {now}::timestamptz
"""


async def of_site(connection: asyncpg.Connection, site: int, *, now: datetime) -> list[Known[Spot]]:
    """Return a site's spots, by name."""
    rows = await connection.fetch(
        _SPOT.format(now="$2") + "where p.site_id = $1 order by p.name, p.id", site, now
    )
    return [_known(row) for row in rows]


async def find(
    connection: asyncpg.Connection, organisation: int, ref: str, *, now: datetime
) -> tuple[int, Known[Spot]]:
    """Return a spot and the row of its site. Raises NotFoundError."""
    row = await connection.fetchrow(
        _SPOT.format(now="$3") + "where p.organisation_id = $1 and p.ref = $2",
        *(organisation, ref, now),
    )
    if row is None:
        raise NotFoundError(f"no spot {ref!r}")
    return row["site_id"], _known(row)


def _known(row: asyncpg.Record) -> Known[Spot]:
    _, spot, ref, *facts = row.values()
    return Known(spot, ref, Spot(*facts))


async def add(
    connection: asyncpg.Connection,
    organisation: int,
    site: str,
    wanted: Spot,
    *,
    ref: str = "",
    actor: str,
    now: datetime,
    noted: Recorder = record,
) -> Known[Spot]:
    """Add a spot to a site, under `ref` if one was drawn elsewhere.

    Raises NotFoundError, FieldError, TakenError.
    """
    await lock_organisation(connection, organisation)
    row = await lock_site(connection, organisation, site)
    wanted = _checked(wanted)
    await _demand_free(connection, row, wanted.name, but=None)
    door = await _door(connection, row, wanted.door)
    ref = ref or new_ref("spot")
    spot = await connection.fetchval(
        "insert into spots (organisation_id, site_id, door_id, ref, name, kind) "
        "values ($1, $2, $3, $4, $5, $6) on conflict (ref) do nothing returning id",
        *(organisation, row, door, ref, wanted.name, wanted.kind),
    )
    if spot is None:
        raise TakenError(f"there is a spot {ref!r} already")
    await connection.execute(
        "insert into mountings (organisation_id, spot_id, purpose, height_cm) "
        "values ($1, $2, $3, $4)",
        *(organisation, spot, wanted.purpose, wanted.height_cm),
    )
    made = Known(spot, ref, wanted)
    by = By(actor=actor, now=now, noted=noted)
    return await added(connection, organisation, "spot added", made, by=by, within={"site": site})


async def edit(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    wanted: Spot,
    *,
    seen: str | None,
    actor: str,
    now: datetime,
    since: datetime | None = None,
    noted: Recorder = record,
) -> Known[Spot]:
    """Change a spot; another purpose or height holds from `since` on (None: from now on).

    Raises NotFoundError, ChangedError, FieldError, TakenError; ConflictError if it was mounted
    otherwise at a later time than `since`.
    """
    await lock_organisation(connection, organisation)
    site, _ = await find(connection, organisation, ref, now=now)
    await connection.execute("select from sites where id = $1 for no key update", site)
    _, before = await find(connection, organisation, ref, now=now)
    before.demand_unchanged(seen)
    wanted = _checked(wanted)
    if wanted.kind != before.facts.kind:
        raise FieldError("kind", f"{ref} is a {before.facts.kind} for ever; add another spot")
    if wanted == before.facts:
        return before
    if wanted.name != before.facts.name:
        await _demand_free(connection, site, wanted.name, but=before.id)
    door = await _door(connection, site, wanted.door)
    await connection.execute(
        "update spots set name = $2, door_id = $3 where id = $1", before.id, wanted.name, door
    )
    if (wanted.purpose, wanted.height_cm) != (before.facts.purpose, before.facts.height_cm):
        await _mount(connection, organisation, before.id, wanted, since=since or now, now=now)
    by = By(actor=actor, now=now, noted=noted)
    return await changed(connection, organisation, "spot changed", before, wanted, by=by)


async def _mount(
    connection: asyncpg.Connection,
    organisation: int,
    spot: int,
    wanted: Spot,
    *,
    since: datetime,
    now: datetime,
) -> None:
    if since > now:
        raise FieldError("since", "a mounting is noted when it is done")
    last = await connection.fetchrow(
        "select id, lower(valid) as since from mountings where spot_id = $1 "
        "order by lower(valid) desc nulls last limit 1 for update",
        spot,
    )
    if last is not None and last["since"] is not None and last["since"] >= since:
        if last["since"] > since:
            raise ConflictError(f"it was mounted otherwise at {last['since']:%Y-%m-%d %H:%M}")
        await connection.execute(
            "update mountings set purpose = $2, height_cm = $3 where id = $1",
            *(last["id"], wanted.purpose, wanted.height_cm),
        )
        return
    await connection.execute(
        "update mountings set valid = tstzrange(lower(valid), $2) where spot_id = $1 "
        "and upper_inf(valid)",
        *(spot, since),
    )
    await connection.execute(
        "insert into mountings (organisation_id, spot_id, valid, purpose, height_cm) "
        "values ($1, $2, tstzrange($3, null), $4, $5)",
        *(organisation, spot, since, wanted.purpose, wanted.height_cm),
    )


async def calibrate(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    wanted: Calibration,
    *,
    actor: str,
    now: datetime,
    noted: Recorder = record,
) -> None:
    """State how a line of a spot is read. Raises NotFoundError, FieldError, ConflictError."""
    await lock_organisation(connection, organisation)
    _, spot = await find(connection, organisation, ref, now=now)
    low, high = FACTORS
    if not 0 <= wanted.line <= 3:
        raise FieldError("line", f"a spot has lines 0 to 3, not {wanted.line}")
    if not low <= wanted.factor <= high:
        raise FieldError("factor", f"expected {low} to {high}, got {wanted.factor}")
    if wanted.since is not None and wanted.since > now:
        raise FieldError("since", "a calibration is noted when it is done")
    reason = checks.name(wanted.reason, "reason")
    await connection.execute("select from spots where id = $1 for no key update", spot.id)
    try:
        async with connection.transaction():
            await _read_otherwise(connection, organisation, spot.id, wanted, reason=reason)
    except asyncpg.ExclusionViolationError as error:
        raise ConflictError(f"line {wanted.line} was calibrated at a later time already") from error
    await noted(
        connection,
        actor=actor,
        act="spot calibrated",
        subject=ref,
        detail=contents(replace(wanted, reason=reason)),
        organisation=organisation,
        now=now,
    )


async def _read_otherwise(
    connection: asyncpg.Connection,
    organisation: int,
    spot: int,
    wanted: Calibration,
    *,
    reason: str,
) -> None:
    """End how the line was read, and begin how it is read from then on."""
    await connection.execute(
        "update calibrations set valid = tstzrange(lower(valid), $3) where spot_id = $1 "
        "and line = $2 and upper_inf(valid) and coalesce(lower(valid), '-infinity') < $3",
        *(spot, wanted.line, wanted.since),
    )
    await connection.execute(
        "insert into calibrations (organisation_id, spot_id, line, valid, reversed, factor, reason)"
        " values ($1, $2, $3, tstzrange($4, null), $5, $6::float8::numeric(6,4), $7)",
        *(organisation, spot, wanted.line, wanted.since),
        *(wanted.reversed, wanted.factor, reason),
    )


def _checked(wanted: Spot) -> Spot:
    return Spot(
        checks.name(wanted.name),
        checks.one_of(wanted.kind, KINDS, "kind"),
        wanted.door,
        checks.one_of(wanted.purpose, PURPOSES, "purpose"),
        checks.height_cm(wanted.height_cm),
    )


async def _demand_free(
    connection: asyncpg.Connection, site: int, name: str, *, but: int | None
) -> None:
    if await connection.fetchval(
        "select exists (select from spots where site_id = $1 and name = $2 "
        "and id is distinct from $3)",
        *(site, name, but),
    ):
        raise TakenError(f"this site has a spot {name!r} already")


async def _door(connection: asyncpg.Connection, site: int, ref: str | None) -> int | None:
    if ref is None:
        return None
    found: int | None = await connection.fetchval(
        "select id from doors where site_id = $1 and ref = $2", site, ref
    )
    if found is None:
        raise FieldError("door", f"this site has no door {ref[:40]!r}")
    return found
