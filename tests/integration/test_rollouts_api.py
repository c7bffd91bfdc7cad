"""Rollouts by the API on the real database with the real engine: planned, approved, watched.

Devices follow a script (tests/firmware_world.py), and time is virtual.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from ops.services.stack import Stack
from server.api.keys import create_api_key
from server.api.routes import build_api
from server.db.engine import open_pool
from server.firmware import acts
from tests.firmware_world import APPROVER, BAD, World, firmware_world
from tests.steering_world import Steered

pytestmark = pytest.mark.services
POLICY: dict[str, Any] = {
    "waves": [{"count": 4}, {}],
    "gate": {"success_pct": 90, "min_sample": 2, "soak_s": 5},
    "guards": {"fail_abs": 2, "fail_pct": 50, "min_sample": 5, "counts": False},
    "ramp": {"base": 600, "top": 600},
    "windows": None,
    "on_halt": "keep",
    "blast_radius": 20,
}


@dataclass
class Api:
    """The API of the world's organisation, by a key that may write."""

    world: World
    session: ClientSession
    url: str
    key: str

    async def ask(
        self, method: str, path: str, body: Any = None, *, seen: str | None = "*", **query: str
    ) -> tuple[int, Any]:
        """Return status and answer."""
        headers = {"Authorization": f"Bearer {self.key}"}
        if seen is not None:
            headers["If-Match"] = seen
        async with self.session.request(
            method, self.url + path, json=body, headers=headers, params=query
        ) as response:
            found = await response.json()
            if response.status < 300:
                found["etag"] = response.headers["ETag"]
            return response.status, found

    async def get(self, path: str, **query: str) -> Any:
        """Return an answer that must be one."""
        status, found = await self.ask("GET", path, **query)
        assert status == 200, found
        return found

    async def planned(self, **more: Any) -> str:
        """Plan a rollout of 2.0.0; return its name."""
        body = {"name": "Agent 2", "bundle": "bundle-2.0.0", "policy": POLICY, **more}
        status, found = await self.ask("POST", "/rollouts", body)
        assert status == 201, found
        return str(found["rollout"])

    async def do(self, ref: str, what: str, body: Any = None) -> Any:
        """Do something to a rollout that must be taken."""
        status, found = await self.ask("PUT", f"/rollouts/{ref}/{what}", body)
        assert status == 200, found
        return found


@pytest.fixture
async def api(stack: Stack, database: str) -> AsyncIterator[Api]:
    """A fleet of eight devices that have said what they run, at eight shops."""
    async with AsyncExitStack() as exits:
        world = await exits.enter_async_context(firmware_world(stack, database))
        await world.fleet(8)
        await world.owner.execute("update device_firmware set reported_at = $1", world.now)
        pool = await exits.enter_async_context(
            open_pool(stack.endpoints.dsn("api", database), size=4, name="api")
        )
        key = await create_api_key(
            world.owner, world.organisation, "rollouts", scopes=["read", "rollouts:write"]
        )
        app = web.Application()
        made = build_api(pool=pool, desk=world.desk, clock=world.clock, burst=1_000_000)
        app.add_subapp("/v1/", made)
        server = await exits.enter_async_context(TestServer(app))
        session = await exits.enter_async_context(ClientSession())
        yield Api(world, session, str(server.make_url("/v1")), key)


async def test_devices_are_let_into_what_runs_by_name_and_who_does_not_fit_is_named(
    api: Api,
) -> None:
    ref = await api.planned()
    late, silent = await api.world.fleet(2)
    await api.world.owner.execute(
        "update device_firmware set reported_at = $2 where device_id = $1", late, api.world.now
    )
    names = [
        await api.world.owner.fetchval("select device from devices where id = $1", row)
        for row in (late, silent)
    ]
    path = f"/rollouts/{ref}/joiners"
    status, found = await api.ask("PUT", path, {"devices": names})
    assert (status, found["code"]) == (409, "bad_transition")
    await api.do(ref, "submitted")
    await api.do(ref, "approved", {})
    await api.world.conductor.turn()
    why = await api.get(f"/rollouts/{ref}/why", device=names[0])
    assert why["reasons"][0]["reason"] == "joins"
    assert await api.do(ref, "joiners", {"devices": names}) | {"etag": ""} == {
        "rollout": ref,
        "devices": names[:1],
        "left_out": [{"device": names[1], "why": "it has never said what it runs"}],
        "etag": "",
    }
    again = await api.do(ref, "joiners", {"devices": names[:1]})
    assert (again["devices"], again["left_out"][0]["why"]) == ([], "it takes part")
    status, found = await api.ask("PUT", path, {"devices": ["dc-none"]})
    assert (status, found["parameter"]) == (422, "devices")
    tail = (await api.get(f"/rollouts/{ref}"))["waves"][-1]
    assert (tail["kind"], tail["size"], tail["state"]) == ("tail", 1, "pending")


