"""Take the register in from a file, and give it out as one that is taken in as the same.

A row names its site, door and spot by their refs or, where a ref is empty, by their names. A file
is taken in whole or not at all: each row that cannot be is reported, and then nothing is kept. A
dry run does the same work and keeps nothing either, so what it says is what would happen.

The audit's rows are written when all else is done: a dry run never takes the organisation's chain,
which everybody's acts need, and an import only for its last moment.
"""

from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

import asyncpg

from server.errors import NotFoundError, RefusedError, VestibuleError
from server.fleet import checks, doors, hours, organisations, sites, spots, table
from server.fleet.checks import FieldError, Known
from server.fleet.doors import Door
from server.fleet.organisations import Region
from server.fleet.register import By, Later, lock_organisation
from server.fleet.sites import Site
from server.fleet.spots import Spot
from server.fleet.table import Row

T = TypeVar("T")
MOST_ROWS = 20_000
MOST_ERRORS = 200


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row cannot be taken in; `column` is empty if it is no one column's fault."""

    line: int
    column: str
    why: str


@dataclass(frozen=True, slots=True)
class Deed:
    """What a row does."""

    line: int
    act: str
    ref: str
    name: str
    fields: str = ""


@dataclass(slots=True)
class Outcome:
    """What was done, or would be; nothing if there are errors."""

    rows: int = 0
    deeds: list[Deed] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)


async def take_in(
    connection: asyncpg.Connection,
    organisation: int,
    data: bytes,
    *,
    actor: str,
    now: datetime,
    dry_run: bool,
    most_rows: int = MOST_ROWS,
) -> Outcome:
    """Take a file in, within the caller's transaction. Raises RefusedError as `table.read`."""
    rows = table.read(data, most_rows=most_rows)
    intake = _Intake(connection, organisation, actor=actor, now=now)
    attempt = connection.transaction()
    await attempt.start()
    try:
        with suppress(_EnoughError):
            await intake.run(rows)
    except BaseException:
        await attempt.rollback()
        raise
    if dry_run or intake.outcome.errors:
        await attempt.rollback()
    else:
        await attempt.commit()
        await intake.later.write(connection)
    return intake.outcome


class _EnoughError(Exception):
    """There are as many errors as anyone reads."""


