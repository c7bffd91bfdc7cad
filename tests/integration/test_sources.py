"""What other systems send: stored once, corrected when they say so, never mixed, never lost."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from ext.reference import observed_slots
from server.api.keys import create_api_key
from server.insight.pos import CAMPAIGNED, EXCHANGE, ROSTERS, Source, import_file
from tests.integration.people_world import NOW, People
from tests.unit.test_insight_skew import shop

pytestmark = pytest.mark.services
ZONE = "Europe/Stockholm"


class Program:
    """A till's or roster's program with a key that may store what it knows."""

    def __init__(self, people: People, key: str) -> None:
        self.people = people
        self.key = key

    async def ask(
        self, method: str, path: str, body: object = None, *, status: int = 200, **headers: str
    ) -> dict[str, Any]:
        async with self.people.browser().request(
            method,
            f"/v1{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.key}", **headers},
        ) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
            assert response.status == status, answer
            return answer

    async def send(self, what: str, *rows: Mapping[str, object]) -> dict[str, Any]:
        return await self.ask("POST", f"/{what}", {what: rows}, status=201)


@pytest.fixture
async def program(people: People) -> Program:
    owner, organisation = people.owner, people.organisations["own"]
    for ref, currency in (("lund", "SEK"), ("aarhus", "DKK")):
        await owner.execute(
            "insert into sites (organisation_id, ref, name, time_zone, currency) "
            "values ($1, $2, $2, $3, $4)",
            *(organisation, ref, ZONE, currency),
        )
    key = await create_api_key(owner, organisation, "test", scopes=("read", "sources:write"))
    return Program(people, key)


def sale(ref: str, **more: object) -> dict[str, object]:
    return {
        "site": "lund",
        "transaction": ref,
        "at": "2026-03-03T12:00:00",
        "kind": "sale",
        "amount": "129.90",
        "units": 2,
        **more,
    }


def counts(answer: dict[str, Any]) -> tuple[int, ...]:
    names = ("rows", "inserted", "replaced", "unchanged", "repeated")
    return tuple(answer[name] for name in names)


async def test_sales_are_stored_once_and_a_correction_replaces_and_is_counted(
    program: Program,
) -> None:
    first = await program.send("transactions", sale("a"), sale("b"), sale("b"))
    assert counts(first) == (2, 2, 0, 0, 1)
    again = await program.send("transactions", sale("a"), sale("b", amount=130))
    assert counts(again) == (2, 0, 1, 1, 0)
    rows = await program.people.owner.fetch(
        "select transaction_ref, amount::text, at from transactions order by 1"
    )
    assert [tuple(row)[:2] for row in rows] == [("a", "129.90"), ("b", "130.00")]
    assert rows[0]["at"] == datetime(2026, 3, 3, 11, tzinfo=UTC)
    assert (
        await program.people.owner.fetchval(
            "select count(*) from audit where act = 'transactions stored' "
            "and detail ->> 'replaced' in ('0', '1')"
        )
        == 2
    )


async def test_a_batch_with_a_wrong_row_is_refused_whole_and_says_which(program: Program) -> None:
    for field, value in (
        ("site", "nowhere"),
        ("at", "2026-03-29T02:30"),
        ("kind", "gift"),
        ("amount", "1.234"),
        ("units", 10**9),
        ("transaction", ""),
    ):
        answer = await program.ask(
            "POST",
            "/transactions",
            {"transactions": [sale("a"), sale("b", **{field: value})]},
            status=422,
        )
        assert (answer["code"], answer["parameter"]) == ("bad_value", f"transactions[1].{field}")
    many = {"transactions": [sale(str(n)) for n in range(1_001)]}
    assert (await program.ask("POST", "/transactions", many, status=422))["code"] == "bad_body"
    other = await program.ask(
        "POST",
        "/transactions",
        {"transactions": [sale("a"), sale("a", amount="1")]},
        status=422,
    )
    assert "says something else" in other["detail"]
    assert not await program.people.owner.fetchval("select count(*) from transactions")


async def test_who_may_only_read_stores_nothing(program: Program) -> None:
    key = await create_api_key(
        program.people.owner, program.people.organisations["own"], "reader", scopes=("read",)
    )
    reader = Program(program.people, key)
    await reader.ask("POST", "/transactions", {"transactions": [sale("a")]}, status=403)
    assert await program.people.owner.fetchval("select count(*) from transactions") == 0


async def test_shifts_campaigns_and_rates_are_stored_once_and_corrected(program: Program) -> None:
    shift: dict[str, object] = {
        "site": "lund",
        "shift": "s1",
        "starts": "2026-03-03T09:00",
        "ends": "2026-03-03T17:00",
        "role": "till",
    }
    campaign: dict[str, object] = {
        "campaign": "spring",
        "name": "Spring",
        "sites": ["lund"],
        "from": "2026-03-01",
        "to": "2026-03-31",
        "channel": "tram",
        "cost": "10000.00",
        "currency": "SEK",
        "impressions": 500_000,
    }
    rate: dict[str, object] = {
        "day": "2026-03-02",
        "base": "EUR",
        "quote": "SEK",
        "rate": "11.2345",
        "source": "Riksbanken",
    }
    for what, row, change in (
        ("shifts", shift, {"ends": "2026-03-03T18:00"}),
        ("campaigns", campaign, {"sites": ["lund", "aarhus"]}),
        ("rates", rate, {"rate": "11.3"}),
    ):
        assert counts(await program.send(what, row)) == (1, 1, 0, 0, 0)
        assert counts(await program.send(what, row)) == (1, 0, 0, 1, 0)
        assert counts(await program.send(what, {**row, **change})) == (1, 0, 1, 0, 0)
    (found,) = (await program.ask("GET", "/campaigns"))["data"]
    assert found == {**campaign, "sites": ["aarhus", "lund"]}
    await program.send("rates", {**rate, "day": "2026-03-03"})
    page = await program.ask("GET", "/rates?limit=1")
    assert [row["day"] for row in page["data"]] == ["2026-03-03"]
    page = await program.ask("GET", f"/rates?limit=1&cursor={page['next']}")
    assert [(row["day"], row["rate"]) for row in page["data"]] == [("2026-03-02", "11.3000000000")]
    late = {**shift, "ends": "2026-03-04T10:00"}
    refused = await program.ask("POST", "/shifts", {"shifts": [late]}, status=422)
    assert refused["parameter"] == "shifts[0].ends"


async def test_money_of_several_currencies_is_added_up_by_a_stated_rate_alone(
    program: Program,
) -> None:
    await program.send("transactions", sale("a", amount="100"), sale("b", site="aarhus", amount=10))
    asked = "/sales?from=2026-03-01&to=2026-04-01"
    assert (await program.ask("GET", f"{asked}&site=lund"))["net_sales"] == "100.00"
    assert (await program.ask("GET", asked, status=422))["code"] == "mixed_currencies"
    assert (await program.ask("GET", f"{asked}&currency=SEK", status=422))["code"] == "no_rate"
    rate = {"day": "2026-03-02", "base": "SEK", "quote": "DKK", "rate": "0.5", "source": "the bank"}
    await program.send("rates", rate)
    found = await program.ask("GET", f"{asked}&currency=SEK")
    assert (found["net_sales"], found["currency"], found["transactions"]) == ("120.00", "SEK", 2)
    assert [row["source"] for row in found["rates"]] == ["the bank"]


async def test_files_of_shifts_campaigns_and_rates_are_imported_once(
    program: Program, tmp_path: Path, dsn_owner: str
) -> None:
    files: dict[Source[Any], str] = {
        ROSTERS: "site;shift;starts;ends;role\nlund;1;2026-03-03T09:00;2026-03-03T17:00;\n",
        CAMPAIGNED: "campaign,name,sites,from,to,channel,cost,currency,impressions\n"
        "spring,Spring,lund aarhus,2026-03-01,2026-03-31,tram,1e3,SEK,\n",
        EXCHANGE: "day;base;quote;rate;source\n2026-03-02;EUR;SEK;11,2345;ECB\n",
    }
    for source, text in files.items():
        path = tmp_path / f"{source.table.noun}.csv"
        path.write_text(text.replace("1e3", "1000"))
        for dry_run, inserted in ((True, 1), (False, 1), (False, 0)):
            report = await import_file(
                dsn_owner,
                path,
                source,
                dry_run=dry_run,
                organisation="own",
            )
            assert (report.inserted, report.errors) == (inserted, ()), report.lines()
        if not source.owned:
            refused = await import_file(dsn_owner, path, source, dry_run=False)
            assert refused.refused
            assert "--organisation" in refused.lines()[1]
    theirs = await import_file(
        dsn_owner, tmp_path / "shift.csv", ROSTERS, dry_run=False, organisation="other"
    )
    assert "no site 'lund'" in theirs.errors[0].message


@pytest.fixture
def dsn_owner(program: Program, stack: Any, world_database: str) -> str:
    found: str = stack.endpoints.dsn("owner", world_database)
    return found


async def test_a_tills_clock_is_told_from_what_was_really_counted(program: Program) -> None:
    owner, organisation = program.people.owner, program.people.organisations["own"]
    site = await owner.fetchval("select id from sites where ref = 'lund'")
    await fill(owner, organisation, site, skew_min=11)
    ahead, other = (await program.ask("GET", "/tills?site=lund&site=aarhus"))["data"][::-1]
    assert (other["site"], other["skew_min"], other["unsaid"]) == ("aarhus", None, "no_sales")
    assert ahead["skew_min"] == pytest.approx(11, abs=2)
    assert ahead["low_min"] < 11 < ahead["high_min"]
    assert ahead["off"]


async def fill(owner: asyncpg.Connection, organisation: int, site: int, *, skew_min: float) -> None:
    """Store a fortnight of a made-up shop, as its counter and its tills would tell of it."""
    spot = await owner.fetchval(
        "insert into spots (organisation_id, site_id, ref, name, kind) "
        "values ($1, $2, 'spot-door', 'Door', 'counter') returning id",
        *(organisation, site),
    )
    device = await owner.fetchval(
        "insert into devices (organisation_id, device, kind, state) "
        "values ($1, 'dc-door23456789', 'counter', 'in service') returning id",
        organisation,
    )
    await owner.execute(
        "insert into assignments (organisation_id, device_id, spot_id, valid) "
        "values ($1, $2, $3, tstzrange(null, null))",
        *(organisation, device, spot),
    )
    today = NOW.astimezone(ZoneInfo(ZONE)).replace(hour=0, minute=0)
    readings, quarters, sales = [], [], []
    for back, (sold, left) in enumerate(shop(random.Random(2), skew_min=skew_min), start=1):
        start = (today - timedelta(days=back)).astimezone(UTC)
        counts = [n for out in left for n in (0, int(out or 0), *(0, 0) * 4)]
        readings.append((start, spot, 86_400_000, counts))
        end = (today - timedelta(days=back - 1)).astimezone(UTC)
        for number in range((end - start) // timedelta(minutes=15)):
            at = start + timedelta(minutes=15 * number)
            out = sum(int(n or 0) for n in left[3 * number : 3 * number + 3])
            quarters.append((at, observed_slots(0, 0, 900_000), spot, out))
        for number, count in enumerate(sold):
            at = start + timedelta(minutes=5 * number + 1)
            sales += [(organisation, site, f"{back}-{number}-{n}", at) for n in range(int(count))]
    await owner.executemany(
        "insert into readings values ($1, $2, $2, 1, 1, 0, $3, 0, 60, $4)", readings
    )
    await owner.executemany(
        "insert into rollup_15m (bucket, observed, spot, in0, out0, resolution_s) "
        "values ($1, $2, $3, 0, $4, 60)",
        quarters,
    )
    await owner.executemany(
        "insert into transactions (organisation_id, site_id, transaction_ref, at, amount) "
        "values ($1, $2, $3, $4, 10)",
        sales,
    )
