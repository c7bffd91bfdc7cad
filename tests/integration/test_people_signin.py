"""Signing in through the real pages and database: who gets in, and who does not."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from aiohttp import ClientSession

from server.api.keys import create_api_key
from server.config import Secret
from server.people import links, sessions, users
from server.people.entrance import Browser, CodeWanted, Entrance
from server.people.links import Purpose
from server.people.roles import Grant, Role
from server.people.sealing import Seal
from server.people.sessions import IDLE, LIFE
from server.people.totp import begin as begin_codes
from server.people.totp import new_secret
from tests.authenticator import STEP_S, code_at
from tests.integration.people_world import GOOD, HTML, People, form_of, load, post, sign_in

pytestmark = pytest.mark.services


async def test_who_signs_in_sees_their_own_organisation_and_no_other(people: People) -> None:
    await people.analyst()
    browser = await people.signed_in()
    status, html = await load(browser, "/")
    assert status == 200
    assert "own-site" in html
    assert (await load(browser, "/sites/own-site"))[0] == 200
    theirs, missing = await load(browser, "/sites/other-site"), await load(browser, "/sites/none")
    assert theirs[0] == missing[0] == 404
    assert theirs[1].replace("other-site", "none") == missing[1]


async def test_who_is_not_signed_in_is_led_to_the_form_and_back(people: People) -> None:
    await people.analyst()
    browser = people.browser()
    async with browser.get("/sites/own-site?day=2026-04-01", headers=HTML) as response:
        assert response.url.path == "/signin"
        form = dict(re.findall(r'name="(csrf|to)" value="([^"]*)"', await response.text()))
    response = await post(
        browser, "/signin", {**form, "email": "ada@example.com", "password": GOOD}
    )
    assert response.headers["Location"] == "/sites/own-site?day=2026-04-01"
    for path, accept in (("/events", "text/event-stream"), ("/sites/x/chart.json", "*/*")):
        async with people.browser().get(path, headers={"Accept": accept}) as answer:
            assert answer.status == 401


async def test_a_slash_too_many_leads_to_the_page_and_so_to_the_form(people: People) -> None:
    await people.analyst()
    stranger, ada = people.browser(), await people.signed_in()
    for path, back in (
        ("/console/?day=1&n=2", "/console?day=1&n=2"),
        ("/tech/", "/tech"),
        ("/sites/own-site/", "/sites/own-site"),
    ):
        async with stranger.get(path, headers=HTML) as response:
            assert response.status == 200, path
            assert response.url.path == "/signin"
            assert response.url.query["to"] == back
    assert (await load(ada, "/sites/own-site/"))[0] == 200
    for path in ("/sites/other-site/", "/sites/none/", "/console/", "/none/"):
        assert (await load(ada, path))[0] == 404, path  # who may not see it is told nothing
    root = str(people.server.make_url("/"))
    for path, accept in (
        ("/tech/", "*/*"),
        ("/none/", "text/html"),
        ("//evil.example/", "text/html"),
        ("/v1/sites/", "text/html"),
    ):
        asked = root.removesuffix("/") + path
        async with stranger.get(
            asked, headers={"Accept": accept}, allow_redirects=False
        ) as response:
            assert response.status in (401, 404), path


async def test_a_live_page_whose_session_ended_is_led_to_the_form(people: People) -> None:
    headers = {"HX-Request": "true", "HX-Current-URL": "http://x/sites/own-site?day=1"}
    async with people.browser().get("/", headers={**HTML, **headers}) as response:
        assert response.status == 401
        assert response.headers["HX-Redirect"] == "/signin?to=%2Fsites%2Fown-site%3Fday%3D1"


async def test_a_wrong_password_and_an_unknown_user_look_alike(people: People) -> None:
    await people.analyst()
    await people.user("invited@example.com", password=None)
    disabled = await people.analyst("gone@example.com")
    await users.disable(people.owner, disabled, actor="command", now=people.now)
    answers = set()
    for email, password in (
        ("ada@example.com", "wrong"),
        ("nobody@example.com", GOOD),
        ("invited@example.com", GOOD),
        ("gone@example.com", GOOD),
        ("x' or '1'='1", GOOD),
    ):
        response = await sign_in(people.browser(), email, password)
        html = (await response.text()).replace(email.replace("'", "&#39;"), "EMAIL")
        answers.add((response.status, re.sub(r'name="csrf" value="[^"]*"', "", html)))
    assert len(answers) == 1
    assert next(iter(answers))[0] == 401


async def test_the_sessions_token_is_new_at_each_sign_in_and_the_old_one_is_worth_nothing(
    people: People,
) -> None:
    await people.analyst()
    browser = await people.signed_in()
    first = cookie(browser)
    planted = people.browser()
    planted.cookie_jar.update_cookies({"vestibule": "A" * 43}, people.server.make_url("/"))
    assert (await sign_in(planted)).status == 303
    assert cookie(planted) not in ("A" * 43, first)
    form = await form_of(browser, "/account")  # the same browser signs in again, as another
    await people.analyst("eva@example.com", "other")
    token = await people.link(
        await people.owner.fetchval("select id from users where email like 'eva%'"), Purpose.SIGN_IN
    )
    followed = await post(browser, "/link", {**form, "token": token})
    assert followed.status == 303
    assert cookie(browser) != first
    old = people.browser()
    old.cookie_jar.update_cookies({"vestibule": first}, people.server.make_url("/"))
    assert "own-site" not in (await load(old, "/"))[1]


async def test_a_form_of_another_site_does_nothing(people: People) -> None:
    await people.analyst()
    browser = await people.signed_in()
    form = await form_of(browser, "/account")
    ours = f"http://{people.server.host}:{people.server.port}"
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
    ):
        response = await post(browser, "/signout", form, **headers)
        assert response.status == 403, headers
    for origin in (None, "null", "https://evil.example", ours.replace("http:", "https:")):
        headers = {"Accept": "text/html"} | ({"Origin": origin} if origin else {})
        async with browser.post("/signout", data=form, headers=headers) as refused:
            assert refused.status == 403, origin
    for token in ("", "x", "å", form["csrf"][:-1]):
        assert (await post(browser, "/signout", {"csrf": token})).status == 403
    assert "own-site" in (await load(browser, "/"))[1]
    async with browser.post(
        "/signout",
        headers={"Origin": ours, "X-CSRF-Token": form["csrf"]},
        allow_redirects=False,
    ) as done:
        assert done.status == 303


async def test_another_sessions_form_token_does_nothing(people: People) -> None:
    await people.analyst()
    await people.analyst("eva@example.com", "other")
    ada, eva = await people.signed_in(), await people.signed_in("eva@example.com")
    assert (await post(ada, "/signout", await form_of(eva, "/account"))).status == 403


async def test_nobody_is_signed_in_by_a_form_that_is_not_this_browsers(people: People) -> None:
    await people.analyst()
    attackers = await form_of(people.browser(), "/signin")
    victim = people.browser()
    await load(victim, "/signin")
    tried = {**attackers, "email": "ada@example.com", "password": GOOD}
    for browser in (victim, people.browser()):
        response = await post(browser, "/signin", tried)
        assert (response.status, response.headers["Location"]) == (303, "/signin")
        assert cookie(browser) == ""


async def test_a_session_ends_by_age_by_rest_and_at_once(people: People) -> None:
    user = await people.analyst()
    resting, working = await people.signed_in(), await people.signed_in()
    for _ in range(int(LIFE / IDLE) * 2 - 1):
        people.clock.advance(IDLE.total_seconds() / 2)
        assert "own-site" in (await load(working, "/"))[1]
    assert "own-site" not in (await load(resting, "/"))[1]
    people.clock.advance(IDLE.total_seconds() / 2)
    assert "own-site" not in (await load(working, "/"))[1]
    third = await people.signed_in()
    async with people.desk.acquire() as connection, connection.transaction():
        await users.disable(connection, user, actor="command", now=people.now)
    assert "own-site" not in (await load(third, "/"))[1]


async def test_what_a_page_asks_by_itself_keeps_no_session_awake(people: People) -> None:
    await people.analyst()
    browser = await people.signed_in()
    seen = []
    for _ in range(2):
        people.clock.advance(IDLE.total_seconds() * 0.6)
        async with browser.get("/", headers={**HTML, "HX-Request": "true"}) as response:
            seen.append(response.status)
    assert seen == [200, 401]


async def test_what_was_revoked_is_gone_with_the_next_request(people: People) -> None:
    user = await people.analyst()
    browser = await people.signed_in()
    grant = Grant(Role.ANALYST, people.organisations["own"])
    assert await users.revoke(people.owner, user, grant, actor="command", now=people.now)
    assert "own-site" not in (await load(browser, "/"))[1]


async def test_guesses_wait_longer_and_longer_and_never_for_good(people: People) -> None:
    await people.analyst()
    browser = people.browser()
    statuses = [(await sign_in(browser, password=f"guess {n}")).status for n in range(8)]
    assert statuses[:6] == [401] * 6
    assert statuses[6:] == [429] * 2
    response = await sign_in(browser)
    assert response.status == 429  # the right password, too early
    people.clock.advance(float(response.headers["Retry-After"]))
    assert (await sign_in(browser)).status == 303


async def test_guesses_from_elsewhere_do_not_keep_the_owners_browser_out(people: People) -> None:
    await people.analyst()
    owners = await people.signed_in()
    await post(owners, "/signout", await form_of(owners, "/account"))
    for n in range(30):
        await sign_in(people.browser(), password=f"guess {n}")
    assert (await sign_in(people.browser())).status == 429
    assert (await sign_in(owners)).status == 303


async def test_a_code_is_asked_for_and_works_once(people: People) -> None:
    user = await people.analyst()
    secret, seal = new_secret(), Seal(Secret("s" * 32))
    step = int(people.now.timestamp()) // STEP_S
    assert await begin_codes(
        people.owner, seal, user, secret, code_at(secret, step), now=people.now
    )
    people.clock.advance(2 * STEP_S)
    step += 2

    async def ticket(browser: ClientSession) -> dict[str, str]:
        response = await sign_in(browser)
        assert response.status == 200
        fields = re.findall(r'name="(csrf|ticket|to)" value="([^"]*)"', await response.text())
        return dict(fields)

    browsers = [people.browser() for _ in range(3)]
    forms = [await ticket(browser) for browser in browsers]
    code = code_at(secret, step)
    wrong = await post(browsers[0], "/signin/code", {**forms[0], "code": "000000"})
    assert wrong.status == 401
    stolen = await post(browsers[1], "/signin/code", {**forms[1], "ticket": forms[0]["ticket"],
                                                      "code": code})  # fmt: skip
    assert stolen.status == 401  # the ticket is another browser's
    answers = await asyncio.gather(
        *(
            post(browser, "/signin/code", {**form, "code": code})
            for browser, form in zip(browsers, forms, strict=True)
        )
    )
    assert sorted(answer.status for answer in answers) == [303, 401, 401]
    late = await ticket(people.browser())
    people.clock.advance(301)
    code = code_at(secret, int(people.now.timestamp()) // STEP_S)
    assert (await post(browsers[0], "/signin/code", {**late, "code": code})).status in (401, 403)


@asynccontextmanager
async def without_users(people: People) -> AsyncIterator[None]:
    """Let every question about users fail."""
    await people.owner.execute("alter table users rename to users_away")
    try:
        yield
    finally:
        await people.owner.execute("alter table users_away rename to users")


async def test_a_try_that_the_database_did_not_hear_counts_as_none(people: People) -> None:
    user = await people.analyst()
    secret, seal = new_secret(), Seal(Secret("s" * 32))
    code = code_at(secret, int(people.now.timestamp()) // STEP_S)
    assert await begin_codes(people.owner, seal, user, secret, code, now=people.now)
    people.clock.advance(2 * STEP_S)
    code = code_at(secret, int(people.now.timestamp()) // STEP_S)
    entrance = Entrance(
        people.desk,
        people.passwords,
        seal,
        now=lambda: people.now,
        monotonic=people.clock.monotonic,
    )
    email, browser = "ada@example.com", Browser("192.0.2.1", "test", nonce="n")
    wanted = await entrance.sign_in(email, GOOD, browser)
    assert isinstance(wanted, CodeWanted)
    async with without_users(people):
        for _ in range(30):
            with pytest.raises(asyncpg.PostgresError):
                await entrance.sign_in(email, GOOD, browser)
            with pytest.raises(asyncpg.PostgresError):
                await entrance.give_code(wanted.ticket, code, browser)
            with pytest.raises(asyncpg.PostgresError):
                await entrance.prove(user, GOOD)
    assert isinstance(await entrance.sign_in(email, GOOD, browser), CodeWanted)
    assert (await entrance.give_code(wanted.ticket, code, browser)).by == "password and code"
    await entrance.prove(user, GOOD)


async def test_an_invitation_is_taken_once(people: People) -> None:
    user = await people.user(
        "new@example.com", Grant(Role.ANALYST, people.organisations["own"]), password=None
    )
    token = await people.link(user, Purpose.INVITATION)
    browser, other = people.browser(), people.browser()
    path = f"/invitation?token={token}"
    forms = [await form_of(browser, path), await form_of(other, path)]
    chosen = {"name": "Åsa Öberg", "language": "sv", "password": GOOD, "again": GOOD}
    for change, problem in (
        ({"password": "short", "again": "short"}, "12 characters"),
        ({"password": "password1234", "again": "password1234"}, "first that are tried"),
        ({"again": GOOD + "x"}, "not the same"),
        ({"name": " "}, "1 to 100"),
    ):
        response = await post(browser, "/invitation", {**forms[0], **chosen, **change})
        assert response.status == 422
        assert problem in await response.text()
    answers = await asyncio.gather(
        post(browser, "/invitation", {**forms[0], **chosen}),
        post(other, "/invitation", {**forms[1], **chosen}),
    )
    assert sorted(answer.status for answer in answers) == [303, 403]
    assert await people.owner.fetchval("select name from users where id = $1", user) == "Åsa Öberg"
    assert (await load(people.browser(), path))[0] == 403
    assert (await sign_in(people.browser(), "new@example.com")).status == 303


async def test_a_link_is_used_once_by_whoever_is_first(people: People) -> None:
    user = await people.analyst()
    token = await people.link(user, Purpose.SIGN_IN)

    async def use() -> bool:
        async with people.desk.acquire() as connection:
            return await links.use(connection, token, Purpose.SIGN_IN, now=people.now) is not None

    assert sorted(await asyncio.gather(*(use() for _ in range(8)))) == [False] * 7 + [True]


async def test_a_link_is_for_its_purpose_and_its_time(people: People) -> None:
    user = await people.analyst()
    token = await people.link(user, Purpose.PASSWORD)
    for purpose in (Purpose.SIGN_IN, Purpose.INVITATION):
        assert await links.use(people.owner, token, purpose, now=people.now) is None
    late = people.now + links.LIVES[Purpose.PASSWORD]
    assert await links.use(people.owner, token, Purpose.PASSWORD, now=late) is None
    newer = await people.link(user, Purpose.PASSWORD)
    assert await links.use(people.owner, token, Purpose.PASSWORD, now=people.now) is None
    await users.disable(people.owner, user, actor="command", now=people.now)
    assert await links.use(people.owner, newer, Purpose.PASSWORD, now=people.now) is None
    assert await links.use(people.owner, "x" * 43, Purpose.PASSWORD, now=people.now) is None


async def test_a_new_password_ends_every_session(people: People) -> None:
    user = await people.analyst()
    elsewhere = await people.signed_in()
    token = await people.link(user, Purpose.PASSWORD)
    browser = people.browser()
    form = await form_of(browser, f"/password?token={token}")
    fresh = "en helt annan mening"
    response = await post(browser, "/password", {**form, "password": fresh, "again": fresh})
    assert response.headers["Location"] == "/signin?changed=1"
    assert "own-site" not in (await load(elsewhere, "/"))[1]
    assert (await sign_in(people.browser())).status == 401
    assert (await sign_in(people.browser(), password=fresh)).status == 303


async def test_a_link_that_another_site_brought_asks_first(people: People) -> None:
    user = await people.analyst()
    token = await people.link(user, Purpose.SIGN_IN)
    browser = people.browser()
    for site in ("cross-site", "none"):
        headers = {**HTML, "Sec-Fetch-Site": site}
        async with browser.get(f"/link?token={token}", headers=headers) as response:
            assert response.status == 200
            assert cookie(browser) == ""
    async with browser.get(f"/link?token={token}&to=/sites/own-site", headers=HTML) as response:
        assert response.url.path == "/sites/own-site"


async def test_the_desk_sees_one_organisation_and_people_see_what_their_grants_cover(
    people: People,
) -> None:
    from server.db.engine import acting, overseeing

    own, other = people.organisations["own"], people.organisations["other"]
    async with acting(people.desk, "test", organisation=own) as connection:
        assert [row["ref"] for row in await connection.fetch("select ref from sites")] == [
            "own-site"
        ]
        changed = await connection.execute("update sites set name = 'x' where ref = 'other-site'")
        assert changed == "UPDATE 0"
    async with overseeing(people.desk, "test") as connection:
        assert await connection.fetchval("select count(*) from sites") == 2
    async with people.desk.acquire() as connection:
        assert await connection.fetchval("select count(*) from sites") == 0
    site = await people.owner.fetchval("select id from sites where ref = 'own-site'")
    await people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'next-site', 'next-site', 'UTC')",
        own,
    )
    await people.user("eva@example.com", Grant(Role.STORE_MANAGER, own, None, site))
    browser = await people.signed_in("eva@example.com")
    _, html = await load(browser, "/")
    assert "own-site" in html
    assert "next-site" not in html
    assert "Bearer" not in html
    assert (await load(browser, "/sites/next-site"))[0] == 404
    async with browser.get("/v1/sites") as response:
        assert response.status == 401
    await people.user("kim@example.com", Grant(Role.ANALYST, own), Grant(Role.ANALYST, other))
    browser = await people.signed_in("kim@example.com")
    _, html = await load(browser, "/")
    assert "other" in html
    form = await form_of(browser, "/organisations")
    assert (await post(browser, "/organisations", {**form, "organisation": "other"})).status == 303
    assert "other-site" in (await load(browser, "/"))[1]


async def test_nobody_chooses_an_organisation_that_no_grant_reaches(people: People) -> None:
    await people.analyst()
    browser = await people.signed_in()
    form = await form_of(browser, "/organisations")
    for ref in ("other", "none", ""):
        response = await post(browser, "/organisations", {**form, "organisation": ref})
        assert response.status == 404


async def test_the_command_on_a_page_ends_with_its_session(people: People) -> None:
    await people.analyst()
    browser = await people.signed_in()
    found = re.search(r"Bearer (vsk\.[\w.-]+)", (await load(browser, "/"))[1])
    assert found is not None
    key = found[1]

    async def ask(text: str) -> int:
        headers = {"Authorization": f"Bearer {text}"}
        async with people.browser().get("/v1/sites", headers=headers) as response:
            return response.status

    assert await ask(key) == 200
    session, organisation, rest = key.removeprefix("vsk.").split(".", 2)
    assert await ask(f"vsk.{session}.{int(organisation) + 1}.{rest}") == 401
    await people.owner.execute("update sessions set ended_at = now()")
    assert await ask(key) == 401
    assert await sessions.resolve_id(people.owner, int(session), now=people.now) is None


async def test_changing_the_password_ends_other_sessions_and_renews_this_ones_token(
    people: People,
) -> None:
    await people.analyst()
    browser, other = await people.signed_in(), await people.signed_in()
    before = cookie(browser)
    form = await form_of(browser, "/account")
    fresh = "en helt annan mening"
    new = {"password": fresh, "again": fresh}
    refused = await post(browser, "/account/password", {**form, **new, "current": "wrong"})
    assert refused.status == 422
    done = await post(browser, "/account/password", {**form, **new, "current": GOOD})
    assert done.status == 303
    assert cookie(browser) != before
    assert "own-site" in (await load(browser, "/"))[1]
    assert "own-site" not in (await load(other, "/"))[1]


async def test_codes_are_set_up_with_the_first_one(people: People) -> None:
    from base64 import b32decode

    await people.analyst()
    browser, other = await people.signed_in(), await people.signed_in()
    form = await form_of(browser, "/account")
    page = await post(browser, "/account/codes", {**form, "current": GOOD})
    html = await page.text()
    assert 'src="data:image/svg+xml' in html
    shown = re.search(r'id="secret">([A-Z2-7 ]+)<', html)
    assert shown is not None
    secret = b32decode(shown[1].replace(" ", ""))
    fields = dict(re.findall(r'type="hidden" name="(csrf|secret)" value="([^"]*)"', html))
    code = code_at(secret, int(people.now.timestamp()) // STEP_S)
    wrong = await post(browser, "/account/codes/confirm", {**fields, "code": "123"})
    assert wrong.status == 422
    done = await post(browser, "/account/codes/confirm", {**fields, "code": code})
    assert done.status == 303
    assert "own-site" not in (await load(other, "/"))[1]
    sealed = await people.owner.fetchval("select totp_sealed from users")
    assert secret not in sealed
    form = await form_of(browser, "/account")
    assert (await post(browser, "/account/codes/end", {**form, "current": GOOD})).status == 303
    assert await people.owner.fetchval("select totp_sealed from users") is None


async def test_one_of_ones_sessions_can_be_ended_and_nobody_elses(people: People) -> None:
    await people.analyst()
    await people.analyst("eva@example.com", "other")
    ada, second, eva = (
        await people.signed_in(),
        await people.signed_in(),
        await people.signed_in("eva@example.com"),
    )
    rows = await people.owner.fetch("select id, user_id from sessions order by id")
    form = await form_of(ada, "/account")
    for row in rows[1:]:
        await post(ada, "/account/sessions/end", {"csrf": form["csrf"], "session": str(row["id"])})
    assert "own-site" not in (await load(second, "/"))[1]
    assert "other-site" in (await load(eva, "/"))[1]


async def test_everything_that_was_done_stands_in_a_chain_that_holds(people: People) -> None:
    from server.audit.log import verify

    user = await people.analyst()
    browser = await people.signed_in()
    await post(browser, "/signout", await form_of(browser, "/account"))
    await users.disable(people.owner, user, actor="command", now=people.now)
    acts = [row["act"] for row in await people.owner.fetch("select act from audit order by id")]
    assert acts == ["user added", "role granted", "user signed in", "user disabled"]
    text = str(await people.owner.fetch("select * from audit"))
    assert "ada@" not in text
    assert (await verify(people.owner))[1] == []


async def test_a_flood_of_sign_ins_is_bounded_and_the_server_answers_meanwhile(
    people: People,
) -> None:
    await people.analyst()
    browser, flooding = await people.signed_in(), people.browser()
    form = await form_of(flooding, "/signin")
    forms = [
        {**form, "email": f"someone-{n % 40}@example.com", "password": f"guess {n}"}
        for n in range(200)
    ]
    flood = [asyncio.create_task(post(flooding, "/signin", each)) for each in forms]
    seen = []
    while not all(task.done() for task in flood):
        seen.append((await load(browser, "/account"))[0])
    assert set(seen) == {200}
    statuses = [task.result().status for task in flood]
    assert set(statuses) <= {401, 429, 503}
    assert 401 in statuses
    assert statuses.count(401) <= 21  # what one network may try before it waits
    assert (await post(browser, "/signout", await form_of(browser, "/account"))).status == 303
    assert (await sign_in(browser)).status == 303  # this browser is known


async def test_a_keys_use_is_noted_at_most_once_a_minute(people: People) -> None:
    key = await create_api_key(people.owner, people.organisations["own"], "till")
    last = "select last_used_at from api_keys"

    async def ask() -> object:
        headers = {"Authorization": f"Bearer {key}"}
        async with people.browser().get("/v1/sites", headers=headers) as response:
            assert response.status == 200
        return await people.owner.fetchval(last)

    first = await ask()
    assert first is not None
    people.clock.advance(59)
    assert await ask() == first
    people.clock.advance(1)
    assert await ask() != first
    await people.owner.execute("update api_keys set expires_at = now()")
    headers = {"Authorization": f"Bearer {key}"}
    async with people.browser().get("/v1/sites", headers=headers) as response:
        assert response.status == 401


def cookie(browser: ClientSession) -> str:
    """Return the session's token."""
    return next((c.value for c in browser.cookie_jar if c.key == "vestibule"), "")
