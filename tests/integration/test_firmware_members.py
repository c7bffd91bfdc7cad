"""Why a device waits, read from the database: what is told is what the engine does.

Each case changes rows of a rollout that runs, asks why, lets the device ask the engine, and is
rolled back. The sentences are held by tests/unit/test_firmware_why.py.
"""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from rich.console import Console

from ops import rollout_tables
from ops.services.stack import Stack
from server.errors import NotFoundError
from server.firmware import granting, members, reads
from server.firmware.counts import Judged, Look, Verdict
from server.firmware.granting import Granted, Waits
from server.firmware.watching import take
from server.firmware.waves import State
from server.firmware.why import Reason
from tests.firmware_world import START, World, firmware_world

pytestmark = pytest.mark.services
MINE = "update executions set {} where device_id = $1"
ROLLOUT = "update rollouts set {}"
NEAR = "update executions set state = 'accepted', accepted_at = $2 {} where device_id = $3"
MOVED = NEAR.format(", door_id = null, site_id = null")  # where it was offered it, it is no more
DOORLESS = """
    update spots set door_id = null
    where id = (select spot_id from assignments where device_id = $3)
"""
NOWHERE = "delete from assignments where device_id = $3"
WAVE = "update waves set {}"
GRANTED, NOTHING = "granted", "nothing"
FROZEN = """
    insert into freezes (organisation_id, ref, name, starts_at, ends_at, reason, author, created_at)
    select organisation_id, 'freeze-one', 'Sale', $2, $2 + interval '5 days', 'x', 'x', $2
    from devices where id = $1
"""
REGION = """
    with r as (insert into regions (organisation_id, ref, name)
        select organisation_id, 'region-one', 'North' from devices where id = $1 returning id),
    s as (update sites set region_id = r.id from r)
    update executions set region_id = r.id from r
"""
UNSTARTED = "delete from executions"

