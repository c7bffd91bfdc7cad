"""The feed of changes: told once, in order, never past an open transaction, until a restore."""

import asyncio
import random
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from server.api import reads
from server.db.changes import (
    KEPT,
    PURGED,
    AlertNote,
    DatasetChangedError,
    GapNote,
    Kind,
    Place,
    changes_after,
    note_change,
    place_first,
    place_now,
)
from server.db.engine import reading
from server.db.purge import purge
from tests.integration.api_world import NOW, World, utc

pytestmark = pytest.mark.services


async def shop(world: World) -> tuple[int, int, int]:
    """Add an organisation with a site and a counter; return their rows."""
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site")
    return organisation, site, await world.spot(organisation, site, "spot")


async def note(
    connection: asyncpg.Connection, organisation: int, number: int, now: datetime = NOW
) -> None:
    note = GapNote(number, "totals")
    await note_change(connection, Kind.GAP_OPENED, organisation=organisation, detail=note, now=now)


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_skipped_or_told_twice_while_writers_commit_out_of_order(
    world: World, seed: int
) -> None:
    """Writers begin, note, commit and roll back in any order; a reader asks in between."""
    organisation = await world.organisation("own")
    rng = random.Random(seed)
    writers = [await asyncpg.connect(world.dsn_owner) for _ in range(4)]
    open_: dict[int, tuple[Any, list[int]]] = {}
    committed: set[int] = set()
    told: list[int] = []
    number = 0

    async def read(place: Place) -> Place:
        async with reading(world.api, "follow", organisation=organisation) as connection:
            found = await changes_after(
                connection, place, organisation=organisation, limit=rng.randint(1, 5), now=NOW
            )
        for change in found.changes:
            assert isinstance(change.detail, GapNote)
            told.append(change.detail.gap)
        return found.place

    async def end(which: int, *, keep: bool) -> None:
        running, noted = open_.pop(which)
        await (running.commit() if keep else running.rollback())
        committed.update(noted if keep else ())

    async with reading(world.api, "begin", organisation=organisation) as connection:
        place = await place_now(connection, now=NOW)
    for _ in range(150):
        which = rng.randrange(len(writers))
        match rng.choice(("note", "note", "note", "end", "end", "read", "read")):
            case "note":
                if which not in open_:
                    running = writers[which].transaction()
                    await running.start()
                    open_[which] = running, []
                number += 1
                await note(writers[which], organisation, number)
                open_[which][1].append(number)
            case "end" if which in open_:
                await end(which, keep=rng.random() < 0.8)
            case _:
                place = await read(place)
                assert set(told) <= committed
    for which in list(open_):
        await end(which, keep=True)
    while len(told) < len(committed):
        before = len(told)
        place = await read(place)
        assert len(told) > before, f"never told: {committed - set(told)}"
    assert sorted(told) == sorted(committed)
    for writer in writers:
        await writer.close()


async def test_a_cursor_of_before_a_restore_says_to_begin_again(world: World) -> None:
    organisation, _, _ = await shop(world)
    await note(world.owner, organisation, 1)
    first = await world.get("/changes")
    assert [row["gap"]["gap"] for row in first["data"]] == [1]
    await world.owner.execute("update dataset set id = id - 1")
    status, problem = await world.ask(f"/changes?cursor={first['next']}")
    assert (status, problem["code"]) == (410, "dataset_changed")
    anew = await world.get("/changes?start=now")
    await note(world.owner, organisation, 2)
    assert [r["gap"]["gap"] for r in (await world.get("/changes"))["data"]] == [2]
    later = await world.get(f"/changes?cursor={anew['next']}")
    assert [row["gap"]["gap"] for row in later["data"]] == [2]
    async with reading(world.api, "follow", organisation=organisation) as connection:
        place = await place_first(connection, now=NOW)
        with pytest.raises(DatasetChangedError):
            await changes_after(
                connection,
                Place(place.dataset + 1, 0, 0, place.seen_s),
                organisation=organisation,
                limit=1,
                now=NOW,
            )


async def test_late_data_tells_the_day_before_and_after(world: World) -> None:
    organisation, site, spot = await shop(world)
    await world.owner.execute(
        "insert into calibrations (organisation_id, spot_id, line, reversed, factor) "
        "values ($1, $2, 0, true, 1.5)",
        *(organisation, spot),
    )
    await world.quarter(spot, utc("2026-03-03T10:00"), 40, 30)
    await world.derive()
    start = (await world.get("/changes?start=now"))["next"]
    await world.quarter(spot, utc("2026-03-03T10:15"), 2, 2)  # not late: no revision
    await world.derive()
    assert (await world.get(f"/changes?cursor={start}"))["data"] == []
    await world.quarter(spot, utc("2026-03-03T10:00"), 6, 4, revision=1)
    await world.quarter(spot, utc("2026-03-03T11:00"), 1, 0, revision=1)
    await world.derive()
    await world.derive()
    answer = await world.get(f"/changes?cursor={start}")
    (told,) = answer["data"]
    assert (told["kind"], told["site"], told["spot"]) == ("bucket.revised", "site", "spot")
    revised = told["revised"]
    assert revised["day"] == "2026-03-03"
    assert (revised["from"], revised["until"]) == (
        "2026-03-03T10:00:00+00:00",
        "2026-03-03T11:15:00+00:00",
    )
    assert revised["old"] == {"revision": 0, "visits": 48.0, "exits": 63.0, "presses": None}
    asked = "/counts?from=2026-03-03&to=2026-03-04&by=spot"
    now = (await world.get(asked))["data"][0]
    assert revised["new"] == {
        "revision": now["revision"],
        "visits": now["visits"],
        "exits": now["exits"],
        "presses": None,
    }
    assert (now["revision"], now["visits"]) == (1, 54.0)
    assert (await world.get(f"/changes?cursor={answer['next']}"))["data"] == []
    await world.owner.execute("insert into rollup_stale values ($1)", site)
    await world.derive()  # the same numbers, derived anew, are no news
    assert (await world.get(f"/changes?cursor={answer['next']}"))["data"] == []


