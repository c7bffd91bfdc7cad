"""Storing what other systems deliver: one transaction, idempotent; the same again changes nothing.

Sales, shifts, campaigns and rates of exchange, by file (`import_file`, as the owner) or by the API
(`store`, as the desk). A file with a bad row is not imported at all unless `skip_bad`; every bad
row is reported. A row that is already stored and says something else now (a correction) replaces
what is stored, and is counted.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import asyncpg

from server.insight.deliveries import CAMPAIGNS, RATES, SHIFTS, Campaign, Shift
from server.insight.money import Rate
from server.insight.rows import Issue, Table, read_rows
from server.insight.tills import TILLS, Transaction

R = TypeVar("R")
_ROWS_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Report:
    """What an import did, or with `dry_run` would do."""

    dry_run: bool
    rows: int
    inserted: int = 0
    replaced: int = 0
    unchanged: int = 0
    repeated: int = 0
    errors: tuple[Issue, ...] = ()
    warnings: tuple[Issue, ...] = ()
    refused: bool = False
    noun: str = "transaction"

    def lines(self) -> list[str]:
        """Return the report for a person."""
        would = "would be " if self.dry_run else ""
        found = [
            f"{self.rows} {self.noun}s read: {self.inserted} {would}new, {self.replaced} "
            f"{would}replaced, {self.unchanged} already there, {self.repeated} repeated in the file"
        ]
        found += [f"line {each.line}: {each.message} (noted)" for each in self.warnings]
        found += [f"line {each.line}: {each.message}" for each in self.errors]
        if self.refused:
            found.append("nothing was imported: correct these lines, or skip them")
        return found


@dataclass(frozen=True, slots=True)
class Place:
    """A site by its reference: its row, whose it is, its zone."""

    site: int
    organisation: int
    zone: str


Places = dict[str, Place]
Store = Callable[
    [asyncpg.Connection, Sequence[R], Places, int | None], Coroutine[Any, Any, tuple[int, int]]
]


@dataclass(frozen=True, slots=True)
class Source(Generic[R]):
    """A kind of delivery: how its rows are read, and stored. `owned`: by sites, each knows whose.

    Rows of what is not known by its sites belong to the organisation that is named.
    """

    table: Table[R]
    store: Store[R]
    owned: bool = True


async def places_of(connection: asyncpg.Connection, organisation: int | None) -> Places:
    """Return the sites of an organisation (None: of all) by reference."""
    return {
        row["ref"]: Place(row["id"], row["organisation_id"], row["time_zone"])
        for row in await connection.fetch(_SITES, organisation)
    }


async def import_pos(
    dsn: str,
    path: Path,
    *,
    dry_run: bool,
    organisation: str | None = None,
    skip_bad: bool = False,
) -> Report:
    """Import a till's CSV; as `import_file`."""
    return await import_file(
        dsn, path, TRANSACTIONS, dry_run=dry_run, organisation=organisation, skip_bad=skip_bad
    )


async def import_file(
    dsn: str,
    path: Path,
    source: Source[R],
    *,
    dry_run: bool,
    organisation: str | None = None,
    skip_bad: bool = False,
) -> Report:
    """Import a CSV; `organisation`: its reference, if only its sites may be named.

    `dsn` is the owner's. Raises OSError and UnicodeDecodeError for a file that cannot be read.
    """
    connection = await asyncpg.connect(dsn)
    try:
        found = await connection.fetchval(
            "select id from organisations where ref = $1", organisation
        )
        owner = -1 if organisation is not None and found is None else found
        problem = _whose(organisation, owner, source)
        if problem:
            return Report(dry_run, 0, errors=(Issue(0, problem),), refused=True)
        places = await places_of(connection, owner)
        with path.open(encoding="utf-8-sig", newline="") as file:
            read = read_rows(
                file, source.table, lambda ref: places[ref].zone if ref in places else None
            )
        report = Report(
            dry_run,
            len(read.rows),
            repeated=read.repeated,
            errors=tuple(read.errors),
            warnings=tuple(read.warnings),
            noun=source.table.noun,
        )
        if read.errors and not skip_bad:
            return replace(report, refused=True)
        transaction = connection.transaction()
        await transaction.start()
        try:
            inserted, replaced = await store(
                connection, source, [row for _, row in read.rows], places, owner
            )
        except BaseException:
            await transaction.rollback()
            raise
        await (transaction.rollback() if dry_run else transaction.commit())
        unchanged = len(read.rows) - inserted - replaced
        return replace(report, inserted=inserted, replaced=replaced, unchanged=unchanged)
    finally:
        await connection.close()


def _whose(organisation: str | None, owner: int | None, source: Source[R]) -> str:
    if source.owned:
        return ""
    if organisation is None:
        return f"say whose {source.table.noun}s these are: --organisation"
    return f"there is no organisation {organisation!r}" if owner == -1 else ""


async def store(
    connection: asyncpg.Connection,
    source: Source[R],
    rows: Sequence[R],
    places: Places,
    organisation: int | None,
) -> tuple[int, int]:
    """Insert or replace, within the caller's transaction; return how many of each.

    In the order of their keys: two who store the same rows at once then wait, never in a circle.
    """
    inserted = replaced = 0
    ordered = sorted(rows, key=source.table.key)
    for start in range(0, len(ordered), _ROWS_AT_ONCE):
        fresh, other = await source.store(
            connection, ordered[start : start + _ROWS_AT_ONCE], places, organisation
        )
        inserted += fresh
        replaced += other
    return inserted, replaced