async def test_a_rollout_is_planned_approved_watched_and_ends(api: Api) -> None:
    preview = {"bundle": "bundle-2.0.0", "policy": POLICY}
    status, plan = await api.ask("POST", "/rollouts:preview", preview)
    assert status == 200, plan
    assert [wave["devices"] for wave in plan["waves"]] == [4, 4]
    assert (plan["devices"], plan["sites"], plan["bytes"]) == (8, 8, 8000)
    assert plan["detects_nothing"] == "the policy wants no guard by counts"
    assert (await api.get("/rollouts"))["data"] == [], "a preview keeps nothing"

    ref = await api.planned()
    kept = (await api.get(f"/rollouts/{ref}/plan"))["plan"]
    assert len(kept["commitment"]) == 64
    assert "seed" not in kept
    assert kept["waves"][0]["devices"] == 4
    await api.do(ref, "submitted")
    found = await api.do(ref, "approved", {})
    assert (found["summary"]["state"], found["acts"]) == ("scheduled", ["start", "cancel"])
    await api.world.pass_time(20)
    found = await api.get(f"/rollouts/{ref}")
    assert (found["summary"]["state"], found["summary"]["wave"]) == ("running", 1)
    assert sum(found["funnel"].values()) == 8
    assert [wave["state"] for wave in found["waves"]] == ["open", "open", "pending", "pending"]
    assert found["next_window"] is None, "it installs at any time"
    await api.world.pass_time(140)
    found = await api.get(f"/rollouts/{ref}")
    assert (found["summary"]["state"], found["funnel"]) == ("completed", {"confirmed": 8})
    assert {site["confirmed"] for site in found["sites"]} == {1}
    assert found["acts"] == []
    turns = [row["event"] for row in (await api.get(f"/rollouts/{ref}/history"))["data"]]
    assert turns[::-1][:4] == ["planned", "submitted", "approved", "started"]
    assert turns[0] == "completed"
    rows = (await api.get(f"/rollouts/{ref}/executions", state="confirmed", wave="2"))["data"]
    assert [row["before"] for row in rows] == [{"agent": "1.0.0"}] * 4
    device = rows[0]["device"]
    runs = await api.get(f"/devices/{device}/firmware")
    assert runs["components"]["agent"]["version"] == "2.0.0"
    assert [each["reason"] for each in runs["now"]["reasons"]] == ["confirmed"]


