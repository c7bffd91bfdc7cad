"""Webhooks: told at least once, signed, in order; who fails is tried again, and delays nobody."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ops.services.stack import Stack
from server.api.keys import create_api_key
from server.clock import at
from server.config import Secret
from server.db.changes import GapNote, Kind, note_change, place_now
from server.db.engine import acting, open_pool
from server.feeds import webhooks
from server.feeds.worker import PLACED_EVERY, Webhooks
from server.people.sealing import Seal
from tests.integration.api_world import World, utc
from tests.integration.people_world import People

pytestmark = pytest.mark.services
SEAL = Seal(Secret("s" * 32))


@dataclass
class Receiver:
    """Somebody who is told; `answers` are given one after the other, then 200."""

    answers: list[int] = field(default_factory=list)
    got: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    hang: asyncio.Event | None = None
    secret: bytes = b""
    url: str = ""
    webhook: webhooks.Webhook | None = None

    async def hear(self, request: web.Request) -> web.Response:
        body = await request.read()
        name, when = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        signed = hmac.new(self.secret, f"{name}.{when}.".encode() + body, hashlib.sha256).digest()
        assert request.headers["webhook-signature"] == "v1," + base64.b64encode(signed).decode()
        self.ids.append(name)
        self.heard.set()
        if self.hang is not None:
            await self.hang.wait()
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.got.append(json.loads(body))
        elsewhere = {"Location": self.url} if status == 302 else None
        return web.Response(status=status, headers=elsewhere)


@dataclass
class Telling:
    """A worker that tells, and receivers that are told."""

    world: World
    worker: Webhooks
    organisation: int
    receiver: Callable[..., Any]

    async def happen(self, number: int) -> None:
        await note_change(
            self.world.owner,
            Kind.GAP_OPENED,
            organisation=self.organisation,
            detail=GapNote(number, "totals"),
            now=at(self.world.clock.now_ms()),
        )

    async def state(self, receiver: Receiver) -> webhooks.Webhook:
        assert receiver.webhook is not None
        return await webhooks.find(self.world.owner, self.organisation, receiver.webhook.ref)


@pytest.fixture
async def telling(world: World, stack: Stack, world_database: str) -> AsyncIterator[Telling]:
    organisation = await world.organisation("own")
    async with AsyncExitStack() as exits:
        dsn = stack.endpoints.dsn("desk", world_database)
        desk = await exits.enter_async_context(open_pool(dsn, size=2, name="desk"))

        async def receiver(*answers: int) -> Receiver:
            made = Receiver(list(answers))
            app = web.Application()
            app.router.add_post("/hook", made.hear)
            server = await exits.enter_async_context(TestServer(app))
            made.url = str(server.make_url("/hook"))
            async with acting(desk, "add", organisation=organisation) as connection:
                made.webhook, secret = await webhooks.add(
                    connection,
                    organisation,
                    url=made.url,
                    kinds=[],
                    seal=SEAL,
                    actor="test",
                    now=at(world.clock.now_ms()),
                    inward=True,
                )
            made.secret = base64.b64decode(secret.removeprefix("whsec_"))
            return made

        worker = Webhooks(
            world.maint, SEAL, world.clock, chance=lambda: 0.5, inward=True, timeout_s=5
        )
        yield Telling(world, worker, organisation, receiver)


def numbers(receiver: Receiver) -> list[int]:
    return [each["data"]["gap"]["gap"] for each in receiver.got]


async def test_what_happens_is_told_once_in_order_and_signed(telling: Telling) -> None:
    await telling.happen(1)  # before anybody asked for it
    receiver = await telling.receiver()
    for number in (2, 3, 4):
        await telling.happen(number)
    await telling.worker.once()
    await telling.worker.once()
    assert numbers(receiver) == [2, 3, 4]
    assert receiver.got[0]["type"] == "gap.opened"
    assert len(set(receiver.ids)) == 3
    assert [each["data"]["change"] for each in receiver.got] == receiver.ids


async def test_only_a_webhook_that_something_is_new_for_is_queued_for(
    telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    receivers = [await telling.receiver() for _ in range(3)]
    rows = [each.webhook.id for each in receivers if each.webhook is not None]
    await telling.world.owner.execute(
        "update webhooks set kinds = '{alert.raised}' where id = $1", rows[1]
    )
    queued: list[int] = []
    queue = Webhooks._queue

    async def noted(worker: Webhooks, connection: Any, webhook: int) -> None:
        queued.append(webhook)
        await queue(worker, connection, webhook)

    monkeypatch.setattr(Webhooks, "_queue", noted)
    await telling.worker.queue()
    assert queued == []  # nothing has happened
    await telling.happen(1)
    await telling.worker.queue()
    await telling.worker.queue()
    assert queued == [rows[0], rows[2]]  # once, and not who follows alerts alone
    queued.clear()
    async with telling.world.maint.acquire() as connection, connection.transaction():
        await connection.execute("select pg_current_xact_id()")  # writes, and has not committed
        await telling.happen(2)
        await telling.worker.queue()
        assert queued == []  # nobody can be told of it yet
    await telling.worker.queue()
    assert queued == [rows[0], rows[2]]
    queued.clear()
    telling.world.clock.advance(PLACED_EVERY.total_seconds() + 1)
    await telling.worker.queue()
    assert queued == rows  # their places move on, lest they expire
    queued.clear()
    await telling.world.owner.execute("update dataset set id = id + 1")  # restored
    await telling.worker.queue()
    assert queued == rows


async def test_who_answers_500_is_told_again_later_by_the_same_id(telling: Telling) -> None:
    receiver = await telling.receiver(500, 503)
    await telling.happen(1)
    await telling.happen(2)
    await telling.worker.once()
    await telling.worker.once()
    assert len(receiver.ids) == 1  # the second waits for the first, and both for their time
    telling.world.clock.advance(20)
    await telling.worker.once()
    assert (len(receiver.ids), receiver.got) == (2, [])
    assert (await telling.state(receiver)).failing_since is not None
    telling.world.clock.advance(40)
    await telling.worker.once()
    assert numbers(receiver) == [1, 2]
    assert receiver.ids[0] == receiver.ids[1] == receiver.ids[2] != receiver.ids[3]
    state = await telling.state(receiver)
    assert (state.waiting, state.dead, state.failing_since) == (0, 0, None)


async def test_one_that_hangs_delays_no_other(telling: Telling) -> None:
    slow, quick = await telling.receiver(), await telling.receiver()
    slow.hang = asyncio.Event()
    await telling.happen(1)
    turn = asyncio.create_task(telling.worker.once())
    await slow.heard.wait()
    await quick.heard.wait()
    await telling.happen(2)
    await telling.worker.once()  # while the slow one still has its first
    assert (numbers(quick), numbers(slow), turn.done()) == ([1, 2], [], False)
    slow.hang.set()
    await turn
    await telling.worker.once()
    assert numbers(slow) == [1, 2]


async def test_who_never_answers_is_given_up_listed_and_disabled_with_a_sentence(
    telling: Telling,
) -> None:
    receiver = await telling.receiver(*([500] * 100))
    clock = telling.world.clock
    async with telling.world.owner.transaction():
        start = await place_now(telling.world.owner, now=at(clock.now_ms()))
    await telling.happen(1)
    for _ in range(24):
        await telling.worker.once()
        clock.advance(timedelta(hours=3).total_seconds() + 1)
    await telling.worker.once()
    state = await telling.state(receiver)
    assert (state.waiting, state.dead, state.disabled_at) == (0, 1, None)
    (dead,) = await webhooks.deliveries(telling.world.owner, state.id, dead=True, limit=5)
    assert (dead.status, dead.trouble, dead.next_at) == (500, "it answered 500", None)
    await telling.happen(2)
    clock.advance(timedelta(days=2).total_seconds())
    await telling.worker.once()
    state = await telling.state(receiver)
    assert state.disabled == "Disabled: nothing has arrived for 5 days; last: it answered 500."
    tried = len(receiver.ids)
    await telling.happen(3)
    await telling.worker.once()
    assert len(receiver.ids) == tried

    receiver.answers.clear()
    owner, now = telling.world.owner, at(clock.now_ms())
    async with owner.transaction():
        end = await place_now(owner, now=now)
        await webhooks.change(
            owner,
            telling.organisation,
            state.ref,
            enabled=True,
            kinds=None,
            replay=(start, end),
            seen=state.version,
            actor="test",
            now=now,
        )
    await telling.worker.once()
    assert numbers(receiver) == [1, 2, 3]


async def test_a_replay_tells_a_stretch_of_the_feed_again_by_the_same_ids(
    telling: Telling,
) -> None:
    receiver = await telling.receiver()
    owner, now = telling.world.owner, at(telling.world.clock.now_ms())
    places = []
    for number in (1, 2, 3):
        places.append(await place_now(owner, now=now))
        await telling.happen(number)
    await telling.worker.once()
    state = await telling.state(receiver)
    async with owner.transaction():
        await webhooks.change(
            owner,
            telling.organisation,
            state.ref,
            enabled=None,
            kinds=None,
            replay=(places[1], places[2]),
            seen=None,
            actor="test",
            now=now,
        )
    await telling.worker.once()
    assert numbers(receiver) == [1, 2, 3, 2]
    assert receiver.ids[1] == receiver.ids[3]


async def test_late_data_is_told_with_the_day_before_and_after(telling: Telling) -> None:
    world = telling.world
    site = await world.site(telling.organisation, "site")
    spot = await world.spot(telling.organisation, site, "spot")
    await world.quarter(spot, utc("2026-03-03T10:00"), 40, 30)
    await world.derive()
    receiver = await telling.receiver()
    await world.quarter(spot, utc("2026-03-03T10:00"), 2, 1, revision=1)
    await world.derive()
    await telling.worker.once()
    (told,) = receiver.got
    revised = told["data"]["revised"]
    assert (told["type"], told["data"]["spot"], revised["day"]) == (
        *("bucket.revised", "spot"),
        "2026-03-03",
    )
    assert (revised["old"]["visits"], revised["old"]["revision"]) == (40, 0)
    assert (revised["new"]["visits"], revised["new"]["revision"]) == (42, 1)


async def test_nobody_is_followed_elsewhere_and_a_gone_one_is_disabled(telling: Telling) -> None:
    moved, gone = await telling.receiver(302), await telling.receiver(410)
    await telling.happen(1)
    await telling.worker.once()
    assert len(moved.ids) == 1
    state = await telling.state(moved)
    (tried,) = await webhooks.deliveries(telling.world.owner, state.id, limit=5)
    assert (tried.status, tried.trouble) == (302, "it answered 302")
    assert (await telling.state(gone)).disabled == "Disabled: it answered 410 Gone."


async def test_a_name_that_resolves_inwards_is_never_connected_to(telling: Telling) -> None:
    receiver = await telling.receiver()
    port = receiver.url.split(":")[2].split("/")[0]
    strict = Webhooks(telling.world.maint, SEAL, telling.world.clock, chance=lambda: 0.5)
    await telling.happen(1)
    for url in (f"https://localhost:{port}/hook", f"https://127.0.0.1:{port}/hook", receiver.url):
        await telling.world.owner.execute("update webhooks set url = $1", url)
        await telling.world.owner.execute("update deliveries set next_at = $1", utc("2026-01-01"))
        await strict.once()
        state = await telling.state(receiver)
        (tried,) = await webhooks.deliveries(telling.world.owner, state.id, limit=5)
        assert tried.status is None
        assert "public" in tried.trouble or "https" in tried.trouble, tried.trouble
    assert receiver.ids == []


async def test_a_webhook_is_registered_and_its_secret_shown_once(people: People) -> None:
    key = await create_api_key(
        people.owner, people.organisations["own"], scopes=("read", "feeds:write")
    )

    async def ask(method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {key}", "If-Match": "*"}
        async with people.browser().request(
            method, f"/v1{path}", json=body, headers=headers
        ) as response:
            return response.status, await response.json(content_type=None)

    url = "https://hooks.example.com/vestibule"
    _, made = await ask("POST", "/webhooks", {"url": url, "kinds": ["bucket.revised"]})
    assert base64.b64decode(made["secret"].removeprefix("whsec_"))
    path = f"/webhooks/{made['webhook']}"
    _, known = await ask("GET", path)
    assert (known["url"], known["kinds"], known["enabled"]) == (url, ["bucket.revised"], True)
    kept = await people.owner.fetchval("select w::text from webhooks w")
    assert base64.b64decode(made["secret"].removeprefix("whsec_")).hex() not in kept
    assert made["secret"] not in json.dumps(known)
    _, off = await ask("PATCH", path, {"enabled": False})
    assert (off["enabled"], off["disabled"]) == (False, "Somebody disabled it.")
    assert (await ask("GET", f"{path}/deliveries?dead=true"))[1]["data"] == []
    for bad in ("http://example.com/", "https://10.0.0.1/", "https://[::ffff:127.0.0.1]/"):
        status, problem = await ask("POST", "/webhooks", {"url": bad})
        assert (status, problem["code"], problem["parameter"]) == (422, "bad_value", "url")
    assert (await ask("DELETE", path))[0] == 200
    assert (await ask("GET", path))[0] == 404
    acts = await people.owner.fetch("select act from audit where subject = $1", made["webhook"])
    assert [row["act"] for row in acts] == ["webhook added", "webhook changed", "webhook removed"]
