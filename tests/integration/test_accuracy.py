"""Recounts against a real database: what is compared, when, and what it says of a site."""

from datetime import date, datetime, timedelta

import asyncpg
import pytest

from server.db.engine import reading
from server.errors import NotFoundError
from server.fleet import spots
from server.fleet.checks import FieldError
from server.fleet.spots import Calibration
from server.insight import recounts
from server.insight.accuracy import State
from server.insight.recounts import Counted, CountingError
from server.insight.rosters import Staffed, staffed_hours
from tests.integration.api_world import ALL_SLOTS, NOW, World, utc

pytestmark = pytest.mark.services
DAY = date(2026, 4, 2)
FROM = utc("2026-04-01T09:00")


@pytest.fixture
async def counter(world: World) -> tuple[int, int, int]:
    """An organisation, a site and a counter that has counted 90 of each 100 people in."""
    organisation = await world.organisation("own")
    site = await world.site(organisation, "own-site")
    spot = await world.spot(organisation, site, "own-spot")
    for number in range(8):
        await world.quarter(spot, FROM + number * recounts.BLOCK, 90, 45)
    return organisation, site, spot


async def recount(
    world: World, organisation: int, *blocks: tuple[datetime, int, int], by: str = "Ada"
) -> recounts.Recount:
    async with world.owner.transaction():
        return await recounts.add(
            world.owner,
            organisation,
            "own-spot",
            method="manual",
            counted_by=by,
            blocks=[Counted(*block) for block in blocks],
            actor="user ada",
            now=NOW,
        )


async def states(world: World, organisation: int, spot: int, *, day: date = DAY) -> list[State]:
    async with reading(world.api, "test", organisation=organisation) as db:
        return [each.state for each in await recounts.compared(db, [spot], day=day)]


async def error(world: World, organisation: int, site: int, *, day: date = DAY) -> CountingError:
    async with reading(world.api, "test", organisation=organisation) as db:
        return (await recounts.counting_errors(db, [site], day=day))[site]


def four(entered: int = 100, left: int = 50) -> list[tuple[datetime, int, int]]:
    return [(FROM + number * recounts.BLOCK, entered, left) for number in range(4)]


async def test_a_recount_says_by_how_much_a_site_undercounts(
    world: World, counter: tuple[int, int, int]
) -> None:
    organisation, site, _ = counter
    assert await error(world, organisation, site) == recounts.NEVER
    await recount(world, organisation, *four())
    found = await error(world, organisation, site)
    assert found.bias == pytest.approx(-0.1)
    assert 0 < found.relative_se < 0.1
    assert found.audited_on == date(2026, 4, 1)


async def test_a_counter_of_a_site_that_nobody_recounted_leaves_the_site_unknown(
    world: World, counter: tuple[int, int, int]
) -> None:
    organisation, site, _ = counter
    await recount(world, organisation, *four())
    other = await world.spot(organisation, site, "own-side-door")
    await world.quarter(other, FROM, 10)
    await world.derive()
    assert await error(world, organisation, site) == recounts.NEVER


async def test_a_block_is_compared_once_all_of_it_is_stored(
    world: World, counter: tuple[int, int, int]
) -> None:
    organisation, _, spot = counter
    late = FROM + 10 * recounts.BLOCK
    await world.owner.execute("update boots set stored_to = $1", FROM + 9 * recounts.BLOCK)
    await recount(world, organisation, (late, 100, 50))
    assert await states(world, organisation, spot) == [State.WAITING]
    await world.quarter(spot, late, 40, 20, slots=ALL_SLOTS >> 30)
    await world.owner.execute("update boots set stored_to = $1", NOW)
    assert await states(world, organisation, spot) == [State.NOT_WHOLE]
    await world.quarter(spot, late, 50, 25)
    assert await states(world, organisation, spot) == [State.COMPARED]


async def test_a_recount_ends_with_the_device_the_mounting_or_the_calibration(
    world: World, counter: tuple[int, int, int]
) -> None:
    organisation, _, spot = counter
    await recount(world, organisation, (FROM, 100, 50))
    change = FROM + timedelta(hours=12)
    for sql, state in (
        (
            "insert into mountings (organisation_id, spot_id, valid) "
            "values ($1, $2, tstzrange($3, null))",
            State.MOUNTING,
        ),
        (
            "insert into calibrations (organisation_id, spot_id, line, factor, valid) "
            "values ($1, $2, 0, 1.1, tstzrange($3, null))",
            State.CALIBRATION,
        ),
    ):
        assert await states(world, organisation, spot) == [State.COMPARED]
        await world.owner.execute(sql, organisation, spot, change)
        assert await states(world, organisation, spot) == [state]
        await world.owner.execute("delete from mountings")
        await world.owner.execute("delete from calibrations")
    await world.owner.execute(
        "update assignments set valid = tstzrange(null, $2) where spot_id = $1", spot, change
    )
    assert await states(world, organisation, spot) == [State.DEVICE]
    assert await states(world, organisation, spot, day=date(2027, 5, 3)) == [State.TOO_OLD]


