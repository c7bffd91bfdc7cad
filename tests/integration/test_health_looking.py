"""A site of however many counters is looked at part by part: as it would be as a whole."""

import tracemalloc
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from server.health import looking
from server.health.checks import Checks
from server.health.judgement import Condition, Judgement, Standing, Subject
from server.health.memory import Memory
from server.rollup.buckets import local
from server.rollup.places import load_sites, load_spots
from tests.integration.api_world import NOW, World
from tests.integration.test_health_checks import CLOSES, OPENS, QUARTER, a_shop, look, silence

pytestmark = pytest.mark.services

NOW_S = int(NOW.timestamp())


class Looked(NamedTuple):
    """What a look at a site comes to: judgements of its counters and of itself, its log ratios."""

    judged: list[Judgement]
    ratios: object


async def looked(world: World, site: int) -> Looked:
    """Look at the last days and the last weeks of a site."""

    async def nothing_known(_subjects: Sequence[Subject]) -> Memory:
        return Memory()

    async with world.maint.acquire() as connection, connection.transaction():
        (place,) = await load_sites(connection, ids=[site])
        spots = await load_spots(connection, kind="counter", sites=[place])
        today = local(place.time_zone, NOW_S).date()
        usual = await looking.learn(connection, place, spots, today=today)
        found = await looking.look(connection, place, spots, usual, now_s=NOW_S)
        await looking.look_at_weeks(connection, found, place, {}, now_s=NOW_S)
        judged = [each async for part, _ in found.judged(nothing_known) for each in part]
        return Looked(judged, found.ratios)


async def test_a_site_in_parts_is_judged_as_it_is_as_a_whole_by_all_of_its_doors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, spots = await a_shop(world, doors=5)
    await silence(world, spots[0], NOW - 6 * QUARTER)
    whole = await looked(world, site)
    monkeypatch.setattr(looking, "PART", 2)
    monkeypatch.setattr(looking, "UNPACKED", 1)
    parts = await looked(world, site)
    assert sorted(parts.judged, key=repr) == sorted(whole.judged, key=repr)
    assert len(whole.judged) == 5 * 6 + 1  # of each door its silence once, by the surer look
    assert parts.ratios == whole.ratios != {}
    (dead,) = [each for each in parts.judged if each.standing is Standing.FIRING]
    assert (dead.condition, dead.subject.row) == (Condition.FLATLINE, spots[0])
    counted = await world.owner.fetchval(
        "select sum(in0 + out0) from rollup_15m where bucket >= $1", NOW - 6 * QUARTER
    )
    assert dead.evidence["others_counted"] == counted  # of the doors in the other parts as well


async def counters(world: World, count: int) -> int:
    """A site of so many counters of which nothing is known yet."""
    organisation = await world.organisation(f"own-{count}")
    site = await world.site(organisation, f"mall-{count}", hours=(OPENS, CLOSES))
    await world.owner.execute(
        "insert into spots (organisation_id, site_id, ref, name, kind) select $1, $2, "
        "'door-' || $3::int || '-' || n, 'Door', 'counter' from generate_series(1, $3::int) n",
        *(organisation, site, count),
    )
    return site


async def test_a_look_at_a_site_of_many_counters_takes_no_more_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "PART", 3)
    monkeypatch.setattr(looking, "UNPACKED", 1)
    few, many = await counters(world, 3), await counters(world, 12)
    peaks = []
    for site in (few, few, many):  # the first of all fills caches
        await world.owner.execute("update health_checks set due_at = 'infinity'")
        await world.owner.execute(
            "update health_checks set due_at = '-infinity' where site_id = $1", site
        )
        tracemalloc.start()
        try:
            assert await Checks(world.maint, world.clock).turn() == 1
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    each = (peaks[2] - peaks[1]) / 9
    assert each < 50_000, peaks  # bytes a counter; its quarters alone would be 100,000


async def test_what_is_kept_of_what_counters_are_used_to_is_bounded_by_their_number(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.health.checks.KEPT", 3)
    for count in (1, 2, 3):
        await counters(world, count)
    checks = await look(world)
    kept = [len(each.usual) for each in checks._usual.values()]
    assert kept == [3]
    assert checks._kept == 3
