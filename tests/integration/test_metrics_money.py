"""Money of several currencies: refused, or converted day by day by the rates that were stated."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any

import pytest
from scipy import stats

from tests.integration.api_world import World
from tests.integration.metrics_world import TEN, quarters_of, query, rows, sell, store

pytestmark = pytest.mark.services

FIRST = date(2026, 2, 23)
DAYS = [FIRST + timedelta(days=n) for n in range(14)]
SALES = {
    ("lund", "SEK"): {day: [100.0 + n, 50.0] for n, day in enumerate(DAYS)},
    ("aarhus", "DKK"): {day: [80.0 + n, 20.0, 7.5] for n, day in enumerate(DAYS) if n % 3},
    ("oslo", "NOK"): {DAYS[4]: [300.0], DAYS[5]: [10.0, 20.0]},
}
DKK_IN_SEK = {day: Decimal("1.5") + n * Decimal("0.01") for n, day in enumerate(DAYS)
              if day.weekday() < 5}  # fmt: skip
NOK_IN_DKK = {DAYS[4]: Decimal("0.64")}
ASKED: dict[str, Any] = {"from_": "2026-02-23", "to": "2026-03-09", "by": "organisation"}


async def shops(world: World, rates: bool = True) -> None:
    """Make a shop in each of three currencies, with two weeks of sales, and state rates."""
    own = await world.organisation("own")
    for (ref, currency), days in SALES.items():
        site = await world.site(own, ref, hours=TEN)
        await world.owner.execute("update sites set currency = $2 where id = $1", site, currency)
        spot = await world.spot(own, site, f"{ref}-door")
        # one day of one shop was not observed: its sales are of no visits
        seen = [day for day in DAYS if (ref, day) != ("aarhus", DAYS[1])]
        await store(world, spot, [each for day in seen for each in quarters_of(day, 9, 9, 9, 9)])
        for day, amounts in days.items():
            await sell(world, own, site, day, *amounts)
    stated = [(day, "DKK", "SEK", rate) for day, rate in DKK_IN_SEK.items()]
    stated += [(day, "NOK", "DKK", rate) for day, rate in NOK_IN_DKK.items()]
    await world.owner.executemany(
        "insert into exchange_rates values ($1, $2, $3, $4, $5, 'the bank')",
        [(own, *each) for each in stated if rates],
    )
    await world.derive()


def on(stated: Mapping[date, Decimal], day: date) -> Decimal:
    """Return the rate of a day, or the last before it."""
    return stated[max(known for known in stated if known <= day)]


def in_sek(currency: str, day: date) -> Decimal:
    match currency:
        case "DKK":
            return on(DKK_IN_SEK, day)
        case "NOK":
            return on(NOK_IN_DKK, day) * on(DKK_IN_SEK, day)
        case _:
            return Decimal(1)


def sold(days: Sequence[date]) -> list[float]:
    """Return every sale of these days in SEK."""
    return [
        float(Decimal(str(amount)) * in_sek(currency, day))
        for (_, currency), sales in SALES.items()
        for day in days
        for amount in sales.get(day, [])
    ]


async def test_several_currencies_are_refused_by_name_and_of_one_shop_stay_as_they_are(
    world: World,
) -> None:
    await shops(world)
    for metric in ("net_sales", "atv", "spv"):
        status, body = await query(world, metrics=[metric], **ASKED, bucket="total")
        assert (status, body["code"]) == (422, "mixed_currencies"), metric
        assert "DKK, NOK, SEK" in body["detail"], body
    (found,) = await rows(world, metrics=["transactions"], **ASKED, bucket="total")
    assert found["value"] == len(sold(DAYS)), "what is no money needs no currency"
    asked = {**ASKED, "by": "site", "bucket": "total"}
    found = {r["site"]: r for r in await rows(world, metrics=["net_sales"], **asked)}
    for (ref, currency), sales in SALES.items():
        row = found[ref]
        assert (row["value"], row["currency"]) == (sum(map(sum, sales.values())), currency)
        assert row["flags"] == []
    (one,) = await rows(world, metrics=["net_sales"], **ASKED, bucket="total", sites=["oslo"])
    assert (one["value"], one["currency"]) == (330.0, "NOK")


async def test_each_days_sales_are_converted_by_that_days_rate(world: World) -> None:
    await shops(world)
    label: dict[str, Callable[[date], str]] = {
        "day": date.isoformat,
        "week": lambda day: "{}-W{:02}".format(*day.isocalendar()[:2]),
        "month": lambda day: day.isoformat()[:7],
        "total": lambda _: "2026-02-23/2026-03-08",
        "hour": lambda day: f"{day}T10:00+01:00",
    }
    for bucket, into in label.items():
        asked = {**ASKED, "metrics": ["net_sales", "atv"], "bucket": bucket}
        found = await rows(world, **asked, currency="SEK")
        known = {at: sold(list(days)) for at, days in groupby(DAYS, key=into)}
        assert {row["currency"] for row in found} == {"SEK"}
        net = {row["local"]: row["value"] for row in found if row["metric"] == "net_sales.v1"}
        assert {at: taken for at, taken in net.items() if taken} == pytest.approx(
            {at: sum(amounts) for at, amounts in known.items()}, abs=1e-5
        )
        mean = {row["local"]: row for row in found if row["metric"] == "atv.v1"}
        for at, amounts in known.items():
            assert mean[at]["value"] == pytest.approx(statistics.fmean(amounts), abs=1e-5)
            half = stats.t.ppf(0.975, len(amounts) - 1) * stats.sem(amounts)
            assert mean[at]["high"] - mean[at]["value"] == pytest.approx(half, rel=1e-4)
            foreign = len(amounts) > 2
            assert mean[at]["flags"] == (["converted"] if foreign else [])


async def test_what_a_visit_brings_is_converted_of_the_days_that_were_counted_alone(
    world: World,
) -> None:
    await shops(world)
    asked = {**ASKED, "metrics": ["spv", "visits"], "currency": "SEK", "bucket": "week"}
    spv, visits, *_ = await rows(world, **asked)
    missed = sum(SALES["aarhus", "DKK"][DAYS[1]]) * float(in_sek("DKK", DAYS[1]))
    assert visits["value"] == (3 * 7 - 1) * 36
    assert spv["value"] == pytest.approx((sum(sold(DAYS[:7])) - missed) / 720, rel=1e-5)
    assert "converted" in spv["flags"]


async def test_a_day_that_no_rate_reaches_is_named(world: World) -> None:
    await shops(world, rates=False)
    asked = {**ASKED, "metrics": ["net_sales"], "bucket": "month"}
    status, body = await query(world, **asked, currency="SEK")
    assert (status, body["code"]) == (422, "no_rate")
    assert "from DKK to SEK for 2026-02-24" in body["detail"]
    asked |= {"to": "2026-02-24", "bucket": "day"}
    (one,) = await rows(world, **asked, currency="SEK")
    assert one["value"] == 150, "on that day nothing was sold in another currency"
    status, body = await query(world, **asked, currency="kronor")
    assert (status, body["parameter"]) == (422, "currency")
