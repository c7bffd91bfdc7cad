"""Layers of settings in the real database: who edits what, what a device is told and answers."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from server.desired.layers import Scope, Standing
from server.desired.settings import CHANGED
from server.errors import NotFoundError
from server.fleet.checks import ChangedError, FieldError
from tests.integration.desired_world import Fleet, report
from tests.integration.desired_world import fleet as fleet

pytestmark = pytest.mark.services
ONE, TWO, FOUR = "dc-number-1", "dc-number-2", "dc-number-4"


async def values(fleet: Fleet, device: str) -> dict[str, tuple[Any, str, Any]]:
    found = (await fleet.configuration(device)).states
    return {
        key: (each.merged.here.value, each.merged.here.scope.value, each.merged.without.value)
        for key, each in found.items()
    }


async def test_the_nearest_layer_counts_and_says_why(fleet: Fleet) -> None:
    await fleet.write("model", "Beam 2", health_s=300, spread_s=20)
    await fleet.write("organisation", health_s=600)
    await fleet.write("site", "north", health_s=120, frame_s=60)
    await fleet.write("device", ONE, health_s=60)
    found = await values(fleet, ONE)
    assert found["health_s"] == (60, "device", 120)
    assert found["frame_s"] == (60, "site", 300)
    assert found["spread_s"] == (20, "model", 10)
    assert found["log_level"] == ("info", "default", "info")
    assert (await values(fleet, FOUR))["health_s"] == (600, "organisation", 900)
    here = (await fleet.configuration(ONE)).states["frame_s"].merged.here
    assert here.scope is Scope.SITE
    assert here.of == "north"
    assert here.entry is not None
    assert here.entry.by == "user ada"
    # the shop is moved away from: its layer goes with it
    await fleet.world.owner.execute(
        "update assignments set valid = tstzrange(null, $2) where device_id = $1",
        *(fleet.rows[ONE], fleet.now),
    )
    assert (await values(fleet, ONE))["frame_s"] == (300, "default", 300)


async def test_who_edits_an_old_copy_is_told_and_changes_nothing(fleet: Fleet) -> None:
    first = await fleet.write("site", "north", seen="0", health_s=300)
    assert first.version == 1
    for seen in ("0", "2", "nonsense"):
        with pytest.raises(ChangedError):
            await fleet.write("site", "north", seen=seen, health_s=600)
    second = await fleet.write("site", "north", seen="1", spread_s=5)
    assert {key: each.value for key, each in second.entries.items()} == {
        "health_s": 300,
        "spread_s": 5,
    }
    third = await fleet.write("site", "north", seen="2", whole=True, spread_s=5)
    assert (third.version, list(third.entries)) == (3, ["spread_s"])
    assert third.entries["spread_s"] == second.entries["spread_s"]
    assert (await fleet.write("site", "north", whole=True, spread_s=5)).version == 3
    audit = await fleet.world.owner.fetch(
        "select subject from audit where act = 'settings changed'"
    )
    assert [row["subject"] for row in audit] == ["site north"] * 3


async def test_two_who_edit_at_once_come_one_after_the_other(fleet: Fleet) -> None:
    done = await asyncio.gather(
        *(fleet.write("organisation", seen="0", health_s=60 + n) for n in range(4)),
        return_exceptions=True,
    )
    assert sum(isinstance(each, ChangedError) for each in done) == 3


async def test_what_no_device_could_take_is_refused_and_nothing_is_kept(fleet: Fleet) -> None:
    wrong: list[tuple[str, str, dict[str, Any], str]] = [
        ("organisation", "", {"health_s": 5}, "values.health_s"),
        ("organisation", "", {"colour": "red"}, "values.colour"),
        ("device", ONE, {"broker": "no port"}, "values.broker"),
    ]
    for scope, of, given, field in wrong:
        with pytest.raises(FieldError) as error:
            await fleet.write(scope, of, **given, spread_s=1)
        assert error.value.parameter == field
    for scope, of in (
        *(("site", "east"), ("device", "dc-nobody"), ("model", "Beam 9"), ("model", "")),
        ("row", "1"),
    ):
        with pytest.raises(NotFoundError):
            await fleet.write(scope, of, health_s=300)
    assert await fleet.world.owner.fetchval("select count(*) from settings_layers") == 0


async def test_before_it_is_saved_an_edit_says_whom_it_reaches(fleet: Fleet) -> None:
    await fleet.write("device", ONE, health_s=60)
    found = await fleet.preview("organisation", health_s=300)
    assert (found.devices, found.changed) == (5, 4)
    assert found.sites == {"": 1, "north": 3, "south": 1}
    found = await fleet.preview("site", "north", health_s=300)
    assert (found.devices, found.changed) == (3, 2)
    found = await fleet.preview("model", "Beam 2", frame_s=60)
    assert (found.devices, found.changed) == (2, 2)
    found = await fleet.preview("organisation", health_s=900)
    assert (found.devices, found.changed) == (5, 0)
    with pytest.raises(FieldError):
        await fleet.preview("organisation", health_s=1)
    assert await fleet.world.owner.fetchval("select count(*) from settings_layers") == 1


async def test_an_edit_rings_for_those_that_it_reaches_and_for_nobody_else(fleet: Fleet) -> None:
    rung: list[str] = []
    async with fleet.ingest.acquire() as connection:

        def heard(_: Any, __: int, ___: str, payload: object) -> None:
            rung.append(str(payload))

        await connection.add_listener(CHANGED, heard)
        await fleet.write("site", "north", health_s=300)
        await fleet.write("device", FOUR, health_s=300)
        await connection.fetchval("select 1")
        await connection.remove_listener(CHANGED, heard)
    assert rung == [ONE, TWO, "dc-number-3", FOUR]


async def test_a_device_is_told_all_of_it_and_its_answer_says_what_became_of_it(
    fleet: Fleet,
) -> None:
    await fleet.write("site", "north", health_s=300, broker="a.example:1")

    async def standings() -> dict[str, tuple[Standing, str]]:
        found = (await fleet.configuration(ONE)).states
        return {key: (found[key].standing, found[key].code) for key in ("health_s", "broker")}

    assert await standings() == dict.fromkeys(("health_s", "broker"), (Standing.PENDING, ""))
    version, told, _, _ = await fleet.exchange(ONE, report())
    assert {key: value for key, (value, _) in told.items()} == {
        "health_s": 300,
        "broker": "a.example:1",
    }
    assert await standings() == dict.fromkeys(("health_s", "broker"), (Standing.PENDING, ""))
    refused = {"broker": (told["broker"][1], "reverted")}
    assert (await fleet.exchange(ONE, report(version, refused, health_s=300)))[0] == version
    assert await standings() == {
        "health_s": (Standing.IN_SYNC, ""),
        "broker": (Standing.REFUSED, "reverted"),
    }
    assert (await fleet.configuration(ONE)).agent == "0.2.0"
    await fleet.exchange(ONE, report(version, refused, health_s=60))  # somebody changed it there
    assert (await standings())["health_s"] == (Standing.DRIFTED, "")
    await fleet.write("site", "north", broker="a.example:1")  # saved anew: to be tried again
    assert (await standings())["broker"] == (Standing.PENDING, "")
    after, told, _, _ = await fleet.exchange(ONE, report(version, refused, health_s=300))
    assert after == version + 1
    await fleet.write("site", "north", broker=None, health_s=None)
    assert (await fleet.exchange(ONE, report(after, health_s=300)))[:2] == (after + 1, {})
    assert (await fleet.configuration(ONE)).version == after + 1


async def test_the_roles_may_do_what_they_do_and_no_more(fleet: Fleet) -> None:
    await fleet.write("organisation", health_s=300)
    await fleet.exchange(ONE, report())
    for pool, statement in (
        (fleet.ingest, "update settings_layers set version = 9"),
        (fleet.desk, "update device_settings set version = 9"),
        (fleet.desk, "delete from settings_layers"),
        (fleet.desk, "update commands set result = '{}'"),
        (fleet.world.api, "update settings_layers set version = 9"),
        (fleet.world.maint, "update settings_layers set version = 9"),
        (fleet.ingest, "delete from commands"),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(statement)
