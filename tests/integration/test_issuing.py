"""One key, one certificate: whatever is killed in between, and however often it is asked."""

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

from ops.services.stack import Stack
from server.db import engine
from server.errors import RefusedError
from server.pki.authority import Authority, IssuedCertificate
from server.provisioning import issuing
from server.provisioning.issuing import ABANDONED_AFTER, Issued, issue, proved, record_trust, sweep
from tests.ingest_world import Fleet, owning, register
from tests.integration.provisioning_world import Key, KilledError

pytestmark = pytest.mark.services

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class Desk:
    """Issues to registered devices."""

    owner: asyncpg.Connection
    pool: asyncpg.Pool
    fleet: Fleet
    authority: Authority

    async def issue(
        self, key: Key, *, device: int = 0, stage: bool = False, now: datetime = NOW
    ) -> Issued:
        return await issue(
            self.pool,
            self.authority,
            device_row=self.fleet.rows[device],
            device=self.fleet.devices[device],
            organisation=self.fleet.organisation,
            key=proved(key.csr),
            reason="enrolment",
            now=now,
            stage=stage,
        )

    async def states(self, device: int = 0) -> dict[str, str]:
        rows = await self.owner.fetch(
            "select serial, state from certificates where device_id = $1", self.fleet.rows[device]
        )
        return {row["serial"]: row["state"] for row in rows}

    async def events(self) -> list[tuple[str, str]]:
        rows = await self.owner.fetch("select serial, event from issuance_log order by number")
        return [(row["serial"], row["event"]) for row in rows]


@pytest.fixture
async def desk(stack: Stack, database: str, tmp_path: Path) -> AsyncIterator[Desk]:
    dsn = stack.endpoints.dsn("ingest", database)
    async with (
        owning(stack, database) as owner,
        asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool,
    ):
        yield Desk(owner, pool, await register(owner, 2), Authority.create(tmp_path / "pki"))


async def test_a_serial_is_recorded_signed_and_active_until_half_to_three_quarters(
    desk: Desk,
) -> None:
    issued = await desk.issue(Key())
    leaf = x509.load_pem_x509_certificates(issued.chain_pem.encode())[0]
    assert f"{leaf.serial_number:x}" == issued.serial
    assert issued.not_after == leaf.not_valid_after_utc
    assert NOW + timedelta(days=182) < issued.renew_after < NOW + timedelta(days=274)
    assert await desk.states() == {issued.serial: "active"}
    assert await desk.events() == [(issued.serial, "recorded"), (issued.serial, "signed")]
    assert await desk.owner.fetchval("select kind from authorities") == "device"


async def test_the_same_key_gets_the_same_certificate(desk: Desk) -> None:
    key = Key()
    first = await desk.issue(key)
    assert await desk.issue(key, now=NOW + timedelta(days=90)) == first
    assert await desk.issue(key, stage=True) == first
    assert await desk.states() == {first.serial: "active"}


async def test_the_same_key_asking_many_times_at_once_gets_one_certificate(desk: Desk) -> None:
    key = Key()
    got = await asyncio.gather(*(desk.issue(key) for _ in range(8)))
    assert len(set(got)) == 1
    assert await desk.states() == {got[0].serial: "active"}
    assert await desk.events() == [(got[0].serial, "recorded"), (got[0].serial, "signed")]


async def test_other_keys_asking_at_once_leave_one_active(desk: Desk) -> None:
    got = await asyncio.gather(*(desk.issue(Key()) for _ in range(6)))
    states = await desk.states()
    assert {issued.serial for issued in got} == states.keys()
    assert sorted(states.values()) == ["active", *["retiring"] * 5]


@pytest.mark.parametrize("stage", [False, True])
@pytest.mark.parametrize(
    "point", ["before recording", "after recording", "after signing", "after completing"]
)
async def test_killed_anywhere_the_next_attempt_ends_with_one_certificate(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, point: str, stage: bool
) -> None:
    key = Key()
    with monkeypatch.context() as patched:
        _kill(patched, point)
        with pytest.raises(KilledError):
            await desk.issue(key, stage=stage)
    issued = await desk.issue(key, stage=stage, now=NOW + timedelta(minutes=30))
    assert await desk.states() == {issued.serial: "staged" if stage else "active"}
    assert await desk.events() == [(issued.serial, "recorded"), (issued.serial, "signed")]


def _kill(patched: pytest.MonkeyPatch, point: str) -> None:
    when, _, what = point.partition(" ")
    names = {"recording": "record certificate", "completing": "complete certificate"}

    @asynccontextmanager
    async def cut(pool: asyncpg.Pool, name: str) -> AsyncIterator[asyncpg.Connection]:
        async with engine.transaction(pool, name) as connection:
            yield connection
            if name == names.get(what) and when == "before":
                raise KilledError
        if name == names.get(what):
            raise KilledError

    if what == "signing":
        sign = Authority.issue_device

        def signed(*args: object, **options: object) -> IssuedCertificate:
            sign(*args, **options)  # type: ignore[arg-type]
            raise KilledError

        patched.setattr(Authority, "issue_device", signed)
    else:
        patched.setattr(issuing, "transaction", cut)


