"""A questionnaire on the rollout's engine: real listener, real kiosk, real conductor."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from agent.plan import Plans
from ops.services.stack import Stack
from server.clock import ManualClock
from server.db.engine import acting, open_pool
from server.feedback import questionnaires
from server.firmware import acts, drafting
from server.firmware.conductor import Conductor
from server.firmware.planning import Asked
from server.firmware.policy import Gate, Guards, OnHalt, Policy, Ramp, WaveRule
from tests.integration.test_kiosk_plan import Shop, shop
from tests.integration.test_questionnaires import content

__all__ = ["shop"]
pytestmark = pytest.mark.services
POLICY = Policy(
    waves=(WaveRule(),),
    gate=Gate(success_pct=90, min_sample=1, soak_s=60),
    guards=Guards(counts=False),
    ramp=Ramp(base=600, top=600),
    windows=None,
    controls=0,
)


@dataclass
class Office:
    """Somebody who rolls out, and the time."""

    shop: Shop
    desk: asyncpg.Pool
    maint: asyncpg.Pool
    clock: ManualClock

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.now_ms() / 1000, UTC)

    async def made(self, text: str) -> questionnaires.Version:
        value = {"format": 1, **content(text)}
        given = self.shop.owner, self.shop.organisation
        return await questionnaires.make(
            *given, name="Visit", value=value, actor="test", now=self.now
        )

    async def rollout(self, ref: str) -> str:
        asked = Asked("", policy=POLICY, questionnaire=ref)
        async with acting(self.desk, "act", organisation=self.shop.organisation) as connection:
            given = connection, self.shop.organisation
            made = await drafting.draft(*given, "Spring", asked, actor="user ada", now=self.now)
            await acts.submit(*given, made.ref, actor="user ada", now=self.now)
            await acts.approve(*given, made.ref, actor="user bo", now=self.now)
        return made.ref

    async def turns(self, number: int = 4) -> None:
        for _ in range(number):
            await Conductor(self.maint, self.clock).turn()
            self.clock.advance(20)

    async def state(self) -> str | None:
        found: str | None = await self.shop.owner.fetchval(
            "select state || coalesce(': ' || nullif(excluded, ''), '') from executions "
            "where device_id = $1 order by id desc limit 1",
            self.shop.row,
        )
        return found


@asynccontextmanager
async def opened(shop: Shop, stack: Stack, world_database: str) -> AsyncIterator[Office]:
    """The office of a shop whose kiosk is connected."""
    async with (
        open_pool(stack.endpoints.dsn("desk", world_database), size=2, name="desk") as desk,
        open_pool(stack.endpoints.dsn("maint", world_database), size=2, name="maint") as maint,
    ):
        await shop.owner.execute(
            "update presences set session = 'open', session_at = now() where device_id = $1",
            shop.row,
        )
        yield Office(shop, desk, maint, ManualClock(round(datetime.now(UTC).timestamp() * 1000)))


async def shows(plans: Plans) -> bytes:
    """Return what a kiosk shows after it has asked."""
    await plans.step()
    return plans.on_screen().hash


async def test_a_kiosk_shows_what_it_was_granted_says_so_and_gives_it_back(
    shop: Shop, stack: Stack, world_database: str
) -> None:
    async with opened(shop, stack, world_database) as office:
        plans = shop.plans()
        before, _ = await shop.published("As ever")
        assert await shows(plans) == before
        version = await office.made("What is new?")
        ref = await office.rollout(version.ref)
        await office.turns()
        assert await office.state() == "offered"
        assert await shows(plans) == bytes.fromhex(version.hex)
        assert await office.state() == "accepted", "that it was sent confirms nothing"
        await plans.step()
        assert await office.state() == "confirmed"
        await office.turns(8)
        row = await shop.owner.fetchrow("select state from rollouts where ref = $1", ref)
        assert row["state"] == "completed"
        fetched = plans.fetched
        assert await shows(plans) == bytes.fromhex(version.hex)
        assert plans.fetched == fetched, "that it is published by now is news to nobody"
        assert await shop.owner.fetchval("select count(*) from publications") == 2

        other = await office.made("And this?")
        ref = await office.rollout(other.ref)
        await office.turns()
        assert await shows(plans) == bytes.fromhex(other.hex)
        await plans.step()
        assert await office.state() == "confirmed"
        async with acting(office.desk, "act", organisation=shop.organisation) as connection:
            await acts.revert(
                *(connection, shop.organisation, ref, OnHalt.REVERT_ALL),
                reason="Nobody presses",
                actor="user ada",
                now=office.now + timedelta(seconds=1),
            )
        await office.turns()
        assert await shows(plans) == bytes.fromhex(version.hex)
        await plans.step()
        assert await office.state() == "confirmed"
        await office.turns(8)
        row = await shop.owner.fetchrow("select state from rollouts where ref = $1", ref)
        assert row["state"] == "reverted"
        assert await shop.owner.fetchval("select count(*) from publications") == 2
