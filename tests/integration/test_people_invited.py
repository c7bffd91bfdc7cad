"""Who invites somebody is not told whether they have an account in another organisation."""

import re
from html import unescape

import pytest
from aiohttp import ClientSession

from server.db.engine import overseeing
from server.people import users
from server.people.roles import Grant, Role
from tests.integration.people_world import GOOD, People, form_of, load, post, sign_in

pytestmark = pytest.mark.services
PAGE = "/console/o/own/people"
KINDS = ("nobody", "member", "waiting", "shut-out")
DRIVERS = ("typeinfo_tree", "'jit'")
"""What the driver asks of its own accord, when a connection first meets a type."""


async def strangers(people: People) -> None:
    """Give each kind but the first an account in the other organisation."""
    there = Grant(Role.NOC, people.organisations["other"])
    await people.user("Member@Example.com", there)
    await people.user("waiting@example.com", there, password=None)
    row = await people.user("shut-out@example.com", there)
    await users.disable(people.owner, row, actor="command", now=people.now)


async def boss(people: People) -> ClientSession:
    await people.user("boss@example.com", Grant(Role.ADMINISTRATOR, people.organisations["own"]))
    return await people.signed_in("boss@example.com")


async def sent(browser: ClientSession, path: str, **form: str) -> tuple[int, str]:
    csrf = (await form_of(browser, PAGE))["csrf"]
    response = await post(browser, path, {"csrf": csrf, **form})
    return response.status, await response.text()


def link_in(html: str) -> str:
    found = re.search(r'<pre id="link"[^>]*>([^<]+)<', html)
    assert found is not None
    return re.sub(r"^https?://[^/]+", "", unescape(found[1]))


def plain(html: str, kind: str) -> str:
    """Return a page without what is drawn anew each time."""
    html = re.sub(rf"{kind}@example\.com", "<e-mail>", html)
    html = re.sub(r"user-[a-z0-9]{8}", "<ref>", html)
    return re.sub(r"(token=|token%3D|value=\"|nonce[-=]\"?)[A-Za-z0-9_-]{20,}", r"\1", html)


async def seen_of(people: People, browser: ClientSession, kind: str) -> list[tuple[int, str]]:
    """Do all that an administrator can with an invitation; return each answer."""
    email, owner, own = f"{kind}@example.com", people.owner, people.organisations["own"]
    began = await owner.fetchval("select count(*) from audit where chain = $1", own)
    found = [await sent(browser, PAGE, email=email, name="Typed", role="analyst", language="sv")]
    first = link_in(found[0][1])
    found.append(await load(browser, PAGE))
    found.append(await load(people.browser(), first))
    ref = await owner.fetchval("select ref from users where lower(email) = $1", email)
    found.append(await sent(browser, f"{PAGE}/{ref}/link"))
    found.append(await load(people.browser(), first))  # which has ended by now
    found.append(await load(people.browser(), link_in(found[3][1])))
    found += [await sent(browser, f"{PAGE}/{ref}/{act}") for act in ("disable", "enable")]
    found.append(await sent(browser, PAGE, email=email, role="technician"))  # known here by now
    found.append(await load(browser, PAGE))
    rows = await owner.fetch(
        "select act, detail::text from audit where chain = $1 order by number offset $2", own, began
    )
    found.append((len(rows), str([tuple(row) for row in rows])))
    for role in ("analyst", "technician"):
        await sent(browser, f"{PAGE}/{ref}/revoke", role=role, scope="organisation:own")
    found.append(await load(browser, PAGE))
    return [(status, plain(html, kind)) for status, html in found]


async def test_an_invitation_looks_the_same_to_who_makes_it_whoever_is_invited(
    people: People,
) -> None:
    await strangers(people)
    browser = await boss(people)
    wanted = await seen_of(people, browser, "nobody")
    assert [status for status, _ in wanted] == [
        *(200, 200, 200, 200, 403, 200, 422, 422, 303, 200, 2, 200)
    ]
    for kind in KINDS[1:]:
        for number, (answer, same) in enumerate(
            zip(await seen_of(people, browser, kind), wanted, strict=True)
        ):
            assert answer[0] == same[0], (kind, number)
            assert answer[1].splitlines() == same[1].splitlines(), (kind, number)


async def test_an_invitation_is_the_same_work_whoever_is_invited(people: People) -> None:
    await strangers(people)
    given = Grant(Role.ANALYST, people.organisations["own"])
    work: dict[str, int] = {}
    for kind in KINDS:
        asked: list[str] = []
        async with overseeing(people.desk, "invite") as connection:
            with connection.query_logger(lambda query, asked=asked: asked.append(query.query)):
                await users.invite(
                    connection,
                    f"{kind}@example.com",
                    given,
                    name="",
                    language="en",
                    openly=False,
                    actor="user x",
                    now=people.now,
                )
        work[kind] = sum(not any(own in query for own in DRIVERS) for query in asked)
    assert len(set(work.values())) == 1, work


async def test_an_invitation_to_who_has_an_account_opens_no_other_way_into_it(
    people: People,
) -> None:
    await strangers(people)
    browser = await boss(people)
    before = await people.owner.fetch("select password_hash, name from users order by id")
    for kind in KINDS[1:]:
        _, html = await sent(browser, PAGE, email=f"{kind}@example.com", role="analyst")
        stranger, link = people.browser(), link_in(html)
        form = await form_of(stranger, link)
        chosen = {"name": "X", "language": "sv", "password": GOOD + "x", "again": GOOD + "x"}
        response = await post(stranger, "/invitation", {**form, **chosen})
        assert response.status == 303
        assert response.headers["Location"] == "/signin?known=1"
        assert "There is an account" in (await load(stranger, "/signin?known=1"))[1]
        assert (await load(stranger, "/console"))[1].count("/signout") == 0
    after = await people.owner.fetch("select password_hash, name from users order by id")
    assert after[: len(before)] == before
    member = people.browser()
    assert (await sign_in(member, "member@example.com")).status == 303
    assert "own" in (await load(member, "/organisations"))[1]


async def test_who_manages_all_people_is_told(people: People) -> None:
    await strangers(people)
    await people.user("root@example.com", Grant(Role.ADMINISTRATOR))
    browser = await people.signed_in("root@example.com")
    assert (await sent(browser, PAGE, email="nobody@example.com", role="analyst"))[0] == 200
    assert (await sent(browser, PAGE, email="member@example.com", role="analyst"))[0] == 303
    assert "Member@Example.com" in (await load(browser, PAGE))[1]