CASES: dict[str, tuple[tuple[str, ...], tuple[Reason, ...], str]] = {
    "nothing holds it back": ((), (Reason.NEXT,), GRANTED),
    "its wave has not opened": (
        (MINE.format("wave = 2, pool = 2"),), (Reason.WAVE,), granting.Why.WAVE
    ),
    "paused": (
        (ROLLOUT.format("state = 'paused'"),), (Reason.PAUSED,), granting.Why.NOT_RUNNING
    ),
    "halted": (
        (ROLLOUT.format("state = 'halted'"),), (Reason.HALTED,), granting.Why.NOT_RUNNING
    ),
    "taken back": (
        (ROLLOUT.format("state = 'reverting'"),), (Reason.WITHDRAWN,), granting.Why.NOT_RUNNING
    ),
    "tried again later": (
        (MINE.format("attempt = 2, class = 'network', due_at = $2 + interval '1 h'"),),
        (Reason.RETRY,),
        granting.Why.LATER,
    ),
    "asked to be left alone": (
        (MINE.format("state = 'waiting idle', deferred_at = $2"),), (Reason.DEFERRED,), GRANTED
    ),
    "let an offer lapse": (
        (MINE.format("offered_at = $2, due_at = $2 + interval '1 h'"),),
        (Reason.LAPSED,),
        granting.Why.LATER,
    ),
    "offline, though here as soon as it asks": (
        ("update presences set session = 'lost', session_at = $2 where device_id = $1",),
        (Reason.AWAY,),
        GRANTED,
    ),
    "never connected": (
        ("update presences set session = 'none', session_at = null, heartbeat_at = null "
         "where device_id = $1",),
        (Reason.NEVER_HERE,),
        GRANTED,
    ),
    "the ramp is empty": (
        (ROLLOUT.format("tokens = 0, tokens_at = $2"),), (Reason.RATE,), granting.Why.RATE
    ),
    "too many are under way": (
        (WAVE.format("total = '{\"flying\": 20, \"attempted\": 20}' where number = 1"),),
        (Reason.IN_FLIGHT,),
        granting.Why.IN_FLIGHT,
    ),
    "another at the same door": (
        (NEAR.format(""),), (Reason.DOOR, Reason.SITE), granting.Why.DOOR
    ),
    "another that was put at the same door on its way": (
        (MOVED,), (Reason.DOOR, Reason.SITE), granting.Why.DOOR
    ),
    "another at the same site": (
        (NEAR.format(", door_id = null"), DOORLESS), (Reason.SITE,), granting.Why.SITE
    ),
    "enough in its region": (
        (
            REGION,
            ROLLOUT.format("policy = jsonb_set(policy, '{caps,region}', '1')"),
            NEAR.format(", door_id = null, site_id = null"),
            NOWHERE,
        ),
        (Reason.REGION,),
        granting.Why.REGION,
    ),
    "left out": (
        (MINE.format("state = 'excluded', excluded = 'busy', ended_at = $2"),),
        (Reason.EXCLUDED,),
        NOTHING,
    ),
    "it runs it": (
        (MINE.format("state = 'confirmed', ended_at = $2"),), (Reason.CONFIRMED,), NOTHING
    ),
    "it failed": (
        (MINE.format("state = 'failed', class = 'trust', ended_at = $2"),),
        (Reason.ENDED,),
        NOTHING,
    ),
    "offered": ((MINE.format("state = 'offered', offered_at = $2"),), (Reason.OFFERED,), GRANTED),
    "fetching": ((MINE.format("state = 'downloading'"),), (Reason.FETCHING,), GRANTED),
    "fetched": ((MINE.format("state = 'ready'"),), (Reason.READY,), GRANTED),
    "waiting for nobody": ((MINE.format("state = 'waiting idle'"),), (Reason.IDLE,), GRANTED),
    "installing": ((MINE.format("state = 'installing'"),), (Reason.INSTALLING,), GRANTED),
    "on trial": ((MINE.format("state = 'trial'"),), (Reason.TRIAL,), GRANTED),
    "frozen": ((FROZEN,), (Reason.FROZEN,), granting.Why.SHUT),
    "its window opens at night": (
        (ROLLOUT.format("policy = jsonb_set(policy, '{windows}', '{\"always\": \"clock\"}')"),),
        (Reason.NEXT, Reason.WINDOW),
        GRANTED,
    ),
    "its window opens, but not soon": (
        (
            ROLLOUT.format("policy = jsonb_set(policy, '{windows}', '{\"always\": \"clock\"}')"),
            ROLLOUT.format("policy = jsonb_set(policy, '{ahead_s}', '3600')"),
        ),
        (Reason.WINDOW,),
        granting.Why.SHUT,
    ),
    "its site never closes": (
        (ROLLOUT.format("policy = jsonb_set(policy, '{windows}', '{}')"),),
        (Reason.NO_WINDOW,),
        granting.Why.SHUT,
    ),
    "not approved": (
        (UNSTARTED, ROLLOUT.format("state = 'awaiting approval'")),
        (Reason.NOT_APPROVED,),
        NOTHING,
    ),
    "scheduled": (
        (UNSTARTED, ROLLOUT.format("state = 'scheduled', starts_at = $2 + interval '1 h'")),
        (Reason.SCHEDULED,),
        NOTHING,
    ),
    "left out of the plan": (
        (
            UNSTARTED,
            ROLLOUT.format(
                "state = 'planned', plan = jsonb_build_object('waves', '[]'::jsonb, 'excluded', "
                "jsonb_build_array(jsonb_build_array($1::int, 'already there')))"
            ),
        ),
        (Reason.EXCLUDED,),
        NOTHING,
    ),
    "not in it at all": ((UNSTARTED,), (Reason.NOT_IN_IT,), NOTHING),
}  # fmt: skip


@pytest.fixture
async def world(stack: Stack, database: str) -> AsyncIterator[World]:
    """Two shops with two devices at one door each."""
    async with firmware_world(stack, database) as found:
        await found.fleet(2, each=2)
        yield found


async def test_what_is_told_is_what_the_engine_does(world: World) -> None:
    one, near, *_ = devices = list(world.devices)
    ref = await world.rollout([devices[:2], devices[2:]])
    owner, now = world.owner, world.now
    name = await owner.fetchval("select device from devices where id = $1", one)
    await owner.execute(
        "update executions set state = 'planned', offered_at = null, due_at = $1", now
    )
    await owner.execute("update waves set total = '{}'")
    await owner.execute("update waves set state = case number when 1 then 'open' else state end")
    await owner.execute("update rollouts set tokens = 9, tokens_at = $1", now)
    wrong: list[str] = []
    for case, (changes, expected, granted) in CASES.items():
        undo = owner.transaction()
        await undo.start()
        for sql in changes:
            await owner.execute(*_given(sql, one, now, near))
        found = await members.explain(owner, world.organisation, ref, name, now=now)
        told = tuple(each.reason for each in found.reasons)
        running = await members.of_device(owner, world.organisation, name, now=now)
        by_engine = await granting.grant(owner, one, now=now)
        await undo.rollback()
        done = GRANTED if isinstance(by_engine, Granted) else NOTHING
        done = by_engine.why if isinstance(by_engine, Waits) else done
        if (told, done) != (expected, granted):
            wrong.append(f"{case}: told {told}, and the engine: {done}")
        if running.now is not None and running.now != found:
            wrong.append(f"{case}: its own page says something else")
    assert wrong == []


