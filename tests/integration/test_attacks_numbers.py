"""What who reads or sends numbers could do: make some wrong without a flag, or stop a server."""

import asyncio
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from server.api.keys import create_api_key
from server.db.engine import reading, reading_beside
from server.fleet import sites
from server.fleet.checks import FieldError
from server.insight import estimate
from tests.integration.api_world import World, utc
from tests.integration.metrics_world import query, rows, sell
from tests.integration.opinions_world import derive, press
from tests.integration.people_world import NOW, People
from tests.integration.test_sources import Program, program, sale

__all__ = ["program"]
pytestmark = pytest.mark.services

BEYOND = [
    ("transactions", sale("t", at="0001-01-01T00:00:00+14:00"), "at"),
    ("transactions", sale("t", at="9999-12-31T23:59:59.999999+00:00"), "at"),
    ("transactions", sale("t", at="9999-12-31T23:59:59-14:00"), "at"),
    (
        "rates",
        {"day": "9999-12-31", "base": "DKK", "quote": "SEK", "rate": "1.5", "source": "x"},
        "day",
    ),
    (
        "campaigns",
        {"campaign": "c", "name": "c", "from": "2026-03-01", "to": "9999-12-31",
         "channel": "x", "cost": "1", "currency": "SEK"},
        "to",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "row", "column"), BEYOND)
async def test_a_time_beyond_any_question_is_refused_and_spoils_no_list(
    program: Program, what: str, row: dict[str, object], column: str
) -> None:
    problem = await program.ask("POST", f"/{what}", {what: [row]}, status=422)
    assert (problem["code"], problem["parameter"]) == ("bad_value", f"{what}[0].{column}")
    for path in ("/rates", "/campaigns"):
        assert (await program.ask("GET", path))["data"] == []


async def test_two_who_store_the_same_rows_in_other_orders_at_once_are_both_answered(
    program: Program,
) -> None:
    owner, desk = program.people.owner, program.people.desk
    await program.send("transactions", *(sale(ref) for ref in "ABM"))
    async with owner.transaction():
        await owner.execute("select from transactions where transaction_ref = 'M' for update")
        sending = [
            asyncio.create_task(
                program.send("transactions", *(sale(ref, units=units) for ref in order))
            )
            for units, order in ((5, "AMB"), (6, "BMA"))
        ]
        async with asyncio.timeout(20):
            while await desk.fetchval(_WAITING) < 2:
                pass
    found = await asyncio.gather(*sending)
    assert [answer["replaced"] for answer in found] == [3, 3]


_WAITING = """
    select count(distinct l.pid) from pg_locks l join pg_stat_activity a on a.pid = l.pid
    where not l.granted and a.datname = current_database()
"""


async def test_what_was_sold_in_one_currency_is_never_read_as_another(program: Program) -> None:
    owner, organisation = program.people.owner, program.people.organisations["own"]
    by: dict[str, Any] = {"actor": "user ada", "now": NOW}

    async def trade_in(currency: str) -> str:
        async with owner.transaction():
            known = await sites.find(owner, organisation, "lund")
            wanted = replace(known.facts, currency=currency)
            await sites.edit(owner, organisation, "lund", wanted, seen=None, **by)
            return (await sites.find(owner, organisation, "lund")).facts.currency

    assert await trade_in("EUR") == "EUR"
    assert await trade_in("SEK") == "SEK"
    await program.send("transactions", sale("t", amount="100.00"))
    with pytest.raises(FieldError) as refused:
        await trade_in("EUR")
    assert refused.value.parameter == "currency"
    sold = await program.ask("GET", "/sales?from=2026-03-01&to=2026-04-01&site=lund")
    assert (sold["net_sales"], sold["currency"]) == ("100.00", "SEK")


async def test_sales_against_visits_come_in_pages_and_are_never_cut_short(world: World) -> None:
    organisation = await world.organisation("own")
    for name in ("one", "two", "three"):
        site = await world.site(organisation, name)
        await world.spot(organisation, site, f"{name}-door")
        await sell(world, organisation, site, date(2026, 3, 2), 10, 20)
    asked = "/conversion?from=2026-03-01&to=2026-03-05"
    whole = await world.get(asked)
    assert (len(whole["data"]), whole["next"]) == (12, None)
    assert sum(row["transactions"] for row in whole["data"]) == 6
    for limit in (1, 4, 5, 12):
        paged: list[dict[str, Any]] = []
        path: str | None = f"{asked}&limit={limit}"
        while path is not None:
            page = await world.get(path)
            paged += page["data"]
            path = page["next"] and f"{asked}&limit={limit}&cursor={page['next']}"
        assert paged == whole["data"]


async def test_a_total_of_hours_is_no_longer_than_hours_are(world: World) -> None:
    organisation = await world.organisation("own")
    await world.spot(organisation, await world.site(organisation, "one"), "door")
    asked = {"metrics": ["visits"], "bucket": "total"}
    status, body = await query(world, from_="2010-01-01T00:00", to="2026-01-01T00:00", **asked)
    assert (status, body["code"]) == (422, "range_too_long")
    assert (await query(world, from_="2010-01-01", to="2026-01-01", **asked))[0] == 200
    assert (await query(world, from_="2025-01-01T10:00", to="2025-02-01T10:00", **asked))[0] == 200