async def test_counts_are_compared_as_they_are_read(
    world: World, counter: tuple[int, int, int]
) -> None:
    organisation, site, _ = counter
    await recount(world, organisation, *four(entered=49, left=99))
    async with world.owner.transaction():
        await spots.calibrate(
            world.owner,
            organisation,
            "own-spot",
            Calibration(0, reversed=True, factor=1.1, reason="recounted", since=FROM),
            actor="user ada",
            now=NOW,
        )
    found = await error(world, organisation, site)
    assert found.bias == pytest.approx(45 * 1.1 / 49 - 1)


async def test_the_same_minutes_counted_by_two_are_one_block_of_their_mean(
    world: World, counter: tuple[int, int, int]
) -> None:
    organisation, site, _ = counter
    await recount(world, organisation, *four(entered=80))
    await recount(world, organisation, *four(entered=100), by="Grace")
    assert (await error(world, organisation, site)).bias == pytest.approx(0)


async def test_a_withdrawn_recount_counts_no_more(
    world: World, counter: tuple[int, int, int]
) -> None:
    organisation, site, spot = counter
    made = await recount(world, organisation, *four())
    async with world.owner.transaction():
        await recounts.withdraw(world.owner, organisation, made.ref, actor="user ada", now=NOW)
    assert await error(world, organisation, site) == recounts.NEVER
    assert await states(world, organisation, spot) == []
    with pytest.raises(NotFoundError):
        await recounts.withdraw(world.owner, organisation + 1, made.ref, actor="x", now=NOW)


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ((FROM + timedelta(minutes=1), 1, 1), "blocks[0].from"),
        ((NOW, 1, 1), "blocks[0].from"),
        ((FROM, -1, 1), "blocks[0].in"),
        ((FROM, 1, 5_001), "blocks[0].out"),
    ],
)
async def test_a_block_that_cannot_be_is_refused_by_its_field(
    world: World, counter: tuple[int, int, int], block: tuple[datetime, int, int], field: str
) -> None:
    organisation, _, _ = counter
    with pytest.raises(FieldError) as refused:
        await recount(world, organisation, block)
    assert refused.value.parameter == field
    assert not await world.owner.fetchval("select count(*) from recounts")


async def test_a_signed_off_walk_test_is_a_recount(
    world: World, counter: tuple[int, int, int]
) -> None:
    organisation, site, spot = counter
    await _walked(world.owner, organisation, spot, walked=60, counted=57)
    found = await error(world, organisation, site)
    assert found.bias == pytest.approx(-0.05)
    await world.owner.execute(
        "insert into calibrations (organisation_id, spot_id, line, factor) values ($1, $2, 0, 1.1)",
        *(organisation, spot),
    )
    assert await states(world, organisation, spot) == [State.SCALED]


async def _walked(
    owner: asyncpg.Connection, organisation: int, spot: int, *, walked: int, counted: int
) -> None:
    """A walk test that was signed off, as the technician's pages write it down."""
    user = await owner.fetchval(
        "insert into users (ref, email, name) values ('user-2', 'b@example.com', 'B') returning id"
    )
    begun = int(FROM.timestamp() * 1000)
    way = f'{{"walked": {walked}, "counted": {counted}, "paired": {counted}, "seen": null}}'
    await owner.execute(
        "insert into technician_claims (organisation_id, ref, user_id, device_id, spot_id, since, "
        "expires_at, used_at, walk, signed_off_at, signed_off_by) select $1, 'claim-1', $2, "
        "device_id, spot_id, $4, $4, $4, $5::jsonb, $4, 'Ada' from assignments where spot_id = $3",
        *(organisation, user, spot, FROM),
        f'{{"begun_ms": {begun}, "until_ms": {begun + 600_000}, "taps": [], "result": '
        f'{{"whole": true, "entered": {way}, "left": {way}}}}}',
    )


async def test_rostered_hours_are_each_shifts_part_in_the_range(world: World) -> None:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "own-site")
    bare = await world.site(organisation, "own-bare")
    begin = utc("2026-04-01T08:00")
    await world.owner.executemany(
        "insert into staff_shifts (organisation_id, site_id, shift_ref, starts_at, ends_at) "
        "values ($1, $2, $3, $4, $5)",
        [
            (organisation, site, "a", begin, begin + timedelta(hours=8)),
            (organisation, site, "b", begin + timedelta(hours=4), begin + timedelta(hours=12)),
            (organisation, site, "c", begin - timedelta(hours=4), begin),
        ],
    )
    async with reading(world.api, "test", organisation=organisation) as db:
        found = await staffed_hours(
            db, [site, bare], begin + timedelta(hours=6), begin + timedelta(hours=10)
        )
        assert found == {site: Staffed(6.0, 0)}
        whole = await staffed_hours(db, [site], begin, begin + timedelta(days=1))
        assert whole == {site: Staffed(16.0, 2)}
