"""The Monday digest: once, to those who asked, about their sites, through a real mail server."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from typing import Any

import pytest
from aiohttp import ClientSession
from asyncpg.exceptions import AdminShutdownError

from ops.services.stack import Stack
from server.config import Secret, SettingsError
from server.db.engine import open_pool, overseeing
from server.feeds.mail import smtp_of
from server.people.roles import Grant, Role
from server.people.sealing import Seal
from server.portal import digest_sending
from server.portal.digest_mail import message_of, read_token, token_for
from server.portal.digest_numbers import last_due, week_of, zone_of
from server.portal.digest_sending import LATE, LEASE, Digests
from server.portal.frame import CATALOGUES
from server.web import catalogue
from tests.integration.api_world import ALL_SLOTS
from tests.integration.people_world import People, form_of, load, post
from tests.integration.post_world import Post, listening

pytestmark = pytest.mark.services
PAGES = "https://vestibule.example"
SEAL = Seal(Secret("s" * 32))
WORDS = catalogue.load([catalogue.SHARED, *CATALOGUES])
MONDAY = datetime(2026, 3, 30, 5, 0, tzinfo=UTC)  # 07:00 in Stockholm, the day after the spring gap


@dataclass
class World:
    """People, a mail server, and who sends."""

    people: People
    office: Post
    digests: Digests

    async def at(self, when: datetime) -> None:
        """Make it that late, and let what is due be sent."""
        self.people.clock.advance((when - self.people.now).total_seconds())
        await self.digests.once()

    async def subscribe(self, user: int, *, organisation: str = "own") -> None:
        await self.people.owner.execute(
            "insert into digest_subscriptions values ($1, $2, $3)",
            *(user, self.people.organisations[organisation], MONDAY - timedelta(days=1)),
        )

    async def rows(self) -> list[Any]:
        return list(await self.people.owner.fetch("select * from digests order by id"))


@pytest.fixture
async def world(stack: Stack, world_database: str, people: People) -> AsyncIterator[World]:
    async with (
        listening() as office,
        open_pool(stack.endpoints.dsn("api", world_database), size=2, name="api") as api,
    ):
        digests = Digests(
            people.desk,
            api,
            SEAL,
            people.clock,
            smtp=smtp_of(f"smtp://127.0.0.1:{office.port}"),
            sender="Vestibule <numbers@vestibule.example>",
            pages=PAGES,
            catalogues=WORDS,
            chance=lambda: 0.5,
            timeout_s=5,
        )
        people.clock.advance((MONDAY - timedelta(hours=1) - people.now).total_seconds())
        yield World(people, office, digests)


async def count(people: People, site: str, day: date, visits: int, *, spot: str = "") -> None:
    """Let a counter of the site count in one whole day's every quarter, of which 12:00 has all."""
    owner = people.owner
    name = spot or f"{site}-door"
    key = await owner.fetchval("select id from spots where ref = $1", name)
    if key is None:
        key = await owner.fetchval(
            "insert into spots (organisation_id, site_id, ref, name, kind) select organisation_id, "
            "id, $2, $2, 'counter' from sites where ref = $1 returning id",
            *(site, name),
        )
        device = await owner.fetchval(
            "insert into devices (organisation_id, device, kind) select organisation_id, $2, "
            "'counter' from spots where id = $1 returning id",
            *(key, f"device-{name}"),
        )
        await owner.execute(
            "insert into assignments (organisation_id, device_id, spot_id, valid) select "
            "organisation_id, $2, $1, tstzrange(null, null) from spots where id = $1",
            *(key, device),
        )
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    quarters = [start + timedelta(minutes=15 * n) for n in range(96)]
    await owner.executemany(
        "insert into rollup_15m (bucket, observed, spot, in0, out0, resolution_s) "
        "values ($1, $2, $3, $4, $4, 60)",
        [(q, ALL_SLOTS, key, visits if n == 48 else 0) for n, q in enumerate(quarters)],
    )
    await owner.execute(
        "insert into rollup_dirty (spots, buckets) values ($1, $2)", [key] * 96, quarters
    )


def text_of(message: EmailMessage) -> str:
    body = message.get_body(("plain",))
    assert body is not None
    text: str = body.get_content()
    return text


