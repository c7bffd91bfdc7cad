"""A store manager's phone: the shop now against what is usual, and what waits for somebody."""

import re
from datetime import timedelta

import pytest

from server.people.roles import Grant, Role
from tests.integration.people_world import NOW, People, form_of, load, post, words_in
from tests.integration.test_portal_opinions import kiosk, manager
from tests.integration.test_portal_quality import shop

pytestmark = pytest.mark.services


def section(html: str, name: str) -> str:
    """Return the text of a part of the page."""
    return words_in(html, rf'<section[^>]*id="{name}">(.*?)</section>')


async def test_today_stands_beside_what_is_usual_by_now(people: People) -> None:
    """240 visits in two hours on each of eight Thursdays before; one of them was half dark."""
    await shop(people)
    await manager(people)
    browser = await people.signed_in("bo@example.com")
    status, html = await load(browser, "/shop")  # the one site, straight away
    assert status == 200
    live = section(html, "live")
    assert "240 visits at 14:00" in live
    assert "As usual. 240 by the last quarter of an hour; 240 to 240 is usual" in live
    assert "last 8 such days" in live
    assert "Coverage 100 %" in live
    assert "nothing heard since 2 Apr 11:00" in live
    assert "No responses this day" in section(html, "felt")
    assert "No open alerts" in section(html, "alerts")
    assert 'id="staff"' not in html  # no roster was ever told
    async with browser.get("/shop/own-site", headers={"HX-Request": "true"}) as response:
        part = await response.text()
    assert part.lstrip().startswith("<section")
    assert "<html" not in part


async def test_alerts_are_taken_and_actions_carried_out_from_there(people: People) -> None:
    await kiosk(people)
    site = await manager(people)
    owner, today = people.owner, NOW.date()
    touchpoint = await owner.fetchval(
        "insert into touchpoints (organisation_id, ref, name) values ($1, 'till', 'Check-out') "
        "returning id",
        people.organisations["own"],
    )
    for ref, due in (("late", -1), ("soon", 7), ("far", 8)):
        await owner.execute(
            "insert into actions (organisation_id, ref, site_id, touchpoint_id, title, owner, "
            "due_on, remeasure_on, made_at) values ($1, $2, $3, $4, $2, 'Bo', $5, $6, $7)",
            *(people.organisations["own"], ref, site, touchpoint, today + timedelta(days=due)),
            *(today + timedelta(days=30), NOW),
        )
    browser = await people.signed_in("bo@example.com")
    _, html = await load(browser, "/shop/own-site")
    assert "8 of 9 answers" in section(html, "alerts")
    assert re.findall(r'data-action="(\w+)"', html) == ["late", "soon"]
    assert section(html, "actions").count("overdue") == 1
    csrf = (await form_of(browser, "/shop/own-site"))["csrf"]
    form = {"csrf": csrf, "back": "shop"}
    taken = await post(browser, f"/feedback/alerts/{site}-alert", {**form, "do": "take"})
    assert (taken.status, taken.headers["Location"]) == (303, "/shop/own-site")
    done = {**form, "do": "done", "done_on": str(today)}
    carried = await post(browser, "/feedback/actions/late", done)
    assert (carried.status, carried.headers["Location"]) == (303, "/shop/own-site")
    _, html = await load(browser, "/shop/own-site")
    assert "Taken by Ada" in section(html, "alerts")
    assert "Say what came of it" in section(html, "alerts")
    assert re.findall(r'data-action="(\w+)"', html) == ["soon"]


async def test_who_is_rostered_now_is_said_by_role(people: People) -> None:
    site = await manager(people)
    for ref, role, begins, hours in (
        ("1", "till", -2, 4),
        ("2", "till", -1, 6),
        ("3", "", -1, 2),
        ("4", "till", -3, 3),  # has just ended
        ("5", "floor", 3, 4),
    ):
        starts, lasts = NOW + timedelta(hours=begins), timedelta(hours=hours)
        await people.owner.execute(
            "insert into staff_shifts (organisation_id, site_id, shift_ref, role, starts_at, "
            "ends_at) values ($1, $2, $3, $4, $5, $6)",
            *(people.organisations["own"], site, ref, role, starts, starts + lasts),
        )
    browser = await people.signed_in("bo@example.com")
    staff = section((await load(browser, "/shop/own-site"))[1], "staff")
    assert "3 by the roster, now" in staff
    assert "till: 2 until 19:00" in staff
    assert "no role told: 1 until 15:00" in staff
    assert "The next shift begins at 17:00" in staff
    await people.owner.execute("delete from staff_shifts where shift_ref <> '4'")
    staff = section((await load(browser, "/shop/own-site"))[1], "staff")
    assert "Nobody is rostered now" in staff


async def test_no_shop_is_shown_but_ones_own_and_who_only_looks_has_no_buttons(
    people: People,
) -> None:
    await kiosk(people)
    organisation = people.organisations["own"]
    await people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'hidden', 'Hidden shop', 'Europe/Oslo')",
        organisation,
    )
    await manager(people)
    browser = await people.signed_in("bo@example.com")
    for ref in ("hidden", "other-site", "absent"):
        assert (await load(browser, f"/shop/{ref}"))[0] == 404
    await people.user("noc@example.com", Grant(Role.NOC, organisation))
    looking = await people.signed_in("noc@example.com")
    _, html = await load(looking, "/shop")
    assert "Hidden shop" in html
    _, html = await load(looking, "/shop/own-site")
    assert "8 of 9 answers" in html
    assert "I take it" not in html
