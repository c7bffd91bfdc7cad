"""Freezes and windows on the database: who is frozen, who may end it, and what nights are left."""

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from server.db.engine import acting
from server.errors import NotFoundError, RefusedError
from server.firmware import freezes
from server.firmware.freezes import Wanted
from server.firmware.nights import nights
from server.firmware.windows import Always, NoWindow, Rules
from server.fleet.checks import FieldError
from server.fleet.filters import FilterError
from tests.integration.desired_world import Fleet
from tests.integration.desired_world import fleet as fleet

pytestmark = pytest.mark.services

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)  # a Monday; north is open 08:00 to 20:00
BLACK = Wanted(
    "Black Friday", "no changes in the week of the year", datetime(2026, 11, 30, tzinfo=UTC)
)


async def site_of(connection: asyncpg.Connection, ref: str) -> int:
    found: int = await connection.fetchval("select id from sites where ref = $1", ref)
    return found


async def add(fleet: Fleet, wanted: Wanted, *, by: str = "user ada") -> freezes.Freeze:
    async with acting(fleet.desk, "freeze", organisation=fleet.organisation) as connection:
        return await freezes.add(connection, fleet.organisation, wanted, actor=by, now=NOW)


async def end(fleet: Fleet, ref: str, *, by: str, now: datetime = NOW) -> freezes.Freeze:
    async with acting(fleet.desk, "thaw", organisation=fleet.organisation) as connection:
        return await freezes.end(connection, fleet.organisation, ref, actor=by, now=now)


async def test_a_freeze_takes_the_nights_of_its_sites_and_of_no_other(fleet: Fleet) -> None:
    owner = fleet.world.owner
    north, south = await site_of(owner, "north"), await site_of(owner, "south")
    made = await add(
        fleet, Wanted("Week 48", "stocktake", BLACK.ends_at, sites=' site.name  =  "north" ')
    )
    assert (made.sites, made.starts_at) == ("site.name = north", NOW)
    frozen = await freezes.load(owner, fleet.organisation, now=NOW)
    assert frozen.of(south) == ()
    for asked in ([north], [south], [north, south], []):
        few = await freezes.load(owner, fleet.organisation, now=NOW, sites=asked)
        assert few.of(south) == ()
        assert few.of(north) == (frozen.of(north) if north in asked else ())
    assert frozen.of(north) == ((int(NOW.timestamp()), int(BLACK.ends_at.timestamp())),)
    cases: tuple[tuple[datetime, list[int | None], list[str]], ...] = (
        (NOW, [south, north], [made.ref]),
        (NOW, [south, None], []),
        (BLACK.ends_at, [north], []),
    )
    for at, places, on in cases:
        spans = await freezes.on_at(owner, fleet.organisation, places, now=at)
        assert [each.ref for each in spans] == on

    rules = Rules(always=Always.CLOCK)
    for role in (fleet.desk, fleet.ingest, fleet.world.maint):
        async with acting(role, "nights", organisation=fleet.organisation) as connection:
            of = await nights(connection, fleet.organisation, [north, south], rules, now=NOW)
            awake = await nights(
                connection, fleet.organisation, [north], rules, now=NOW, overriding=True
            )
        assert of[north].windows[0][0] == int(BLACK.ends_at.timestamp())
        assert of[south].windows[0][0] == int((NOW + timedelta(hours=13)).timestamp())  # 02:00
        assert awake[north].windows[0][0] == int((NOW + timedelta(hours=7.5)).timestamp())


async def test_a_site_that_never_closes_is_updated_in_the_hours_that_it_usually_rests(
    fleet: Fleet,
) -> None:
    world = fleet.world
    south = await site_of(world.owner, "south")
    spot = await world.owner.fetchval("select id from spots where site_id = $1", south)
    asked = Rules(always=Always.QUIET)
    before = await nights(world.owner, fleet.organisation, [south], asked, now=NOW)
    assert before[south].why is NoWindow.NEVER_QUIET  # nothing is known of it
    for day in range(1, 4):
        for hour in range(24):  # UTC: nobody from 01 to 05, which is 02 to 06 in Stockholm
            at = (NOW - timedelta(days=day)).replace(hour=hour)
            await world.quarter(spot, at, 0 if 1 <= hour < 5 else 50)
    await world.derive()
    for role in (fleet.desk, fleet.ingest, world.maint):
        async with acting(role, "nights", organisation=fleet.organisation) as connection:
            found = await nights(connection, fleet.organisation, [south], asked, now=NOW)
        low, high = found[south].windows[0]
        assert low == int((NOW + timedelta(hours=13)).timestamp())
        assert high - low == 4 * 3600


async def test_only_its_author_ends_a_freeze_and_it_is_ended_once(fleet: Fleet) -> None:
    made = await add(fleet, BLACK)
    with pytest.raises(RefusedError) as refused:
        await end(fleet, made.ref, by="user bo")
    assert refused.value.code == "not_its_author"
    ended = await end(fleet, made.ref, by="user ada", now=NOW + timedelta(hours=1))
    again = await end(fleet, made.ref, by="user ada", now=NOW + timedelta(hours=2))
    assert ended == again
    assert ended.ended_at == NOW + timedelta(hours=1)
    async with acting(fleet.desk, "read", organisation=fleet.organisation) as connection:
        assert await freezes.listed(connection, fleet.organisation, now=NOW) == []
        assert await freezes.listed(connection, fleet.organisation, now=NOW, past=True) == [ended]
    assert (await freezes.load(fleet.world.owner, fleet.organisation, now=NOW)).spans == ()
    rows = await fleet.world.owner.fetch(
        "select act, actor, subject from audit where act like 'freeze%' order by number"
    )
    assert [tuple(row) for row in rows] == [
        ("freeze added", "user ada", made.ref),
        ("freeze ended", "user ada", made.ref),
    ]


async def test_what_a_freeze_says_is_checked_and_loses_nothing(fleet: Fleet) -> None:
    later = BLACK.ends_at
    wrong: list[tuple[Wanted, type[Exception]]] = [
        (Wanted("", "why", later), FieldError),
        (Wanted("Name", " ", later), FieldError),
        (Wanted("Name", "why", NOW), FieldError),
        (Wanted("Name", "why", later, later), FieldError),
        (Wanted("Name", "why", NOW + timedelta(days=93)), FieldError),
        (Wanted("Name", "why", NOW + timedelta(days=402), NOW + timedelta(days=401)), FieldError),
        (Wanted("Name", "why", later, sites="model = DC2"), FieldError),
        (Wanted("Name", "why", later, sites="site.name ="), FilterError),
    ]
    for wanted, error in wrong:
        with pytest.raises(error):
            await add(fleet, wanted)
    assert await fleet.world.owner.fetchval("select count(*) from freezes") == 0
    with pytest.raises(NotFoundError):
        await end(fleet, "freeze-abcdefgh", by="user ada")


async def test_an_organisation_neither_sees_nor_ends_another_ones_freeze(fleet: Fleet) -> None:
    made = await add(fleet, BLACK)
    other = await fleet.world.organisation("other")
    async with acting(fleet.desk, "read", organisation=other) as connection:
        assert await freezes.listed(connection, other, now=NOW) == []
        assert await connection.fetch("select * from freezes") == []
        with pytest.raises(NotFoundError):
            await freezes.end(connection, other, made.ref, actor="user ada", now=NOW)
    assert (await freezes.load(fleet.world.owner, other, now=NOW)).spans == ()