async def test_a_reader_gets_one_digest_of_the_week_with_the_spring_gap(world: World) -> None:
    people = world.people
    user = await people.analyst()
    await world.subscribe(user)
    for day, visits in (
        (date(2026, 3, 24), 120), (date(2026, 3, 29), 30), (date(2026, 3, 17), 100),
        (date(2025, 3, 25), 300), (date(2026, 3, 30), 9_999),
    ):  # fmt: skip
        await count(people, "own-site", day, visits)
    await count(people, "other-site", date(2026, 3, 24), 777)
    await world.at(MONDAY - timedelta(seconds=1))
    assert world.office.taken == []
    await world.at(MONDAY)
    for hours in (0, 1, 30):
        await world.at(MONDAY + timedelta(hours=hours))
    [message] = world.office.taken
    assert message["To"] == "ada@example.com"
    assert message["Subject"] == "own: week 13"
    text = text_of(message)
    assert "Visits: 150" in text
    assert "+50 % against the week before (100)" in text
    aligned = "the aligned days a year before, 2025-03-18/2025-03-30"
    assert f"−50 % against {aligned} (300)" in text
    assert "777" not in text
    assert "9,999" not in text
    assert "Coverage: 28 %" in text  # two days of seven, in a week of 167 hours
    assert "28 % of the opening hours were observed" in text
    html = message.get_body(("html",))
    assert html is not None
    page = html.get_content()
    assert "<li>Visits: 150</li>" in page
    assert not re.search(r"<img|<script|<link|style=|src=", page)
    assert {row["tries"] for row in await world.rows()} == {1}


async def test_each_reads_their_own_sites_in_their_language_and_an_empty_week_says_so(
    world: World,
) -> None:
    people = world.people
    own = people.organisations["own"]
    second = await people.owner.fetchval(
        "insert into sites (organisation_id, ref, name, time_zone) values ($1, 'second', "
        "'Søndre & <b>', 'Europe/Copenhagen') returning id",
        own,
    )
    for language in ("sv", "da"):
        user = await people.user(
            f"{language}@example.com", Grant(Role.STORE_MANAGER, own, site=second)
        )
        await people.owner.execute("update users set language = $2 where id = $1", user, language)
        await world.subscribe(user)
    await count(people, "own-site", date(2026, 3, 24), 4_321)
    await world.at(MONDAY)
    texts = {message["To"]: text_of(message) for message in world.office.taken}
    assert "Besök: inget mättes." in texts["sv@example.com"]
    assert "Besøg: intet blev målt." in texts["da@example.com"]
    assert not any("4 321" in text or "4.321" in text for text in texts.values())
    html = world.office.taken[0].get_body(("html",))
    assert html is not None
    assert "<b>" not in html.get_content()


async def test_readers_are_found_by_as_many_queries_however_many_they_are(world: World) -> None:
    people = world.people
    own, other = people.organisations["own"], people.organisations["other"]
    for number in range(2):
        await world.subscribe(await people.analyst(f"reader-{number}@example.com"))
    everywhere = await people.user("chief@example.com", Grant(Role.ANALYST))
    async with overseeing(people.desk, "test") as db:
        assert len(await digest_sending.readers(db)) == 2
        await world.subscribe(everywhere)
        await world.subscribe(everywhere, organisation="other")
        asked: list[str] = []
        with db.query_logger(lambda query: asked.append(query.query)):
            found = await digest_sending.readers(db)
    assert [(each.organisation, each.refs) for each in found] == [
        *[(own, ("own-site",))] * 3, (other, ("other-site",)),
    ]  # fmt: skip
    assert len(asked) == 3


async def test_who_may_read_nothing_any_more_gets_nothing(world: World) -> None:
    people = world.people
    gone, shut = await people.analyst("gone@example.com"), await people.analyst("shut@example.com")
    for user in (gone, shut):
        await world.subscribe(user)
    world.office.answer = lambda line: "451 later" if line.startswith("MAIL") else "250 ok"
    await world.at(MONDAY)
    await people.owner.execute("delete from grants where user_id = $1", gone)
    await people.owner.execute("update users set disabled_at = now() where id = $1", shut)
    world.office.answer = lambda _: "250 ok"
    await world.at(MONDAY + timedelta(hours=1))
    assert world.office.taken == []
    assert all(row["given_up_at"] for row in await world.rows())


