"""KPIs through the API: rolled up as ratios of sums, compared like for like."""

from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from math import exp, log, sqrt
from typing import Any

import pytest

from server.db.engine import reading
from server.insight import recounts
from server.rollup.opening import Opening
from server.rollup.perimeter import Counter, outermost
from server.rollup.places import Site, Spot, calendar_of
from tests.integration.api_world import World, utc
from tests.integration.metrics_world import (
    TEN,
    ZONE,
    Quarters,
    chain,
    hour,
    mall,
    quarters_of,
    query,
    rows,
    sell,
    stay,
    store,
)
from tests.integration.opinions_world import derive, press

pytestmark = pytest.mark.services


async def test_nobody_is_counted_twice_on_the_way_in(world: World) -> None:
    """Doors side by side add up, of doors in series the outermost counts, others do not."""
    _, _, spots = await mall(world)
    for number, spot in enumerate(spots.values()):
        await hour(world, spot, date(2026, 3, 4), 10**number, 0, 0, 0, left=1)
    await world.derive()
    asked = {"from_": "2026-03-04", "to": "2026-03-05", "scope": "open"}
    found = await rows(world, metrics=["visits", "turn_in_of_all", "turn_in_passers_only"], **asked)
    visits = 1 + 100 + 10**5  # outer, side, and the porch behind a door without a counter
    assert found[0]["value"] == visits
    assert found[0]["coverage"] == 1
    assert found[1]["denominator"] == 10**3 + 4  # in and out of the passage
    assert found[2]["value"] == pytest.approx(visits / (visits + 10**3 + 4), abs=1e-6)


def test_of_doors_in_series_the_outermost_that_counts_is_taken() -> None:
    shop = Site(1, "a", "a", "Europe/Oslo", "NOK", calendar_of("Europe/Oslo", Opening()))

    def counter(number: int, door: int | None, **more: Any) -> Counter:
        return Counter(Spot(number, str(number), "", "counter", shop), door, **more)

    behind = {2: 1, 3: 2, 5: 4, 4: None, 1: None}
    everywhere = [counter(n, n) for n in (1, 2, 3, 5)] + [counter(9, None)]
    assert [c.door for c in outermost(everywhere, behind)] == [1, 5, None]
    no_device = [counter(1, 1, counted=False), counter(2, 2), counter(3, 3)]
    assert [c.door for c in outermost(no_device, behind)] == [2]
    inside = [counter(1, 1, purpose="zone"), counter(2, 2, purpose="exit")]
    assert [c.door for c in outermost(inside, behind)] == [2]
    assert outermost(everywhere, {1: 2, 2: 1}) == tuple(everywhere[2:])  # a circle ends


