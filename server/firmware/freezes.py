"""Freezes: when an organisation wants nothing changed, such as the week of Black Friday.

A freeze has a name, a reason, an author, an end, and the sites that a filter finds (by what a site
is, not what stands there; empty: all of them). Which sites these are is looked up when it is used,
so a shop that opens meanwhile is frozen too.

Decided here:
- Windows of rollouts are made without frozen time. Whatever else may touch a count (a command that
  disturbs a store, an edit of settings) asks `heed`, which refuses it by the freeze's name.
- A freeze ends early by its author alone. Anyone else waits, or overrides it for one change: a
  rollout by its policy's flag, and then somebody else than its author approves (`acts.approve`);
  anything else by a flag and a reason, and the audit names who, why, and the freeze.
- It is ended, never deleted or changed; each step is audited in its own transaction.
- Whose turn it was to be offered something, but for the freeze, is looked at once it has ended.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import ceil

import asyncpg

from server.audit.log import record
from server.errors import ConflictError, NotFoundError, RefusedError
from server.fleet import checks, filters, search
from server.fleet.checks import FieldError
from server.fleet.register import lock_organisation, new_ref
from server.rollup.opening import Interval, joined

LONGEST = timedelta(days=92)
FARTHEST = timedelta(days=400)
BY_NAME = 100
"""Sites up to which a freeze's filter looks at these alone; of more, at all."""
MOST_FREEZES = 100
"""Of an organisation, those that are not over."""
SITE_FIELDS = frozenset(("site", "site.name", "site.region"))


class FrozenError(ConflictError):
    """A change would fall into a freeze."""

    code = "frozen"


@dataclass(frozen=True, slots=True)
class Freeze:
    """One freeze; `sites` is a filter, `ended_at` when its author ended it before its time."""

    ref: str
    name: str
    starts_at: datetime
    ends_at: datetime
    sites: str
    reason: str
    author: str
    created_at: datetime
    ended_at: datetime | None
    ended_by: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A freeze as it is to be; without a beginning it begins now."""

    name: str
    reason: str
    ends_at: datetime
    starts_at: datetime | None = None
    sites: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """One freeze in seconds; `sites` None: all of the organisation."""

    ref: str
    name: str
    start_s: int
    end_s: int
    sites: frozenset[int] | None


def frozen_by(span: Span) -> FrozenError:
    """Return that a freeze keeps a change from being made, by its name and its end."""
    until = datetime.fromtimestamp(span.end_s, UTC)
    said = f"nothing is changed before the end of {span.name!r} ({span.ref})"
    return FrozenError(f"{said} at {until:%Y-%m-%d %H:%M} UTC")


@dataclass(frozen=True, slots=True)
class Frozen:
    """An organisation's freezes that are on or still to come."""

    spans: Sequence[Span] = field(default=())

    def named(self, site: int | None) -> list[Span]:
        """Return the freezes of a site, by their beginning; of no site those of everything."""
        found = [each for each in self.spans if each.sites is None or site in each.sites]
        return sorted(found, key=lambda each: (each.start_s, each.ref))

    def of(self, site: int | None) -> tuple[Interval, ...]:
        """Return a site's frozen time."""
        return joined([(each.start_s, each.end_s) for each in self.named(site)])

    def all_at(self, site: int | None, at_s: int) -> list[Span]:
        """Return the freezes that are on at a site."""
        return [each for each in self.named(site) if each.start_s <= at_s < each.end_s]

    def at(self, site: int | None, at_s: int) -> Span | None:
        """Return the freeze that is on at a site, the one that ends last."""
        on = self.all_at(site, at_s)
        return max(on, key=lambda each: (each.end_s, each.ref), default=None)


async def heed(
    connection: asyncpg.Connection,
    organisation: int,
    sites: Collection[int | None],
    change: str,
    *,
    override: bool = False,
    reason: str = "",
    actor: str,
    now: datetime,
) -> None:
    """Refuse a change at these sites that falls into a freeze; note each that it overrides.

    `change` names it to people. Raises FrozenError; RefusedError (reason_needed) where it overrides
    and does not say why.
    """
    on = await on_at(connection, organisation, sites, now=now)
    if not on:
        return
    if not override:
        raise frozen_by(on[0])
    if not reason:
        raise RefusedError("reason_needed", f"say why it can't wait for the end of {on[0].name!r}")
    for span in on:
        await record(
            connection, actor=actor, act="freeze overridden", subject=span.ref,
            detail={"name": span.name, "change": change, "reason": reason},
            organisation=organisation, now=now,
        )  # fmt: skip


async def on_at(
    connection: asyncpg.Connection,
    organisation: int,
    sites: Collection[int | None],
    *,
    now: datetime,
) -> list[Span]:
    """Return the freezes that are on at any of these sites, the last to end first.

    None: at none of them.
    """
    known = {site for site in sites if site is not None}
    frozen, at_s = await load(connection, organisation, now=now, sites=known), int(now.timestamp())
    on = {span.ref: span for site in set(sites) for span in frozen.all_at(site, at_s)}
    return sorted(on.values(), key=lambda each: (-each.end_s, each.ref))


async def load(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    now: datetime,
    sites: Collection[int] | None = None,
) -> Frozen:
    """Return the freezes that are on or still to come, with the sites that they are of.

    `sites`: only these are asked about, by row; a device that asks is answered without a look at
    all others (`BY_NAME`).
    """
    few = sites is not None and len(sites) <= BY_NAME
    within = search.Within((), tuple(sites or ())) if few else search.EVERYWHERE
    found = []
    for row in await connection.fetch(_LISTED, organisation, None, now, False, None, MOST_FREEZES):
        freeze = Freeze(*row.values())
        of = await _sites(connection, organisation, freeze.sites, within, now=now)
        start_s, end_s = int(freeze.starts_at.timestamp()), ceil(freeze.ends_at.timestamp())
        found.append(Span(freeze.ref, freeze.name, start_s, end_s, of))
    return Frozen(tuple(found))