class _Intake:
    """One file's work."""

    def __init__(
        self, connection: asyncpg.Connection, organisation: int, *, actor: str, now: datetime
    ) -> None:
        self._connection, self._organisation = connection, organisation
        self._now = now
        self.outcome = Outcome()
        self._said: dict[tuple[str, str], tuple[int, object]] = {}
        self._regions: dict[str, str] = {}
        self.later = Later()
        self._by = By(actor=actor, now=now, noted=self.later)

    async def run(self, rows: list[Row]) -> None:
        self.outcome.rows = len(rows)
        await lock_organisation(self._connection, self._organisation)
        for region in await organisations.regions(self._connection, self._organisation):
            self._regions[region.facts.name] = region.ref
        behind: list[tuple[Row, str]] = []
        for row in rows:
            site = await self._attempt(row, self._site(row))
            if site is None:
                continue
            door = None
            if row.get("door") or row.get("door_ref"):
                door = await self._attempt(row, self._door(row, site))
                if door is None:
                    continue
                if "behind" in row.cells:
                    behind.append((row, door.ref))
            if row.get("spot") or row.get("spot_ref"):
                await self._attempt(row, self._spot(row, site, door))
        await self._stand_behind(behind)

    async def _attempt(self, row: Row, act: Awaitable[T]) -> T | None:
        """Do a part of a row; None if it cannot be done, which is noted. Raises _EnoughError."""
        regions, acts = dict(self._regions), len(self.later)
        try:
            async with self._connection.transaction():
                return await act
        except VestibuleError as error:
            self._regions = regions
            self.later.forget(acts)
            column = getattr(error, "parameter", "")
            self.outcome.errors.append(RowError(row.line, column, str(error)))
        if len(self.outcome.errors) >= MOST_ERRORS:
            raise _EnoughError
        return None

    # -- sites -----------------------------------------------------------------------------------

    async def _site(self, row: Row) -> Known[Site]:
        known = await self._find_site(row)
        wanted = await self._wanted_site(row, known)
        if known is None:
            made = await sites.add(
                self._connection,
                self._organisation,
                wanted,
                **self._by,
            )
            self._did(row, "site added", made.ref, wanted.name)
        else:
            made = await sites.edit(
                self._connection,
                self._organisation,
                known.ref,
                wanted,
                seen=None,
                **self._by,
            )
            self._changed(row, "site changed", known, made, name=made.facts.name)
        self._demand_said_once(row, "site", made.ref, wanted)
        return made

    async def _find_site(self, row: Row) -> Known[Site] | None:
        ref = row.get("site_ref") or await self._named(
            "sites", "organisation_id", self._organisation, row, "site"
        )
        if not ref:
            return None
        return await self._find("site_ref", sites.find(self._connection, self._organisation, ref))

    async def _wanted_site(self, row: Row, known: Known[Site] | None) -> Site:
        site = known.facts if known else Site(row.get("site"), row.get("time_zone"))
        cells = row.cells
        if row.get("site"):
            site = replace(site, name=checks.name(row.get("site"), "site"))
        if "address" in cells:
            site = replace(site, address=cells["address"])
        if "time_zone" in cells:
            site = replace(site, time_zone=cells["time_zone"])
        if "currency" in cells:
            site = replace(site, currency=cells["currency"] or "EUR")
        if "hours" in cells:
            site = replace(site, opening=hours.read(cells["hours"]))
        if "opens_on" in cells:
            site = replace(site, opens_on=checks.day(cells["opens_on"], "opens_on"))
        if "closes_on" in cells:
            site = replace(site, closes_on=checks.day(cells["closes_on"], "closes_on"))
        if "region" in cells:
            site = replace(site, region=await self._region(row))
        return site

    async def _region(self, row: Row) -> str | None:
        if not row.get("region"):
            return None
        name = checks.name(row.get("region"), "region")
        if name not in self._regions:
            made = await organisations.add_region(
                self._connection,
                self._organisation,
                Region(name),
                **self._by,
            )
            self._regions[name] = made.ref
            self._did(row, "region added", made.ref, name)
        return self._regions[name]

    # -- doors -----------------------------------------------------------------------------------

    async def _door(self, row: Row, site: Known[Site]) -> Known[Door]:
        known = await self._find_door(row, site)
        name = checks.name(row.get("door") or (known.facts.name if known else ""), "door")
        if known is None:
            made = await doors.add(
                self._connection,
                self._organisation,
                site.ref,
                Door(name),
                **self._by,
            )
            self._did(row, "door added", made.ref, name)
        else:
            made = await doors.edit(
                self._connection,
                self._organisation,
                known.ref,
                replace(known.facts, name=name),
                seen=None,
                **self._by,
            )
            self._changed(row, "door changed", known, made, name=name)
        self._demand_said_once(row, "door", made.ref, (name, row.get("behind")))
        return made

    async def _find_door(self, row: Row, site: Known[Site]) -> Known[Door] | None:
        ref = row.get("door_ref") or await self._named("doors", "site_id", site.id, row, "door")
        if not ref:
            return None
        finding = doors.find(self._connection, self._organisation, ref)
        of, known = await self._find("door_ref", finding)
        if of != site.id:
            raise FieldError("door_ref", f"{ref} is another site's door")
        return known

    async def _stand_behind(self, wanted: list[tuple[Row, str]]) -> None:
        """Put doors behind each other once all are there; again while that gets any further."""
        left = list({door: (row, door) for row, door in wanted}.values())
        while left:
            refused: list[tuple[Row, str]] = []
            errors = len(self.outcome.errors)
            for row, door in left:
                if await self._attempt(row, self._put_behind(row, door)) is None:
                    refused.append((row, door))
            if len(refused) == len(left):
                return
            if refused:
                del self.outcome.errors[errors:]
            left = refused

    async def _put_behind(self, row: Row, door: str) -> Known[Door]:
        of, known = await doors.find(self._connection, self._organisation, door)
        behind = await self._behind(row, of)
        made = await doors.edit(
            self._connection,
            self._organisation,
            door,
            replace(known.facts, behind=behind),
            seen=None,
            **self._by,
        )
        self._changed(row, "door changed", known, made, name=made.facts.name)
        return made

    async def _behind(self, row: Row, site: int) -> str | None:
        wanted = row.get("behind")
        if not wanted:
            return None
        found = await doors.of_site(self._connection, site)
        by_ref = [door.ref for door in found if door.ref == wanted]
        named = by_ref or [door.ref for door in found if door.facts.name == wanted]
        if len(named) != 1:
            raise FieldError("behind", f"this site has no one door {wanted[:60]!r}")
        return named[0]

    # -- spots -----------------------------------------------------------------------------------

    async def _spot(self, row: Row, site: Known[Site], door: Known[Door] | None) -> Known[Spot]:
        known = await self._find_spot(row, site)
        wanted = self._wanted_spot(row, known, door)
        if known is None:
            made = await spots.add(
                self._connection,
                self._organisation,
                site.ref,
                wanted,
                **self._by,
            )
            self._did(row, "spot added", made.ref, wanted.name)
        else:
            made = await spots.edit(
                self._connection,
                self._organisation,
                known.ref,
                wanted,
                seen=None,
                **self._by,
            )
            self._changed(row, "spot changed", known, made, name=wanted.name)
        if (first := self._said.get(("spot", made.ref))) is not None:
            raise FieldError("spot", f"line {first[0]} is this spot's row already")
        self._said["spot", made.ref] = row.line, None
        return made

    async def _find_spot(self, row: Row, site: Known[Site]) -> Known[Spot] | None:
        ref = row.get("spot_ref") or await self._named("spots", "site_id", site.id, row, "spot")
        if not ref:
            return None
        finding = spots.find(self._connection, self._organisation, ref, now=self._now)
        of, known = await self._find("spot_ref", finding)
        if of != site.id:
            raise FieldError("spot_ref", f"{ref} is another site's spot")
        return known

    def _wanted_spot(self, row: Row, known: Known[Spot] | None, door: Known[Door] | None) -> Spot:
        cells = row.cells
        spot = known.facts if known else Spot(row.get("spot"), row.get("kind") or "counter")
        if row.get("spot"):
            spot = replace(spot, name=checks.name(row.get("spot"), "spot"))
        if row.get("kind"):
            spot = replace(spot, kind=row.get("kind"))
        if "door" in cells or "door_ref" in cells:
            spot = replace(spot, door=door.ref if door else None)
        if "purpose" in cells:
            spot = replace(spot, purpose=cells["purpose"] or "entrance")
        if "height_cm" in cells:
            spot = replace(spot, height_cm=height(cells["height_cm"]))
        return spot

    # -- small things ----------------------------------------------------------------------------

    async def _find(self, column: str, finding: Awaitable[T]) -> T:
        try:
            return await finding
        except NotFoundError as error:
            raise FieldError(column, str(error)) from error

    async def _named(self, kind: str, within: str, scope: int, row: Row, column: str) -> str | None:
        """Return the ref of what has this row's name; None if nothing has. FieldError if two."""
        name = checks.name(row.get(column), column)
        found = await self._connection.fetch(
            f"select ref from {kind} where {within} = $1 and name = $2 limit 2",  # noqa: S608
            *(scope, name),
        )
        if len(found) > 1:
            raise FieldError(column, f"two {kind} are called {name!r}: say which by `{column}_ref`")
        return found[0]["ref"] if found else None

    def _demand_said_once(self, row: Row, kind: str, ref: str, said: object) -> None:
        """Raise FieldError if an earlier row said something else of the same."""
        line, before = self._said.setdefault((kind, ref), (row.line, said))
        if before != said:
            raise FieldError(kind, f"line {line} says something else of this {kind}")

    def _did(self, row: Row, act: str, ref: str, name: str) -> None:
        self.outcome.deeds.append(Deed(row.line, act, ref, name))

    def _changed(self, row: Row, act: str, before: Known[T], after: Known[T], *, name: str) -> None:
        if before.facts != after.facts:
            changed = ", ".join(checks.changes(before.facts, after.facts))
            self.outcome.deeds.append(Deed(row.line, act, after.ref, name, changed))


