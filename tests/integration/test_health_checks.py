"""Faults put into a real database: found, explained, masked to the quarter, and undone again."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from ops.services.stack import Stack
from server.clock import at
from server.errors import ConflictError
from server.health import loading, memory
from server.health.checks import Checks
from server.health.judgement import Condition, Subject, SubjectKind
from server.rollup import masks
from server.rollup.masks import masks_of
from tests.integration.api_world import NOW, World, utc

pytestmark = pytest.mark.services

WEEKS = 4
OPENS, CLOSES = 600, 1200  # local: 8 to 18 UTC in summer, 9 to 19 before 29 March
QUARTER = timedelta(minutes=15)
SLOTS = (1 << 60) - 1


async def a_shop(
    world: World, *, until: datetime = NOW, people: int = 20, doors: int = 2
) -> tuple[int, list[int]]:
    """A shop open from 10 to 20, whose doors have counted alike for weeks; in leads by 1 in 9."""
    organisation = await world.organisation("own")
    site = await world.site(organisation, "shop", hours=(OPENS, CLOSES))
    spots = [await world.spot(organisation, site, f"door-{n}") for n in range(doors)]
    await weeks(world, spots, until=until, people=people)
    return site, spots


async def weeks(world: World, spots: list[int], *, until: datetime = NOW, people: int = 20) -> None:
    """Let doors have counted for weeks."""
    start = (until - timedelta(weeks=WEEKS)).replace(hour=0)
    rows = []
    for number in range((until - start) // QUARTER):
        at = start + number * QUARTER
        if not 6 <= at.hour < 20:
            continue  # at night nobody is looked for
        summer = at >= utc("2026-03-29T01:00")
        minute = (at.hour + (2 if summer else 1)) * 60 + at.minute
        for spot in spots:
            came, went = people_of(minute, people, jitter=(number * 7 + spot * 3) % 5 - 2)
            rows.append((at, SLOTS, spot, came, went, 60))
    columns = ("bucket", "observed", "spot", "in0", "out0", "resolution_s")
    await world.owner.copy_records_to_table("rollup_15m", records=rows, columns=columns)
    await everything_dirty(world)
    await world.derive()


def people_of(minute: int, people: int, *, jitter: int) -> tuple[int, int]:
    if not OPENS <= minute < CLOSES:
        return 0, 0
    came = went = people + jitter
    if minute < OPENS + 30:
        went = came // 3
    if minute >= CLOSES - 30:
        came = went // 3
    return came, went


async def everything_dirty(world: World) -> None:
    await world.owner.execute(
        "insert into rollup_dirty (spots, buckets) "
        "select array_agg(spot), array_agg(bucket) from rollup_15m"
    )


async def look(world: World, *, minutes: int = 0) -> Checks:
    """Let time pass, and the worker look at everything."""
    world.clock.advance(minutes * 60)
    await world.owner.execute("update health_checks set due_at = '-infinity'")
    checks = Checks(world.maint, world.clock)
    while await checks.turn():
        pass
    await world.derive()
    return checks


async def judgement(world: World, spot: int, condition: Condition) -> asyncpg.Record:
    row = await world.owner.fetchrow(
        "select * from judgements where spot_id = $1 and condition = $2", spot, condition.value
    )
    assert row is not None
    return row


async def quarters(world: World, spot: int, since: datetime) -> list[asyncpg.Record]:
    return list(
        await world.owner.fetch(
            "select bucket, observed, masked, revision, in0, out0 from rollup_15m "
            "where spot = $1 and bucket >= $2 order by bucket",
            *(spot, since),
        )
    )


async def coverage(world: World, day: str, spot: str, scope: str = "open") -> Any:
    path = f"/counts?size=day&from={day}&to={day}&by=spot&spot={spot}&scope={scope}"
    status, body = await world.ask(path)
    assert status == 200, body
    return body


async def silence(world: World, spot: int, since: datetime) -> None:
    await world.owner.execute(
        "update rollup_15m set in0 = 0, out0 = 0 where spot = $1 and bucket >= $2", spot, since
    )
    await everything_dirty(world)
    await world.derive()


async def test_a_flat_line_is_found_explained_masked_and_undone(world: World) -> None:
    _, (dead, alive) = await a_shop(world)
    since = utc("2026-04-02T10:30")
    before = await quarters(world, dead, since - timedelta(hours=2))
    day_before = await world.owner.fetchrow(
        "select observed_s, open_observed_s, revision from rollup_day "
        "where spot = $1 and day = '2026-04-02'", dead
    )  # fmt: skip
    await silence(world, dead, since)
    await look(world)

    found = await judgement(world, dead, Condition.FLATLINE)
    assert (found["standing"], found["firing"]) == ("firing", True)
    assert (found["since"], found["affected_from"]) == (since, since)
    evidence = json.loads(found["evidence"])
    assert evidence["silent_s"] == 5_400
    assert evidence["others_counted"] > 200
    assert evidence["chance"] < 1e-6
    assert Condition.FLATLINE.meaning.remedy
    assert (await judgement(world, alive, Condition.FLATLINE))["standing"] == "clear"

    (mask,) = await masks_of(world.owner, dead, since, NOW)
    assert (mask.condition, mask.from_at, mask.until_at) == ("flatline", since, None)
    after = await quarters(world, dead, since - timedelta(hours=2))
    for old, new in zip(before, after, strict=True):
        touched = new["bucket"] >= since
        assert new["masked"] == (SLOTS if touched else None)
        assert new["revision"] == old["revision"] + touched
        assert new["observed"] == old["observed"]
    assert all(row["masked"] is None for row in await quarters(world, alive, since))
    day = await world.owner.fetchrow(
        "select observed_s, open_observed_s, masked_s, revision from rollup_day "
        "where spot = $1 and day = '2026-04-02'", dead
    )  # fmt: skip
    assert day["masked_s"] == 5_400
    assert day["observed_s"] == day_before["observed_s"] - 5_400
    assert day["open_observed_s"] == day_before["open_observed_s"] - 5_400
    assert day["revision"] == day_before["revision"] + 6

    # What comes under the mask is masked as it comes, without another look.
    await world.quarter(dead, NOW, 0)
    await world.derive()
    assert (await quarters(world, dead, NOW))[0]["masked"] == SLOTS

    await deny(world, dead, Condition.FLATLINE)
    await look(world, minutes=15)
    assert await masks_of(world.owner, dead, since, NOW) == []
    assert all(row["masked"] is None for row in await quarters(world, dead, since))
    restored = await world.owner.fetchrow(
        "select observed_s, masked_s, revision from rollup_day "
        "where spot = $1 and day = '2026-04-02'", dead
    )  # fmt: skip
    assert restored["masked_s"] is None
    assert restored["observed_s"] == day_before["observed_s"] + 900
    assert restored["revision"] > day["revision"]
    held = await judgement(world, dead, Condition.FLATLINE)
    assert held["withdrawn_at"] is not None  # the same silence does not bring it back


async def deny(
    world: World, spot: int, condition: Condition, *, by: asyncpg.Connection | None = None
) -> None:
    """Declare false what fires; `by`: who may, the desk's role as a page has it."""
    subject = Subject(SubjectKind.SPOT, spot)
    now = datetime.fromtimestamp(world.clock.now_ms() / 1000, UTC)
    connection = by or world.owner

    async def once(why: str) -> None:
        async with connection.transaction():
            organisation = await world.owner.fetchval("select id from organisations")
            await connection.execute(f"set local app.organisation = '{organisation}'")
            await memory.withdraw(connection, subject, condition, why=why, actor="noc", now=now)

    await once("The door was locked.")
    with pytest.raises(ConflictError):
        await once("again")


