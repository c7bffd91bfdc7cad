"""The register in the real database: isolation, two operators at once, an audit row an act."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import asyncpg
import pytest

from server.db.engine import acting
from server.errors import ConflictError, NotFoundError
from server.fleet import doors, hours, organisations, register, sites, spots
from server.fleet.checks import ChangedError, FieldError, TakenError
from server.fleet.doors import Door
from server.fleet.organisations import Organisation, Region
from server.fleet.register import lock_organisation
from server.fleet.sites import Site
from server.fleet.spots import Calibration, Spot
from tests.integration.people_world import NOW, People

pytestmark = pytest.mark.services
BY: Any = {"actor": "user ada", "now": NOW}
Write = Callable[[asyncpg.Connection, int], Awaitable[object]]


@pytest.fixture
async def desk(people: People) -> AsyncIterator[asyncpg.Connection]:
    """Somebody at the desk of the own organisation."""
    async with acting(people.desk, "test", organisation=people.organisations["own"]) as connection:
        yield connection


async def audited(people: People, act: str) -> int:
    count: int = await people.owner.fetchval("select count(*) from audit where act = $1", act)
    return count


async def test_a_site_is_added_and_changed_with_all_it_has(
    people: People, desk: asyncpg.Connection
) -> None:
    own = people.organisations["own"]
    region = await organisations.add_region(desk, own, Region(" North  East "), **BY)
    assert region.facts.name == "North East"
    opening = hours.read('Mo-Fr 10:00-14:00,15:00-19:00; Sa 22:00-03:00; 2026-12-25 off "Xmas"')
    wanted = Site(
        "Pop-up",
        "Europe/Stockholm",
        "SEK",
        "Drottninggatan 1",
        region.ref,
        date(2026, 11, 1),
        date(2027, 1, 31),
        opening,
    )
    site = await sites.add(desk, own, wanted, **BY)
    assert await sites.find(desk, own, site.ref) == site
    after = replace(wanted, opening=hours.read("24/7"), region=None)
    changed = await sites.edit(desk, own, site.ref, after, seen=site.version, **BY)
    assert await sites.find(desk, own, site.ref) == changed
    detail = await desk.fetchval("select detail::text from audit where act = 'site changed'")
    assert "Sa 22:00-03:00" in detail
    assert "address" not in detail
    assert await desk.fetchval("select count(*) from rollup_stale where site_id = $1", site.id)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "x" * 101),
        ("name", "a\x00b"),
        ("time_zone", "Europe/Atlantis"),
        ("time_zone", "../../etc/passwd"),
        ("currency", "ABC"),
        ("currency", "sek"),
        ("address", "x" * 301),
        ("region", "region-unknown1"),
        ("closes_on", date(2020, 1, 1)),
        ("opens_on", date(1066, 1, 1)),
    ],
)
async def test_a_wrong_field_is_refused_by_name(
    people: People, desk: asyncpg.Connection, field: str, value: object
) -> None:
    good = Site("New", "Europe/Oslo", opens_on=date(2026, 1, 1))
    with pytest.raises(FieldError) as caught:
        await sites.add(desk, people.organisations["own"], replace(good, **{field: value}), **BY)  # type: ignore[arg-type]
    assert caught.value.parameter == field
    assert await audited(people, "site added") == 0


async def test_of_two_operators_the_second_sees_the_firsts_change(people: People) -> None:
    own = people.organisations["own"]
    async with acting(people.desk, "both read", organisation=own) as connection:
        site = await sites.find(connection, own, "own-site")
    first = replace(site.facts, address="Storgatan 1")
    second = replace(site.facts, name="Renamed", opening=hours.read("Mo 10:00-11:00"))
    async with acting(people.desk, "first", organisation=own) as connection:
        await sites.edit(connection, own, "own-site", first, seen=site.version, **BY)
    with pytest.raises(ChangedError):
        async with acting(people.desk, "second", organisation=own) as connection:
            await sites.edit(connection, own, "own-site", second, seen=site.version, **BY)
    async with acting(people.desk, "looks again", organisation=own) as connection:
        now = await sites.find(connection, own, "own-site")
        assert now.facts == first
        merged = replace(now.facts, name="Renamed")
        await sites.edit(connection, own, "own-site", merged, seen=now.version, **BY)
        assert (await sites.find(connection, own, "own-site")).facts.address == "Storgatan 1"


async def test_doors_stand_behind_each_other_but_in_no_circle(
    people: People, desk: asyncpg.Connection
) -> None:
    own = people.organisations["own"]
    outer = await doors.add(desk, own, "own-site", Door("Outer"), **BY)
    inner = await doors.add(desk, own, "own-site", Door("Inner", outer.ref), **BY)
    third = await doors.add(desk, own, "own-site", Door("Third", inner.ref), **BY)
    for behind in (outer.ref, inner.ref, third.ref):
        with pytest.raises(FieldError, match="behind"):
            await doors.edit(desk, own, outer.ref, Door("Outer", behind), seen=None, **BY)
    with pytest.raises(TakenError):
        await doors.edit(desk, own, third.ref, Door("Inner"), seen=None, **BY)
    moved = await doors.edit(desk, own, third.ref, Door("Third", outer.ref), seen=None, **BY)
    assert moved.facts.behind == outer.ref


async def test_a_mounting_and_a_calibration_hold_from_a_moment_on(
    people: People, desk: asyncpg.Connection
) -> None:
    own = people.organisations["own"]
    spot = await spots.add(desk, own, "own-site", Spot("A", "counter", None, "entrance", 300), **BY)
    higher = replace(spot.facts, height_cm=420, purpose="passage")
    since = NOW - timedelta(days=3)
    await spots.edit(desk, own, spot.ref, higher, seen=spot.version, since=since, **BY)
    for at, height in ((since - timedelta(seconds=1), 300), (since, 420)):
        _, found = await spots.find(desk, own, spot.ref, now=at)
        assert found.facts.height_cm == height
    with pytest.raises(ConflictError):
        await spots.edit(
            desk,
            own,
            spot.ref,
            spot.facts,
            seen=None,
            since=since - timedelta(days=1),
            **BY,
        )
    with pytest.raises(FieldError, match="for ever"):
        await spots.edit(desk, own, spot.ref, replace(higher, kind="kiosk"), seen=None, **BY)
    await spots.calibrate(
        desk, own, spot.ref, Calibration(0, True, 1.05, "mounted backwards", since), **BY
    )
    with pytest.raises(ConflictError):
        await spots.calibrate(desk, own, spot.ref, Calibration(0, False, 1, "no", None), **BY)
    with pytest.raises(FieldError):
        await spots.calibrate(desk, own, spot.ref, Calibration(0, False, 99, "no", NOW), **BY)


async def test_an_act_in_one_organisation_cannot_touch_another(people: People) -> None:
    own, other = people.organisations["own"], people.organisations["other"]
    async with acting(people.desk, "theirs", organisation=other) as connection:
        door = await doors.add(connection, other, "other-site", Door("Theirs"), **BY)
        spot = await spots.add(connection, other, "other-site", Spot("Theirs", "kiosk"), **BY)
        region = await organisations.add_region(connection, other, Region("Theirs"), **BY)
    site = Site("Mine", "Europe/Oslo")
    tries: list[Write] = [
        lambda c, o: sites.edit(c, o, "other-site", site, seen=None, **BY),
        lambda c, o: sites.find(c, o, "other-site"),
        lambda c, o: doors.add(c, o, "other-site", Door("Mine"), **BY),
        lambda c, o: doors.edit(c, o, door.ref, Door("Mine"), seen=None, **BY),
        lambda c, o: spots.add(c, o, "other-site", Spot("Mine", "kiosk"), **BY),
        lambda c, o: spots.edit(c, o, spot.ref, Spot("Mine", "kiosk"), seen=None, **BY),
        lambda c, o: spots.calibrate(c, o, spot.ref, Calibration(0, True, 1, "x", None), **BY),
        lambda c, o: organisations.edit_region(c, o, region.ref, Region("Mine"), seen=None, **BY),
        lambda c, _: organisations.edit(c, "other", Organisation("Mine"), seen=None, **BY),
    ]
    for number, attempt in enumerate(tries):
        with pytest.raises(NotFoundError):
            async with acting(people.desk, "try", organisation=own) as connection:
                await attempt(connection, own)
        if number < len(tries) - 1:  # nor through a connection that sees everything
            with pytest.raises(NotFoundError):
                await attempt(people.owner, own)
    for wanted in (
        Site("Mine", "Europe/Oslo", region=region.ref),
        Site("Mine", "Europe/Oslo", region="region-nothing1"),
    ):
        with pytest.raises(FieldError) as caught:
            await sites.add(people.owner, own, wanted, **BY)
        assert str(caught.value) == f"no region {wanted.region!r}"
    assert await audited(people, "site changed") == 0


async def test_every_edit_waits_for_who_edits_the_organisation(people: People) -> None:
    own = people.organisations["own"]
    async with acting(people.desk, "fill", organisation=own) as connection:
        region = await organisations.add_region(connection, own, Region("North"), **BY)
        door = await doors.add(connection, own, "own-site", Door("Front"), **BY)
        spot = await spots.add(connection, own, "own-site", Spot("Above", "counter"), **BY)
    seen: Any = {"seen": None, **BY}
    new = Site("New", "Europe/Oslo")
    writes: list[Write] = [
        lambda c, o: organisations.add_region(c, o, Region("South"), **BY),
        lambda c, o: organisations.edit_region(c, o, region.ref, Region("Far north"), **seen),
        lambda c, o: sites.add(c, o, new, **BY),
        lambda c, o: sites.edit(c, o, "own-site", new, **seen),
        lambda c, o: doors.add(c, o, "own-site", Door("Back"), **BY),
        lambda c, o: doors.edit(c, o, door.ref, Door("Side"), **seen),
        lambda c, o: spots.add(c, o, "own-site", Spot("Below", "counter"), **BY),
        lambda c, o: spots.edit(c, o, spot.ref, Spot("Beside", "counter"), **seen),
        lambda c, o: spots.calibrate(
            c, o, spot.ref, Calibration(0, True, 1.0, "mirrored", None), **BY
        ),
    ]
    async with people.owner.transaction():
        await lock_organisation(people.owner, own)
        for write in writes:
            async with acting(people.desk, "wait", organisation=own) as connection:
                await connection.execute("set local lock_timeout = '50ms'")
                with pytest.raises(asyncpg.LockNotAvailableError):
                    async with connection.transaction():
                        await write(connection, own)


async def test_every_function_that_writes_leaves_a_row_in_the_audit(
    people: People, desk: asyncpg.Connection
) -> None:
    own, other = people.organisations["own"], people.organisations["other"]
    region = await organisations.add_region(desk, own, Region("North"), **BY)
    site = await sites.add(desk, own, Site("Shop", "Europe/Oslo"), **BY)
    door = await doors.add(desk, own, site.ref, Door("Door"), **BY)
    spot = await spots.add(desk, own, site.ref, Spot("Spot", "counter"), **BY)
    shop = replace(site.facts, name="Shop 2")
    acts: dict[Callable[..., object], Callable[[], Awaitable[object]]] = {
        organisations.add: lambda: organisations.add(people.owner, Organisation("New"), **BY),
        organisations.edit: lambda: organisations.edit(
            desk, "own", Organisation("Own"), seen=None, **BY
        ),
        organisations.add_region: lambda: organisations.add_region(
            desk, own, Region("South"), **BY
        ),
        organisations.edit_region: lambda: organisations.edit_region(
            desk, own, region.ref, Region("West"), seen=None, **BY
        ),
        sites.add: lambda: sites.add(desk, own, Site("More", "Europe/Oslo"), **BY),
        sites.edit: lambda: sites.edit(desk, own, site.ref, shop, seen=None, **BY),
        doors.add: lambda: doors.add(desk, own, site.ref, Door("Back"), **BY),
        doors.edit: lambda: doors.edit(desk, own, door.ref, Door("Front"), seen=None, **BY),
        spots.add: lambda: spots.add(desk, own, site.ref, Spot("More", "kiosk"), **BY),
        spots.edit: lambda: spots.edit(
            desk, own, spot.ref, Spot("Spot 2", "counter"), seen=None, **BY
        ),
        spots.calibrate: lambda: spots.calibrate(
            desk, own, spot.ref, Calibration(0, True, 1, "turned", None), **BY
        ),
        register.add_device: lambda: register.add_device(people.owner, other, kind="kiosk", **BY),
    }
    writers = {
        function
        for module in (organisations, sites, doors, spots, register)
        for name, function in inspect.getmembers(module, inspect.iscoroutinefunction)
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and "actor" in inspect.signature(function).parameters
    }
    assert writers == set(acts)  # a new one has its line here
    by_owner = (organisations.add, register.add_device)
    for function, act in acts.items():
        connection = people.owner if function in by_owner else desk
        before = await connection.fetchval("select count(*) from audit")
        await act()
        rows = await connection.fetch("select actor, subject from audit offset $1", before)
        assert [row["actor"] for row in rows] == ["user ada"], function
        assert rows[0]["subject"]
