"""The page on what counts are worth: what is missing, late, out of balance or estimated."""

import re
from datetime import date, datetime, timedelta
from html import unescape

import pytest

from server.people.roles import Grant, Role
from tests.integration.months_world import ZONE, Quarter, quarters_of, store
from tests.integration.people_world import NOW, People, load

pytestmark = pytest.mark.services
FIRST, DAYS = date(2026, 1, 19), 74  # to the 2nd of April, the world's today
DARK = date(2026, 3, 31)
LEANING = date(2026, 3, 24)


async def shop(people: People) -> int:
    """Give the own site two months of steady days, of which one hour is dark and a day leans."""
    owner, organisation = people.owner, people.organisations["own"]
    site = await owner.fetchval("select id from sites where ref = 'own-site'")
    for weekday in range(7):
        await owner.execute(
            "insert into opening_hours values ($1, $2, $3, 600, 720)", organisation, site, weekday
        )
    spot = await owner.fetchval(
        "insert into spots (organisation_id, site_id, ref, name, kind) "
        "values ($1, $2, 'door', 'Main door', 'counter') returning id",
        *(organisation, site),
    )
    device = await owner.fetchval(
        "insert into devices (organisation_id, device, kind) values ($1, 'device-1', 'counter') "
        "returning id",
        organisation,
    )
    await owner.execute(
        "insert into assignments (organisation_id, device_id, spot_id, valid) "
        "values ($1, $2, $3, tstzrange(null, null))",
        *(organisation, device, spot),
    )
    await owner.execute(
        "insert into boots (id, device_id, boot_id, ordinal, stored_to) "
        "overriding system value values (1, $1, 1, 1, $2)",
        *(device, NOW - timedelta(hours=3)),
    )
    rows = []
    for at in quarters_of(FIRST, DAYS, hours=(0, 24)):
        if (at.date() == DARK and at.hour == 10) or at >= NOW:
            continue
        entered = 30 if at.hour in (10, 11) else 0
        rows.append(Quarter(spot, at, entered, entered // 2 if at.date() == LEANING else entered))
    await store(people, rows)
    low = datetime(2026, 3, 31, 10, tzinfo=ZONE)
    await owner.execute(
        "insert into gaps (organisation_id, device_id, boot, spot_id, from_seq, to_seq, from_at, "
        "until_at, reason) values ($1, $2, 1, $3, 1, 2, $4, $5, 'forgotten')",
        *(organisation, device, spot, low, low + timedelta(hours=1)),
    )
    return int(site)


def cells(html: str, table: str) -> list[list[str]]:
    """Return the texts of a table's rows."""
    found = re.search(rf'<table id="{table}">(.*?)</table>', html, re.S)
    assert found is not None, html
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", found[1].split("<tbody>")[1], re.S)
    return [
        [
            " ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split())
            for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S)
        ]
        for row in rows
    ]


async def test_a_month_tells_what_was_missing_and_what_is_estimated(people: People) -> None:
    await shop(people)
    await people.analyst()
    browser = await people.signed_in()
    status, html = await load(browser, "/quality?site=own-site&month=2026-03")
    assert status == 200
    days = cells(html, "days")
    assert len(days) == 31
    last = days[0]
    assert last[0] == "Tuesday 31 March"
    assert last[1:3] == ["50 %", "120"]
    assert re.fullmatch(r"240 most likely \d+ to \d+", last[3]), last
    assert {day[3] for day in days[1:]} == {""}
    assert {day[1] for day in days[1:]} == {"100 %"}
    [gap] = cells(html, "gaps")
    assert gap[:3] == ["Main door", "31 Mar 10:00", "31 Mar 11:00"]
    assert "no longer had" in gap[3]
    assert re.search(r'id="unbalanced">.*Tuesday 24 March.*50 %', html, re.S)
    assert "1.6 % of the month" in html
    assert re.search(r"Main door:</strong> nothing heard since 2 Apr 11:00", html)
    assert (
        "/v1/estimates?bucket=day&amp;from=2026-03-01&amp;to=2026-04-01&amp;site=own-site" in html
    )


async def test_what_was_counted_and_is_not_true_stands_beside_the_gaps(people: People) -> None:
    await shop(people)
    low = datetime(2026, 3, 30, 10, tzinfo=ZONE)
    masks = [
        ("reversed", low, low + timedelta(hours=1), None),
        ("blocked_view", low + timedelta(days=2), None, None),
        ("flatline", low, None, NOW),  # declared false
        ("stuck_counter", low - timedelta(days=60), low - timedelta(days=59), None),
    ]
    await people.owner.executemany(
        "insert into masks (organisation_id, spot_id, condition, from_at, until_at, set_at, "
        "withdrawn_at) select organisation_id, id, $1, $2, $3, $2, $4 from spots "
        "where ref = 'door'",
        masks,
    )
    await people.analyst()
    browser = await people.signed_in()
    _, html = await load(browser, "/quality?site=own-site&month=2026-03")
    found = cells(html, "gaps")
    assert [row[:2] for row in found] == [
        ["Main door", "31 Mar 10:00"],
        ["Main door", "30 Mar 10:00"],
    ]
    assert found[1][2:] == ["30 Mar 11:00", "The counter took in for out.", ""]
    _, html = await load(browser, "/quality?site=own-site&month=2026-04")
    [row] = cells(html, "gaps")
    assert row[1:3] == ["1 Apr 10:00", "still going on"]
    assert row[3] == "The counter saw only a part of those who passed."


async def test_all_sites_are_strips_with_what_is_known_of_each(people: People) -> None:
    await shop(people)
    await people.analyst()
    browser = await people.signed_in()
    status, html = await load(browser, "/quality?month=2026-03")
    assert status == 200
    assert 'data-site="own-site"' in html
    assert "other-site" not in html
    strip = re.search(r'aria-label="(The month[^"]*)"', html)
    assert strip is not None
    assert strip[1] == "The month by day: 30 days observed throughout, 1 with something missing."
    assert html.count('<rect class="part"') == 1
    _, html = await load(browser, "/quality?month=nonsense")
    assert '<option value="2026-04" selected>April 2026</option>' in html


async def test_whose_sites_are_others_is_not_told_of_them(people: People) -> None:
    site = await shop(people)
    organisation = people.organisations["own"]
    await people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'hidden', 'Hidden shop', 'Europe/Oslo')",
        organisation,
    )
    await people.user("ada@example.com", Grant(Role.ANALYST, organisation, site=site))
    browser = await people.signed_in()
    status, html = await load(browser, "/quality")
    assert status == 200
    assert "own-site" in html
    assert "Hidden" not in html
    assert "curl" not in html
    for ref in ("hidden", "other-site", "absent"):
        status, _ = await load(browser, f"/quality?site={ref}")
        assert status == 404