async def test_a_counter_that_counts_again_ends_its_mask_there(world: World) -> None:
    _, (dead, _) = await a_shop(world)
    since, back = utc("2026-04-02T09:00"), utc("2026-04-02T11:00")
    await silence(world, dead, since)
    await look(world)
    await world.owner.execute(
        "update rollup_15m set in0 = 21, out0 = 20 where spot = $1 and bucket >= $2", dead, back
    )
    await look(world, minutes=5)
    found = await judgement(world, dead, Condition.FLATLINE)
    assert (found["standing"], found["since"]) == ("clear", back)
    (mask,) = await masks_of(world.owner, dead, since, NOW)
    assert (mask.from_at, mask.until_at) == (since, back)
    for row in await quarters(world, dead, since):
        assert (row["masked"] is None) == (row["bucket"] >= back)


async def test_what_is_missing_neither_ends_a_mask_nor_begins_one(world: World) -> None:
    _, (dead, gone) = await a_shop(world)
    since = utc("2026-04-02T10:30")
    await silence(world, dead, since)
    await look(world)
    await world.owner.execute("delete from rollup_15m where bucket >= $1", utc("2026-03-25T00:00"))
    await look(world, minutes=30)
    found = await judgement(world, dead, Condition.FLATLINE)
    assert (found["standing"], found["firing"], found["since"]) == ("unknown", True, since)
    assert len(await masks_of(world.owner, dead, since, NOW)) == 1
    assert (await judgement(world, gone, Condition.FLATLINE))["firing"] is False
    assert await masks_of(world.owner, gone, since, NOW) == []


