"""The portal's files: what they hold is what the API answers, whole, and of one's own sites."""

import io
import json
import re
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import ClientSession

from server.api import parquet
from server.people.roles import Grant, Role
from server.portal import export_files, exports
from tests.integration.months_world import ZONE
from tests.integration.people_world import NOW, People, load
from tests.integration.test_portal_quality import shop

pytestmark = pytest.mark.services
DAYS = "from=2026-03-24&to=2026-04-01"
ASKED = {
    "visits": ("counts?bucket=15m&scope=open", "bucket=15m"),
    "feedback": ("feedback?bucket=day&scope=open&basis=filtered", "bucket=day"),
    "sales": ("conversion?", ""),
    "gaps": ("gaps?", ""),
}


async def fetched(browser: ClientSession, query: str) -> tuple[int, bytes, str]:
    """Return status, body and disposition of a file."""
    async with browser.get(f"/exports/file?{query}") as response:
        return response.status, await response.read(), response.headers.get(
            "Content-Disposition", ""
        )  # fmt: skip


async def told(browser: ClientSession, path: str, **more: Any) -> bytes:
    """Return what the API answers to who is signed in."""
    async with browser.request("POST" if more else "GET", f"/v1/{path}", **more) as response:
        body = await response.read()
        assert response.status == 200, body
        return body


@pytest.fixture
async def browser(people: People) -> ClientSession:
    """An analyst of a shop with two months, a day's sales and a gap; pages of 100 rows."""
    site = await shop(people)
    await people.owner.execute(
        "insert into transactions (organisation_id, site_id, transaction_ref, at, amount, units, "
        "kind) select $1, $2, n::text, $3, 12.5, 1, 'sale' from generate_series(1, 60) n",
        *(people.organisations["own"], site, NOW.astimezone(ZONE).replace(day=1, hour=11)),
    )
    await people.analyst()
    return await people.signed_in()


async def test_a_file_of_many_pages_is_the_answer_of_one(
    browser: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_files, "PAGE_ROWS", 100)
    for dataset, (path, chosen) in ASKED.items():
        # the last day of a form is in, the end of a question is out
        whole = f"{path}&from=2026-03-24&to=2026-04-02"
        query = f"dataset={dataset}&{chosen}&{DAYS}"
        status, body, name = await fetched(browser, f"{query}&format=json")
        named = f"vestibule-{dataset}-2026-03-24-2026-04-01.json"
        assert (status, name) == (200, f'attachment; filename="{named}"')
        answer = json.loads(await told(browser, whole))
        assert answer["data"], dataset
        assert json.loads(body) == answer, dataset
        _, body, _ = await fetched(browser, f"{query}&format=csv")
        assert body == await told(browser, f"{whole}&format=csv"), dataset
        _, body, _ = await fetched(browser, f"{query}&format=parquet")
        wanted = pq.read_table(io.BytesIO(await told(browser, f"{whole}&format=parquet")))
        assert pq.read_table(io.BytesIO(body)).equals(wanted), dataset


async def test_kpis_are_those_that_were_ticked(
    browser: ClientSession, monkeypatch: pytest.MonkeyPatch, people: People
) -> None:
    monkeypatch.setattr(export_files, "PAGE_ROWS", 4)
    query = f"dataset=kpis&bucket=day&kpi=visits&kpi=conversion&{DAYS}"
    status, body, _ = await fetched(browser, f"{query}&format=json&scope=all")
    assert status == 200
    rows = json.loads(body)["data"]
    assert len(rows) == 2 * 9
    assert {row["metric"] for row in rows} == {"visits.v1", "conversion.v1"}
    [sold] = [r for r in rows if r["local"] == "2026-04-01" and r["metric"] == "conversion.v1"]
    assert (sold["numerator"], sold["denominator"]) == (60, 240)
    _, text, _ = await fetched(browser, f"{query}&format=csv")
    assert text.count(b"metric,unit") == 1
    assert len(text.splitlines()) == 19


async def test_the_page_says_what_there_is_and_how_programs_get_it(
    browser: ClientSession,
) -> None:
    status, html = await load(browser, f"/exports?dataset=kpis&kpi=visits&site=own-site&{DAYS}")
    assert status == 200
    for path in ("/counts", "/feedback", "/conversion", "/metrics:query", "/gaps"):
        assert f"<code>/v1{path}</code>" in html
    assert "vestibule bi add own" in html
    [command] = re.findall(r'<pre id="curl"[^>]*>(.*?)</pre>', html)
    assert "metrics:query" in command
    assert "-o vestibule-kpis-2026-03-24-2026-04-01.csv" in command
    assert "&#34;sites&#34;:[&#34;own-site&#34;]" in command


async def test_what_is_refused_is_said_on_the_page_and_no_file_begins(
    browser: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, html, name = await fetched(browser, "from=2026-04-01&to=2026-03-01")
    assert (status, name) == (422, "")
    assert b"the last day is before the first" in html
    monkeypatch.setattr(export_files, "MOST_ROWS", 8)
    status, html, name = await fetched(browser, DAYS)
    assert (status, name) == (422, "")
    assert b"Choose a shorter time" in html
    monkeypatch.setattr(export_files, "MOST_ROWS", 1_000_000)
    assert (await fetched(browser, DAYS))[0] == 200  # nothing is left behind
    monkeypatch.setattr(parquet, "available", lambda: False)
    monkeypatch.setattr(exports, "available", lambda: False)
    status, html, _ = await fetched(browser, f"{DAYS}&format=parquet")
    assert status == 422
    assert b"vestibule[parquet]" in html
    assert b'value="parquet"' not in html
    monkeypatch.setattr(exports, "MOST_AT_ONCE", 0)
    status, html, _ = await fetched(browser, DAYS)
    assert (status, b"Another file is being made" in html) == (422, True)


async def test_whose_sites_are_few_gets_those_alone(people: People) -> None:
    await shop(people)
    organisation = people.organisations["own"]
    await people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'hidden', 'Hidden shop', 'Europe/Oslo')",
        organisation,
    )
    site = await people.owner.fetchval("select id from sites where ref = 'own-site'")
    await people.user("bo@example.com", Grant(Role.STORE_MANAGER, organisation, None, site))
    browser = await people.signed_in("bo@example.com")
    _, html = await load(browser, "/exports")
    assert "Hidden" not in html
    assert "vestibule bi add" not in html
    assert "curl" not in html
    status, body, _ = await fetched(browser, f"{DAYS}&format=json")
    assert status == 200
    assert {row["site"] for row in json.loads(body)["data"]} == {"own-site"}
    for ref in ("hidden", "other-site", "absent"):
        assert (await fetched(browser, f"{DAYS}&site={ref}"))[0] == 404