async def test_rolled_up_rows_are_ratios_of_sums(world: World) -> None:
    """Against a slow plain way, from the rows by site and day."""
    await chain(world)
    kpis = ["visits", "transactions", "net_sales", "conversion", "atv", "upt", "spv", "returns"]
    asked = {"metrics": kpis, "from_": "2026-03-02", "to": "2026-03-12", "scope": "open"}
    by_site = await rows(world, **asked)
    assert len(by_site) == 4 * 10 * len(kpis)
    region = {f"shop-{n}": f"region-{n % 2}" if n < 3 else None for n in range(4)}
    for by, bucket in (
        ("site", "week"), ("site", "month"), ("site", "total"), ("region", "day"),
        ("region", "week"), ("organisation", "day"), ("organisation", "total"),
    ):  # fmt: skip
        sums: dict[tuple[Any, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        days: dict[tuple[str, str], dict[str, float | None]] = defaultdict(dict)
        for row in by_site:
            days[row["site"], row["local"]][row["metric"].split(".")[0]] = row["value"]
        for (site, day), value in days.items():
            place = {"site": site, "region": region[site], "organisation": None}[by]
            at = date.fromisoformat(day).isocalendar()
            label = {
                "day": day,
                "week": f"{at.year}-W{at.week:02}",
                "month": day[:7],
                "total": "2026-03-02/2026-03-11",
            }[bucket]
            into = sums[place, label]
            seen = value["visits"] is not None
            into["visits"] += value["visits"] or 0
            for name in ("transactions", "net_sales", "returns"):
                into[name] += value[name] or 0
            if seen:
                into["matched"] += value["transactions"] or 0
                into["net"] += value["net_sales"] or 0
        found = await rows(world, **{**asked, "by": by, "bucket": bucket})
        assert len(found) == len(sums) * len(kpis)
        for row in found:
            into = sums[row[by] if by != "organisation" else None, row["local"]]
            where = by, bucket, row["local"], row["metric"]
            sold = into["transactions"]
            if "no_tills" in row["flags"]:
                assert row["site"] == "shop-2", where
                continue
            wanted = {
                "visits": into["visits"] or None,
                "transactions": sold,
                "net_sales": into["net_sales"],
                "returns": into["returns"],
                "conversion": into["matched"] / into["visits"] if into["visits"] else None,
                "spv": into["net"] / into["visits"] if into["visits"] else None,
                "atv": into["net_sales"] / sold if sold else None,
                "upt": 2.0 if sold else None,
            }[row["metric"].split(".")[0]]
            if wanted is None:
                assert row["value"] is None, where
                assert row["flags"], where
            else:
                assert row["value"] == pytest.approx(wanted, abs=2e-6), where


async def test_sales_against_visits_are_the_kpis_of_the_same_names(world: World) -> None:
    await chain(world)
    span = {"from_": "2026-03-02", "to": "2026-03-12"}
    sold = ["conversion", "atv", "upt", "spv", "visits"]
    summed = ["transactions", "net_sales", "units", "returns", "pickups"]
    found: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for row in await rows(world, metrics=[*sold, *summed], **span):
        found[row["site"], row["local"]][row["metric"].split(".")[0]] = row
    known = (await world.get("/conversion?from=2026-03-02&to=2026-03-12"))["data"]
    assert [(row["site"], row["local"]) for row in known] == list(found)
    for row in known:
        kpis = found[row["site"], row["local"]]
        for name in sold:
            assert row[name] == pytest.approx(kpis[name]["value"], abs=1e-6), (row, name)
        for name in summed:
            assert row[name] == (kpis[name]["value"] or 0), (row, name)
        rate = kpis["conversion"]
        assert row["flags"] == rate["flags"]
        for name, end in (("conversion_low", "low"), ("conversion_high", "high")):
            assert row[name] == pytest.approx(rate[end], abs=1e-6)
        for name in ("from", "until", "state", "revision", "coverage"):
            assert row[name] == rate[name], (row, name)
    assert {row["site"] for row in known if "no_tills" in row["flags"]} == {"shop-2"}
    assert any(row["conversion"] for row in known)


async def test_what_is_missing_is_null_and_said(world: World) -> None:
    await chain(world)
    asked = {"from_": "2026-03-05", "to": "2026-03-06", "scope": "open"}
    kpis = ["visits", "conversion", "transactions", "csat", "visit_frequency", "net_sales"]
    found = await rows(world, metrics=kpis, sites=["shop-1"], **asked)
    assert [row["value"] for row in found] == [None, None, 4, None, None, 96.0]
    assert [row["flags"] for row in found] == [
        ["not_measured"], ["visits_missing"], [], ["no_answers"],
        ["not_identifiable_from_doors"], [],
    ]  # fmt: skip
    assert found[0]["coverage"] == 0
    [both] = await rows(world, metrics=["visits"], by="organisation", **asked)
    assert both["coverage"] == 0.75
    assert set(both["flags"]) == {"partly_missing", "partial_coverage", "never_audited"}
    assert (both["low"], both["estimated"]) == (None, None)
    [tills] = await rows(world, metrics=["transactions"], sites=["shop-2"], **asked)
    assert (tills["value"], tills["flags"]) == (None, ["no_tills"])


async def test_days_of_23_and_25_hours_add_up(world: World) -> None:
    own = await world.organisation("own")
    site = await world.site(own, "shop")
    spot = await world.spot(own, site, "door")
    for day in ("2025-10-26", "2026-03-29"):
        start = datetime.fromisoformat(day).replace(tzinfo=ZONE)
        first, last = ((start + timedelta(days=n)).astimezone(UTC) for n in (0, 1))
        count = int((last - first) / timedelta(minutes=15))
        await store(world, spot, [(first + timedelta(minutes=15 * n), 2, 0) for n in range(count)])
    await world.derive()
    for day, following, hours in (
        ("2025-10-26", "2025-10-27", 25),
        ("2026-03-29", "2026-03-30", 23),
    ):
        asked = {"metrics": ["visits"], "from_": day, "to": following}
        by_hour = await rows(world, bucket="hour", **asked)
        assert len(by_hour) == hours
        assert sum(row["fold"] for row in by_hour) == (hours == 25)
        [by_day] = await rows(world, bucket="day", **asked)
        assert by_day["value"] == sum(row["value"] for row in by_hour) == 8 * hours
        [total] = await rows(world, **{**asked, "from_": f"{day}T00:00"}, bucket="total")
        assert (total["value"], total["coverage"]) == (8 * hours, 1)


async def test_an_hours_sales_are_of_those_who_came_before(world: World) -> None:
    own = await world.organisation("own")
    site = await world.site(own, "shop")
    spot = await world.spot(own, site, "door")
    day = date(2026, 3, 4)
    for at in (9, 10, 11):
        await hour(world, spot, day, 25, 25, 25, 25, at=at)
    await hour(world, spot, day, 0, 0, 0, 0, at=12)
    await sell(world, own, site, day, *[10.0] * 5, at=12)
    await world.derive()
    found = await rows(
        world, metrics=["conversion"], bucket="hour", from_="2026-03-04T10:00",
        to="2026-03-04T13:00",
    )  # fmt: skip
    assert "dwell_assumed" in found[0]["flags"]
    assert found[1]["denominator"] == pytest.approx(found[0]["denominator"], rel=0.05)
    assert 5 < found[2]["denominator"] < 60  # who came before twelve and is still there
    assert found[2]["value"] == pytest.approx(5 / found[2]["denominator"], abs=1e-5)


async def test_a_year_is_compared_by_weekday_and_holiday(world: World) -> None:
    own = await world.organisation("own")
    days = {
        date(2026, 3, 4): 40, date(2025, 3, 5): 20,  # a Wednesday of week 10
        date(2026, 4, 3): 8, date(2025, 4, 18): 4, date(2025, 4, 4): 100,  # Good Friday
        date(2026, 4, 17): 9, date(2025, 4, 11): 3,  # a Friday, and no holiday
    }  # fmt: skip
    for name, opens_on in (("old", None), ("new", date(2025, 9, 1)), ("swapped", None)):
        site = await world.site(own, name, hours=TEN)
        await world.owner.execute("update sites set opens_on = $2 where id = $1", site, opens_on)
        spot = await world.spot(own, site, f"{name}-door")
        for day, count in days.items():
            if opens_on is None or day > opens_on:
                await hour(world, spot, day, count, 0, 0, 0)
        if name == "swapped":
            await world.spot(own, site, "second", assigned=utc("2025-12-01"))
    await world.derive()
    world.clock.advance(20 * 86_400)  # to the 22nd of April
    asked: dict[str, Any] = {"metrics": ["visits"], "compare": "last_year", "scope": "open"}
    march = await rows(world, from_="2026-03-04", to="2026-03-05", **asked)
    assert [(r["site"], r["value"], r["compared"], r["change"]) for r in march] == [
        ("new", 40, None, None),
        ("old", 40, 20, 1.0),
        ("swapped", 40, 20, 1.0),
    ]
    assert march[1]["compared_local"] == "2025-03-05"
    assert march[1]["flags"] == ["never_audited"]
    assert {"doors_changed", "low_coverage"} <= set(march[2]["flags"])
    [good_friday] = await rows(world, from_="2026-04-03", to="2026-04-04", sites=["old"], **asked)
    assert (good_friday["value"], good_friday["compared"]) == (8, 4)
    assert good_friday["compared_local"] == "2025-04-18"
    asked["sites"] = ["old"]
    [moved] = await rows(world, from_="2026-04-17", to="2026-04-18", **asked)
    assert (moved["compared_local"], moved["change"]) == ("2025-04-11", 2.0)
    assert moved["flags"] == ["never_audited", "moved"]
    [week] = await rows(world, from_="2026-04-13", to="2026-04-19", bucket="week", **asked)
    assert (week["compared_local"], week["value"], week["compared"]) == (
        "2025-04-11/2025-04-17", 9, 3,
    )  # fmt: skip
    del asked["sites"]
    [all_] = await rows(world, from_="2026-03-04", to="2026-03-05", by="organisation", **asked)
    assert (all_["value"], all_["compared"], all_["compared_sites"]) == (120, 20, 1)
    assert (all_["difference"], all_["change"]) == (20, 1.0)  # of comparable sites, both


async def test_sales_are_compared_alike_whatever_is_asked_beside_them(world: World) -> None:
    """Of a site whose doors changed, or that nobody counted, the tills are comparable."""
    own = await world.organisation("own")
    for name in ("blind", "counted", "swapped"):
        site = await world.site(own, name, hours=TEN)
        spot = await world.spot(own, site, f"{name}-door")
        for day, sold in ((date(2026, 3, 4), 3), (date(2025, 3, 5), 2)):
            if name != "blind":
                await hour(world, spot, day, 40, 40, 40, 40)
            await sell(world, own, site, day, *[100.0] * sold)
        if name == "swapped":
            await world.spot(own, site, "second", assigned=utc("2025-12-01"))
    await world.derive()
    asked: dict[str, Any] = {
        "from_": "2026-03-04", "to": "2026-03-05", "compare": "last_year", "scope": "open",
    }  # fmt: skip
    kpis = ["net_sales", "atv", "transactions"]
    for by, sums in (("site", [300, 200, 1]), ("organisation", [900, 600, 3])):
        alone = await rows(world, metrics=kpis, by=by, **asked)
        sales = alone[0]
        assert [sales["value"], sales["compared"], sales["compared_sites"]] == sums
        assert (sales["change"], sales["flags"]) == (0.5, [])
        beside = await rows(world, metrics=[*kpis, "visits"], by=by, **asked)
        said = ("value", "flags", "compared", "compared_sites", "change")
        assert [
            {name: row[name] for name in said} for row in beside if row["metric"] != "visits.v1"
        ] == [{name: row[name] for name in said} for row in alone]
        visits = [row for row in beside if row["metric"] == "visits.v1"]
        if by == "site":
            assert "low_coverage" in visits[0]["flags"]
            assert {"doors_changed", "low_coverage"} <= set(visits[2]["flags"])
        else:
            assert (visits[0]["compared"], visits[0]["compared_sites"]) == (160, 1)


async def test_the_peak_is_within_opening_hours(world: World) -> None:
    own = await world.organisation("own")
    site = await world.site(own, "shop", hours=(600, 780))
    spot = await world.spot(own, site, "door")
    day = date(2026, 3, 4)
    await hour(world, spot, day, 900, 900, 900, 900, at=9)  # before it opens
    await hour(world, spot, day, 1, 5, 9, 9, 9, 9, 5, 1, 0, 0, 0, 0)
    await world.derive()
    asked = {"metrics": ["peak_hour"], "from_": "2026-03-04"}
    [found] = await rows(world, to="2026-03-05", **asked)
    assert (found["value"], found["at"]) == (36, "2026-03-04T10:30+01:00")
    status, body = await query(world, to="2026-03-05", by="region", **asked)
    assert (status, body["code"], body["parameter"]) == (422, "not_answerable", "metrics")
    status, body = await query(world, to="2026-03-05", bucket="hour", **asked)
    assert (status, body["code"]) == (422, "not_answerable")


async def test_feedback_and_response_rate(world: World) -> None:
    own = await world.organisation("own")
    site = await world.site(own, "shop", hours=TEN)
    spots = [await world.spot(own, site, ref) for ref in ("counter", "elsewhere")]
    for spot in spots:
        await hour(world, spot, date(2026, 3, 4), 60, 60, 60, 60, left=50)
    kiosk = await world.spot(own, site, "kiosk", kind="kiosk")
    await world.owner.execute(
        "with door as (insert into doors (organisation_id, site_id, ref, name) "
        "values ($1, $2, 'd', 'd') returning id) "
        "update spots set door_id = door.id from door where spots.id = any($3)",
        *(own, site, [kiosk, spots[0]]),
    )
    touches = [(60.0 * n, 0 if n < 8 else 3) for n in range(10)]
    await press(world, kiosk, utc("2026-03-04T09:00"), [*touches, (540.5, 3)])
    await derive(world)
    kpis = ["smiley4_index", "response_rate", "csat"]
    asked = {"from_": "2026-03-04", "to": "2026-03-05", "scope": "open"}
    for by in ("site", "organisation"):
        smileys, rate, csat = await rows(world, metrics=kpis, by=by, **asked)
        known = await world.get("/feedback?from=2026-03-04&to=2026-03-05&scope=open&basis=filtered")
        assert smileys["value"] == known["data"][0]["index"] == 80
        assert smileys["low"] == pytest.approx(known["data"][0]["low"], abs=1e-3)
        assert smileys["flags"] == ["interval_only"]
        assert (rate["numerator"], rate["denominator"], rate["value"]) == (10, 200, 0.05)
        assert csat["flags"] == ["no_answers"]


async def test_staff_are_of_the_roster_and_shifts_past_midnight_are_split(world: World) -> None:
    own = await world.organisation("own")
    for name in ("shop", "without"):
        site = await world.site(own, name, hours=TEN)
        spot = await world.spot(own, site, f"{name}-door")
        await hour(world, spot, date(2026, 3, 4), 30, 30, 30, 30)
    for ref, start, end in (
        ("a", "2026-03-04T09:00", "2026-03-04T11:00"),
        ("b", "2026-03-04T22:00", "2026-03-05T03:00"),  # midnight is at 23 UTC
        ("c", "2026-03-05T09:00", "2026-03-05T10:00"),
    ):
        await world.owner.execute(
            "insert into staff_shifts (organisation_id, site_id, shift_ref, starts_at, ends_at) "
            "values ($1, 1, $2, $3, $4)",
            *(own, ref, utc(start), utc(end)),
        )
    await world.derive()
    kpis = ["shopper_to_staff", "staff_estimated", "visits_net"]
    asked = {"from_": "2026-03-04", "to": "2026-03-06", "scope": "open"}
    found = await rows(world, metrics=kpis, sites=["shop"], **asked)
    assert [row["value"] for row in found] == [40, 12, 108, None, 6, None]
    assert [row["denominator"] for row in found[::3]] == [3, None]
    without = await rows(world, metrics=kpis, sites=["without"], **asked)
    assert {row["flags"][0] for row in without} == {"no_roster", "not_measured"}
    hours = await rows(
        world, metrics=["shopper_to_staff"], bucket="hour", sites=["shop"],
        from_="2026-03-04T10:00", to="2026-03-04T11:00",
    )  # fmt: skip
    assert [row["value"] for row in hours] == [120]


async def test_recounts_give_visits_and_conversion_their_interval(world: World) -> None:
    own = await world.organisation("own")
    site = await world.site(own, "shop", hours=TEN)
    spot = await world.spot(own, site, "door")
    await hour(world, spot, date(2026, 3, 4), 90, 90, 90, 90, left=90)
    await sell(world, own, site, date(2026, 3, 4), *[10.0] * 20)
    await world.derive()
    asked: dict[str, Any] = {
        "metrics": ["visits", "conversion"],
        "from_": "2026-03-04",
        "to": "2026-03-05",
        "scope": "open",
    }
    before = await rows(world, **asked)
    assert [row["flags"] for row in before] == [["never_audited"]] * 2
    blocks = [
        recounts.Counted(utc("2026-03-04T09:00") + n * recounts.BLOCK, 100, 90) for n in range(4)
    ]
    async with world.owner.transaction():
        await recounts.add(
            world.owner, own, "door", method="video", counted_by="Ada", blocks=blocks,
            actor="user ada", now=utc("2026-03-05T09:00"),
        )  # fmt: skip
    async with reading(world.api, "test", organisation=own) as connection:
        error = (await recounts.counting_errors(connection, [site], day=date(2026, 3, 5)))[site]
    visits, conversion = await rows(world, **asked)
    relative = sqrt(error.relative_se**2 + log(1 + error.bias) ** 2)
    assert (visits["value"], visits["flags"]) == (360, [])
    assert visits["high"] == pytest.approx(360 * exp(1.959964 * relative), rel=1e-5)
    c = 20 / 360
    half = 1.959964 * sqrt((1 - c) / 20 + relative**2)
    assert conversion["low"] == pytest.approx(c * exp(-half), rel=1e-4)
    assert conversion["low"] < before[1]["low"]


async def test_a_counter_that_counted_nobody_in_its_recount_is_said_to_have(world: World) -> None:
    """A hundred people went by a blocked lens: no factor leads from what it counts to them."""
    own = await world.organisation("own")
    for name, seen in (("blind", 0), ("good", 90)):
        site = await world.site(own, name, hours=TEN)
        spot = await world.spot(own, site, f"{name}-door")
        await hour(world, spot, date(2026, 3, 3), 90, 90, 90, 90, left=90)
        await hour(world, spot, date(2026, 3, 4), *[seen] * 4, left=seen)
        await sell(world, own, site, date(2026, 3, 3), *[10.0] * 20)
        async with world.owner.transaction():
            await recounts.add(
                world.owner, own, f"{name}-door", method="video", counted_by="Ada",
                blocks=[recounts.Counted(utc("2026-03-04T09:00"), 100, 90)],
                actor="user ada", now=utc("2026-03-05T09:00"),
            )  # fmt: skip
    await world.derive()
    asked: dict[str, Any] = {
        "metrics": ["visits", "conversion"], "from_": "2026-03-03", "to": "2026-03-04",
        "scope": "open", "estimates": True,
    }  # fmt: skip
    visits, conversion, known, _ = await rows(world, **asked)
    assert (visits["value"], visits["low"], visits["high"]) == (360, None, None)
    assert visits["flags"] == ["counted_nobody"]
    assert conversion["value"] == pytest.approx(20 / 360, abs=1e-6)
    assert "counted_nobody" in conversion["flags"]
    assert (known["value"], known["flags"]) == (360, [])
    assert known["low"] < 360 < known["high"]
    together, _ = await rows(world, **asked, by="organisation")
    assert (together["value"], together["low"]) == (720, None)
    assert "counted_nobody" in together["flags"]


async def test_an_hours_conversion_is_null_where_people_stay_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = await world.organisation("own")
    for name, quarters in (("quick", 1), ("slow", 6)):
        site = await world.site(own, name, hours=(600, 780))
        spot = await world.spot(own, site, f"{name}-door")
        for day in (date(2026, 3, 3), date(2026, 3, 4)):
            await stay(world, spot, day, quarters)
        await sell(world, own, site, date(2026, 3, 4), *[10.0] * 5, at=11)
    await world.derive()
    asked = {"from_": "2026-03-04T11:00", "to": "2026-03-04T12:00", "bucket": "hour"}
    quick, slow = await rows(world, metrics=["conversion"], **asked)
    assert quick["value"] is not None
    assert "dwell_derived" in quick["flags"]
    assert (slow["value"], slow["flags"]) == (None, ["dwell_too_long"])
    assert await rows(world, metrics=["conversion"], sites=["slow"], **asked) == [slow]
    monkeypatch.setattr("server.insight.reading._STAY_SITES", 1)  # more sites than are read at once
    assert await rows(world, metrics=["conversion"], **asked) == [quick, slow]
    days = await rows(world, metrics=["dwell", "occupancy"], from_="2026-03-03", to="2026-03-04")
    assert [row["value"] for row in days[::2]] == pytest.approx([15, 90], rel=0.2)
    assert all(row["value"] > 0 for row in days[1::2])


async def test_estimates_stand_in_fields_of_their_own(world: World) -> None:
    own = await world.organisation("own")
    site = await world.site(own, "shop", hours=TEN)
    spot = await world.spot(own, site, "door")
    counted: Quarters = []
    for offset in range(8 * 7):
        day = date(2026, 1, 14) + timedelta(days=offset)
        if day == date(2026, 3, 4):
            counted += quarters_of(day, 20, 21)  # and then it fell silent
        else:
            counted += quarters_of(day, 20 + offset % 3, 21, 22, 19)
    await store(world, spot, counted)
    await sell(world, own, site, date(2026, 3, 4), *[10.0] * 8)
    await world.derive()
    asked: dict[str, Any] = {
        "metrics": ["visits", "conversion"],
        "from_": "2026-03-03",
        "to": "2026-03-05",
        "scope": "open",
    }
    plain = await rows(world, **asked)
    assert {row["estimated"] for row in plain} == {None}
    found = await rows(world, **asked, estimates=True)
    for row, without in zip(found, plain, strict=True):
        filled = {k: v for k, v in row.items() if k.startswith("estimated")}
        assert row | dict.fromkeys(filled) == without  # what is measured stays as it is
    visits, conversion = found[2:]
    assert visits["value"] == 41
    assert 70 < visits["estimated"] < 95
    assert visits["estimated_low"] < visits["estimated"] < visits["estimated_high"]
    assert visits["estimated_by"]
    assert conversion["estimated"] == pytest.approx(8 / visits["estimated"], abs=1e-5)
    assert found[0]["estimated"] == found[0]["value"]