async def test_a_closed_day_is_no_flat_line(world: World) -> None:
    site, spots = await a_shop(world)
    organisation = await world.owner.fetchval("select organisation_id from sites")
    await world.owner.execute(
        "insert into opening_exceptions (organisation_id, site_id, day) values ($1, $2, $3)",
        *(organisation, site, utc("2026-04-02T00:00").date()),
    )
    for spot in spots:
        await silence(world, spot, utc("2026-04-02T00:00"))
    await look(world)
    assert await world.owner.fetchval("select count(*) from judgements where firing") == 0


async def test_a_reversed_door_is_found_and_is_right_again_once_it_is_calibrated(
    world: World,
) -> None:
    _, (wrong, right) = await a_shop(world)
    since = utc("2026-03-31T22:00")  # the first of April, local
    await world.owner.execute(
        "update rollup_15m set in0 = out0, out0 = in0 where spot = $1 and bucket >= $2",
        *(wrong, since),
    )
    await everything_dirty(world)
    await world.derive()
    sums = await world.owner.fetchrow("select sum(in0), sum(out0) from rollup_15m")
    await look(world)
    found = await judgement(world, wrong, Condition.REVERSED)
    opened = utc("2026-04-01T08:00")
    assert (found["standing"], found["affected_from"]) == ("firing", opened)
    assert json.loads(found["evidence"])["mornings"] == 2
    assert "reverses" in Condition.REVERSED.meaning.remedy
    masked = [row["bucket"] for row in await quarters(world, wrong, since) if row["masked"]]
    assert masked == [row["bucket"] for row in await quarters(world, wrong, opened)]
    firing = await world.owner.fetch("select spot_id, condition from judgements where firing")
    assert [tuple(row) for row in firing] == [(wrong, "reversed")]
    assert right != wrong
    assert await world.owner.fetchrow("select sum(in0), sum(out0) from rollup_15m") == sums

    await world.owner.execute(
        "insert into calibrations (organisation_id, spot_id, line, valid, reversed) "
        "select organisation_id, id, 0, tstzrange($2, null), true from spots where id = $1",
        *(wrong, since),
    )
    await look(world, minutes=5)
    found = await judgement(world, wrong, Condition.REVERSED)
    assert found["standing"] == "clear"
    assert all(row["masked"] is None for row in await quarters(world, wrong, since))