def height(text: str) -> int | None:
    """Return a height in centimetres, None for an empty text. Raises FieldError."""
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 5:
        raise FieldError("height_cm", f"expected whole centimetres, got {text[:20]!r}")
    return int(text)


async def give_out(
    connection: asyncpg.Connection, organisation: int, *, now: datetime, refs: bool = True
) -> bytes:
    """Return an organisation's sites, doors and spots as a file that is taken in as the same."""
    regions = {
        region.ref: region.facts.name
        for region in await organisations.regions(connection, organisation)
    }
    rows: list[dict[str, str]] = []
    for ref in await connection.fetch(
        "select ref from sites where organisation_id = $1 order by name, ref", organisation
    ):
        site = await sites.find(connection, organisation, ref["ref"])
        told = await doors.of_site(connection, site.id)
        found = await spots.of_site(connection, site.id, now=now)
        rows += _rows_of(site, told, found, regions=regions, refs=refs)
    if len(rows) > MOST_ROWS:
        raise RefusedError("too_large", f"more than {MOST_ROWS} rows")
    return table.write(rows, refs=refs)


def _rows_of(
    site: Known[Site],
    told: list[Known[Door]],
    found: list[Known[Spot]],
    *,
    regions: dict[str, str],
    refs: bool,
) -> list[dict[str, str]]:
    facts = site.facts
    head = {
        "site_ref": site.ref,
        "site": facts.name,
        "region": regions.get(facts.region or "", ""),
        "address": facts.address,
        "time_zone": facts.time_zone,
        "currency": facts.currency,
        "hours": hours.write(facts.opening),
        "opens_on": str(facts.opens_on or ""),
        "closes_on": str(facts.closes_on or ""),
    }
    names = {door.ref: door.facts.name for door in told}
    cells: dict[str, dict[str, str]] = {}
    for door in told:
        behind = door.facts.behind or ""
        cells[door.ref] = {
            "door_ref": door.ref,
            "door": door.facts.name,
            "behind": behind if refs else names.get(behind, ""),
        }
    rows = [{**head, **cells.get(spot.facts.door or "", {}), **_spot_cells(spot)} for spot in found]
    used = {spot.facts.door for spot in found}
    rows += [{**head, **cells[door.ref]} for door in told if door.ref not in used]
    return rows or [head]


def _spot_cells(spot: Known[Spot]) -> dict[str, str]:
    facts = spot.facts
    return {
        "spot_ref": spot.ref,
        "spot": facts.name,
        "kind": facts.kind,
        "purpose": facts.purpose,
        "height_cm": "" if facts.height_cm is None else str(facts.height_cm),
    }
