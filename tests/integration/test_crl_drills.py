"""A revocation list that is expired, corrupt or foreign: what the broker would do, what we do.

The broker refuses the whole fleet, or does not start at all. So it is never given such a list: the
fleet stays in, and whoever is revoked stays out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ops.services.broker import Broker
from ops.services.errors import ServiceFailedError
from ops.services.stack import Stack
from protocol.identity import device_id
from server.pki import rollover
from server.pki.authority import Authority
from server.pki.files import Files
from server.pki.generations import Kind
from server.pki.revocations import CRL_LIFE, CrlError, build_crl
from tests.integration.test_broker_mtls import Fleet, refused

pytestmark = pytest.mark.services

GOOD, REVOKED = device_id("door-aaaa01"), device_id("door-bbbb02")
PASSWORD = b"a long enough password"
Rot = Callable[[Authority], bytes]


def expired(authority: Authority) -> bytes:
    signer = Files.read(authority.directory).signer("device-1")
    return build_crl(signer, authority.listed(), datetime.now(UTC) - 2 * CRL_LIFE)


def corrupt(authority: Authority) -> bytes:
    whole = authority.crl(authority.listed())
    return whole[: len(whole) // 2]


def empty(authority: Authority) -> bytes:
    return b""


def foreign(authority: Authority) -> bytes:
    return Authority.create(authority.directory.parent / "foreign").crl()


def missing(authority: Authority) -> bytes:
    raise FileNotFoundError


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A broker of our own with one device revoked by the list alone, not by the deny-list."""
    stack = Stack(tmp_path / "stack", role="test")
    Authority.create(tmp_path / "stack/pki", password=PASSWORD)
    try:
        stack.up()
        yield Fleet(stack, tmp_path)
    finally:
        stack.remove()


def revoke(fleet: Fleet) -> None:
    """Put the serial of the device that was certified last on the list, and restart."""
    newest = max(fleet.folder.glob("*.pem"), key=lambda path: path.stat().st_mtime_ns)
    authority = Authority.load(fleet.stack.endpoints.pki)
    (authority.directory / "device.crl").write_bytes(authority.crl([int(newest.stem, 16)]))
    restart(fleet.stack.broker)


def restart(broker: Broker) -> None:
    broker.kill()
    broker.start()
    broker.wait_ready()


@pytest.mark.parametrize("rot", [expired, corrupt, empty, foreign, missing])
async def test_a_list_that_must_not_be_installed_is_not(fleet: Fleet, rot: Rot) -> None:
    good, revoked = fleet.certificate(GOOD), fleet.certificate(REVOKED)
    revoke(fleet)
    authority = Authority.load(fleet.stack.endpoints.pki)
    path = authority.directory / "device.crl"
    try:
        path.write_bytes(rot(authority))
    except FileNotFoundError:
        path.unlink()
    with pytest.raises((CrlError, FileNotFoundError)):
        authority.verify_crl(path.read_bytes(), [], now=datetime.now(UTC))
    restart(fleet.stack.broker)
    assert not await refused(fleet.device_port, good)
    assert await refused(fleet.device_port, revoked)


@pytest.mark.parametrize("rot", [expired, foreign])
async def test_what_the_broker_would_have_done_is_to_refuse_the_fleet(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, rot: Rot
) -> None:
    good = fleet.certificate(GOOD)
    _give(monkeypatch, rot(Authority.load(fleet.stack.endpoints.pki)))
    restart(fleet.stack.broker)
    assert await refused(fleet.device_port, good)


@pytest.mark.parametrize("rot", [corrupt, empty])
def test_what_the_broker_would_have_done_is_not_to_start(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, rot: Rot
) -> None:
    _give(monkeypatch, rot(Authority.load(fleet.stack.endpoints.pki)))
    with pytest.raises(ServiceFailedError):
        restart(fleet.stack.broker)


def _give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let the broker have a list that nobody has verified."""
    write = Broker._write

    def unverified(self: Broker, path: Path, ours: bytes) -> None:
        write(self, path, content if path.name == "device.crl" else ours)

    monkeypatch.setattr(Broker, "_write", unverified)


async def test_a_second_authority_without_a_list_would_lock_its_devices_out(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why device.crl holds a list of every authority that the broker trusts."""
    pki, now = fleet.stack.endpoints.pki, datetime.now(UTC)
    before = fleet.certificate(GOOD)
    rollover.begin_authority(
        Files.read(pki), Kind.DEVICE, keys=pki / "offline", password=PASSWORD, now=now
    )
    restart(fleet.stack.broker)
    rollover.switch(Files.read(pki), now=now)
    after = fleet.certificate(GOOD)
    assert not await refused(fleet.device_port, before)
    assert not await refused(fleet.device_port, after)
    one_list = build_crl(Files.read(pki).signer("device-1"), (), now)
    _give(monkeypatch, one_list)
    restart(fleet.stack.broker)
    assert not await refused(fleet.device_port, before)
    assert await refused(fleet.device_port, after)
