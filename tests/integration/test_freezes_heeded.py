"""What a freeze keeps back besides rollouts: commands that disturb, and edits of settings."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from server.api.keys import create_api_key
from server.api.routes import build_api
from server.audit.log import holding
from server.clock import ManualClock
from server.db.engine import acting
from server.errors import RefusedError
from server.firmware import freezes
from server.firmware.freezes import FrozenError, Wanted
from tests.integration.desired_world import Fleet
from tests.integration.desired_world import fleet as fleet

pytestmark = pytest.mark.services
ONE, TWO, THREE, FOUR, FIVE = (f"dc-number-{n}" for n in range(1, 6))


async def freeze(fleet: Fleet, name: str = "Week 48", *, sites: str = "site = north") -> str:
    """Freeze sites from now on for a day."""
    wanted = Wanted(name, "stocktake", fleet.now + timedelta(days=1), sites=sites)
    async with acting(fleet.desk, "freeze", organisation=fleet.organisation) as connection:
        made = await freezes.add(
            connection, fleet.organisation, wanted, actor="user bo", now=fleet.now
        )
    return made.ref


async def overridden(fleet: Fleet) -> list[tuple[str, str, str]]:
    """Return which freezes were overridden, by whom, and why."""
    rows = await fleet.world.owner.fetch(
        "select subject, actor, detail from audit where act = 'freeze overridden' order by number"
    )
    return [
        (row["subject"], row["actor"], json.loads(row["detail"])["reason"]) for row in rows
    ]  # fmt: skip


async def test_a_restart_is_refused_where_a_freeze_is_on_and_nowhere_else(fleet: Fleet) -> None:
    ref = await freeze(fleet)
    with pytest.raises(FrozenError, match=f"before the end of 'Week 48' .{ref}. at 2026-04-02"):
        await fleet.ask("reboot", ONE, FOUR)
    assert await fleet.commands() == []
    await fleet.ask("reboot", FOUR, reason="it hangs")  # the south is open, and not frozen
    await fleet.ask("reboot", FIVE)  # it stands nowhere
    for kind in ("identify", "self-test", "diagnostics", "log-tail"):
        await fleet.ask(kind, ONE)  # nothing is changed by these
    fleet.later(days=1)
    await fleet.ask("reboot", ONE)


async def test_who_overrides_a_freeze_says_why_and_it_is_audited_by_the_freezes_name(
    fleet: Fleet,
) -> None:
    ref, all_of_it = await freeze(fleet), await freeze(fleet, "Black Friday", sites="")
    with pytest.raises(FrozenError, match="Black Friday"):
        await fleet.ask("reboot", FIVE)
    with pytest.raises(RefusedError) as error:
        await fleet.ask("reboot", ONE, override_freeze=True)
    assert error.value.code == "reason_needed"
    assert await overridden(fleet) == []
    await fleet.ask("reboot", ONE, reason="it hangs", override_freeze=True)
    assert sorted(await overridden(fleet)) == sorted(
        [(ref, "user ada", "it hangs"), (all_of_it, "user ada", "it hangs")]
    )
    assert [order.kind for order in (await fleet.exchange(ONE))[2]] == ["reboot"]


async def test_who_overrides_a_freeze_locks_the_devices_before_the_audits_chain(
    fleet: Fleet,
) -> None:
    await freeze(fleet)
    owner = fleet.world.owner
    async with asyncio.TaskGroup() as tasks, owner.transaction():
        await owner.execute("select from devices where id = $1 for update", fleet.rows[ONE])
        tasks.create_task(fleet.ask("reboot", ONE, reason="it hangs", override_freeze=True))
        async with asyncio.timeout(10):
            while not await owner.fetchval(  # noqa: ASYNC110
                "select exists (select from pg_locks where not granted "
                "and pg_backend_pid() = any(pg_blocking_pids(pid)))"
            ):
                await asyncio.sleep(0.01)
        chain = holding("$1").replace("pg_advisory", "pg_try_advisory")
        assert await owner.fetchval(f"select {chain}", fleet.organisation)
    assert len(await overridden(fleet)) == 1


async def test_what_was_asked_for_before_a_freeze_waits_while_it_is_on(fleet: Fleet) -> None:
    await fleet.ask("reboot", ONE, ttl=timedelta(days=2))
    await freeze(fleet)
    assert (await fleet.exchange(ONE))[2] == ()
    fleet.later(days=1)
    assert [order.kind for order in (await fleet.exchange(ONE))[2]] == ["reboot"]


async def test_a_layer_is_not_edited_while_one_of_its_devices_stands_where_a_freeze_is_on(
    fleet: Fleet,
) -> None:
    ref = await freeze(fleet)
    for scope, of in (("organisation", ""), ("site", "north"), ("device", ONE)):
        with pytest.raises(FrozenError, match="Week 48"):
            await fleet.write(scope, of, health_s=600)
        with pytest.raises(RefusedError) as error:
            await fleet.write(scope, of, health_s=600, override_freeze=True)
        assert error.value.code == "reason_needed"
    await fleet.write("site", "south", health_s=600)
    await fleet.write("device", FIVE, health_s=600)
    assert await overridden(fleet) == []
    await fleet.write("site", "north", health_s=600, override_freeze=True, reason="it floods us")
    assert await overridden(fleet) == [(ref, "user ada", "it floods us")]
    found = await fleet.configuration(TWO)
    assert found.states["health_s"].merged.here.value == 600
    fleet.later(days=1)
    await fleet.write("organisation", health_s=300)


async def test_the_api_names_the_freeze_and_takes_a_reason_to_override_it(fleet: Fleet) -> None:
    ref = await freeze(fleet)
    key = await create_api_key(
        *(fleet.world.owner, fleet.organisation, "any"),
        scopes=["read", "commands:write", "settings:write"],
    )
    clock = ManualClock(round(fleet.now.timestamp() * 1000))
    app = web.Application()
    made = build_api(pool=fleet.world.api, desk=fleet.desk, clock=clock, burst=1_000_000)
    app.add_subapp("/v1/", made)
    async with AsyncExitStack() as exits:
        server = await exits.enter_async_context(TestServer(app))
        session = await exits.enter_async_context(ClientSession())
        headers = {"Authorization": f"Bearer {key}", "If-Match": "*"}

        async def ask(method: str, path: str, **body: object) -> tuple[int, dict[str, object]]:
            url = server.make_url(f"/v1{path}")
            async with session.request(method, url, json=body, headers=headers) as response:
                return response.status, await response.json()

        status, seen = await ask("POST", "/commands:preview", kind="reboot", devices=[ONE])
        assert (status, seen["frozen"]) == (200, [ref])
        restart = ("POST", "/commands", {"kind": "reboot", "devices": [ONE]})
        setting = ("PATCH", f"/devices/{ONE}/settings", {"values": {"health_s": 600}})
        for method, path, body in (restart, setting):
            status, seen = await ask(method, path, **body)
            assert (status, seen["code"]) == (409, "frozen")
            assert ref in str(seen["detail"])
            status, seen = await ask(method, path, **body, override_freeze=True)
            assert (status, seen["code"]) == (422, "reason_needed")
            status, _ = await ask(method, path, **body, override_freeze=True, reason="it hangs")
            assert status in (200, 201)
    assert [subject for subject, _, _ in await overridden(fleet)] == [ref, ref]
