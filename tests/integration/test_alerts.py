"""Alerts of dissatisfaction: raised of what is pressed just now, and of nothing else."""

import asyncio
import random
from datetime import datetime, timedelta
from typing import Any

import pytest

from server.db.changes import GapNote, Kind, Told, changes_after, note_change, place_now
from server.errors import ConflictError
from server.feedback import alerts, responses
from server.feedback.alerts import Watch
from server.fleet.checks import FieldError
from tests.integration.api_world import NOW, World, utc
from tests.integration.opinions_world import derive, press

pytestmark = pytest.mark.services

SOON = timedelta(minutes=10)


async def learnt(world: World, *, hours: tuple[int, int] | None = (540, 1200)) -> int:
    """A kiosk with four usual weeks: twelve answers each open hour, one in ten of them bad."""
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site", hours=hours)
    spot = await world.spot(organisation, site, "kiosk", kind="kiosk", stored_to=NOW - SOON)
    await world.owner.execute(
        "insert into responses_15m select at, 0, $1, case answer when 0 then 27 else 3 end, "
        "0, 0, 0, 0, 1, 0, answer from generate_series($2::timestamptz - interval '28 days', "
        "$2::timestamptz - interval '1 day', interval '15 minutes') at, unnest(array[0, 3]) answer "
        "where extract(hour from at) between 7 and 17",
        *(spot, utc("2026-04-02T00:00")),
    )
    return spot


async def later(world: World, now: datetime, *, heard: bool = True) -> list[str]:
    """Look at a later time, at which the kiosk has been heard (or not since)."""
    world.clock.advance(now.timestamp() - world.clock.now_ms() / 1000)
    if heard:
        await world.owner.execute("update boots set stored_to = $1", now - timedelta(minutes=1))
    return await watch_of(world).look()


def watch_of(world: World) -> Watch:
    return Watch(world.maint, world.clock)


def bad(count: int, *, seed: int = 1) -> list[tuple[float, int]]:
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += 6 + rng.expovariate(1 / 20)
        found.append((at, 3))
    return found


async def test_an_alert_comes_with_its_evidence_and_one_at_a_time(world: World) -> None:
    spot = await learnt(world)
    assert await watch_of(world).look() == []
    await press(world, spot, NOW - timedelta(minutes=7), bad(12))
    assert len(await later(world, NOW)) == 1
    (alert,) = await alerts.listed(world.owner, 1)
    assert (alert.spot, alert.cause, alert.raised_at) == ("kiosk", "dissatisfaction", NOW)
    assert alert.n == alert.bad >= 3
    assert alert.expected == pytest.approx(alert.n * 0.1, rel=0.05)
    assert alert.p == pytest.approx(0.1**alert.n, rel=0.5)
    assert (alert.false_alarms_per_week, alert.filter_version) == (0.5, 1)
    await press(world, spot, NOW + timedelta(minutes=1), bad(12, seed=2))
    assert await later(world, NOW + timedelta(minutes=8)) == []
    await alerts.take(world.owner, 1, alert.ref, assignee="Ada", actor="user ada", now=NOW + SOON)
    done = await alerts.finish(
        world.owner, 1, alert.ref, outcome="opened a till", actor="user ada", now=NOW + 2 * SOON
    )
    assert (done.minutes_to_take, done.minutes_to_act) == (10, 20)
    assert await later(world, NOW + 2 * SOON) == []  # what was before its end is dealt with
    await press(world, spot, NOW + timedelta(minutes=21), bad(12, seed=3))
    assert len(await later(world, NOW + timedelta(minutes=29))) == 1
    audited = await world.owner.fetch(
        "select act from audit where act like 'alert %' order by number"
    )
    assert [row["act"] for row in audited] == [
        "alert raised", "alert taken", "alert done", "alert raised",
    ]  # fmt: skip


async def test_good_answers_a_stuck_button_and_children_raise_nothing(world: World) -> None:
    spot = await learnt(world)
    await watch_of(world).look()
    start = NOW - timedelta(minutes=9)
    await press(world, spot, start, [(s, 0) for s, _ in bad(10)])
    await press(world, spot, start + timedelta(minutes=4), [(n * 6.0, 3) for n in range(12)])
    for n in range(4):
        await press(
            world, spot, start + timedelta(minutes=6, seconds=25 * n), [(a, a) for a in range(4)]
        )
    assert await later(world, NOW) == []


async def test_what_comes_late_raises_nothing_nor_ends_anything(world: World) -> None:
    spot = await learnt(world)
    await watch_of(world).look()
    quiet = NOW + timedelta(hours=2)  # the kiosk is cut off, and people go on pressing
    assert await later(world, quiet, heard=False) == []
    await press(world, spot, NOW + timedelta(minutes=5), bad(60))
    await press(world, spot, quiet - timedelta(minutes=7), bad(4))
    assert await later(world, quiet) == []  # back, with all of it at once
    assert await later(world, quiet + timedelta(minutes=1)) == []
    await press(world, spot, quiet + timedelta(minutes=2), bad(12, seed=5))
    (ref,) = await later(world, quiet + timedelta(minutes=9))
    for hour in range(3, 30):
        assert await later(world, NOW + timedelta(hours=hour), heard=False) == []
    assert (await alerts.find(world.owner, 1, ref)).done_at is None


