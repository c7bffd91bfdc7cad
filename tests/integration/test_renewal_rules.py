"""Who may renew, when, and what becomes of the old certificate: the server's rules on real rows."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ops.services.stack import Stack
from server.db import engine
from server.errors import NotFoundError, RefusedError
from server.pki.authority import Authority
from server.provisioning import issuing, renew
from server.provisioning.issuing import Issued, issue, proved
from server.provisioning.renew import GRACE, MOST_A_DAY, OVERLAP, Confirmed, TooEarlyError
from tests.ingest_world import Fleet, owning, register
from tests.integration.provisioning_world import Key, KilledError

pytestmark = pytest.mark.services

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DUE = NOW + timedelta(days=280)
ENDED = NOW + timedelta(days=366)


def leaf(issued: Issued) -> bytes:
    """Return what a connection shows that was made with this certificate."""
    certificate = x509.load_pem_x509_certificates(issued.chain_pem.encode())[0]
    return certificate.public_bytes(Encoding.DER)


@dataclass
class Desk:
    """Enrols and renews two registered devices."""

    owner: asyncpg.Connection
    pool: asyncpg.Pool
    fleet: Fleet
    authority: Authority

    async def enrol(self, *, device: int = 0, key: Key | None = None) -> Issued:
        key = key or Key()
        return await issue(
            self.pool,
            self.authority,
            device_row=self.fleet.rows[device],
            device=self.fleet.devices[device],
            organisation=self.fleet.organisation,
            key=proved(key.csr),
            reason="enrolment",
            now=NOW,
            stage=False,
        )

    async def renew(
        self, shown: Issued | bytes | None, key: Key | None = None, *, now: datetime = DUE
    ) -> Issued:
        return await renew.renew(
            self.pool,
            self.authority,
            shown=leaf(shown) if isinstance(shown, Issued) else shown,
            csr_pem=(key or Key()).csr,
            now=now,
        )

    async def confirm(
        self,
        shown: Issued,
        *,
        now: datetime = DUE,
        promoted: bool = False,
        roots: tuple[bytes, ...] = (),
    ) -> Confirmed:
        return await renew.confirm(
            self.pool,
            self.authority,
            shown=leaf(shown),
            roots=roots,
            promoted=promoted,
            now=now,
        )

    async def states(self, device: int = 0) -> dict[str, str]:
        rows = await self.owner.fetch(
            "select serial, state from certificates where device_id = $1", self.fleet.rows[device]
        )
        return {row["serial"]: row["state"] for row in rows}

    async def refused(self, code: str, shown: Issued | bytes | None, **named: object) -> None:
        before = await self.states(), await self.states(1)
        with pytest.raises(RefusedError) as error:
            await self.renew(shown, **named)  # type: ignore[arg-type]
        assert error.value.code == code
        assert (await self.states(), await self.states(1)) == before


@pytest.fixture
async def desk(stack: Stack, database: str, tmp_path: Path) -> AsyncIterator[Desk]:
    dsn = stack.endpoints.dsn("ingest", database)
    async with (
        owning(stack, database) as owner,
        asyncpg.create_pool(dsn, min_size=1, max_size=8) as pool,
    ):
        yield Desk(owner, pool, await register(owner, 2), Authority.create(tmp_path / "pki"))


async def test_a_renewal_is_staged_then_active_and_the_old_one_retires(desk: Desk) -> None:
    old = await desk.enrol()
    new = await desk.renew(old)
    assert await desk.states() == {old.serial: "active", new.serial: "staged"}
    assert new.not_after == DUE + timedelta(days=365)
    assert DUE + timedelta(days=182) < new.renew_after < DUE + timedelta(days=274)
    confirmed = await desk.confirm(new)
    assert confirmed == Confirmed(desk.fleet.devices[0], "active", new.not_after, new.renew_after)
    assert await desk.states() == {old.serial: "retiring", new.serial: "active"}
    await desk.confirm(new, promoted=True)
    assert await desk.states() == {old.serial: "retired", new.serial: "active"}
    await desk.refused("certificate_replaced", old)
    assert await desk.owner.fetchval("select act from audit") == "certificate renewed"


async def test_confirming_again_changes_nothing(desk: Desk) -> None:
    old = await desk.enrol()
    assert (await desk.confirm(old)).state == "active"
    new = await desk.renew(old)
    for _ in range(3):
        assert (await desk.confirm(new)).state == "active"
    assert (await desk.confirm(old)).state == "retiring"  # a device that fell back to it
    assert await desk.states() == {old.serial: "retiring", new.serial: "active"}
    assert await desk.owner.fetchval("select count(*) from audit") == 1


async def test_the_same_key_gets_the_same_certificate_before_and_after_it_is_confirmed(
    desk: Desk,
) -> None:
    old, key = await desk.enrol(), Key()
    new = await desk.renew(old, key)
    assert await desk.renew(old, key, now=DUE + timedelta(days=20)) == new
    await desk.confirm(new)
    assert await desk.renew(old, key) == new
    assert await desk.states() == {old.serial: "retiring", new.serial: "active"}


async def test_one_key_asking_many_times_at_once_leaves_one_staged(desk: Desk) -> None:
    old, key = await desk.enrol(), Key()
    got = await asyncio.gather(*(desk.renew(old, key) for _ in range(6)))
    assert len({one.serial for one in got}) == 1
    assert sorted((await desk.states()).values()) == ["active", "staged"]


async def test_another_key_replaces_what_was_staged_and_the_given_up_key_is_not_good_again(
    desk: Desk,
) -> None:
    old, lost = await desk.enrol(), Key()
    first = await desk.renew(old, lost)
    second = await desk.renew(old)
    await desk.refused("key_used", old, key=lost)
    assert await desk.states() == {
        old.serial: "active",
        first.serial: "retired",
        second.serial: "staged",
    }


async def test_too_early_is_harmless_and_says_when(desk: Desk) -> None:
    old = await desk.enrol()
    with pytest.raises(TooEarlyError) as early:
        await desk.renew(old, now=old.renew_after - timedelta(seconds=1))
    assert early.value.renew_after == old.renew_after
    assert await desk.states() == {old.serial: "active"}
    await desk.renew(old, now=old.renew_after)


async def test_a_renewal_that_is_brought_forward_is_told_when_the_device_confirms(
    desk: Desk,
) -> None:
    old = await desk.enrol()
    soon = NOW + timedelta(days=1)
    await renew.bring_forward(desk.owner, desk.fleet.devices[0], actor="user tove", now=soon)
    with pytest.raises(NotFoundError):
        await renew.bring_forward(desk.owner, "door-nobody1", actor="user tove", now=soon)
    ordered = "select actor from audit where act = 'renewal ordered'"
    assert await desk.owner.fetchval(ordered) == "user tove"
    assert (await desk.confirm(old, now=NOW)).renew_after == soon
    await desk.renew(old, now=soon)


async def test_nobody_renews_without_a_certificate_of_ours(desk: Desk, tmp_path: Path) -> None:
    old, key = await desk.enrol(), Key()
    await desk.refused("no_certificate", None)
    for authority in (Authority.create(tmp_path / "foreign"), desk.authority):
        forged = authority.issue_device(  # the same name and serial, by whoever has the key
            key.csr.encode(),
            device=desk.fleet.devices[0],
            now=NOW,
            serial=int(old.serial, 16),
        )
        shown = x509.load_pem_x509_certificates(forged.chain_pem)[0].public_bytes(Encoding.DER)
        await desk.refused("certificate_unknown", shown)
    unrecorded = desk.authority.issue_device(
        key.csr.encode(), device=desk.fleet.devices[0], now=NOW
    )
    shown = x509.load_pem_x509_certificates(unrecorded.chain_pem)[0].public_bytes(Encoding.DER)
    await desk.refused("certificate_unknown", shown)


async def test_who_renews_is_whose_certificate_it_is(desk: Desk) -> None:
    mine, others = await desk.enrol(), await desk.enrol(device=1)
    new = await desk.renew(others)
    assert await desk.states() == {mine.serial: "active"}
    assert await desk.states(1) == {others.serial: "active", new.serial: "staged"}
    await desk.owner.execute(  # even if the records were to say otherwise
        "update certificates set device_id = $1, state = 'retiring' where serial = $2",
        *(desk.fleet.rows[1], mine.serial),
    )
    await desk.refused("certificate_unknown", mine)


async def test_another_devices_key_is_refused(desk: Desk) -> None:
    key = Key()
    mine, _ = await desk.enrol(), await desk.enrol(device=1, key=key)
    await desk.refused("key_in_use", mine, key=key)


async def test_the_key_of_the_certificate_itself_is_no_new_key(desk: Desk) -> None:
    key = Key()
    old = await desk.enrol(key=key)
    await desk.refused("key_used", old, key=key)


async def test_a_revoked_certificate_and_a_held_device_cannot_renew(desk: Desk) -> None:
    old = await desk.enrol()
    await desk.owner.execute("update devices set state = 'suspended'")
    await desk.refused("device_not_admitted", old)
    await desk.owner.execute("update devices set state = 'in service'")
    await desk.owner.execute("update certificates set state = 'revoked', revoked_at = now()")
    await desk.refused("certificate_revoked", old)
    with pytest.raises(RefusedError, match="revoked"):
        await desk.confirm(old)


async def test_a_revocation_while_it_is_signed_wins(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await desk.enrol()
    sign, loop = Authority.issue_device, asyncio.get_running_loop()

    def meanwhile(*args: object, **named: object) -> object:
        revoked = desk.owner.execute(
            "update certificates set state = 'revoked', revoked_at = now() where serial = $1",
            old.serial,
        )
        asyncio.run_coroutine_threadsafe(revoked, loop).result(10)
        return sign(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Authority, "issue_device", meanwhile)
    with pytest.raises(RefusedError) as error:
        await desk.renew(old)
    assert error.value.code == "certificate_revoked"
    assert sorted((await desk.states()).values()) == ["retired", "revoked"]


async def test_an_ended_certificate_renews_for_180_days_and_no_longer(desk: Desk) -> None:
    old = await desk.enrol()
    over = old.not_after + GRACE
    await desk.refused("grace_over", old, now=over + timedelta(seconds=1))
    new = await desk.renew(old, now=over)
    assert (await desk.confirm(new, now=over)).state == "active"
    assert await desk.states() == {old.serial: "retiring", new.serial: "active"}


async def test_a_device_that_fell_back_may_renew_with_the_old_one_again(desk: Desk) -> None:
    old = await desk.enrol()
    first = await desk.renew(old)
    await desk.confirm(first)
    second = await desk.renew(old)  # what it had was no good at the broker
    await desk.confirm(second)
    assert await desk.states() == {
        old.serial: "retiring",
        first.serial: "retiring",
        second.serial: "active",
    }


async def test_a_staged_certificate_that_renews_has_proved_itself(desk: Desk) -> None:
    old = await desk.enrol()
    lost = await desk.renew(old)
    late = DUE + timedelta(days=300)
    new = await desk.renew(lost, now=late)
    assert await desk.states() == {
        old.serial: "retiring",
        lost.serial: "active",
        new.serial: "staged",
    }


async def test_a_device_gets_a_few_certificates_a_day(desk: Desk) -> None:
    old = await desk.enrol()
    for _ in range(MOST_A_DAY):
        await desk.renew(old)
    await desk.refused("too_many", old)
    await desk.renew(old, now=DUE + timedelta(days=1, seconds=1))


async def test_what_is_over_retires(desk: Desk) -> None:
    old = await desk.enrol()
    new = await desk.renew(old)
    await desk.confirm(new)
    staged = await desk.renew(new, now=new.renew_after)
    assert await renew.retire(desk.pool, now=DUE + OVERLAP - timedelta(seconds=1)) == 0
    assert await renew.retire(desk.pool, now=DUE + OVERLAP) == 1
    assert await desk.states() == {
        old.serial: "retired",
        new.serial: "active",
        staged.serial: "staged",
    }
    assert await renew.retire(desk.pool, now=staged.not_after) == 1
    assert (await desk.states())[staged.serial] == "retired"


async def test_trust_in_our_roots_is_noted_and_in_no_others(desk: Desk) -> None:
    old = await desk.enrol()
    ours = [r.spki_sha256 for r in desk.authority.described() if r.kind == "root"]
    await desk.confirm(old, roots=(ours[0], hashlib.sha256(b"none of ours").digest()))
    await desk.confirm(old, roots=tuple(ours))
    rows = await desk.owner.fetch("select device_id, root_spki_sha256 from trust_proofs")
    assert {tuple(row) for row in rows} == {(desk.fleet.rows[0], root) for root in ours}


async def test_who_lapses_soon_is_listed_until_it_has_renewed(desk: Desk) -> None:
    old, others = await desk.enrol(), await desk.enrol(device=1)
    near = old.not_after - timedelta(days=13)
    assert await renew.expiring(desk.owner, now=near - timedelta(days=2)) == []
    found = await renew.expiring(desk.owner, now=near)
    assert [(one.device, one.not_after) for one in found] == [
        (desk.fleet.devices[0], old.not_after),
        (desk.fleet.devices[1], others.not_after),
    ]
    await desk.renew(old, now=near)
    (left,) = await renew.expiring(desk.owner, now=ENDED)
    assert left.device == desk.fleet.devices[1]


POINTS = {
    "check renewal": 2,
    "record certificate": 2,
    "sign": 1,
    "complete certificate": 2,
    "hand out renewal": 2,
    "confirm renewal": 2,
}


@pytest.mark.parametrize(
    ("point", "when"),
    [(name, when) for name, n in POINTS.items() for when in ("before", "after")[-n:]],
)
async def test_killed_anywhere_the_next_attempt_ends_with_one_active_and_no_orphan(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, point: str, when: str
) -> None:
    old, key = await desk.enrol(), Key()

    async def whole() -> Issued:
        new = await desk.renew(old, key)
        await desk.confirm(new)
        return new

    with monkeypatch.context() as patched:
        _kill(patched, point, when)
        with pytest.raises(KilledError):
            await whole()
    between = list((await desk.states()).values())
    assert between.count("active") == 1
    assert between.count("staged") <= 1
    new = await whole()
    await desk.confirm(new, promoted=True)
    assert await desk.states() == {old.serial: "retired", new.serial: "active"}
    assert await desk.owner.fetchval("select count(*) from audit") == 1


def _kill(patched: pytest.MonkeyPatch, point: str, when: str) -> None:
    """End the process before or after the transaction of that name commits."""

    @asynccontextmanager
    async def cut(pool: asyncpg.Pool, name: str) -> AsyncIterator[asyncpg.Connection]:
        async with engine.transaction(pool, name) as connection:
            yield connection
            if name == point and when == "before":
                raise KilledError
        if name == point:
            raise KilledError

    def signed(*args: object, **named: object) -> object:
        raise KilledError

    if point == "sign":
        patched.setattr(Authority, "issue_device", signed)
    for module in (issuing, renew):
        patched.setattr(module, "transaction", cut)