async def test_a_stuck_button_is_found_within_three_minutes_and_masked(
    world: World, stack: Stack, world_database: str
) -> None:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "shop", hours=(OPENS, CLOSES))
    kiosk = await world.spot(organisation, site, "kiosk", kind="kiosk")
    since = NOW - timedelta(seconds=170)
    await world.owner.executemany(
        "insert into presses (time, questionnaire, spot, boot, seq, digest, visit, question, "
        "answer, source) values ($1, 7, $2, $2, 1, 1, $3, 0, 3, 0)",
        [(since + timedelta(seconds=5 * n), kiosk, n) for n in range(34)],
    )
    bucket = utc("2026-04-02T11:45")
    await world.quarter(kiosk, bucket, 0)
    await look(world)
    found = await judgement(world, kiosk, Condition.STUCK_BUTTON)
    assert (found["standing"], found["affected_from"]) == ("firing", since)
    evidence = json.loads(found["evidence"])
    assert (evidence["button"], evidence["every_s"]) == (3, 5)
    (row,) = await quarters(world, kiosk, bucket)
    assert bin(row["masked"]).count("1") == 12  # slots of 15 s in the last 170 s
    assert row["masked"] >> 48 == (1 << 12) - 1
    device = await world.owner.fetchrow("select due_at from health_checks where device_id notnull")
    assert device["due_at"] == NOW + timedelta(minutes=1)

    desk = await asyncpg.connect(stack.endpoints.dsn("desk", world_database))
    await deny(world, kiosk, Condition.STUCK_BUTTON, by=desk)
    await desk.close()
    await look(world)
    (row,) = await quarters(world, kiosk, bucket)
    assert (row["masked"], row["revision"]) == (None, 2)


async def test_a_device_that_starts_again_and_again_is_found(world: World) -> None:
    _, (spot, _) = await a_shop(world)
    device = await world.owner.fetchval("select device_id from boots where id = $1", spot)
    for minute in range(4):
        await world.owner.execute(
            "insert into boots (id, device_id, boot_id, ordinal, first_seen, last_stored, "
            "stored_to) overriding system value values ($2::int, $1, $2::int, $2::int, $3, $4, $4)",
            *(device, 50 + minute, NOW - timedelta(minutes=10 * minute + 1), NOW),
        )
    await look(world)
    row = await world.owner.fetchrow(
        "select standing, since from judgements where device_id = $1 and condition = 'reboot_loop'",
        device,
    )
    assert tuple(row) == ("firing", NOW - timedelta(minutes=31))


async def test_while_nobody_can_tell_nothing_is_judged(world: World) -> None:
    _, (dead, _) = await a_shop(world)
    await silence(world, dead, utc("2026-04-02T10:00"))
    await world.owner.execute(
        "insert into platform_unknown (since, cause) values ($1, 'behind')", NOW
    )
    await look(world)
    assert await world.owner.fetchval("select count(*) from judgements") == 0


async def test_a_check_that_another_holds_is_left_and_deadlines_are_kept(world: World) -> None:
    site, _ = await a_shop(world)
    checks = Checks(world.maint, world.clock)
    await world.owner.execute("update health_checks set due_at = $1", NOW + timedelta(seconds=1))
    assert await checks.turn() == 0
    world.clock.advance(1)
    async with world.owner.transaction():
        await world.owner.execute("select from health_checks where site_id = $1 for update", site)
        assert await checks.turn() == 2  # its two devices
    assert await checks.turn() == 1
    row = await world.owner.fetchrow("select due_at from health_checks where site_id = $1", site)
    assert row["due_at"] == NOW + timedelta(minutes=5, seconds=1)


async def say(world: World, device: int, values: list[tuple[datetime, str, float]]) -> None:
    """Let a device have said so of itself."""
    await world.owner.executemany(
        "with name as (insert into metric_names (name) values ($2) on conflict (name) do update "
        "set name = excluded.name returning id) insert into device_metrics (time, device, boot, "
        "seq, digest, metric, value) select $1, $3, 1, 1, 1, id, $4 from name",
        [(at, name, device, value) for at, name, value in values],
    )


async def a_device(world: World, spot: int) -> int:
    found: int = await world.owner.fetchval("select device_id from boots where id = $1", spot)
    return found