def _told(changed: Sequence[asyncpg.Record]) -> tuple[int, int]:
    fresh = sum(row["fresh"] for row in changed)
    return fresh, len(changed) - fresh


async def _transactions(
    connection: asyncpg.Connection, rows: Sequence[Transaction], places: Places, _: int | None
) -> tuple[int, int]:
    return _told(
        await connection.fetch(
            _SALES,
            [places[row.site].organisation for row in rows],
            [places[row.site].site for row in rows],
            [row.ref for row in rows],
            [row.at for row in rows],
            [row.kind for row in rows],
            [row.amount for row in rows],
            [row.units for row in rows],
        )
    )


async def _shifts(
    connection: asyncpg.Connection, rows: Sequence[Shift], places: Places, _: int | None
) -> tuple[int, int]:
    return _told(
        await connection.fetch(
            _ROSTER,
            [places[row.site].organisation for row in rows],
            [places[row.site].site for row in rows],
            [row.ref for row in rows],
            [row.starts_at for row in rows],
            [row.ends_at for row in rows],
            [row.role for row in rows],
        )
    )


async def _campaigns(
    connection: asyncpg.Connection, rows: Sequence[Campaign], places: Places, owner: int | None
) -> tuple[int, int]:
    inserted = replaced = 0
    for row in rows:
        found = await connection.fetchrow(
            _CAMPAIGN,
            *(owner, row.ref, row.name, row.channel, row.from_day, row.until_day, row.cost),
            *(row.currency, row.impressions),
        )
        campaign: int = await connection.fetchval(
            "select id from campaigns where organisation_id = $1 and campaign_ref = $2",
            *(owner, row.ref),
        )
        wanted = [places[site].site for site in row.sites]
        moved = await connection.fetch(_CAMPAIGN_SITES, owner, campaign, wanted)
        if found is not None and found["fresh"]:
            inserted += 1
        elif found is not None or moved:
            replaced += 1
    return inserted, replaced


async def _rates(
    connection: asyncpg.Connection, rows: Sequence[Rate], _: Places, owner: int | None
) -> tuple[int, int]:
    return _told(
        await connection.fetch(
            _RATE,
            owner,
            [row.day for row in rows],
            [row.base for row in rows],
            [row.quote for row in rows],
            [row.rate for row in rows],
            [row.source for row in rows],
        )
    )


TRANSACTIONS = Source(TILLS, _transactions)
ROSTERS = Source(SHIFTS, _shifts)
CAMPAIGNED = Source(CAMPAIGNS, _campaigns, owned=False)
EXCHANGE = Source(RATES, _rates, owned=False)

_SITES = """
    select id, ref, organisation_id, time_zone from sites
    where $1::int is null or organisation_id = $1
"""
_SALES = """
    insert into transactions as t
        (organisation_id, site_id, transaction_ref, at, kind, amount, units)
    select * from unnest($1::int[], $2::int[], $3::text[], $4::timestamptz[], $5::text[],
        $6::numeric[], $7::int[])
    on conflict (site_id, transaction_ref) do update
    set at = excluded.at, kind = excluded.kind, amount = excluded.amount, units = excluded.units
    where (t.at, t.kind, t.amount, t.units)
      is distinct from (excluded.at, excluded.kind, excluded.amount, excluded.units)
    returning xmax = 0 as fresh
"""
_ROSTER = """
    insert into staff_shifts as t
        (organisation_id, site_id, shift_ref, starts_at, ends_at, role)
    select * from unnest($1::int[], $2::int[], $3::text[], $4::timestamptz[],
        $5::timestamptz[], $6::text[])
    on conflict (site_id, shift_ref) do update
    set starts_at = excluded.starts_at, ends_at = excluded.ends_at, role = excluded.role
    where (t.starts_at, t.ends_at, t.role)
      is distinct from (excluded.starts_at, excluded.ends_at, excluded.role)
    returning xmax = 0 as fresh
"""
_CAMPAIGN = """
    insert into campaigns as t (organisation_id, campaign_ref, name, channel, from_day, until_day,
        cost, currency, impressions)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    on conflict (organisation_id, campaign_ref) do update
    set name = excluded.name, channel = excluded.channel, from_day = excluded.from_day,
        until_day = excluded.until_day, cost = excluded.cost, currency = excluded.currency,
        impressions = excluded.impressions
    where (t.name, t.channel, t.from_day, t.until_day, t.cost, t.currency, t.impressions)
      is distinct from (excluded.name, excluded.channel, excluded.from_day, excluded.until_day,
          excluded.cost, excluded.currency, excluded.impressions)
    returning xmax = 0 as fresh
"""
_CAMPAIGN_SITES = """
    with gone as (
        delete from campaign_sites where campaign_id = $2 and site_id <> all($3::int[])
        returning site_id),
    come as (
        insert into campaign_sites (organisation_id, campaign_id, site_id)
        select $1, $2, site from unnest($3::int[]) as site on conflict do nothing
        returning site_id)
    select site_id from gone union all select site_id from come
"""
_RATE = """
    insert into exchange_rates as t (organisation_id, day, base, quote, rate, source)
    select $1, * from unnest($2::date[], $3::text[], $4::text[], $5::numeric[], $6::text[])
    on conflict (organisation_id, day, base, quote) do update
    set rate = excluded.rate, source = excluded.source
    where (t.rate, t.source) is distinct from (excluded.rate, excluded.source)
    returning xmax = 0 as fresh
"""