async def test_settings_are_planned_and_taken_back_by_the_api(api: Api, tmp_path: Path) -> None:
    fleet = Steered(api.world, tmp_path)
    for row in api.world.devices:
        await fleet.ask(fleet.agent(row))
    await api.world.owner.execute(
        "with o as (insert into organisations (ref, name) values ('others', 'Others') returning id)"
        ", s as (insert into sites (organisation_id, ref, name, time_zone, currency) "
        "select id, 'site-of-others', 'Theirs', 'UTC', 'SEK' from o) insert into questionnaires "
        "(organisation_id, ref, hash, name, content, definition) "
        "select id, 'questionnaire-of-others', 1, 'Theirs', '{}', '{}' from o"
    )
    asked: dict[str, Any] = {"values": {"health_s": 300}}
    for body, status in (
        ({"policy": POLICY}, 422),
        ({"bundle": "bundle-2.0.0", "settings": asked}, 422),
        ({"settings": {"values": {"health_s": True}}}, 422),
        ({"settings": {**asked, "scope": "default"}}, 422),
        ({"settings": asked, "filter": 'model = "DC2"'}, 422),
        ({"settings": asked, "policy": {**POLICY, "waves": [{"count": 2}]}}, 422),
        ({"settings": {**asked, "scope": "site", "of": "site-of-others"}}, 404),
        ({"settings": {**asked, "scope": "site", "of": "site-of-nobody"}}, 404),
        ({"questionnaire": "questionnaire-of-others"}, 422),
        ({"questionnaire": "questionnaire-of-nobody"}, 422),
        ({"questionnaire": "questionnaire-of-nobody", "settings": asked}, 422),
    ):
        found = await api.ask("POST", "/rollouts:preview", body)
        assert found[0] == status, (body, found)
    slow = {**POLICY, "gate": {"success_pct": 90, "min_sample": 2, "soak_s": 600}}
    await api.world.owner.execute(
        "insert into questionnaires (organisation_id, ref, hash, name, content, definition) "
        "values ($1, 'questionnaire-ours', 2, 'Ours', '{}', '{}')",
        api.world.organisation,
    )
    shows = {"questionnaire": "questionnaire-ours", "policy": POLICY}
    _, found = await api.ask("POST", "/rollouts:preview", shows)
    assert found["reasons"] == {"wrong hardware": 8}, "these are counters"
    ref = await api.planned(bundle=None, settings=asked, policy=slow)
    found = await api.get(f"/rollouts/{ref}/plan")
    assert [wave["devices"] for wave in found["plan"]["waves"]] == [4, 4]
    assert found["summary"]["settings"] == {**asked, "scope": "organisation", "of": ""}
    await api.do(ref, "submitted")
    await api.do(ref, "approved", {})
    await fleet.pass_time(25)
    assert fleet.have("health_s").count(300) == 4
    why = {"reason": "Too many messages", "how": "revert all"}
    assert (await api.do(ref, "reverted", why))["summary"]["state"] == "reverting"
    await fleet.pass_time(60)
    found = await api.get(f"/rollouts/{ref}")
    assert (found["summary"]["state"], set(fleet.have("health_s"))) == ("reverted", {900})
    back = await api.get(f"/rollouts/{found['summary']['reversed_by']}")
    assert back["summary"]["settings"] == {**asked, "scope": "organisation", "of": ""}
    assert back["funnel"] == {"confirmed": 4}
    rows = (await api.get(f"/rollouts/{ref}/executions", state="confirmed"))["data"]
    assert [row["before"] for row in rows] == [{"health_s": "900"}] * 4


async def test_a_halt_shows_its_guard_its_failures_and_what_may_follow(api: Api) -> None:
    for device in api.world.devices.values():
        device.script = BAD
    ref = await api.planned()
    await api.do(ref, "submitted")
    await api.do(ref, "approved", {})
    await api.world.pass_time(120)
    found = await api.get(f"/rollouts/{ref}")
    assert found["summary"]["state"] == "halted"
    assert found["summary"]["reason"].startswith("fail_abs: 2 of 2 in wave 1")
    assert found["waits_for_people"] is True
    assert found["acts"] == ["resume", "cancel", "revert"]
    (failure,) = found["failures"]
    assert failure["state"] == "reverted by device"
    assert failure["devices"] >= 2
    assert len(failure["examples"]) == min(3, failure["devices"])
    standing = {each["guard"]: each for each in found["guards"]}
    assert standing["fail_abs"]["tripped"] is True
    assert standing["fail_pct"]["missing"] == 5 - failure["devices"]
    assert {site["failed"] for site in found["sites"][: failure["devices"]]} == {1}

    halted = found["etag"]
    status, problem = await api.ask("PUT", f"/rollouts/{ref}/resumed", {"reason": "x"}, seen=None)
    assert (status, problem["code"]) == (428, "precondition_required")
    for device in api.world.devices.values():
        device.script = ()
    await api.do(ref, "resumed", {"reason": "Those two are known"})
    again = {"reason": "Known"}
    status, problem = await api.ask("PUT", f"/rollouts/{ref}/paused", again, seen=halted)
    assert (status, problem["code"]) == (412, "changed_meanwhile")
    known = (await api.get(f"/rollouts/{ref}"))["etag"]
    status, paused = await api.ask("PUT", f"/rollouts/{ref}/paused", again, seen=known)
    assert (status, paused["summary"]["state"], paused["acts"]) == (
        *(200, "paused"),
        ["resume", "cancel", "revert"],
    )
    assert (await api.do(ref, "cancelled", again))["summary"]["state"] == "cancelling"
    audit = await api.world.owner.fetch("select act, actor from audit where subject = $1", ref)
    done = [row["act"].removeprefix("rollout ") for row in audit]
    assert done == [
        *("drafted", "planned", "submitted", "approved", "resumed", "paused", "cancelled")
    ]
    assert {row["actor"].split(" ")[0] for row in audit} == {"key"}


