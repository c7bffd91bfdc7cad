"""Importing sales: one transaction, idempotent; the same file again changes nothing.

A file with a bad row is not imported at all unless `skip_bad`; every bad row is reported. A row
that is already stored and says something else now (a correction) replaces what is stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg

from server.insight.tills import Issue, Transaction, read_tills

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

    def lines(self) -> list[str]:
        """Return the report for a person."""
        would = "would be " if self.dry_run else ""
        found = [
            f"{self.rows} transactions read: {self.inserted} {would}new, {self.replaced} "
            f"{would}replaced, {self.unchanged} already there, {self.repeated} repeated in the file"
        ]
        found += [f"line {each.line}: {each.message} (noted)" for each in self.warnings]
        found += [f"line {each.line}: {each.message}" for each in self.errors]
        if self.refused:
            found.append("nothing was imported: correct these lines, or skip them")
        return found


async def import_pos(
    dsn: str,
    path: Path,
    *,
    dry_run: bool,
    organisation: str | None = None,
    skip_bad: bool = False,
) -> Report:
    """Import a till's CSV; `organisation`: its reference, if only its sites may be named.

    `dsn` is the owner's. Raises OSError and UnicodeDecodeError for a file that cannot be read.
    """
    connection = await asyncpg.connect(dsn)
    try:
        sites = {
            row["ref"]: (row["id"], row["organisation_id"], row["time_zone"])
            for row in await connection.fetch(_SITES, organisation)
        }
        with path.open(encoding="utf-8-sig", newline="") as file:
            read = read_tills(file, lambda ref: sites[ref][2] if ref in sites else None)
        report = Report(
            dry_run,
            len(read.rows),
            repeated=read.repeated,
            errors=tuple(read.errors),
            warnings=tuple(read.warnings),
        )
        if read.errors and not skip_bad:
            return replace(report, refused=True)
        transaction = connection.transaction()
        await transaction.start()
        try:
            places = {ref: (site, owner) for ref, (site, owner, _) in sites.items()}
            inserted, replaced = await _store(connection, [t for _, t in read.rows], places)
        except BaseException:
            await transaction.rollback()
            raise
        await (transaction.rollback() if dry_run else transaction.commit())
        unchanged = len(read.rows) - inserted - replaced
        return replace(report, inserted=inserted, replaced=replaced, unchanged=unchanged)
    finally:
        await connection.close()


async def _store(
    connection: asyncpg.Connection,
    rows: Sequence[Transaction],
    places: dict[str, tuple[int, int]],
) -> tuple[int, int]:
    """Insert or replace; return how many of each."""
    inserted = replaced = 0
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        changed = await connection.fetch(
            _UPSERT,
            [places[row.site][1] for row in part],
            [places[row.site][0] for row in part],
            [row.ref for row in part],
            [row.at for row in part],
            [row.kind for row in part],
            [row.amount for row in part],
            [row.units for row in part],
        )
        fresh = sum(row["fresh"] for row in changed)
        inserted += fresh
        replaced += len(changed) - fresh
    return inserted, replaced


_SITES = """
    select s.id, s.ref, s.organisation_id, s.time_zone from sites s
    join organisations o on o.id = s.organisation_id where $1::text is null or o.ref = $1
"""
_UPSERT = """
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
