"""Certificates that end while their devices are connected, at the real broker."""

from __future__ import annotations

import asyncio
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.identity import device_id
from protocol.topics import Leg, topic
from server.fleet.lifecycle import State
from tests import admission_world as world
from tests.ingest_world import register

pytestmark = pytest.mark.services

CONNECT = bytes.fromhex("0004 4d515454 05 02 003c 00")


def packet(kind: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes((kind, len(body))) + body


def text(words: str) -> bytes:
    return len(words).to_bytes(2, "big") + words.encode()


async def hello_over_tls(
    stack: Stack, device: str, tls: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[bool, int, ssl.SSLSession | None]:
    """Connect and subscribe; return whether TLS was resumed, the answer's code, the session."""

    def talk() -> tuple[bool, int, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", stack.endpoints.broker_device_port), 10) as raw,
            tls.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as sock,
        ):
            sock.sendall(packet(0x10, CONNECT + text(device)))
            assert sock.recv(1000)[0] == 0x20
            own = topic(device_id(device), Leg.DOWN)
            sock.sendall(packet(0x82, b"\0\1\0" + text(own) + b"\1"))
            answer = sock.recv(1000)
            assert answer[0] == 0x90
            return bool(sock.session_reused), answer[-1], sock.session

    return await asyncio.to_thread(talk)


async def test_x25_an_expired_certificate_ends_its_session_and_its_resumption(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet = await register(owner, 1, prefix="dc-expiry")
    (device,) = fleet.devices
    ending = await world.certify(owner, stack, fleet, folder=tmp_path, lasts_s=6)
    ending.tls.maximum_version = ssl.TLSVersion.TLSv1_2  # whose sessions Python can hand on
    _, granted, session = await hello_over_tls(stack, device, ending.tls, None)
    assert granted == 1
    async with (
        world.admitting(stack, database),
        world.connected(stack, fleet.devices, [ending.tls]) as (live,),
    ):
        await live.publish(b"before")
        await live.ended()  # when the certificate does
        assert datetime.now(UTC) >= ending.not_after
        resumed, refused, _ = await hello_over_tls(stack, device, ending.tls, session)
        assert resumed, "the broker lets in whom it knows: that is why the deny-list has to"
        assert refused >= 0x80
        await wait_for_orders(owner, [(False, "certificate expired")])
        renewed = await world.certify(owner, stack, fleet, folder=tmp_path)
        await wait_for_orders(
            owner, [(False, "certificate expired"), (True, "certificate renewed")]
        )
        assert await world.speaks(stack, device, renewed.tls)
    assert await world.denied(stack) == {}


async def wait_for_orders(owner: asyncpg.Connection, wanted: list[tuple[bool, str]]) -> None:
    async with asyncio.timeout(20):
        while True:
            rows = await owner.fetch(
                "select admit, reason from admissions where broker_at is not null order by id"
            )
            if [tuple(row) for row in rows] == wanted:
                return
            await asyncio.sleep(0.02)


async def test_a_device_with_another_valid_certificate_is_left_alone(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet = await register(owner, 1, prefix="dc-staged")
    ending = await world.certify(owner, stack, fleet, folder=tmp_path, lasts_s=3)
    await owner.execute("update certificates set state = 'retiring'")
    staged = await world.certify(owner, stack, fleet, folder=tmp_path)
    await owner.execute("update certificates set state = 'staged' where serial = $1", staged.serial)
    async with (
        world.admitting(stack, database),
        world.connected(stack, fleet.devices, [staged.tls]) as (session,),
    ):
        while datetime.now(UTC) < ending.not_after:  # noqa: ASYNC110 - real certificates
            await asyncio.sleep(0.1)
        await world.done(owner, await world.order(owner, fleet.devices[0], State.SUSPENDED))
        await session.ended()
    assert await owner.fetchval("select count(*) from admissions") == 1


async def test_a_clock_that_runs_a_year_ahead_locks_nobody_out(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet, certificates = await world.enrolled(owner, stack, tmp_path, count=22, prefix="dc-clock")
    clock = world.Skipping()
    clock.ahead_ms = 400 * 86_400_000
    async with (
        world.admitting(stack, database, clock=clock),
        world.connected(stack, fleet.devices[:1], [certificates[0].tls]) as (session,),
    ):
        suspended = await world.order(owner, fleet.devices[1], State.SUSPENDED)
        await wait_for_orders(owner, [(False, "test")])
        clock.ahead_ms = 0
        clock.skipped_s += 61
        await world.done(owner, suspended)
        assert await world.denied(stack) == {fleet.devices[1]: True}
        await session.publish(b"still here")
        assert session.ended_at is None
