"""Where a device is to stand: who may say so, what gives way, what the phone is shown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from ops.services.stack import Stack
from protocol.identity import DeviceId
from protocol.label import Label, bind_proof
from server.db.engine import acting, transaction
from server.errors import RefusedError
from server.fleet.register import assign
from server.provisioning import technician
from server.provisioning.enrol import Enrolment
from server.provisioning.progress import Mark, Step
from server.provisioning.sweep import sweep
from server.provisioning.technician import TechnicianClaim, bind, end_claim
from server.provisioning.vouchers import Voucher, withdraw_voucher
from tests.ingest_world import MINUTE, NOON, Agent, differences, ingesting, people, rebuilt
from tests.integration.api_world import World
from tests.integration.provisioning_world import Key, Provisioning, provisioning

pytestmark = pytest.mark.services


@pytest.fixture
async def place(world: World, stack: Stack, world_database: str) -> AsyncIterator[Provisioning]:
    async with provisioning(stack, world_database, world.owner) as made:
        await made.policy("technician")
        yield made


async def refused(code: str, doing: Any) -> None:
    with pytest.raises(RefusedError) as error:
        await doing
    assert error.value.code == code


async def installed(place: Provisioning, serial: str, spot: str) -> Label:
    """A device that stands at a spot."""
    label = await place.device(serial)
    await place.claim(label.text, spot)
    assert isinstance(await place.ask(label, Key()), Enrolment)
    place.later(days=1)
    return label


async def test_x20_a_second_technician_needs_a_reason(place: Provisioning) -> None:
    label = await place.device()
    first = await place.claim(label.text, "door-1")
    await refused("claimed_by_another", place.claim(label.text, "door-2", user="ture"))
    second = await place.claim(label.text, "door-2", user="ture", reason="Tove is ill")
    assert (await place.found(first.ref)).state == "ended"
    assert second.state == "open"
    assert "Tove is ill" in await place.owner.fetchval(
        "select detail->>'reason' from audit order by id desc limit 1"
    )


async def test_ones_own_claim_gives_way_to_a_correction(place: Provisioning) -> None:
    label = await place.device()
    first = await place.claim(label.text, "door-1")
    place.later(minutes=1)
    second = await place.claim("dc-0001", "door-2")  # by its serial, in any case
    assert [(await place.found(c.ref)).state for c in (first, second)] == ["ended", "open"]


async def test_a_spot_that_is_taken_is_taken_only_by_replacing(place: Provisioning) -> None:
    await installed(place, "DC-0001", "door-1")
    await place.device("DC-0002")
    await installed(place, "DC-0003", "door-3")
    await refused("spot_taken", place.claim("DC-0002", "door-1"))
    for other in ("DC-0002", "DC-0003"):
        await refused("not_replaceable", place.claim("DC-0002", "door-1", replaces=other))
    await refused("not_replaceable", place.claim("DC-0001", "door-1", replaces="DC-0003"))
    await refused("not_replaceable", place.claim("DC-0002", "door-2", replaces="DC-0001"))
    await refused("unknown_serial", place.claim("DC-0002", "door-1", replaces="DC-9999"))
    assert (await place.claim("DC-0002", "door-1", replaces="DC-0001")).replaces is not None


async def test_a_device_that_stands_elsewhere_is_moved_only_for_a_reason(
    place: Provisioning,
) -> None:
    label = await installed(place, "DC-0001", "door-1")
    await refused("stands_elsewhere", place.claim(label.text, "door-2"))
    await place.claim(label.text, "door-2", reason="the door was walled up")
    assert [where for where, _, _ in await place.stands("DC-0001")] == ["door-1", "door-2"]


async def test_what_does_not_fit_is_refused(place: Provisioning) -> None:
    label = await place.device()
    await place.spot("till-1", kind="kiosk")
    wrong = Label("DC-0001", "2" * 16).text
    await refused("bad_secret", place.claim(wrong, "door-1"))
    await refused("bad_secret", place.claim("vsl1.nonsense", "door-1"))
    await refused("unknown_serial", place.claim("DC-9999", "door-1"))
    await refused("unknown_spot", place.claim(label.text, "door-9"))
    await refused("wrong_kind", place.claim(label.text, "till-1"))
    for since in (place.now + timedelta(minutes=5), place.now - timedelta(days=8)):
        await refused("bad_time", place.claim(label.text, "door-1", since=since))
    await place.owner.execute("update devices set state = 'quarantined'")
    await refused("device_not_admitted", place.claim(label.text, "door-1"))
    await refused("no_such_claim", place.found("claim-nowhere"))


async def test_another_organisations_devices_and_spots_are_not_there(place: Provisioning) -> None:
    own, theirs = await place.device("DC-0001"), await place.device("DC-0002")
    other = await place.owner.fetchval(
        "insert into organisations (ref, name) values ('o', 'o') returning id"
    )
    await place.owner.execute(
        "update devices set organisation_id = $1 where serial = 'DC-0002'", other
    )
    await refused("unknown_serial", place.claim(theirs.text, "door-1"))
    await place.owner.execute("update spots set organisation_id = $1 where ref = 'door-2'", other)
    await refused("unknown_spot", place.claim(own.text, "door-2"))
    async with place.ingest.acquire() as connection:  # who sees all is told why
        await refused(
            "other_organisation",
            technician.open_claim(
                connection,
                user_id=place.users["tove"],
                device=own.text,
                spot_ref="door-2",
                since=place.now,
                now=place.now,
            ),
        )


async def test_an_act_is_done_once_and_answered_the_same(place: Provisioning) -> None:
    label = await place.device()
    first = await place.claim(label.text, "door-1", act_ref="7")
    await place.ask(label, Key())
    place.later(days=2)
    again = await place.claim(label.text, "door-1", act_ref="7")
    assert (again.ref, again.state) == (first.ref, "used")
    assert await place.owner.fetchval("select count(*) from technician_claims") == 1
    voucher, text = await place.voucher()
    await refused("act_differs", bound(place, label, voucher, text, at=place.now, act_ref="7"))


async def test_a_claim_can_be_ended_once(place: Provisioning) -> None:
    label = await place.device()
    claim = await place.claim(label.text, "door-1")
    for _ in range(2):
        async with acting(place.desk, "end", organisation=place.organisation) as connection:
            ended = await end_claim(
                connection, claim.ref, user_id=place.users["tove"], now=place.now
            )
        assert ended.state == "ended"
    assert await place.acts() == ["device claimed", "device claim ended"]
    assert not isinstance(await place.ask(label, Key()), Enrolment)


async def test_a_claim_that_has_gone_stale_keeps_no_device_out(place: Provisioning) -> None:
    label = await place.device()
    claim = await place.claim(label.text, "door-1")
    await place.device("DC-0002", state="installed")
    await assign(place.owner, device="dc-aadc-0002", spot="door-1", since=place.now)
    place.later(minutes=1)
    assert isinstance(await place.ask(label, Key()), Enrolment)
    assert (await place.found(claim.ref)).state == "ended"
    assert await place.stands("DC-0001") == []
    assert (await place.steps(claim.ref))[Step.CLAIMED] == (Mark.FAILED, "claim_over")


async def test_an_enrolled_device_whose_claim_nobody_completed_is_placed_by_the_sweep(
    place: Provisioning,
) -> None:
    await place.policy("allow-list")
    label = await place.device()
    await place.ask(label, Key())
    async with acting(place.desk, "open claim", organisation=place.organisation) as connection:
        claim = await technician.open_claim(
            connection,
            user_id=place.users["tove"],
            device=label.text,
            spot_ref="door-1",
            since=place.now,
            now=place.now,
        )
    assert claim.ready
    assert await sweep(place.ingest, now=place.now) == 1
    assert await sweep(place.ingest, now=place.now) == 0
    assert await place.state("DC-0001") == "installed"
    assert not await place.complete(claim.ref)


async def test_the_screen_shows_each_step_as_it_comes_true(
    place: Provisioning, stack: Stack, world_database: str
) -> None:
    label = await place.device()
    async with ingesting(stack, world_database) as ingest:
        place.clock = ingest.clock
        claim = await place.claim(label.text, "door-1", since=place.now)
        steps = await place.steps(claim.ref)
        assert [mark for mark, _ in steps.values()] == [Mark.DONE] + 6 * [Mark.WAITING]
        assert all(hint.startswith("hint.") for mark, hint in steps.values() if mark != Mark.DONE)
        with pytest.raises(RefusedError):
            await place.ask(label, Key(), secret="2" * 16)
        assert (await place.steps(claim.ref))[Step.ASKED] == (Mark.FAILED, "bad_secret")
        got = await place.ask(label, Key())
        assert isinstance(got, Enrolment)
        now_ms = ingest.clock.now_ms()
        agent = Agent(DeviceId(got.device), 77, booted_ms=now_ms, now_ms=now_ms)

        async def done() -> list[Step]:
            return [s for s, (mark, _) in (await place.steps(claim.ref)).items() if mark == "done"]

        assert await done() == [Step.CLAIMED, Step.ASKED, Step.CERTIFIED]
        await ingest.take((agent, agent.hello()))
        assert await done() == [Step.CLAIMED, Step.ASKED, Step.CERTIFIED, Step.CONNECTED]
        ingest.clock.advance(600)
        await ingest.take((agent, agent.counter([[0] * 10] * 2)))
        assert (await done())[4:] == [Step.CLOCK, Step.STORED]
        await ingest.take((agent, agent.counter()))
        assert await done() == list(Step)


async def test_a_swap_leaves_no_seam_and_no_bucket_with_two_owners(
    place: Provisioning, stack: Stack, world_database: str
) -> None:
    await place.policy("allow-list")
    begun = datetime.fromtimestamp(NOON / 1000, place.now.tzinfo)
    old_label, new_label = await place.device("DC-0001"), await place.device("DC-0002")
    async with ingesting(stack, world_database) as ingest:
        place.clock = ingest.clock
        names: list[str] = []
        for label in (old_label, new_label):
            got = await place.ask(label, Key())
            assert isinstance(got, Enrolment)
            names.append(got.device)
        async with transaction(place.ingest, "assign") as connection:
            await assign(connection, device=names[0], spot="door-1", since=begun)
        old, new = Agent(DeviceId(names[0]), 1), Agent(DeviceId(names[1]), 2)
        new.now_ms = NOON + 15 * MINUTE  # both hang there from 12:15 to 12:30, and count 1 a minute
        for _ in range(6):
            await ingest.take((old, old.counter()))
            await ingest.take((new, new.counter()))
        spot = await place.owner.fetchval("select id from spots where ref = 'door-1'")
        assert await people(place.owner, spot) == (60, 60)
        since = begun + timedelta(minutes=22)  # in the middle of a bucket
        claim = await place.claim(new_label.text, "door-1", replaces=old_label.text, since=since)
        assert claim.state == "used"
        # the old one's 22 minutes, the new one's 23, of two lines
        assert await people(place.owner, spot) == (90, 90)
        assert await differences(place.owner) == []
        assert await rebuilt(place.owner) == []
        assert (
            (await place.stands("DC-0001"))[0][2] == since == (await place.stands("DC-0002"))[0][1]
        )
        assert await place.state("DC-0001") == "returned"
        assert await place.certificates("DC-0001") == ["revoked"]
        done = await ingest.take((old, old.counter()))
        assert done.packets == []  # who was replaced is heard no more
        await ingest.take((new, new.counter()))
        assert await people(place.owner, spot) == (100, 100)


async def bound(
    place: Provisioning,
    label: Label,
    voucher: Voucher,
    text: str,
    *,
    at: datetime,
    act_ref: str = "1",
    spot: str = "door-1",
    proof: str = "",
) -> TechnicianClaim:
    """Send what a phone has noted in a dead spot."""
    right = bind_proof(
        label.secret_sha256,
        voucher=voucher.ref,
        serial=label.serial,
        spot=spot,
        at_ms=round(at.timestamp() * 1000),
    )
    async with acting(place.desk, "bind", organisation=place.organisation) as connection:
        return await bind(
            connection,
            place.signer,
            voucher=text,
            serial=label.serial,
            proof=proof or right,
            spot_ref=spot,
            at=at,
            act_ref=act_ref,
            now=place.now,
        )


async def test_what_was_bound_offline_counts_from_when_it_was_done(place: Provisioning) -> None:
    voucher, text = await place.voucher(uses=1, life=timedelta(hours=2))
    label = await place.device()
    at = place.later(hours=1)
    place.later(hours=20)  # the voucher is over, and so is the session
    claim = await bound(place, label, voucher, text, at=at)
    assert (claim.state, claim.since) == ("open", at)
    place.later(hours=3)
    assert isinstance(await place.ask(label, Key()), Enrolment)
    assert await place.stands("DC-0001") == [("door-1", at, None)]
    again = await bound(place, label, voucher, text, at=at)
    assert again.ref == claim.ref
    other = await place.device("DC-0002")
    await refused(
        "voucher_spent", bound(place, other, voucher, text, at=at, act_ref="2", spot="door-2")
    )


async def test_x19_binding_needs_a_voucher_of_that_time_and_that_place(place: Provisioning) -> None:
    before = place.now - timedelta(hours=1)
    voucher, text = await place.voucher()
    label = await place.device()
    elsewhere = await place.owner.fetchval(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'site-2', 's', 'UTC') returning id",
        place.organisation,
    )
    await place.owner.execute("update spots set site_id = $1 where ref = 'door-2'", elsewhere)
    await refused("voucher_expired", bound(place, label, voucher, text, at=before))
    late = place.now + timedelta(days=2)
    await refused("voucher_expired", bound(place, label, voucher, text, at=late))
    soon = place.now + timedelta(minutes=10)
    await refused("bad_time", bound(place, label, voucher, text, at=soon))
    at = place.now
    await refused("voucher_bad", bound(place, label, voucher, text, at=at, spot="door-2"))
    await refused("bad_secret", bound(place, label, voucher, text, at=at, proof="0" * 64))
    await refused("voucher_bad", bound(place, label, voucher, text + "A", at=at))
    done_at = place.later(hours=1)
    async with acting(place.desk, "withdraw", organisation=place.organisation) as connection:
        assert await withdraw_voucher(connection, voucher.ref, actor="user noc", now=place.now)
    await refused("voucher_withdrawn", bound(place, label, voucher, text, at=done_at))
    # what was done before it was withdrawn stands
    assert (await bound(place, label, voucher, text, at=at)).state == "open"
