"""A bucket whose coverage a mask lowered says why: over the API, until it is declared false."""

import pytest

from server.health.judgement import Condition
from server.rollup.masks import masks_of
from tests.integration.api_world import NOW, World, utc
from tests.integration.test_health_checks import (
    SLOTS,
    a_shop,
    deny,
    everything_dirty,
    judgement,
    look,
    quarters,
    silence,
)

pytestmark = pytest.mark.services

RANGE = "from=2026-04-01&to=2026-04-03"
COVERAGE = f"/counts?bucket=day&{RANGE}&by=spot&scope=open"


async def test_what_lowers_the_coverage_is_served_with_its_cause(world: World) -> None:
    _, (dead, _) = await a_shop(world)
    assert (await world.get(f"/masks?{RANGE}"))["data"] == []
    await silence(world, dead, utc("2026-04-02T10:30"))
    await look(world)
    [row] = (await world.get(f"/masks?{RANGE}&spot=door-0"))["data"]
    assert row.pop("id") > 0
    assert row == {
        "site": "shop",
        "spot": "door-0",
        "from": "2026-04-02T10:30:00Z",
        "until": None,
        "cause": "flatline",
        "explanation": Condition.FLATLINE.meaning.title,
        "recorded_at": "2026-04-02T12:00:00Z",
    }
    assert (await world.get(f"/masks?{RANGE}&spot=door-1"))["data"] == []
    assert (await world.get("/masks?from=2026-03-01&to=2026-03-05"))["data"] == []
    status, problem = await world.ask(f"/masks?{RANGE}&site=nowhere")
    assert status == 404, problem

    back = utc("2026-04-02T11:30")
    await world.owner.execute("update masks set until_at = $1", back)
    [row] = (await world.get(f"/masks?{RANGE}&site=shop"))["data"]
    assert row["until"] == "2026-04-02T11:30:00Z"


async def test_masks_are_paged_in_order(world: World) -> None:
    _, spots = await a_shop(world)
    for spot in spots:
        await world.owner.execute(
            "insert into masks (organisation_id, spot_id, condition, from_at, until_at, set_at) "
            "select organisation_id, id, 'blocked_view', $2, $3, $3 from spots where id = $1",
            *(spot, utc("2026-04-01T09:00"), utc("2026-04-01T10:00")),
        )
    first = await world.get(f"/masks?{RANGE}&limit=1")
    second = await world.get(f"/masks?{RANGE}&limit=1&cursor={first['next']}")
    assert [page["data"][0]["spot"] for page in (first, second)] == ["door-0", "door-1"]
    assert second["next"] is None


async def test_a_reversed_doors_mask_is_undone_when_it_is_declared_false(world: World) -> None:
    _, (wrong, _) = await a_shop(world)
    since, opened = utc("2026-03-31T22:00"), utc("2026-04-01T08:00")
    whole = (await world.get(COVERAGE))["data"]
    before = await quarters(world, wrong, opened)
    await world.owner.execute(
        "update rollup_15m set in0 = out0, out0 = in0 where spot = $1 and bucket >= $2",
        *(wrong, since),
    )
    await everything_dirty(world)
    await world.derive()
    await look(world)
    [row] = (await world.get(f"/masks?{RANGE}"))["data"]
    assert (row["spot"], row["from"], row["cause"]) == (
        "door-0",
        "2026-04-01T08:00:00Z",
        "reversed",
    )
    assert {each["masked"] for each in await quarters(world, wrong, opened)} == {SLOTS}
    lowered = (await world.get(COVERAGE))["data"]
    assert next(each["coverage"] for each in lowered if each["spot"] == "door-0") == 0

    await deny(world, wrong, Condition.REVERSED)
    await look(world)
    assert await masks_of(world.owner, wrong, since, NOW) == []
    assert (await world.get(f"/masks?{RANGE}"))["data"] == []
    after = await quarters(world, wrong, opened)
    assert all(each["masked"] is None for each in after)
    assert [each["observed"] for each in after] == [each["observed"] for each in before]
    undone = (await world.get(COVERAGE))["data"]
    assert [each["coverage"] for each in undone] == [each["coverage"] for each in whole]
    found = await judgement(world, wrong, Condition.REVERSED)
    assert found["withdrawn_at"] is not None  # the same mornings do not bring it back
