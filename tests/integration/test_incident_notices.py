"""Who is told of an incident, in which order, at least once, and what silences it meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from email.message import EmailMessage
from random import Random
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ops import contacts as contacts_command
from ops.services.stack import Stack
from server.clock import at
from server.config import Secret
from server.db.engine import acting, open_pool
from server.errors import ConflictError, NotFoundError
from server.feeds import webhooks
from server.feeds.worker import Webhooks
from server.fleet.checks import FieldError
from server.health import acts, contacts, rulebook, sending, windows
from server.health.contacts import Contact, Known, hears_at
from server.health.judgement import Condition, Severity, Standing
from server.health.notices import message_of, resend
from server.health.rules import RuleChange, Rules
from server.health.sending import LEASE, TRIED_FOR
from server.health.windows import Kind, Wanted
from server.people.sealing import Seal
from tests.integration.api_world import utc
from tests.integration.health_world import Fleet
from tests.integration.health_world import fleet as fleet

pytestmark = pytest.mark.services
FIRING, CLEAR = Standing.FIRING, Standing.CLEAR
SEAL = Seal(Secret("s" * 32))
OPENED, AGAIN = "[critical] offline: Door 1 at Shop 0", "Still open: "


async def broken(fleet: Fleet, *, devices: int = 3) -> int:
    """Let the first device of the first site be gone; return its incident."""
    await fleet.grow(sites=1, each=devices)
    await fleet.stand(FIRING, fleet.devices[fleet.sites[0]][:1])
    await fleet.go(130)
    (incident,) = await fleet.incidents()
    number: int = incident["id"]
    return number


async def ref_of(fleet: Fleet, incident: int) -> str:
    found: str = await fleet.owner.fetchval("select ref from incidents where id = $1", incident)
    return found


async def test_a_window_silences_and_ends_by_itself_with_its_time_anew(fleet: Fleet) -> None:
    await fleet.contact()
    incident = await broken(fleet)
    wanted = Wanted(
        Kind.MAINTENANCE, "New door", None, fleet.now + timedelta(hours=2), site="site-0"
    )
    own = fleet.organisation
    seen = await windows.preview(fleet.owner, own, wanted, now=fleet.now)
    assert (seen.sites, seen.devices, seen.episodes, seen.incidents) == (1, 3, 1, 1)
    window = await windows.add(fleet.owner, own, wanted, actor="user ada", now=fleet.now)
    await fleet.go(3_600, step=300)
    assert await fleet.mails() == []
    assert ("held", "maintenance") in await fleet.why(incident)
    (episode,) = await fleet.episodes(open_only=True)
    assert (episode["suppressed"], episode["suppressed_by"]) == ("maintenance", window.ref)
    await fleet.go(3_600 + 60, step=60)  # it has ended, and what was silent waits as if new
    assert await fleet.mails() == []
    await fleet.go(300)
    assert await fleet.mails() == [OPENED]


async def test_a_visit_is_ended_early_and_no_silence_is_for_ever(fleet: Fleet) -> None:
    await fleet.contact()
    incident = await broken(fleet)
    own, now = fleet.organisation, fleet.now
    for wrong in (
        Wanted(Kind.VISIT, "x", None, now + timedelta(days=31)),
        Wanted(Kind.VISIT, "x", None, now),
        Wanted(Kind.VISIT, "x", now + timedelta(hours=2), now + timedelta(hours=1)),
        Wanted(Kind.VISIT, " ", None, now + timedelta(hours=1)),
        Wanted(Kind.VISIT, "x", None, now + timedelta(hours=1), site="a", device="b"),
    ):
        with pytest.raises(FieldError):
            await windows.add(fleet.owner, own, wrong, actor="user ada", now=now)
    wanted = Wanted(Kind.VISIT, "Ada is there", None, now + timedelta(hours=8))
    window = await windows.add(fleet.owner, own, wanted, actor="user ada", now=now)
    await fleet.go(900)
    assert await fleet.mails() == []
    ended = await windows.end(fleet.owner, own, window.ref, actor="user ada", now=fleet.now)
    assert (ended.ended_at, ended.ended_by) == (fleet.now, "user ada")
    await fleet.go(300)
    assert await fleet.mails() == [OPENED]
    assert ("held", "visit") in await fleet.why(incident)
    done = [row[0] for row in await fleet.owner.fetch("select act from audit order by number")]
    assert done[-2:] == ["window added", "window ended"]


async def test_who_sees_to_it_is_left_alone_until_it_is_due_and_a_new_episode_is_new(
    fleet: Fleet,
) -> None:
    await fleet.contact()
    incident = await broken(fleet)
    await fleet.go(300)
    ref, own = await ref_of(fleet, incident), fleet.organisation
    assert await fleet.mails() == [OPENED]
    due = fleet.now + timedelta(hours=6)
    await acts.acknowledge(fleet.owner, own, ref, until=due, actor="user ada", now=fleet.now)
    await fleet.go(5 * 3600, step=600)  # longer than it takes until it would be told again
    assert len(await fleet.mails()) == 1
    assert ("held", "acknowledged") in await fleet.why(incident)
    await fleet.go(3_900, step=300)  # it is due
    assert (await fleet.mails())[1:] == [AGAIN + OPENED]

    await acts.acknowledge(fleet.owner, own, ref, until=None, actor="user ada", now=fleet.now)
    await fleet.stand(FIRING, fleet.devices[fleet.sites[0]][1:2])
    await fleet.go(900)
    assert (await fleet.mails())[2:] == ["Changed: " + OPENED]
    await fleet.stand(CLEAR, fleet.devices[fleet.sites[0]][:2])
    await fleet.go(300)
    assert (await fleet.mails())[3:] == ["Resolved: " + OPENED]
    with pytest.raises(ConflictError):
        await acts.assign(fleet.owner, own, ref, "Ada", actor="user ada", now=fleet.now)
    said = await acts.comment(fleet.owner, own, ref, "A fuse", actor="user ada", now=fleet.now)
    assert await acts.comments(fleet.owner, incident) == [said]


async def test_a_closed_shop_wakes_nobody_and_its_opening_does(fleet: Fleet) -> None:
    await fleet.contact()
    await fleet.grow(sites=1, each=3)
    await fleet.owner.execute(
        "insert into opening_hours select organisation_id, id, day, 540, 780 "  # to 13:00 local
        "from sites, generate_series(0, 6) day"
    )
    await fleet.stand(FIRING, fleet.devices[fleet.sites[0]][:1])
    await fleet.go(900)  # at noon UTC it is 14:00 there
    assert await fleet.mails() == []
    (incident,) = await fleet.incidents()
    held = await fleet.owner.fetchrow(
        "select why, until from incident_decisions where incident_id = $1 order by id desc limit 1",
        incident["id"],
    )
    assert tuple(held) == ("closed", utc("2026-04-03T07:00"))
    await fleet.go(20 * 3600, step=1800)
    assert await fleet.mails() == [OPENED]


async def test_a_contact_is_told_in_their_hours_and_of_what_is_over_by_then_never(
    fleet: Fleet,
) -> None:
    await fleet.contact("day@example.com", since="20:00", until="22:00")
    await fleet.contact("minor@example.com", severity=Severity.MINOR)
    await fleet.contact("critical@example.com", severity=Severity.CRITICAL)
    incident = await broken(fleet)
    await fleet.go(300)
    await fleet.mails()
    assert len(fleet.office.to) == 2
    assert ("held", "contact_hours") in await fleet.why(incident)
    await fleet.stand(CLEAR, fleet.devices[fleet.sites[0]][:1])
    await fleet.go(300)
    await fleet.mails()
    assert ("dropped", "over_before") in await fleet.why(incident)
    await fleet.go(10 * 3600, step=1800)
    await fleet.mails()
    assert len(fleet.office.to) == 4
    assert not any("day@" in line for line in fleet.office.to)


async def test_hours_of_contacts_follow_their_wall_clock() -> None:
    night = Contact(
        "A", "a@example.com", Severity.INFO, "Europe/Stockholm", (4, 5), "22:00", "06:00"
    )
    friday = utc("2026-03-27T12:00")  # the clock goes forward on Sunday, the 29th
    assert hears_at(night, now=friday) == utc("2026-03-27T21:00")
    assert hears_at(night, now=utc("2026-03-28T03:00")) == utc("2026-03-28T03:00")
    assert hears_at(night, now=utc("2026-03-29T03:30")) == utc("2026-03-29T03:30")
    assert hears_at(night, now=utc("2026-03-29T04:30")) == utc("2026-04-03T20:00")
    always = Contact("A", "a@example.com", Severity.INFO)
    assert hears_at(always, now=friday) == friday
    for wrong in ({"since": "25:00", "until": "06:00"}, {"since": "06:00", "until": "06:00"},
                  {"weekdays": ()}, {"email": "a b@c"}, {"time_zone": "Mars"}):  # fmt: skip
        with pytest.raises(FieldError):
            contacts.checked(Contact(**{"name": "A", "email": "a@b.c", "severity": Severity.INFO,
                                        **wrong}))  # type: ignore[arg-type]  # fmt: skip


async def test_rules_of_an_organisation_are_versions_and_audited(fleet: Fleet) -> None:
    own = fleet.organisation
    mine = Rules({Condition.OFFLINE: RuleChange(severity=Severity.MINOR, opens_after_s=600)})
    async with fleet.owner.transaction():
        made = await rulebook.change(
            fleet.owner, own, mine, seen=0, actor="user ada", now=fleet.now
        )
    assert (made.number, made.rules) == (1, mine)
    with pytest.raises(ConflictError):
        await rulebook.change(fleet.owner, own, mine, seen=0, actor="user bo", now=fleet.now)
    await fleet.contact()
    await fleet.grow(sites=1, each=2)
    await fleet.stand(FIRING, fleet.devices[fleet.sites[0]][:1])
    await fleet.go(590)
    assert await fleet.incidents() == []
    await fleet.go(600)
    (incident,) = await fleet.incidents()
    assert incident["severity"] == "minor"
    assert await fleet.mails() == []  # minor is in the feed alone
    assert await fleet.told() == [("incident.opened", "Door 1")]
    detail = await fleet.owner.fetchval(
        "select detail from audit where act = 'health rules changed'"
    )
    assert json.loads(detail)["after"] == {
        "conditions": {"offline": {"opens_after_s": 600, "severity": "minor"}}
    }


# -- at least once, in order, nobody delayed -------------------------------------------------------


async def test_a_crash_between_handing_in_and_marking_costs_a_double_of_the_same_id(
    fleet: Fleet,
) -> None:
    await fleet.contact()
    await broken(fleet)
    await fleet.go(300)
    fleet.office.answer = lambda line: None if line == "<body>" else "250 ok"  # taken, then cut
    await fleet.mails()
    assert len(fleet.office.taken) == 1
    row = await fleet.owner.fetchrow("select * from notices")
    assert (row["sent_at"], row["tries"]) == (None, 1)
    fleet.office.answer = lambda _: "250 ok"
    fleet.world.clock.advance(LEASE.total_seconds())
    await fleet.mails()
    await fleet.mails()
    names = [each["Message-ID"] for each in fleet.office.taken]
    assert len(names) == 2
    assert names[0] == names[1]


async def test_a_database_that_goes_away_before_marking_costs_a_double_and_ends_nothing(
    fleet: Fleet,
) -> None:
    await fleet.contact()
    await broken(fleet)
    await fleet.go(300)
    await fleet.owner.execute(
        "create function away() returns trigger language plpgsql as "
        "$$ begin raise exception using errcode = '57P01'; end $$; "
        "create trigger away before update on notices for each row "
        "when (new.sent_at is not null) execute function away()"
    )
    assert len(await fleet.mails()) == 1
    await fleet.owner.execute("drop trigger away on notices; drop function away()")
    fleet.world.clock.advance(LEASE.total_seconds())
    assert len(await fleet.mails()) == 2
    first, second = (each["Message-ID"] for each in fleet.office.taken)
    assert first == second
    assert await fleet.owner.fetchval("select sent_at is not null from notices")


async def test_a_mail_that_cannot_be_made_is_put_off_and_keeps_back_no_other(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.contact("odd@example.com")
    await fleet.contact("there@example.com")
    await broken(fleet)
    await fleet.go(300)

    def made(**facts: Any) -> EmailMessage:
        if facts["to"] == "odd@example.com":
            raise ValueError("a fault of ours")
        return message_of(**facts)

    monkeypatch.setattr(sending, "message_of", made)
    assert len(await fleet.mails()) == 1
    trouble = await fleet.owner.fetchval("select trouble from notices where sent_at is null")
    assert "a fault of ours" in trouble
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()  # as a group that fails would leave its owner, and end the loop


async def test_what_never_arrives_is_dead_and_listed_and_delays_no_other(fleet: Fleet) -> None:
    await fleet.contact("gone@example.com")
    await fleet.contact("there@example.com")
    await broken(fleet)
    await fleet.go(300)
    fleet.office.answer = lambda line: "451 later" if "gone@" in line else "250 ok"
    await fleet.mails()
    assert len(fleet.office.taken) == 1
    for _ in range(30):
        fleet.world.clock.advance(TRIED_FOR.total_seconds() / 24)
        await fleet.mails()
    dead = await fleet.owner.fetchrow("select * from notices where dead_at is not null")
    assert (dead["sent_at"], dead["next_at"]) == (None, None)
    assert "451" in dead["trouble"] or "later" in dead["trouble"]
    assert dead["tries"] > 5


async def test_what_was_given_up_is_tried_again_when_somebody_asks_and_once(fleet: Fleet) -> None:
    gone = await fleet.contact("gone@example.com")
    there = await fleet.contact("there@example.com")
    await broken(fleet)
    await fleet.go(300)
    fleet.office.answer = lambda line: "550 nobody" if "gone@" in line else "250 ok"
    await fleet.mails()
    dead = await fleet.owner.fetchrow("select * from notices where dead_at is not null")
    fleet.office.answer = lambda line: "250 ok"
    fleet.world.clock.advance(3 * TRIED_FOR.total_seconds())
    assert len(await fleet.mails()) == 1  # what was given up waits for somebody

    async def again(known: Known) -> int:
        async with fleet.owner.transaction():
            return await resend(
                fleet.owner, fleet.organisation, known.ref, actor="command", now=fleet.now
            )

    assert [await again(known) for known in (there, gone, gone)] == [0, 1, 0]
    first, second = await fleet.mails(), fleet.office.taken[-1]
    assert len(first) == 2
    assert second["To"] == "gone@example.com"
    assert second["Message-ID"].startswith(f"<{dead['dedupe']}@")
    assert await fleet.mails() == first
    said = await fleet.owner.fetchval(
        "select detail ->> 'messages' from audit where act = 'mail sent again' and subject = $1",
        gone.ref,
    )
    assert said == "1"
    with pytest.raises(NotFoundError):  # it is no contact of the platform's
        await resend(fleet.owner, None, gone.ref, actor="command", now=fleet.now)


@dataclass
class Receiver:
    """Somebody who answers half the time; until `patience` is set, they hang."""

    chance: Random
    got: list[dict[str, Any]] = field(default_factory=list)
    tries: int = 0
    patience: asyncio.Event = field(default_factory=asyncio.Event)
    heard: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def hear(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.tries += 1
        await self.patience.wait()
        if self.chance.random() < 0.5:
            return web.Response(status=503)
        self.got.append(json.loads(body)["data"]["incident"])
        self.heard.release()
        return web.Response()


@pytest.fixture
async def hook(
    fleet: Fleet, stack: Stack, world_database: str
) -> AsyncIterator[Callable[[Random], Any]]:
    """Make webhooks of the organisation."""
    async with AsyncExitStack() as exits:
        dsn = stack.endpoints.dsn("desk", world_database)
        desk = await exits.enter_async_context(open_pool(dsn, size=1, name="desk"))

        async def made(chance: Random) -> Receiver:
            receiver = Receiver(chance)
            app = web.Application()
            app.router.add_post("/hook", receiver.hear)
            server = await exits.enter_async_context(TestServer(app))
            exits.callback(receiver.patience.set)
            async with acting(desk, "add", organisation=fleet.organisation) as connection:
                await webhooks.add(
                    connection,
                    fleet.organisation,
                    url=str(server.make_url("/hook")),
                    kinds=[],
                    seal=SEAL,
                    actor="test",
                    now=at(fleet.world.clock.now_ms()),
                    inward=True,
                )
            return receiver

        yield made


class Never(Random):
    """Never fails."""

    def random(self) -> float:
        return 1.0


async def test_a_receiver_that_fails_and_hangs_gets_all_in_order_and_delays_nobody(
    fleet: Fleet, hook: Callable[[Random], Any]
) -> None:
    poor, good = await hook(Random(7)), await hook(Never())
    worker = Webhooks(
        fleet.world.maint, SEAL, fleet.world.clock, chance=lambda: 0.5, inward=True, timeout_s=60
    )
    good.patience.set()
    await fleet.grow(sites=4, each=3)
    firsts = [devices[0] for devices in fleet.devices.values()]
    await fleet.stand(FIRING, firsts)
    await fleet.go(360, step=60)
    hanging = asyncio.create_task(worker.once())
    for _ in range(4):
        await good.heard.acquire()
    expected = 4
    for standing in (CLEAR, FIRING, CLEAR, FIRING, CLEAR):
        if standing is FIRING:
            fleet.world.clock.advance(4 * 3600)  # so that they do not flap
        await fleet.stand(standing, firsts)
        await fleet.go(360, step=60)
        await worker.once()
        expected += 4
        assert (len(good.got), hanging.done()) == (expected, False)
    poor.patience.set()
    await hanging
    for _ in range(200):
        if len(poor.got) >= expected:
            break
        fleet.world.clock.advance(1_800)
        await worker.once()
    once: list[tuple[str, int]] = []
    for each in poor.got:
        if (each["incident"], each["step"]) not in once:
            once.append((each["incident"], each["step"]))
    assert once == [(each["incident"], each["step"]) for each in good.got]
    assert poor.tries > len(once)
    for ref in {incident for incident, _ in once}:
        assert [step for incident, step in once if incident == ref] == [1, 2]


async def test_who_runs_the_platform_is_added_listed_and_removed_by_a_command(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(*words: str) -> str:
        options = contacts_command._parser().parse_args(list(words))
        await options.action(fleet.owner, options)
        return capsys.readouterr().out.strip()

    made = await run("add", "--platform", "ops@example.com", "--hours", "08:00-17:00", "--digest")
    told = await run("add", "--organisation", "own", "noc@example.com", "--severity", "minor")
    assert await run("resend", "--organisation", "own", told) == "0 to be sent again"
    assert (await run("list", "--platform")).split("\t")[1:4] == [
        *("ops@example.com", "major", "08:00-17:00 UTC")
    ]
    assert "minor\talways" in await run("list", "--organisation", "own")
    await run("remove", "--platform", made)
    assert await run("list", "--platform") == ""
    assert len(await contacts.listed(fleet.owner, fleet.organisation)) == 1