async def test_what_is_signed_again_after_a_crash_is_the_same_certificate(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    sign = Authority.issue_device

    def noted(*args: object, **options: object) -> IssuedCertificate:
        seen.append(sign(*args, **options).chain_pem)  # type: ignore[arg-type]
        if len(seen) == 1:
            raise KilledError
        return sign(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Authority, "issue_device", noted)
    key = Key()
    with pytest.raises(KilledError):
        await desk.issue(key)
    issued = await desk.issue(key, now=NOW + timedelta(minutes=30))
    assert {*seen, issued.chain_pem.encode()} == {seen[0]}


async def test_a_recorded_serial_that_nobody_completes_is_written_off(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        _kill(patched, "after recording")
        for key in (lost := Key(), Key()):
            with pytest.raises(KilledError):
                await desk.issue(key)
    later = NOW + ABANDONED_AFTER + timedelta(seconds=1)
    issued = await desk.issue(lost, now=later)
    assert sorted((await desk.states()).values()) == ["active", "failed", "recorded"]
    assert await sweep(desk.pool, now=later) == 1
    assert await sweep(desk.pool, now=later) == 0
    states = await desk.states()
    assert states.pop(issued.serial) == "active"
    assert set(states.values()) == {"failed"}
    assert [event for _, event in await desk.events()].count("refused") == 2


async def test_a_renewal_is_staged_beside_the_active_one_and_replaces_an_earlier_try(
    desk: Desk,
) -> None:
    active = await desk.issue(Key())
    lost, kept = [await desk.issue(Key(), stage=True) for _ in range(2)]
    assert await desk.states() == {
        active.serial: "active",
        lost.serial: "retired",
        kept.serial: "staged",
    }


async def test_a_new_enrolment_lets_the_old_certificate_retire(desk: Desk) -> None:
    old, new = await desk.issue(Key()), await desk.issue(Key())
    assert await desk.states() == {old.serial: "retiring", new.serial: "active"}


async def test_two_active_or_two_staged_are_impossible(desk: Desk) -> None:
    for stage in (False, True):
        issued = await desk.issue(Key(), stage=stage)
        with pytest.raises(asyncpg.UniqueViolationError):
            await desk.owner.execute(
                "insert into certificates (serial, organisation_id, device_id, spki_sha256, state) "
                "select serial || '-2', organisation_id, device_id, spki_sha256, state "
                "from certificates where serial = $1",
                issued.serial,
            )


async def test_another_devices_key_is_refused(desk: Desk) -> None:
    key = Key()
    await desk.issue(key)
    with pytest.raises(RefusedError, match="belongs to another device") as refused:
        await desk.issue(key, device=1)
    assert refused.value.code == "key_in_use"
    assert await desk.states(1) == {}


async def test_two_devices_that_show_one_key_at_once_do_not_both_get_it(desk: Desk) -> None:
    key = Key()
    got = await asyncio.gather(
        *(desk.issue(key, device=n % 2) for n in range(6)), return_exceptions=True
    )
    states = [*(await desk.states(0)).values(), *(await desk.states(1)).values()]
    assert states == ["active"]
    assert {g.code for g in got if isinstance(g, RefusedError)} == {"key_in_use"}


async def test_a_revoked_key_is_refused_for_ever(desk: Desk) -> None:
    key = Key()
    issued = await desk.issue(key)
    await desk.owner.execute(
        "update certificates set state = 'revoked', revoked_at = now() where serial = $1",
        issued.serial,
    )
    with pytest.raises(RefusedError) as refused:
        await desk.issue(key)
    assert refused.value.code == "key_revoked"


async def test_an_expired_certificate_is_not_answered_again(desk: Desk) -> None:
    key = Key()
    old = await desk.issue(key)
    new = await desk.issue(key, now=NOW + timedelta(days=366))
    assert new.serial != old.serial
    assert await desk.states() == {old.serial: "retiring", new.serial: "active"}


async def test_a_device_taken_out_while_its_certificate_is_signed_gets_none(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = Authority.issue_device
    loop = asyncio.get_running_loop()

    def revoked_meanwhile(*args: object, **options: object) -> IssuedCertificate:
        suspend = desk.owner.execute("update devices set state = 'suspended'")
        asyncio.run_coroutine_threadsafe(suspend, loop).result()
        return sign(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Authority, "issue_device", revoked_meanwhile)
    with pytest.raises(RefusedError) as refused:
        await desk.issue(Key())
    assert refused.value.code == "device_not_admitted"
    assert list((await desk.states()).values()) == ["failed"]


async def test_trust_is_recorded_once_and_renewed(desk: Desk) -> None:
    root = hashlib.sha256(b"root").digest()
    again = NOW + timedelta(minutes=1)
    for at in (NOW, again):
        async with desk.pool.acquire() as connection:
            await record_trust(connection, desk.fleet.rows[0], root, at)
    assert await desk.owner.fetchval("select proved_at from trust_proofs") == again
