"""The one that sends digests: Monday at seven by the reader's sites' clock, once.

A row of `digests` is made per reader and week, by a unique key, and is the only thing that is ever
sent from. It is claimed by a lease before it is sent and marked after: who dies between the two
lets it be sent again after the lease, with the same Message-ID, so a crash costs at most one double
of one message, and nothing is lost. What does not arrive within a day is given up: by then it is
news no more. So is, at once, one that a fault of ours keeps from being made: it holds up nobody
else's. A server that was off on Monday morning sends up to a day late.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from email.message import EmailMessage

import aiosmtplib
import asyncpg
import structlog

from server.clock import Clock, at
from server.db.engine import DATABASE_AWAY, overseeing, reading
from server.db.turns import repeat
from server.errors import VestibuleError
from server.feeds.mail import TIMEOUT_S, Smtp, hand_in, is_permanent, words_of
from server.people import users
from server.people.roles import Grant, Permission, Place, may
from server.people.sealing import Seal
from server.portal.digest_mail import message_of, token_for
from server.portal.digest_numbers import digest_of, last_due, week_of, zone_of
from server.web.catalogue import Catalogue

log = structlog.get_logger(__name__)

POLL_S = 20.0
LEASE = timedelta(minutes=5)
LATE = timedelta(hours=24)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 60.0, 3600.0
_MONDAYS = (7, 1, 2)  # it is Monday somewhere


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads an organisation's digest: their sites' refs and time zone."""

    user: int
    organisation: int
    email: str
    language: str
    refs: tuple[str, ...]
    time_zone: str
    since: datetime


@dataclass(frozen=True, slots=True)
class _Claimed:
    id: int
    user: int
    organisation: int
    week: date
    due_at: datetime
    tries: int