async def test_gaps_are_told_as_they_open_and_are_filled_whoever_writes_them(
    world: World,
) -> None:
    organisation, _, spot = await shop(world)
    await world.owner.execute(
        "insert into gaps (organisation_id, device_id, boot, spot_id, from_seq, to_seq, from_at, "
        "until_at, reason) select $1, device_id, id, $2, 1, 2, $3, $4, 'thinned' from boots",
        *(organisation, spot, utc("2026-03-03T10:00"), utc("2026-03-03T11:00")),
    )
    await world.owner.execute("update gaps set filled_at = now()")
    await world.owner.execute("update gaps set filled_at = now()")
    told = (await world.get("/changes?kind=gap.opened,gap.filled"))["data"]
    assert [(row["kind"], row["spot"], row["gap"]["reason"]) for row in told] == [
        ("gap.opened", "spot", "thinned"),
        ("gap.filled", "spot", "thinned"),
    ]
    assert (await world.get("/changes?kind=alert.raised"))["data"] == []


async def test_alerts_are_told_as_they_are_raised_and_closed(world: World) -> None:
    organisation, site, spot = await shop(world)
    await world.owner.execute(
        "insert into opinion_alerts (organisation_id, ref, site_id, spot_id, cause, questionnaire, "
        "question, raised_at, since, n, bad, expected, p, false_alarms_per_week, filter_version) "
        "values ($1, 'alert-2345', $2, $3, 'dissatisfaction', 1, 0, $4, $4, 9, 8, 2, 0.001, 1, 1)",
        *(organisation, site, spot, NOW),
    )
    await world.owner.execute(
        "update opinion_alerts set outcome = 'staffed', acknowledged_at = $1, done_at = $1", NOW
    )
    told = (await world.get("/changes"))["data"]
    assert [(row["kind"], row["alert"]["alert"], row["alert"]["outcome"]) for row in told] == [
        ("alert.raised", "alert-2345", ""),
        ("alert.closed", "alert-2345", "staffed"),
    ]


async def test_who_waits_is_told_as_soon_as_it_is_committed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    organisation, _, _ = await shop(world)
    monkeypatch.setattr(reads, "POLL_S", 0.02)
    start = (await world.get("/changes?start=now"))["next"]
    assert (await world.get(f"/changes?cursor={start}&wait=2"))["data"] == []
    asking = asyncio.create_task(world.get(f"/changes?cursor={start}&wait=25"))
    async with world.owner.transaction():
        await note(world.owner, organisation, 7)
        assert (await world.get(f"/changes?cursor={start}"))["data"] == []
    assert [row["gap"]["gap"] for row in (await asking)["data"]] == [7]


async def test_changes_are_anothers_as_if_there_were_none(world: World) -> None:
    organisation, _, _ = await shop(world)
    other = await world.organisation("other")
    await note(world.owner, organisation, 1)
    await note(world.owner, other, 2)
    mine = await world.get("/changes")
    assert [row["gap"]["gap"] for row in mine["data"]] == [1]
    theirs = await world.get(f"/changes?cursor={mine['next']}", organisation="other")
    assert theirs["data"] == []
    async with reading(world.api, "look", organisation=organisation) as connection:
        assert await connection.fetchval("select count(*) from changes") == 1


async def test_a_cursor_that_is_older_than_the_feed_is_refused(world: World) -> None:
    organisation, _, _ = await shop(world)
    await note(world.owner, organisation, 1, NOW - KEPT - timedelta(hours=1))
    await note(world.owner, organisation, 2, NOW - PURGED - timedelta(hours=1))
    await note(world.owner, organisation, 3)
    first = await world.get("/changes")
    assert [row["gap"]["gap"] for row in first["data"]] == [3]
    assert (await purge(world.maint, now=NOW))["changes"] == 1
    world.clock.advance(PURGED.total_seconds())
    status, problem = await world.ask(f"/changes?cursor={first['next']}")
    assert (status, problem["code"]) == (410, "cursor_expired")


@pytest.mark.parametrize("cursor", ["", "x", "WzEsMl0", "WzEsMSwxLC0xXQ", "bnVsbA"])
async def test_what_is_no_cursor_is_refused(world: World, cursor: str) -> None:
    await shop(world)
    status, problem = await world.ask(f"/changes?cursor={cursor}")
    assert (status, problem["code"], problem["parameter"]) == (400, "bad_cursor", "cursor")


async def test_a_change_is_noted_with_its_own_kind_of_detail_only(world: World) -> None:
    organisation, _, _ = await shop(world)
    with pytest.raises(TypeError):
        await note_change(
            world.owner,
            Kind.GAP_OPENED,
            organisation=organisation,
            detail=AlertNote("alert-1", "x", "2026-03-03"),
            now=NOW,
        )
