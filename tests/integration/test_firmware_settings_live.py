"""Settings on the rollout's engine, with a real agent's process, broker, bell and conductor."""

from __future__ import annotations

import socket
from datetime import UTC, datetime

import asyncpg
import pytest

from ops.services.stack import Stack
from server.clock import SystemClock
from server.db.engine import open_pool
from server.desired import settings
from server.firmware import acts, drafting
from server.firmware.change import SettingsChange
from server.firmware.conductor import Conductor
from server.firmware.planning import Asked
from server.firmware.policy import Gate, Guards, Policy, Ramp, WaveRule
from tests.integration.test_desired_live import World, live, until, working

__all__ = ["live"]
pytestmark = pytest.mark.services
POLICY = Policy(
    waves=(WaveRule(),),
    gate=Gate(success_pct=90, min_sample=1, soak_s=0),
    guards=Guards(fail_abs=1, health=False, counts=False),
    ramp=Ramp(base=600, top=600),
    windows=None,
    controls=0,
)


async def rolled_out(world: World, **values: int | str) -> str:
    """Plan, submit and approve a change of the organisation's settings."""
    asked = Asked("", policy=POLICY, change=SettingsChange(dict(values)))
    now = datetime.now(UTC)
    async with world.owner.transaction():
        given = world.owner, world.fleet.organisation
        made = await drafting.draft(*given, "Settings", asked, actor="user ada", now=now)
        await acts.submit(*given, made.ref, actor="user ada", now=now)
        await acts.approve(*given, made.ref, actor="user bo", now=now)
    return made.ref


@pytest.mark.long
async def test_a_real_agent_takes_a_value_and_goes_back_from_what_would_cut_it_off(
    live: World, stack: Stack, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reported() -> bool:
        return (await live.setting("health_s"))[1] is not None

    async def stands(ref: str) -> asyncpg.Record:
        return await live.owner.fetchrow(
            "select o.state, o.reason, e.state as device, e.code from rollouts o "
            "left join executions e on e.rollout_id = o.id where o.ref = $1",
            ref,
        )

    await until(reported)
    async with (
        open_pool(stack.endpoints.dsn("maint", database), size=2, name="maint") as maint,
        working(Conductor(maint, SystemClock()).run()),
    ):
        good = await rolled_out(live, health_s=600)

        async def completed() -> bool:
            return str((await stands(good))["state"]) == "completed"

        await until(completed)
        assert (await stands(good))["device"] == "confirmed"
        assert await live.setting("health_s") == ("in sync", 600, "")
        monkeypatch.setattr(settings, "CONFIRM_S", 1)
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            bad = await rolled_out(live, broker=f"127.0.0.1:{nobody.getsockname()[1]}")

            async def halted() -> bool:
                return str((await stands(bad))["state"]) == "halted"

            await until(halted)
        found = await stands(bad)
        assert (found["device"], found["code"]) == ("reverted by device", "reverted")
        assert await live.setting("broker") == ("in sync", "", "")
        assert await live.setting("health_s") == ("in sync", 600, "")
