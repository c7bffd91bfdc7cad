"""A migrated database with two organisations, and their API: what the API's tests start from.

Rows are written as the ingest writer would write them; readings and their 15-minute sums agree.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from ext.reference import observed_slots
from ops.services.stack import Stack
from server.api.keys import create_api_key
from server.api.routes import build_api
from server.clock import ManualClock
from server.db.engine import open_pool
from server.rollup.refresh import refresh
from tests.emptying import copied, empty, left_for_good

NOW = datetime(2026, 4, 2, 12, 0, tzinfo=UTC)
ALL_SLOTS = (1 << 60) - 1


@dataclass
class World:
    """The database by role, and a client that speaks to the API."""

    owner: asyncpg.Connection
    api: asyncpg.Pool
    maint: asyncpg.Pool
    client: TestClient[web.Request, web.Application]
    clock: ManualClock
    dsn_owner: str
    keys: dict[str, str] = field(default_factory=dict)

    async def organisation(self, ref: str) -> int:
        """Add an organisation with a key; return its row id."""
        found: int = await self.owner.fetchval(
            "insert into organisations (ref, name) values ($1, $1) returning id", ref
        )
        self.keys[ref] = await create_api_key(self.owner, found, "test")
        return found

    async def site(
        self,
        organisation: int,
        ref: str,
        *,
        zone: str = "Europe/Stockholm",
        hours: tuple[int, int] | None = None,
    ) -> int:
        """Add a site; `hours` are the minutes of every day, None: always open."""
        found: int = await self.owner.fetchval(
            "insert into sites (organisation_id, ref, name, time_zone, currency) "
            "values ($1, $2, $2, $3, 'SEK') returning id",
            organisation,
            ref,
            zone,
        )
        for weekday in range(7) if hours else ():
            await self.owner.execute(
                "insert into opening_hours values ($1, $2, $3, $4, $5)",
                organisation,
                found,
                weekday,
                *(hours or ()),
            )
        return found

    async def spot(
        self,
        organisation: int,
        site: int,
        ref: str,
        *,
        kind: str = "counter",
        stored_to: datetime | None = NOW,
        assigned: datetime | None = None,
    ) -> int:
        """Add a spot with a device that has stood there since `assigned` (None: ever)."""
        found: int = await self.owner.fetchval(
            "insert into spots (organisation_id, site_id, ref, name, kind) "
            "values ($1, $2, $3, $3, $4) returning id",
            organisation,
            site,
            ref,
            kind,
        )
        device = await self.owner.fetchval(
            "insert into devices (organisation_id, device, kind) values ($1, $2, $3) returning id",
            organisation,
            f"device-{ref}",
            kind,
        )
        await self.owner.execute(
            "insert into assignments (organisation_id, device_id, spot_id, valid) "
            "values ($1, $2, $3, tstzrange($4, null))",
            organisation,
            device,
            found,
            assigned,
        )
        await self.owner.execute(
            "insert into boots (id, device_id, boot_id, ordinal, stored_to) "
            "overriding system value values ($1, $2, 1, 1, $3)",
            found,
            device,
            stored_to,
        )
        return found

    async def minutes(
        self,
        spot: int,
        start: datetime,
        counts: list[tuple[int, int]],
        *,
        line: int = 0,
        interval_s: int = 60,
    ) -> None:
        """Store readings of one frame, with their sums and a dirty row, in one transaction."""
        sums: dict[datetime, list[int]] = {}
        for number, (entered, left) in enumerate(counts):
            at = start + timedelta(seconds=number * interval_s)
            into = sums.setdefault(_quarter(at), [0, 0])
            into[0] += entered
            into[1] += left
        begin_ms = int(start.timestamp() * 1000)
        end_ms = begin_ms + len(counts) * interval_s * 1000
        at = _quarter(start)
        while int(at.timestamp() * 1000) < end_ms:
            sums.setdefault(at, [0, 0])
            at += timedelta(minutes=15)
        async with self.owner.transaction():
            await self.owner.execute(
                "insert into readings values ($1, $2, $2, 1, 1, 0, $3, $4, $5, $6)",
                start,
                spot,
                end_ms - begin_ms,
                line,
                interval_s,
                [value for pair in counts for value in pair],
            )
            for bucket, (entered, left) in sums.items():
                slots = observed_slots(int(bucket.timestamp() * 1000), begin_ms, end_ms)
                await self.quarter(
                    spot, bucket, entered, left, line=line, slots=slots, resolution_s=interval_s
                )

    async def quarter(
        self,
        spot: int,
        bucket: datetime,
        entered: int,
        left: int = 0,
        *,
        line: int = 0,
        slots: int = ALL_SLOTS,
        resolution_s: int = 60,
        revision: int = 0,
    ) -> None:
        """Add to one 15-minute row and mark it dirty."""
        ins, outs = f"in{line}", f"out{line}"
        await self.owner.execute(
            f"insert into rollup_15m (bucket, observed, spot, {ins}, {outs}, resolution_s) "
            "values ($1, $2, $3, $4, $5, $6) on conflict (spot, bucket) do update set "
            "observed = rollup_15m.observed | excluded.observed, "
            f"{ins} = coalesce(rollup_15m.{ins}, 0) + excluded.{ins}, "
            f"{outs} = coalesce(rollup_15m.{outs}, 0) + excluded.{outs}, "
            "resolution_s = greatest(rollup_15m.resolution_s, excluded.resolution_s), "
            "revision = rollup_15m.revision + $7",
            bucket,
            slots,
            spot,
            entered,
            left,
            resolution_s,
            revision,
        )
        await self.dirty(spot, bucket)

    async def presses(
        self,
        spot: int,
        bucket: datetime,
        answers: dict[int, int],
        *,
        question: int = 0,
        questionnaire: int = 77,
    ) -> None:
        """Add presses by answer to one 15-minute row, observed throughout."""
        for answer, presses in answers.items():
            await self.owner.execute(
                "insert into presses_15m (bucket, questionnaire, spot, presses, question, answer) "
                "values ($1, $2, $3, $4, $5, $6)",
                bucket,
                questionnaire,
                spot,
                presses,
                question,
                answer,
            )
        await self.owner.execute(
            "insert into rollup_15m (bucket, observed, spot, resolution_s) "
            "values ($1, $2, $3, 60) on conflict do nothing",
            bucket,
            ALL_SLOTS,
            spot,
        )
        await self.dirty(spot, bucket)

    async def dirty(self, spot: int, bucket: datetime) -> None:
        """Note that a quarter changed."""
        await self.owner.execute(
            "insert into rollup_dirty (spots, buckets) "
            "values (array[$1::int], array[$2::timestamptz])",
            spot,
            bucket,
        )

    async def derive(self) -> None:
        """Work in all that is dirty."""
        while await refresh(self.maint):
            pass

    async def get(self, path: str, *, organisation: str = "own", **headers: str) -> Any:
        """Return the decoded answer of a route that must succeed."""
        status, body = await self.ask(path, organisation=organisation, **headers)
        assert status == 200, body
        return body

    async def ask(self, path: str, *, organisation: str = "own", **headers: str) -> tuple[int, Any]:
        """Return status and decoded JSON of a route."""
        key = {"Authorization": f"Bearer {self.keys[organisation]}"} if organisation else {}
        async with self.client.get(f"/v1{path}", headers={**key, **headers}) as response:
            return response.status, await response.json(content_type=None)


def _quarter(at: datetime) -> datetime:
    return at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)


def utc(text: str) -> datetime:
    """Return an ISO time without offset as UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def days(first: date, count: int) -> list[date]:
    """Return `count` days from `first`."""
    return [first + timedelta(days=offset) for offset in range(count)]


@pytest.fixture(scope="session")
def world_database(stack: Stack, migrated: str) -> Iterator[str]:
    """A migrated database for the run: making one takes longer than most tests that use it."""
    made = asyncio.run(copied(stack, migrated))
    yield made.name
    left_for_good(stack, made.name)


@pytest.fixture
async def world(stack: Stack, world_database: str) -> AsyncIterator[World]:
    """An emptied database and its API at 2026-04-02 12:00 UTC."""
    dsn = stack.endpoints.dsn("owner", world_database)
    clock = ManualClock(int(NOW.timestamp() * 1000))
    async with AsyncExitStack() as exits:
        owner = await asyncpg.connect(dsn)
        exits.push_async_callback(owner.close)
        await empty(owner)
        api = await exits.enter_async_context(
            open_pool(stack.endpoints.dsn("api", world_database), size=4, name="api")
        )
        maint = await exits.enter_async_context(
            open_pool(stack.endpoints.dsn("maint", world_database), size=2, name="maint")
        )
        app = web.Application()
        app.add_subapp("/v1/", build_api(pool=api, clock=clock, burst=10_000))
        client = await exits.enter_async_context(TestClient(TestServer(app)))
        yield World(owner, api, maint, client, clock, dsn)