async def test_a_refusal_for_now_is_tried_again_and_one_for_good_is_not(world: World) -> None:
    for name in ("ada", "bo"):
        await world.subscribe(await world.people.analyst(f"{name}@example.com"))

    def answer(line: str) -> str:
        if line.startswith("RCPT") and "bo@" in line:
            return "550 no such mailbox"
        return "452 full" if line.startswith("RCPT") else "250 ok"

    world.office.answer = answer
    await world.at(MONDAY)
    first, second = await world.rows()
    assert "452" in first["trouble"] or "full" in first["trouble"]
    assert first["next_at"] == MONDAY + timedelta(seconds=60)
    assert (second["next_at"], second["sent_at"]) == (None, None)
    assert second["given_up_at"] == MONDAY
    world.office.answer = lambda _: "250 ok"
    await world.at(MONDAY + timedelta(seconds=59))
    assert world.office.taken == []
    await world.at(MONDAY + timedelta(seconds=60))
    assert [message["To"] for message in world.office.taken] == ["ada@example.com"]


async def test_one_that_cannot_be_made_is_given_up_and_the_next_is_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ada", "bo"):
        await world.subscribe(await world.people.analyst(f"{name}@example.com"))

    def failing(*facts: Any, to: str, **more: Any) -> EmailMessage:
        if to.startswith("ada@"):
            raise ZeroDivisionError("by nobody")
        return message_of(*facts, to=to, **more)

    monkeypatch.setattr(digest_sending, "message_of", failing)
    await world.at(MONDAY)
    assert [message["To"] for message in world.office.taken] == ["bo@example.com"]
    first, second = await world.rows()
    assert (first["given_up_at"], first["trouble"]) == (MONDAY, "by nobody")
    assert second["sent_at"] == MONDAY
    await world.at(MONDAY + LEASE)
    assert len(world.office.taken) == 1


async def test_a_database_that_goes_away_meanwhile_gives_nothing_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.subscribe(await world.people.analyst())

    async def away(*_: object, **__: object) -> None:
        raise AdminShutdownError("going down")

    with monkeypatch.context() as patched:
        patched.setattr(digest_sending, "digest_of", away)
        with pytest.raises(AdminShutdownError):
            await world.at(MONDAY)
    assert world.office.taken == []
    await world.at(MONDAY + LEASE)
    assert len(world.office.taken) == 1


async def test_what_does_not_arrive_within_a_day_is_given_up(world: World) -> None:
    await world.subscribe(await world.people.analyst())
    world.office.answer = lambda _: None  # hangs up at once
    for hours in (0, 1, 3, 8, 23, 24):
        await world.at(MONDAY + timedelta(hours=hours))
    world.office.answer = lambda _: "250 ok"
    await world.at(MONDAY + timedelta(hours=27))
    [row] = await world.rows()
    assert world.office.taken == []
    assert row["given_up_at"] - row["due_at"] <= LATE
    assert row["tries"] == 6


async def test_a_connection_that_is_cut_after_the_message_costs_one_double_of_one_name(
    world: World,
) -> None:
    await world.subscribe(await world.people.analyst())
    world.office.answer = lambda line: None if line == "<body>" else "250 ok"
    await world.at(MONDAY)
    world.office.answer = lambda _: "250 ok"
    await world.at(MONDAY + timedelta(minutes=2))
    await world.at(MONDAY + timedelta(minutes=10))
    one, double = world.office.taken
    assert one["Message-ID"] == double["Message-ID"]