async def test_what_was_rolled_out_is_taken_back(api: Api) -> None:
    ref = await api.planned(policy={**POLICY, "gate": {"min_sample": 2, "soak_s": 600}})
    await api.do(ref, "submitted")
    await api.do(ref, "approved", {})
    await api.world.pass_time(60)
    status, problem = await api.ask(
        "PUT", f"/rollouts/{ref}/reverted", {"reason": "x", "how": "keep"}
    )
    assert (status, problem["code"]) == (422, "bad_revert")
    found = await api.do(ref, "reverted", {"reason": "Doors count less", "how": "revert all"})
    back = found["summary"]["reversed_by"]
    assert found["summary"]["state"] == "reverting"
    one = await api.get(f"/rollouts/{back}")
    assert one["summary"]["reverses"] == ref
    assert (await api.get(f"/rollouts/{back}/plan"))["plan"] is None
    await api.world.pass_time(120)
    found = await api.get(f"/rollouts/{ref}")
    assert found["summary"]["state"] == "reverted"
    assert {device.version for device in api.world.devices.values()} == {"1.0.0"}
    listed = (await api.get("/rollouts", over="true"))["data"]
    assert [row["rollout"] for row in listed] == [back, ref]


async def test_a_key_never_is_the_second_person(api: Api) -> None:
    ref = await api.planned(policy={**POLICY, "blast_radius": 3})
    found = await api.do(ref, "submitted")
    assert found["second_person"] is True
    status, problem = await api.ask("PUT", f"/rollouts/{ref}/approved", {})
    assert (status, problem["code"]) == (403, "four_eyes")
    other = await create_api_key(
        api.world.owner, api.world.organisation, "another", scopes=["read", "rollouts:write"]
    )
    approving = Api(api.world, api.session, api.url, other)
    status, problem = await approving.ask("PUT", f"/rollouts/{ref}/approved", {})
    assert (status, problem["code"]) == (403, "four_eyes")
    async with api.world.act() as connection:
        given = connection, api.world.organisation, ref
        await acts.approve(*given, actor=APPROVER, now=api.world.now)
    assert (await api.get(f"/rollouts/{ref}"))["summary"]["approver"] == APPROVER


async def test_a_key_without_the_scope_changes_nothing(api: Api) -> None:
    ref = await api.planned()
    key = await create_api_key(api.world.owner, api.world.organisation, "reads", scopes=["read"])
    reading = Api(api.world, api.session, api.url, key)
    assert (await reading.get(f"/rollouts/{ref}"))["summary"]["state"] == "planned"
    for method, path, body in (
        ("POST", "/rollouts", {"name": "A", "bundle": "bundle-2.0.0"}),
        ("PUT", f"/rollouts/{ref}/submitted", None),
        ("PUT", f"/rollouts/{ref}/cancelled", {"reason": "x"}),
        ("POST", "/freezes", {"name": "A", "reason": "A", "ends_at": "2026-03-04T00:00:00Z"}),
    ):
        status, problem = await reading.ask(method, path, body)
        assert (status, problem["code"]) == (403, "missing_scope"), path


