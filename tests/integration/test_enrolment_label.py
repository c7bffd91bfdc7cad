"""Enrolment by the label: who is let in, who waits, who is refused and by which sentence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from ops.services.stack import Stack
from server.errors import RefusedError
from server.people.throttle import TooManyTriesError
from server.provisioning import unknown
from server.provisioning.enrol import Enrolment, Pending
from server.provisioning.progress import Mark, Step
from server.provisioning.vouchers import withdraw_voucher
from tests.integration.api_world import World
from tests.integration.provisioning_world import Key, Provisioning, provisioning

pytestmark = pytest.mark.services


@pytest.fixture
async def place(world: World, stack: Stack, world_database: str) -> AsyncIterator[Provisioning]:
    async with provisioning(stack, world_database, world.owner) as made:
        yield made


async def refused(place: Provisioning, code: str, *args: object, **named: object) -> None:
    with pytest.raises(RefusedError) as error:
        await place.ask(*args, **named)  # type: ignore[arg-type]
    assert error.value.code == code


async def test_a_device_on_the_allow_list_is_let_in_at_once(place: Provisioning) -> None:
    label = await place.device()
    got = await place.ask(label, Key())
    assert isinstance(got, Enrolment)
    assert await place.state("DC-0001") == "provisioned"
    assert await place.certificates("DC-0001") == ["active"]
    assert await place.acts() == ["device enrolled"]


async def test_the_same_key_gets_the_same_certificate_and_one_line_of_audit(
    place: Provisioning,
) -> None:
    label, key = await place.device(), Key()
    first = await place.ask(label, key)
    place.later(hours=23)
    assert await place.ask(label, key) == first
    assert await place.certificates("DC-0001") == ["active"]
    assert await place.acts() == ["device enrolled"]


async def test_another_key_waits_for_a_technician_and_then_ends_the_first(
    place: Provisioning,
) -> None:
    label = await place.device()
    await place.ask(label, Key())
    place.later(days=30)
    second = Key()
    await refused(place, "reenrol_required", label, second)
    claim = await place.claim(label.text, "door-1")
    assert claim.state == "used"  # placed with its old key, and good for a new one
    place.later(minutes=1)
    assert isinstance(await place.ask(label, second), Enrolment)
    assert await place.certificates("DC-0001") == ["revoked", "active"]
    await refused(place, "reenrol_required", label, Key())  # the claim was good for one


async def test_a_claim_that_expired_lets_no_other_key_in(place: Provisioning) -> None:
    label = await place.device()
    await place.ask(label, Key())
    place.later(days=1)
    await place.claim(label.text, "door-1")
    place.later(minutes=16)
    await refused(place, "reenrol_required", label, Key())


async def test_an_unknown_serial_is_refused_and_visible(place: Provisioning) -> None:
    label = await place.device()
    await place.owner.execute("update devices set serial = 'DC-0002'")
    for _ in range(3):
        await refused(place, "unknown_serial", label, Key())
    row = await place.owner.fetchrow("select serial, times, address from unknown_devices")
    assert tuple(row) == ("DC-0001", 3, "192.0.2.1")


async def test_unknown_devices_are_bounded(place: Provisioning) -> None:
    async with place.ingest.acquire() as connection:
        for number in range(60):
            await unknown.note(
                connection, f"DC-{number:04}", address="", spki=b"", now=place.now, most=5
            )
        await unknown.note(connection, "'; drop", address="", spki=b"", now=place.now)
    assert await place.owner.fetchval("select count(*) from unknown_devices") == 5


async def test_guessing_is_slowed_by_serial_and_address_and_hurts_nobody_else(
    place: Provisioning,
) -> None:
    label = await place.device()
    wrong = "2" * 16
    for _ in range(6):
        await refused(place, "bad_secret", label, Key(), secret=wrong)
    with pytest.raises(TooManyTriesError):
        await place.ask(label, Key(), secret=wrong)
    with pytest.raises(TooManyTriesError):
        await place.ask(label, Key())  # from there not even the right one
    assert isinstance(await place.ask(label, Key(), address="198.51.100.7"), Enrolment)


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("setup_sha256", "null", "not_allowed_yet"),
        ("allowed_until", "'2026-04-01'", "allowance_expired"),
        ("state", "'suspended'", "device_not_admitted"),
        ("state", "'retired'", "device_not_admitted"),
    ],
)
async def test_who_may_not_be_set_up_is_told_why(
    place: Provisioning, column: str, value: str, code: str
) -> None:
    label = await place.device()
    await place.owner.execute(f"update devices set {column} = {value}")
    await refused(place, code, label, Key())
    assert await place.owner.fetchval("select asked from devices") == code


async def test_a_key_of_another_device_is_refused(place: Provisioning) -> None:
    key = Key()
    await place.ask(await place.device("DC-0001"), key)
    await refused(place, "key_in_use", await place.device("DC-0002"), key)


async def test_a_broken_request_spends_nothing(place: Provisioning) -> None:
    class Broken(Key):
        @property
        def csr(self) -> str:
            return "-----BEGIN CERTIFICATE REQUEST-----"

    label = await place.device()
    await refused(place, "bad_request_for_certificate", label, Broken())
    assert await place.certificates("DC-0001") == []


async def test_device_first_it_waits_for_the_technician(place: Provisioning) -> None:
    await place.policy("technician")
    label, key = await place.device(), Key()
    assert isinstance(await place.ask(label, key), Pending)
    assert await place.state("DC-0001") == "manufactured"
    claim = await place.claim(label.text, "door-1")
    assert (await place.steps(claim.ref))[Step.ASKED] == (Mark.DONE, "")
    assert await place.state("DC-0001") == "claimed"
    begun = place.now
    place.later(minutes=2)
    assert isinstance(await place.ask(label, key), Enrolment)
    assert await place.stands("DC-0001") == [("door-1", begun, None)]
    assert await place.state("DC-0001") == "installed"
    assert (await place.found(claim.ref)).state == "used"
    assert await place.acts() == ["device claimed", "device enrolled", "device installed"]


async def test_a_claim_ends_after_fifteen_minutes(place: Provisioning) -> None:
    await place.policy("technician")
    label = await place.device()
    claim = await place.claim(label.text, "door-1")
    place.later(minutes=15)
    assert isinstance(await place.ask(label, Key()), Pending)
    assert (await place.found(claim.ref)).state == "expired"


async def test_a_voucher_lets_a_device_in_and_counts(place: Provisioning) -> None:
    await place.policy("technician")
    voucher, text = await place.voucher(uses=1)
    first, second = await place.device("DC-0001"), await place.device("DC-0002")
    key = Key()
    assert isinstance(await place.ask(first, key, voucher=text), Enrolment)
    assert isinstance(await place.ask(first, key, voucher=text), Enrolment)  # repeated: not spent
    await refused(place, "voucher_spent", second, Key(), voucher=text)
    assert await place.owner.fetchval("select uses_left from vouchers") == 0
    assert "voucher used" in await place.acts()
    assert voucher.ref in await place.owner.fetchval("select reason from certificates")


async def test_a_voucher_with_a_spot_places_the_device(place: Provisioning) -> None:
    await place.policy("technician")
    _, text = await place.voucher()
    label, key = await place.device(), Key()
    await place.ask(label, key, voucher=text, spot="door-2")
    await place.ask(label, key, voucher=text, spot="door-2")
    assert await place.stands("DC-0001") == [("door-2", place.now, None)]
    assert await place.owner.fetchval("select uses_left from vouchers") == 19


async def test_a_voucher_is_refused_by_its_own_codes(place: Provisioning) -> None:
    await place.policy("technician")
    voucher, text = await place.voucher(life=timedelta(hours=1))
    label = await place.device()
    await refused(place, "voucher_bad", label, Key(), voucher=text[:-2] + "AA")
    await refused(place, "voucher_bad", label, Key(), voucher="vsv1.x.y")
    await refused(place, "voucher_bad", label, Key(), voucher="nonsense")
    async with place.desk.acquire() as connection, connection.transaction():
        await connection.execute("select set_config('app.everyone', 'yes', true)")
        assert await withdraw_voucher(connection, voucher.ref, actor="user noc", now=place.now)
        assert not await withdraw_voucher(connection, voucher.ref, actor="user noc", now=place.now)
    await refused(place, "voucher_withdrawn", label, Key(), voucher=text)
    place.later(hours=1)
    await refused(place, "voucher_expired", label, Key(), voucher=text)


async def test_a_voucher_of_another_organisation_is_refused(place: Provisioning) -> None:
    _, text = await place.voucher()
    label = await place.device()
    other = await place.owner.fetchval(
        "insert into organisations (ref, name) values ('o', 'o') returning id"
    )
    await place.owner.execute("update devices set organisation_id = $1", other)
    await refused(place, "other_organisation", label, Key(), voucher=text)