async def test_a_server_that_dies_between_sending_and_marking_sends_at_most_one_double(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.subscribe(await world.people.analyst())

    class Killed(BaseException):
        pass

    async def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(world.digests, "_mark", die)
        with pytest.raises(Killed):
            await world.at(MONDAY)
    assert len(world.office.taken) == 1
    await world.at(MONDAY + LEASE - timedelta(seconds=1))
    assert len(world.office.taken) == 1
    for minutes in (5, 11, 600):
        await world.at(MONDAY + timedelta(minutes=minutes))
    one, double = world.office.taken
    assert one["Message-ID"] == double["Message-ID"]
    assert [(row["tries"], row["next_at"]) for row in await world.rows()] == [(2, None)]


async def test_two_servers_send_one_and_a_server_that_was_off_sends_within_a_day(
    world: World,
) -> None:
    await world.subscribe(await world.people.analyst())
    people = world.people
    people.clock.advance((MONDAY + timedelta(hours=23) - people.now).total_seconds())
    await asyncio.gather(*(world.digests.once() for _ in range(3)))
    assert len(world.office.taken) == 1
    await people.owner.execute("delete from digests")
    await world.at(MONDAY + timedelta(hours=25))
    assert len(world.office.taken) == 1


async def test_it_goes_on_sending_until_it_is_cancelled(world: World) -> None:
    await world.subscribe(await world.people.analyst())
    heard = asyncio.Event()

    def answer(line: str) -> str:
        if line == "QUIT":
            heard.set()
        return "250 ok"

    world.office.answer = answer
    people = world.people
    people.clock.advance((MONDAY - people.now).total_seconds())
    running = asyncio.create_task(world.digests.run())
    async with asyncio.timeout(30):
        await heard.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(world.office.taken) == 1


async def test_a_mail_program_ends_it_by_one_post_and_looking_ends_nothing(world: World) -> None:
    await world.subscribe(await world.people.analyst())
    await world.at(MONDAY)
    [message] = world.office.taken
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    address = message["List-Unsubscribe"].strip(" <>")
    assert address.startswith(f"{PAGES}/unsubscribe/")
    path, owner = address.removeprefix(PAGES), world.people.owner
    async with ClientSession(world.people.server.make_url("/")) as program:
        async with program.get(path) as response:
            assert response.status == 200
        assert await owner.fetchval("select count(*) from digest_subscriptions") == 1
        for wrong in (path[:-3], path[:-1] + ("A" if path[-1] != "A" else "B"), "/unsubscribe/ö"):
            async with program.post(wrong) as response:
                assert response.status == 404
        assert await owner.fetchval("select count(*) from digest_subscriptions") == 1
        for _ in range(2):
            async with program.post(
                path, data={"List-Unsubscribe": "One-Click"}, allow_redirects=False
            ) as response:
                assert response.status == 200
                assert "Set-Cookie" not in response.headers
    assert await owner.fetchval("select count(*) from digest_subscriptions") == 0
    await world.at(MONDAY + timedelta(days=7))
    assert len(world.office.taken) == 1


async def test_the_page_asks_for_it_shows_it_and_says_that_no_mail_is_set_up(world: World) -> None:
    people = world.people
    await people.analyst()
    await count(people, "own-site", date(2026, 3, 17), 64)
    browser = await people.signed_in()
    status, html = await load(browser, "/digest")
    assert status == 200
    assert "VESTIBULE_SMTP_URL" in html
    assert "<li>Visits: 64</li>" in html
    for asked in (1, 0):
        done = await post(browser, "/digest", await form_of(browser, "/digest"))
        assert done.status == 303
        assert await people.owner.fetchval("select count(*) from digest_subscriptions") == asked


def test_it_is_due_on_monday_at_seven_by_the_sites_clock_on_days_of_every_length() -> None:
    for zone, before, after in (
        ("Europe/Stockholm", "2026-03-23T06:00", "2026-03-30T05:00"),
        ("Europe/Stockholm", "2026-10-19T05:00", "2026-10-26T06:00"),
        ("America/Havana", "2026-03-02T12:00", "2026-03-09T11:00"),
    ):
        first, second = (datetime.fromisoformat(at).replace(tzinfo=UTC) for at in (before, after))
        assert last_due(second - timedelta(seconds=1), zone) == first
        assert last_due(second, zone) == second
        assert week_of(second, zone) == second.date() - timedelta(days=7)
    assert zone_of(["Europe/Oslo", "Asia/Tokyo", "Asia/Tokyo"]) == "Asia/Tokyo"
    assert zone_of([]) == "UTC"


def test_a_token_ends_what_it_names_and_no_password_goes_out_in_the_clear() -> None:
    assert read_token(SEAL, token_for(SEAL, 7, 3)) == (7, 3)
    assert read_token(Seal(Secret("t" * 32)), token_for(SEAL, 7, 3)) is None
    found = smtp_of("smtps://ada:p%40ss@mail.example")
    assert (found.host, found.port, found.tls, found.password.reveal()) == (
        *("mail.example", 465, True, "p@ss"),
    )
    for wrong in ("http://x", "smtp://", "smtp://a:b@mail.example", "smtp://x:99999"):
        with pytest.raises(SettingsError):
            smtp_of(wrong)