async def test_estimates_that_would_take_very_long_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    organisation = await world.organisation("own")
    await world.spot(organisation, await world.site(organisation, "one"), "door")
    monkeypatch.setattr(estimate, "MOST_SITE_DAYS", 3)
    status, body = await world.ask("/estimates?from=2026-03-01&to=2026-03-20&scope=all")
    assert (status, body["code"]) == (422, "range_too_long")
    asked = {"metrics": ["visits"], "from_": "2026-03-01", "to": "2026-03-20"}
    assert (await query(world, **asked, estimates=True))[0] == 422
    assert (await query(world, **asked))[0] == 200


async def test_a_second_connection_that_was_taken_first_is_not_waited_for(world: World) -> None:
    organisation = await world.organisation("own")
    others: list[Any] = []

    class Slow:
        """A connection on which somebody else is quicker."""

        async def fetchval(self, statement: str) -> Any:
            others.extend([await world.api.acquire() for _ in range(3)])
            return await connection.fetchval(statement)

    async with reading(world.api, "first", organisation=organisation) as connection:
        asked: Any = Slow()
        async with reading_beside(world.api, asked, organisation=organisation) as other:
            assert other is None
        for each in others:
            await world.api.release(each)
        async with reading_beside(world.api, connection, organisation=organisation) as other:
            assert other is not None
            assert await other.fetchval("select current_organisation()") == organisation


async def test_what_was_pressed_while_closed_is_of_no_opening_hour(world: World) -> None:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site", hours=(540, 600))
    spot = await world.spot(organisation, site, "kiosk", kind="kiosk")
    await press(world, spot, utc("2026-03-30T07:10"), [(0, 0)])
    await press(world, spot, utc("2026-03-31T02:00"), [(20 * n, 1) for n in range(7)])
    await press(world, spot, utc("2026-03-31T07:10"), [(0, 0), (60, 1)])
    await derive(world)
    rows = (await world.get("/response-rate?from=2026-03-30&to=2026-04-01"))["data"]
    assert [(row["presses"], row["responses"]) for row in rows] == [(1, 1), (2, 2)]


async def test_a_plan_or_recount_beyond_the_calendar_is_refused_by_field(people: People) -> None:
    owner, organisation = people.owner, people.organisations["own"]
    scopes = ("read", "opinions:write", "accuracy:write", "targets:write")
    key = await create_api_key(owner, organisation, "test", scopes=scopes)
    program = Program(people, key)
    await owner.execute(
        "insert into spots (organisation_id, site_id, ref, name, kind) "
        "select organisation_id, id, 'door', 'door', 'counter' from sites where ref = 'own-site'"
    )
    till = await program.ask("POST", "/touchpoints", {"name": "Till"}, status=201)
    plan = {
        "site": "own-site", "touchpoint": till["touchpoint"], "title": "x", "owner": "Bo",
        "due_on": "9999-12-31", "remeasure_on": "9999-12-31",
    }  # fmt: skip
    refused = await program.ask("POST", "/actions", plan, status=422)
    assert refused["parameter"] == "due_on"
    for since in ("2026-03-03T10:00:00", "9999-12-31T23:45:00Z", "0001-01-01T00:00:00+14:00"):
        block = {"from": since, "in": 1, "out": 1}
        body = {"spot": "door", "method": "manual", "counted_by": "Bo", "blocks": [block]}
        refused = await program.ask("POST", "/recounts", body, status=422)
        assert refused["parameter"].startswith("blocks"), refused
    for since, until in (("0001-01-01", "0001-01-02"), ("9999-12-30", "9999-12-31")):
        target = {"site": "own-site", "metric": "visits", "wanted": 1, "from": since, "to": until}
        refused = await program.ask("POST", "/targets", target, status=422)
        assert refused["parameter"] == "from"
    assert (await program.ask("GET", "/targets"))["data"] == []


async def test_pages_of_hours_in_two_zones_have_each_row_once_also_where_they_begin_together(
    world: World,
) -> None:
    organisation = await world.organisation("own")
    for name, zone in (("west", "Europe/Stockholm"), ("east", "Europe/Helsinki")):
        await world.spot(organisation, await world.site(organisation, name, zone=zone), f"{name}-1")
    asked: dict[str, Any] = {
        "metrics": ["visits"], "bucket": "hour", "by": "organisation",
        "from_": "2026-03-29T00:00", "to": "2026-03-29T08:00",
    }  # fmt: skip
    whole = await rows(world, **asked)
    assert len({row["from"] for row in whole}) < len(whole)
    paged: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    for _ in whole:
        status, body = await query(world, **asked, **cursor, limit=1)
        assert status == 200, body
        paged += body["data"]
        cursor = {"cursor": body["next"]}
    assert paged == whole
    assert cursor == {"cursor": None}