def _given(sql: str, one: int, now: datetime, near: int) -> tuple[object, ...]:
    """Return a statement with those of its arguments that it names."""
    values = [one, now, near]
    sql = sql.replace("$2 +", "$2::timestamptz +")
    used = [number for number in (1, 2, 3) if f"${number}" in sql]
    for place, number in enumerate(used, 1):
        sql = sql.replace(f"${number}", f"${place}")
    return sql, *(values[number - 1] for number in used)


async def test_what_does_not_exist_has_no_reason(world: World) -> None:
    ref = await world.rollout([list(world.devices)])
    given = world.owner, world.organisation
    for rollout, device in ((ref, "dc-none"), ("rollout-none", "dc-none")):
        with pytest.raises(NotFoundError):
            await members.explain(*given, rollout, device, now=world.now)
    with pytest.raises(NotFoundError):
        await members.of_device(*given, "dc-none", now=world.now)
    with pytest.raises(NotFoundError):
        await reads.position(*given, "rollout-none")


async def test_a_position_changes_with_whatever_is_shown(world: World) -> None:
    ref = await world.rollout([list(world.devices)])
    await world.pass_time(10)
    given = world.owner, world.organisation, ref
    seen = [await reads.position(*given)]
    assert await reads.position(*given) == seen[0]
    for _ in range(3):
        for device in await world.busy():
            await world.step(device)
        seen.append(await reads.position(*given))
    for changed in (
        "update executions set state = case state when 'confirmed' then 'planned' else 'confirmed' "
        "end, ended_at = case state when 'confirmed' then null else '2026-03-02'::timestamptz end",
        'update rollouts set counted = \'{"1": {"verdict": "clear"}}\'',
        'update rollouts set counted = \'{"1": {"verdict": "watching"}}\'',
        "update releases set withdrawn_at = now()",
    ):
        await world.owner.execute(changed)
        seen.append(await reads.position(*given))
    assert len(set(seen)) == len(seen)


async def test_a_site_that_opens_by_the_clock_is_told_when(world: World) -> None:
    ref = await world.rollout([list(world.devices)])
    await world.pass_time(10)
    await world.owner.execute(
        "update rollouts set policy = jsonb_set(policy, '{windows}', '{\"always\": \"clock\"}')"
    )
    found = await reads.one(world.owner, world.organisation, ref, now=world.now)
    window = found.next_window
    assert window is not None
    assert (window.opens, window.sites, window.open_now, window.never) == (
        *(START.replace(hour=2) + timedelta(days=1), 2),
        *(0, 0),
    )


async def test_what_the_counts_guard_saw_last_is_shown_with_its_numbers(world: World) -> None:
    ref = await world.rollout([list(world.devices)])
    row = await world.owner.fetchval("select id from rollouts where ref = $1", ref)
    look = Look(
        3, 0, effect=-0.05, low=-0.08, high=-0.02, p=0.001, spent=0.004, updated=80, control=78
    )
    judged = {
        1: Judged(Verdict.REGRESSED, (look,), {"7": "too few days"}),
        2: Judged(Verdict.UNKNOWN, why="fewer than 5 doors wait"),
    }
    before = await reads.one(world.owner, world.organisation, ref, now=world.now)
    await take(world.owner, row, judged, now=world.now)
    found = await reads.one(world.owner, world.organisation, ref, now=world.now)
    first, second = found.counted
    assert (
        first.wave,
        first.verdict,
        first.effect,
        first.updated,
        first.left_out,
        first.halted,
    ) == (*(1, "regressed", -0.05, 80, 1, True),)
    assert (second.verdict, second.why, second.effect) == (
        *("unknown", "fewer than 5 doors wait", None),
    )
    assert (found.counted_at, found.line.state) == (world.now, State.HALTED)
    assert found.version != before.version  # who has not seen this halt resumes nothing
    console = Console(width=200, markup=False)
    with console.capture() as shown:
        console.print(rollout_tables.one(found, now=world.now))
    assert "updated doors count -5.0% (-8.0% to -2.0%; 80 beside 78, day 3)" in shown.get()
    assert "counts of wave 2" in shown.get()
