"""A fleet whose devices are judged by hand, the one that decides on it, and who is told."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from server.clock import at
from server.db.engine import transaction
from server.feeds.mail import smtp_of
from server.health import contacts
from server.health.contacts import Contact
from server.health.engine import Applied, Engine, apply
from server.health.judgement import (
    PLATFORM,
    Condition,
    Judgement,
    Severity,
    Standing,
    Subject,
    SubjectKind,
)
from server.health.sending import Notices
from tests.integration.api_world import World
from tests.integration.post_world import Post, listening

PAGES = "https://vestibule.example"


@dataclass
class Fleet:
    """Sites with devices, numbered as rows; time stands still until `go`."""

    world: World
    organisation: int
    office: Post
    notices: Notices
    engine: Engine
    sites: list[int] = field(default_factory=list)
    devices: dict[int, list[int]] = field(default_factory=dict)

    @property
    def owner(self) -> asyncpg.Connection:
        return self.world.owner

    @property
    def now(self) -> datetime:
        return at(self.world.clock.now_ms())

    async def grow(self, *, sites: int, each: int) -> None:
        """Add sites with so many devices each, in service since ever."""
        first = len(self.sites)
        rows = await self.owner.fetch(_SITES, self.organisation, first, first + sites - 1)
        self.sites += [row["id"] for row in rows]
        found = await self.owner.fetch(
            _DEVICES, self.organisation, [row["id"] for row in rows], each
        )
        for row in found:
            self.devices.setdefault(row["site_id"], []).append(row["device_id"])

    async def judge(self, *judgements: Judgement) -> Applied:
        """Let these be judged now."""
        async with transaction(self.world.maint, "test") as connection:
            return await apply(connection, judgements, now=self.now)

    async def stand(
        self,
        standing: Standing,
        devices: Iterable[int],
        condition: Condition = Condition.OFFLINE,
        kind: SubjectKind = SubjectKind.DEVICE,
    ) -> Applied:
        """Let devices stand so since now."""
        return await self.judge(
            *(Judgement(Subject(kind, row), condition, standing, self.now) for row in devices)
        )

    async def platform(self, standing: Standing) -> Applied:
        """Let the platform be judged."""
        return await self.judge(Judgement(PLATFORM, Condition.PLATFORM_UNKNOWN, standing, self.now))

    async def go(self, seconds: float, *, step: float = 30) -> None:
        """Let time pass, and what is due happen."""
        while seconds > 0:
            self.world.clock.advance(min(step, seconds))
            seconds -= step
            await self.judge()

    async def contact(
        self, email: str = "noc@example.com", *, of_platform: bool = False, **facts: Any
    ) -> contacts.Known:
        """Add somebody who is told."""
        wanted = Contact(**{"name": "NOC", "severity": Severity.MAJOR, **facts, "email": email})
        organisation = None if of_platform else self.organisation
        async with self.owner.transaction():
            return await contacts.add(self.owner, organisation, wanted, actor="test", now=self.now)

    async def incidents(self, *, state: str = "open") -> Sequence[asyncpg.Record]:
        rows: Sequence[asyncpg.Record] = await self.owner.fetch(
            "select * from incidents where state = $1 order by id", state
        )
        return rows

    async def episodes(self, *, open_only: bool = False) -> Sequence[asyncpg.Record]:
        rows: Sequence[asyncpg.Record] = await self.owner.fetch(
            "select * from episodes where not $1 or resolved_at is null order by id", open_only
        )
        return rows

    async def mails(self) -> list[str]:
        """Send what is due; return the subjects of all that has arrived."""
        await self.notices.once()
        return [str(each["Subject"]) for each in self.office.taken]

    async def told(self) -> list[tuple[str, str]]:
        """Return kinds and roots of what the feed of changes tells."""
        return [
            (row["kind"], row["root"])
            for row in await self.owner.fetch(
                "select kind, detail ->> 'root' as root from changes "
                "where kind like 'incident.%' order by id"
            )
        ]

    async def why(self, incident: int) -> list[tuple[str, str]]:
        return [
            (row["decision"], row["why"])
            for row in await self.owner.fetch(
                "select decision, why from incident_decisions where incident_id = $1 order by id",
                incident,
            )
        ]


@pytest.fixture
async def fleet(world: World) -> AsyncIterator[Fleet]:
    """An organisation without sites, at noon, and a mail server."""
    async with AsyncExitStack() as exits:
        office = await exits.enter_async_context(listening())
        organisation = await world.organisation("own")
        notices = Notices(
            world.maint,
            world.clock,
            smtp=smtp_of(f"smtp://127.0.0.1:{office.port}"),
            sender="Vestibule <fleet@vestibule.example>",
            pages=PAGES,
            chance=lambda: 0.5,
            timeout_s=5,
        )
        yield Fleet(world, organisation, office, notices, Engine(world.maint, world.clock))


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


_SITES = """
    insert into sites (organisation_id, ref, name, time_zone, currency)
    select $1, 'site-' || n, 'Shop ' || n, 'Europe/Stockholm', 'SEK'
    from generate_series($2::int, $3::int) n returning id
"""
_DEVICES = """
    with spot as (
        insert into spots (organisation_id, site_id, ref, name, kind)
        select $1, s, 'spot-' || s || '-' || n, 'Door ' || n, 'counter'
        from unnest($2::int[]) s, generate_series(1, $3::int) n returning id, site_id, ref),
    device as (
        insert into devices (organisation_id, device, kind, state)
        select $1, 'dc-' || ref, 'counter', 'in service' from spot returning id, device),
    stands as (
        insert into assignments (organisation_id, device_id, spot_id, valid)
        select $1, d.id, p.id, tstzrange(null, null)
        from device d join spot p on d.device = 'dc-' || p.ref returning device_id, spot_id)
    select a.device_id, p.site_id from stands a join spot p on p.id = a.spot_id order by 1
"""