async def _sites(
    connection: asyncpg.Connection,
    organisation: int,
    text: str,
    within: search.Within,
    *,
    now: datetime,
) -> frozenset[int] | None:
    """Return the sites that a filter finds: of the devices that it finds, where they stand."""
    if not text:
        return None
    tree = filters.parse(text)
    chosen = search.selection(tree, organisation=organisation, now=now, within=within)
    devices = [row for row, _ in await search.found(connection, chosen)]
    rows = await connection.fetch(_STANDING, devices, now)
    return frozenset(row["site_id"] for row in rows)


async def listed(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    now: datetime,
    past: bool = False,
    before: str | None = None,
    limit: int = 1_000,
) -> list[Freeze]:
    """Return freezes that are on or still to come, or with `past` all of them, the latest first."""
    rows = await connection.fetch(_LISTED, organisation, None, now, past, before, limit)
    return [Freeze(*row.values()) for row in rows]


async def find(connection: asyncpg.Connection, organisation: int, ref: str) -> Freeze:
    """Return one. Raises NotFoundError."""
    row = await connection.fetchrow(_LISTED, organisation, ref, None, True, None, 1)
    if row is None:
        raise NotFoundError(f"no freeze {ref[:40]!r}")
    return Freeze(*row.values())


async def add(
    connection: asyncpg.Connection,
    organisation: int,
    wanted: Wanted,
    *,
    actor: str,
    now: datetime,
) -> Freeze:
    """Let nothing change in a stretch of time. Raises FieldError, FilterError."""
    name, reason, sites = _said(wanted)
    starts_at = max(now, wanted.starts_at or now)
    if wanted.ends_at <= starts_at:
        raise FieldError("ends_at", "a freeze ends after it begins, and not in the past")
    if wanted.ends_at - starts_at > LONGEST:
        raise FieldError("ends_at", f"a freeze lasts at most {LONGEST.days} days")
    if starts_at - now > FARTHEST:
        raise FieldError("starts_at", f"a freeze begins within {FARTHEST.days} days")
    await lock_organisation(connection, organisation)
    if len(await listed(connection, organisation, now=now)) >= MOST_FREEZES:
        raise ConflictError(f"there are {MOST_FREEZES} freezes already that are not over")
    ref = new_ref("freeze")
    await connection.execute(
        "insert into freezes (organisation_id, ref, name, starts_at, ends_at, sites, reason, "
        "author, created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        *(organisation, ref, name, starts_at, wanted.ends_at, sites, reason, actor, now),
    )
    detail = {
        "name": name, "reason": reason, "sites": sites,
        "from": starts_at.isoformat(), "until": wanted.ends_at.isoformat(),
    }  # fmt: skip
    await record(
        connection, actor=actor, act="freeze added", subject=ref, detail=detail,
        organisation=organisation, now=now,
    )  # fmt: skip
    return await find(connection, organisation, ref)


def _said(wanted: Wanted) -> tuple[str, str, str]:
    """Return name, reason and filter in their one form. Raises FieldError, FilterError."""
    name, reason = checks.name(wanted.name), checks.line(wanted.reason, "reason")
    if not reason:
        raise FieldError("reason", "say why nothing is to change")
    tree = filters.parse(wanted.sites)
    if others := filters.fields_of(tree) - SITE_FIELDS:
        known = ", ".join(sorted(SITE_FIELDS))
        raise FieldError("sites", f"a freeze is of sites: {known}; not of {min(others)}")
    return name, reason, filters.printed(tree)


async def end(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> Freeze:
    """End a freeze before its time; one that is over stays. Raises NotFoundError, RefusedError."""
    await lock_organisation(connection, organisation)
    known = await find(connection, organisation, ref)
    if known.ended_at is not None or known.ends_at <= now:
        return known
    if known.author != actor:
        raise RefusedError(
            "not_its_author",
            f"{known.author} wanted this freeze and alone ends it early; "
            "a change that cannot wait overrides it, and somebody else approves",
        )
    await connection.execute(
        "update freezes set ended_at = $3, ended_by = $4 where organisation_id = $1 and ref = $2",
        *(organisation, ref, now, actor),
    )
    await connection.execute(_LOOK, organisation, now)
    await connection.execute(_WAKE, organisation, now)
    await record(
        connection, actor=actor, act="freeze ended", subject=ref, detail={"name": known.name},
        organisation=organisation, now=now,
    )  # fmt: skip
    return await find(connection, organisation, ref)


_LOOK = """
    update executions set due_at = $2, shut = false where id in (
        select id from executions where organisation_id = $1 and shut and state = 'planned'
        and due_at > $2 for no key update skip locked)
"""  # whoever waits for a window is put off again; who is being looked at, by that look
_WAKE = """
    update rollouts set due_at = $2 where id in (
        select id from rollouts where organisation_id = $1 and state = 'running' and due_at > $2
        for no key update skip locked)
"""
_STANDING = """
    select distinct s.site_id from assignments a join spots s on s.id = a.spot_id
    where a.device_id = any($1::int[]) and a.valid @> $2::timestamptz
"""
_LISTED = """
    select ref, name, starts_at, ends_at, sites, reason, author, created_at, ended_at, ended_by
    from freezes
    where organisation_id = $1 and ($2::text is null or ref = $2)
      and ($4::bool or (ended_at is null and ends_at > $3))
      and ($5::text is null or id < (select id from freezes where ref = $5))
    order by id desc limit $6
"""