async def test_what_cannot_be_planned_says_why(api: Api) -> None:
    name, bundle = {"name": "A"}, {"bundle": "bundle-2.0.0"}
    for body, status, code in (
        ({**name, "bundle": "bundle-none"}, 404, "not_found"),
        ({**name, **bundle, "filter": "model ="}, 400, "bad_filter"),
        ({**name, **bundle, "filter": 'model = "DC9"'}, 409, "no_devices"),
        ({**name, "bundle": "bundle-1.0.0"}, 409, "no_devices"),
        ({**name, **bundle, "policy": {"waves": []}}, 422, "bad_policy"),
        ({**name, **bundle, "policy": {"gate": {"soak": 1}}}, 422, "unknown_field"),
        ({**name, **bundle, "policy": {"windows": {"least_s": 1}}}, 422, "bad_window"),
        ({**name, **bundle, "segment": "segment-none"}, 404, "not_found"),
    ):
        found, problem = await api.ask("POST", "/rollouts", body)
        assert (found, problem["code"]) == (status, code), problem
    assert await api.world.owner.fetchval("select count(*) from rollouts") == 0
    await api.world.owner.execute(
        "update releases set withdrawn_at = now() where version like '2%'"
    )
    status, problem = await api.ask("POST", "/rollouts:preview", bundle)
    assert (status, problem["code"]) == (422, "withdrawn")
    assert [row["fit"] for row in (await api.get("/bundles"))["data"]] == [False, True]


async def test_a_repeated_post_plans_one_rollout(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.key}", "Idempotency-Key": "plan-1"}
    body = {"name": "Agent 2", "bundle": "bundle-2.0.0", "policy": POLICY}
    found = []
    for _ in range(2):
        async with api.session.post(f"{api.url}/rollouts", json=body, headers=headers) as response:
            assert response.status == 201
            found.append(await response.json())
            assert response.headers["Location"] == f"/v1/rollouts/{found[0]['rollout']}"
    assert found[0] == found[1]
    assert await api.world.owner.fetchval("select count(*) from rollouts") == 1


async def test_a_freeze_is_begun_shown_and_ended_by_its_author(api: Api) -> None:
    body = {
        "name": "Black Friday",
        "reason": "The busiest week",
        "ends_at": "2026-03-09T00:00:00Z",
        "sites": "site.name = Shop",
    }
    status, made = await api.ask("POST", "/freezes", body)
    assert (status, made["author"].split(" ")[0]) == (201, "key")
    ref = made["freeze"]
    assert [row["freeze"] for row in (await api.get("/freezes"))["data"]] == [ref]
    status, problem = await api.ask("POST", "/freezes", {**body, "sites": 'model = "DC2"'})
    assert (status, problem["code"], problem["parameter"]) == (422, "bad_value", "sites")
    frozen = await api.planned()
    kept = (await api.get(f"/rollouts/{frozen}/plan"))["plan"]
    assert kept["devices"] == 8, "it fetches in a freeze, and installs after it"
    device = await api.world.owner.fetchval("select device from devices order by id limit 1")
    why = await api.get(f"/rollouts/{frozen}/why", device=device)
    assert [each["reason"] for each in why["reasons"]] == ["not_approved", "frozen"]
    assert why["reasons"][1]["until"] == "2026-03-09T00:00:00Z"
    status, ended = await api.ask("DELETE", f"/freezes/{ref}")
    assert (status, ended["ended_by"]) == (200, made["author"])
    assert (await api.get("/freezes"))["data"] == []
    assert len((await api.get("/freezes", past="true"))["data"]) == 1


async def test_pages_of_devices_and_history_go_on_where_they_ended(api: Api) -> None:
    ref = await api.planned()
    await api.do(ref, "submitted")
    await api.do(ref, "approved", {})
    await api.world.conductor.turn()
    for path in (f"/rollouts/{ref}/executions", f"/rollouts/{ref}/history"):
        whole = (await api.get(path))["data"]
        pages: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            page = await api.get(path, limit="3", **cursor)
            pages += page["data"]
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
        assert pages == whole
        assert len(whole) > 3
    status, problem = await api.ask("GET", f"/rollouts/{ref}/executions", filter="model =")
    assert (status, problem["code"]) == (400, "bad_filter")
    found = await api.get(f"/rollouts/{ref}/executions", filter="model = DC9")
    assert found["data"] == []