async def test_a_server_that_was_away_does_not_raise_what_is_over(world: World) -> None:
    spot = await learnt(world)
    await watch_of(world).look()
    await press(world, spot, NOW + timedelta(minutes=5), bad(30))
    assert await later(world, NOW + timedelta(hours=1)) == []


async def test_a_closed_shop_raises_none(world: World) -> None:
    spot = await learnt(world, hours=(540, 840))  # closes at 14:00, which is NOW
    await later(world, NOW - SOON)
    await press(world, spot, NOW - timedelta(minutes=7), bad(12))
    assert await later(world, NOW) == []
    await world.owner.execute("update opening_hours set closes = 900")
    assert len(await later(world, NOW)) == 1


async def test_a_kiosk_without_a_history_has_no_usual_and_no_alert(world: World) -> None:
    spot = await learnt(world)
    await world.owner.execute("delete from responses_15m")
    await watch_of(world).look()
    await press(world, spot, NOW - timedelta(minutes=7), bad(12))
    await derive(world)
    assert await later(world, NOW) == []


async def test_a_bolder_setting_hears_more(world: World) -> None:
    spot = await learnt(world)
    await watch_of(world).look()
    await press(world, spot, NOW - timedelta(minutes=7), bad(6))
    assert await later(world, NOW) == []
    with pytest.raises(FieldError):
        await alerts.allow_false_alarms(world.owner, 1, 21, actor="command", now=NOW)
    await alerts.allow_false_alarms(world.owner, 1, 20, actor="command", now=NOW)
    assert len(await later(world, NOW)) == 1
    (alert,) = await alerts.listed(world.owner, 1, open_only=True)
    assert alert.false_alarms_per_week == 20


async def test_two_servers_that_look_at_once_raise_one_alert(world: World) -> None:
    spot = await learnt(world)
    await watch_of(world).look()
    await press(world, spot, NOW - timedelta(minutes=7), bad(12))
    found = await asyncio.gather(watch_of(world).look(), watch_of(world).look())
    assert sorted(map(len, found)) == [0, 1]
    assert await world.owner.fetchval("select count(*) from audit where act = 'alert raised'") == 1


async def test_looking_at_kiosks_does_not_hold_the_feed_of_changes_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot = await learnt(world)
    await watch_of(world).look()
    await press(world, spot, NOW - timedelta(minutes=7), bad(12))
    begun = await place_now(world.owner, now=NOW)
    seen: list[Told] = []

    async def meanwhile(*asked: Any) -> list[responses.Judged]:
        note = GapNote(1, "rotted")
        await note_change(
            world.owner, Kind.GAP_OPENED, organisation=1, spot=spot, detail=note, now=NOW
        )
        seen.append(await changes_after(world.owner, begun, organisation=1, limit=9, now=NOW))
        return await responses.judged(*asked)

    monkeypatch.setattr(alerts, "judged", meanwhile)
    assert len(await later(world, NOW)) == 1
    [told] = seen
    assert [change.kind for change in told.changes] == [Kind.GAP_OPENED]


async def test_a_look_that_was_cut_short_counts_as_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot = await learnt(world)
    await watch_of(world).look()
    looked = await world.owner.fetchval("select looked_at from alarm_watch")
    await press(world, spot, NOW - timedelta(minutes=7), bad(12))

    async def away(*_: Any) -> list[responses.Judged]:
        raise ConnectionResetError

    with monkeypatch.context() as patched:
        patched.setattr(alerts, "judged", away)
        with pytest.raises(ConnectionResetError):
            await later(world, NOW + timedelta(minutes=2))
    assert await world.owner.fetchval("select looked_at from alarm_watch") == looked
    assert len(await later(world, NOW + timedelta(minutes=3))) == 1


async def test_an_alert_is_done_once_by_who_took_it(world: World) -> None:
    spot = await learnt(world)
    await watch_of(world).look()
    await press(world, spot, NOW - timedelta(minutes=7), bad(12))
    (ref,) = await later(world, NOW)
    with pytest.raises(ConflictError, match="nobody"):
        await alerts.finish(world.owner, 1, ref, outcome="x", actor="user ada", now=NOW)
    await alerts.take(world.owner, 1, ref, assignee="Ada", actor="user ada", now=NOW)
    with pytest.raises(FieldError):
        await alerts.finish(world.owner, 1, ref, outcome=" ", actor="user ada", now=NOW)
    await alerts.finish(world.owner, 1, ref, outcome="x", actor="user ada", now=NOW)
    for again in (
        alerts.finish(world.owner, 1, ref, outcome="y", actor="user ada", now=NOW),
        alerts.take(world.owner, 1, ref, assignee="Bo", actor="user bo", now=NOW),
    ):
        with pytest.raises(ConflictError, match="done"):
            await again