class Digests:
    """Plans and sends. `desk` writes, `api` reads one organisation's numbers at a time."""

    def __init__(
        self,
        desk: asyncpg.Pool,
        api: asyncpg.Pool,
        seal: Seal,
        clock: Clock,
        *,
        smtp: Smtp,
        sender: str,
        pages: str,
        catalogues: Mapping[str, Catalogue],
        chance: Callable[[], float] = random.random,  # spreads retries, and guards nothing
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._desk, self._api, self._seal, self._clock = desk, api, seal, clock
        self._smtp, self._sender, self._pages = smtp, sender, pages
        self._catalogues, self._chance, self._timeout_s = catalogues, chance, timeout_s

    async def run(self) -> None:
        """Send until cancelled; a database that is away is passed over."""
        await repeat(self.once, rest_s=POLL_S, away="digests wait")

    async def once(self) -> None:
        """Plan what is due, and send it, one after the other."""
        await self.plan()
        while (claimed := await self._claim()) is not None:
            await self._send(claimed)

    async def plan(self) -> None:
        """Make the rows of what has come due; one that is there stays as it is."""
        now = at(self._clock.now_ms())
        if now.isoweekday() not in _MONDAYS:
            return
        async with overseeing(self._desk, "plan digests") as db:
            due = [
                (reader, last_due(now, reader.time_zone))
                for reader in await readers(db)
                if reader.refs
            ]
            fresh = [(r, at_) for r, at_ in due if at_ > r.since and now - at_ < LATE]
            if not fresh:
                return
            await db.execute(
                _PLANNED,
                [reader.organisation for reader, _ in fresh],
                [reader.user for reader, _ in fresh],
                [week_of(at_, reader.time_zone) for reader, at_ in fresh],
                [at_ for _, at_ in fresh],
                now,
            )

    async def _claim(self) -> _Claimed | None:
        now = at(self._clock.now_ms())
        async with overseeing(self._desk, "claim a digest") as db:
            row = await db.fetchrow(_CLAIM, now, now + LEASE)
        return None if row is None else _Claimed(*row)

    async def _send(self, claimed: _Claimed) -> None:
        try:
            message = await self._message(claimed)
            if message is None:
                await self._mark(_GIVEN_UP, claimed.id, "no right to any site's numbers any more")
                return
            await hand_in(self._smtp, message, timeout_s=self._timeout_s)
        except aiosmtplib.SMTPException as error:
            await self._failed(claimed, error, permanent=is_permanent(error))
        except (OSError, TimeoutError, VestibuleError) as error:
            await self._failed(claimed, error, permanent=False)
        except DATABASE_AWAY:
            raise
        except Exception as error:  # a fault of ours: who waits behind this one gets theirs
            log.exception("digest cannot be made", digest=claimed.id)
            await self._mark(_GIVEN_UP, claimed.id, words_of(error))
        else:
            await self._mark(_SENT, claimed.id, "")
            log.info("digest sent", digest=claimed.id, week=str(claimed.week))

    async def _message(self, claimed: _Claimed) -> EmailMessage | None:
        """Return the message as of now; None if its reader may read nothing any more."""
        async with overseeing(self._desk, "read a digest's reader") as db:
            found = await readers(db, user=claimed.user, organisation=claimed.organisation)
        if not found or not found[0].refs:
            return None
        [reader] = found
        now = at(self._clock.now_ms())
        async with reading(self._api, "digest", organisation=claimed.organisation) as db:
            digest = await digest_of(db, reader.refs, monday=claimed.week, now=now)
        return message_of(
            digest,
            self._catalogues[reader.language],
            number=claimed.id,
            sender=self._sender,
            to=reader.email,
            pages=self._pages,
            token=token_for(self._seal, reader.user, reader.organisation),
            now=now,
        )

    async def _failed(self, claimed: _Claimed, error: Exception, *, permanent: bool) -> None:
        trouble = words_of(error)
        now = at(self._clock.now_ms())
        wait_s = min(_FIRST_WAIT_S * 2 ** (claimed.tries - 1), _LONGEST_WAIT_S)
        after = now + timedelta(seconds=wait_s * (0.5 + self._chance()))
        log.warning("digest not sent", digest=claimed.id, error=trouble, permanent=permanent)
        if permanent or after - claimed.due_at >= LATE:
            await self._mark(_GIVEN_UP, claimed.id, trouble)
        else:
            async with overseeing(self._desk, "put a digest off") as db:
                await db.execute(_PUT_OFF, claimed.id, after, trouble)

    async def _mark(self, statement: str, number: int, trouble: str) -> None:
        async with overseeing(self._desk, "mark a digest") as db:
            await db.execute(statement, number, at(self._clock.now_ms()), trouble)


async def readers(
    db: asyncpg.Connection, *, user: int | None = None, organisation: int | None = None
) -> list[Reader]:
    """Return who asked for digests, with the sites that they may read now; `db` oversees all."""
    rows = await db.fetch(_READERS, user, organisation)
    grants = await users.grants_of_each(db, {row["user_id"] for row in rows})
    sites = await db.fetch(_SITES, list({row["organisation_id"] for row in rows}))
    return await asyncio.to_thread(_readers, rows, grants, sites)


def _readers(
    rows: Sequence[asyncpg.Record],
    grants: Mapping[int, Sequence[Grant]],
    sites: Sequence[asyncpg.Record],
) -> list[Reader]:
    places: dict[int, list[tuple[Place, str, str]]] = {}
    for organisation, row, region, ref, zone in sites:
        places.setdefault(organisation, []).append((Place(organisation, region, row), ref, zone))
    found: list[Reader] = []
    for user, organisation, since, email, language in rows:
        seen = [
            (ref, zone)
            for place, ref, zone in places.get(organisation, ())
            if may(grants[user], Permission.READ_NUMBERS, place)
        ]
        refs, zone = tuple(ref for ref, _ in seen), zone_of([name for _, name in seen])
        found.append(Reader(user, organisation, email, language, refs, zone, since))
    return found


_READERS = """
    select s.user_id, s.organisation_id, s.created_at, u.email, u.language
    from digest_subscriptions s join users u on u.id = s.user_id
    where u.disabled_at is null and ($1::int is null or s.user_id = $1)
      and ($2::int is null or s.organisation_id = $2)
    order by s.user_id, s.organisation_id
"""
_SITES = """
    select organisation_id, id, region_id, ref, time_zone from sites
    where organisation_id = any($1::int[]) order by ref
"""
_PLANNED = """
    insert into digests (organisation_id, user_id, week, due_at, next_at)
    select *, $5 from unnest($1::int[], $2::int[], $3::date[], $4::timestamptz[])
    on conflict (user_id, organisation_id, week) do nothing
"""
_CLAIM = """
    update digests set next_at = $2, tries = tries + 1 where id = (
        select id from digests where next_at <= $1 order by due_at, id
        limit 1 for update skip locked)
    returning id, user_id, organisation_id, week, due_at, tries
"""
_SENT = "update digests set sent_at = $2, next_at = null, trouble = $3 where id = $1"
_GIVEN_UP = "update digests set given_up_at = $2, next_at = null, trouble = $3 where id = $1"
_PUT_OFF = "update digests set next_at = $2, trouble = $3 where id = $1"