async def test_absurd_values_of_one_device_hold_up_no_other(world: World) -> None:
    _, (spot, other) = await a_shop(world)
    hostile, hot = await a_device(world, spot), await a_device(world, other)
    ago = [NOW - timedelta(minutes=minutes) for minutes in (100, 70, 40, 20, 5)]
    wild = [-1.7e308, -1.7e308, 1.7e308, 1.7e308, 1.7e308]
    for name in ("outbox.frames", "cpu.celsius", "disk.free", "outbox.trouble"):
        await say(world, hostile, [(at, name, each) for at, each in zip(ago, wild, strict=True)])
    await say(world, hot, [(at, "cpu.celsius", 95.0) for at in ago])
    await look(world)
    sql = "select firing from judgements where device_id = $1 and condition = $2"
    assert await world.owner.fetchval(sql, hot, "temperature") is True
    row = await world.owner.fetchrow("select * from health_checks where device_id = $1", hostile)
    assert row["due_at"] == NOW + timedelta(minutes=10)  # judged, too, and by what can be


async def test_a_check_that_breaks_is_put_off_and_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, spots = await a_shop(world)
    bad, good = [await a_device(world, spot) for spot in spots]
    real = loading.device

    async def broken(connection: asyncpg.Connection, row: int, *rest: Any, **more: Any) -> Any:
        if row == bad:
            await connection.fetchval("select 'nan'::jsonb")
        return await real(connection, row, *rest, **more)

    monkeypatch.setattr(loading, "device", broken)
    await look(world)
    judged = await world.owner.fetch("select distinct device_id from judgements order by 1")
    assert [row[0] for row in judged if row[0] is not None] == [good]
    row = await world.owner.fetchrow("select * from health_checks where device_id = $1", bad)
    assert row["due_at"] == NOW + timedelta(hours=1)


async def test_a_device_that_says_so_a_thousand_times_a_minute_is_judged_by_its_minutes(
    world: World,
) -> None:
    _, (spot, _) = await a_shop(world)
    device = await a_device(world, spot)
    often = [NOW - timedelta(milliseconds=60 * n) for n in range(1, 2_001)]
    await say(world, device, [(at, "outbox.frames", 1.0) for at in often])
    async with world.maint.acquire() as connection:
        told = await loading.device(connection, device, None, now=NOW)
    assert len(told.gauges["outbox.frames"]) <= 3


async def test_no_quarter_that_arrives_while_a_mask_is_made_slips_through(world: World) -> None:
    _, (spot, _) = await a_shop(world)
    bucket = utc("2026-04-02T11:00")
    await world.owner.execute("delete from rollup_15m where bucket >= $1", bucket)
    async with world.maint.acquire() as connection, connection.transaction():
        since = bucket - timedelta(hours=1)
        await masks.begin(connection, spot, "flatline", from_at=since, now=NOW)
        await world.quarter(spot, bucket, 20)
        deriving = asyncio.create_task(world.derive())
        waits = "select exists (select from pg_locks where objid = $1 and not granted)"
        while not (deriving.done() or await world.owner.fetchval(waits, masks.LOCK)):
            pass  # it asks again
    await deriving
    (row,) = await quarters(world, spot, bucket)
    assert row["masked"] == SLOTS


async def test_history_that_arrives_after_the_first_look_is_learnt_from_as_it_does(
    world: World,
) -> None:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "shop", hours=(OPENS, CLOSES))
    dead, alive = [await world.spot(organisation, site, f"door-{n}") for n in (0, 1)]
    await world.owner.execute("update health_checks set due_at = $1", NOW)
    checks = Checks(world.maint, world.clock)
    while await checks.turn():
        pass
    assert (await judgement(world, dead, Condition.FLATLINE))["standing"] == "unknown"
    await weeks(world, [dead, alive])
    await silence(world, dead, NOW - timedelta(hours=2))
    world.clock.advance(300)
    while await checks.turn():
        pass
    assert (await judgement(world, dead, Condition.FLATLINE))["firing"] is True


async def test_a_closed_site_of_which_nothing_arrives_is_left_alone(world: World) -> None:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "shop", hours=(1260, 1320))
    await world.spot(organisation, site, "door")
    await world.owner.execute("update health_checks set due_at = $1", NOW)
    checks = Checks(world.maint, world.clock)
    for minutes in (5, 60, 60):
        before = at(world.clock.now_ms())
        while await checks.turn():
            pass
        sql = "select due_at from health_checks where site_id = $1"
        due = await world.owner.fetchval(sql, site)
        assert due - before == timedelta(minutes=minutes)
        world.clock.advance(60 * minutes)
