"""Faults on their own: the proxy, the lossy session, the lying clock, scenarios and claims."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from agent.clock import BUILD_MS, ManualClock
from agent.link import Identity
from agent.outbox import Outbox
from agent.recorder import Profile, Recorder
from protocol.frame import Quality
from protocol.identity import device_id
from protocol.session import Answer, BootCursor, decode_hello, encode_answer
from simulators.command import Claim, Member, enrol_all, read_claims, spec_of
from simulators.faults import (
    Fault,
    FaultProxy,
    FaultySession,
    FrameFaults,
    ProxyFaults,
    ScriptedClock,
    true_offset_ms,
)
from simulators.fleet import raise_file_limit
from simulators.scenarios import SCENARIOS


@asynccontextmanager
async def echoing(faults: ProxyFaults | None = None) -> AsyncIterator[FaultProxy]:
    """A proxy before a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1000):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with FaultProxy("127.0.0.1", port, faults=faults, seed=1).serving() as proxy:
            yield proxy
    finally:
        server.close()


async def test_a_proxy_carries_both_ways() -> None:
    async with echoing(ProxyFaults(delay_s=0.01)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"x" * 200_000)
        assert await reader.readexactly(200_000) == b"x" * 200_000
        writer.close()
        assert proxy.accepted == 1


async def test_a_proxy_resets_its_connections() -> None:
    async with echoing() as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        proxy.reset_all()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        assert proxy.resets == 1


async def test_a_half_open_connection_stays_and_carries_nothing() -> None:
    async with echoing() as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello")
        await reader.readexactly(5)
        proxy.silence_all()
        writer.write(b"anyone?")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), timeout=0.2)
        assert not reader.at_eof()
        writer.close()


async def test_a_connection_ends_with_its_life() -> None:
    async with echoing(ProxyFaults(life_s=(0.05, 0.1))) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), timeout=10) == b""
        writer.close()
        assert proxy.resets == 1


async def test_a_refusing_proxy_lets_nobody_in() -> None:
    async with echoing() as proxy:
        proxy.refusing = True
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


async def test_a_proxy_without_a_broker_behind_it_resets() -> None:
    async with echoing() as spare:
        dead = spare.port
    async with FaultProxy("127.0.0.1", dead).serving() as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


def test_frames_are_lost_doubled_and_swapped_and_none_is_invented(tmp_path: Path) -> None:
    clock = ManualClock(utc_ms=BUILD_MS)
    outbox = Outbox(tmp_path / "outbox")
    recorder = Recorder(outbox, clock=clock, profile=Profile("counter"), new_boot_id=lambda: 7)
    for _ in range(16):
        clock.advance(1_000)
        recorder.health({"a": 1.0})
    faults = FrameFaults(lose=0.2, double=0.4, swap=0.4)
    session = FaultySession(
        outbox,
        clock=ScriptedClock(true_offset_ms(), epoch="e"),
        rng=random.Random(3),
        faults=faults,
    )
    session.connected(1)
    while not (hello := session.next(0)):  # the hello may be lost too
        session.connected(1)
    answer = Answer(decode_hello(hello[0]).nonce, 1, BUILD_MS, 1, (BootCursor(7, 0, 0, True),))
    session.received(encode_answer(answer), 0)
    held = [row.frame for row in outbox.read(outbox.boots[0], 0, limit=16)]
    sent = session.next(0)
    assert set(sent) < set(held)
    assert len(sent) > len(set(sent))
    order = [held.index(frame) for frame in sent]
    assert order != sorted(order)
    outbox.close()


def test_a_board_without_battery_wakes_up_in_1970_until_somebody_tells_it() -> None:
    offset = true_offset_ms()
    now = ScriptedClock(offset, epoch="a").utc_ms()
    clock = ScriptedClock(offset, epoch="b", synced=False, error_ms=-now, powered_ms=now - offset)
    assert clock.monotonic_ms() < 60_000
    assert abs(clock.utc_ms() - now) < 60_000
    assert clock.offset()[0] is Quality.NONE
    clock.learn(max(clock.utc_ms(), BUILD_MS), rtt_ms=10)
    assert clock.offset()[0] is Quality.ESTIMATED
    clock.synced = True
    with clock.at(BUILD_MS + 1_000):
        assert clock.offset() == (Quality.SYNCED, clock.true_offset_ms)


def test_a_wrong_clock_is_not_believed_once_the_server_contradicts() -> None:
    clock = ScriptedClock(true_offset_ms(), epoch="a", synced=False, error_ms=90_000)
    with clock.at(BUILD_MS + 1_000):
        assert clock.offset() == (Quality.ESTIMATED, clock.true_offset_ms + 90_000)
        clock.learn(BUILD_MS + 1_000, rtt_ms=0)
        assert clock.offset() == (Quality.ESTIMATED, clock.true_offset_ms)


def test_a_drifting_clock_goes_wrong_by_its_parts_in_a_million() -> None:
    clock = ScriptedClock(0, epoch="a", synced=False, drift_ppm=100.0)
    with clock.at(BUILD_MS + 1_000):
        error = clock.offset()[1] - clock.true_offset_ms
    assert error == round((BUILD_MS + 1_000) * 100 / 1e6)


def test_scenarios_are_seeded_and_say_what_must_hold() -> None:
    assert list(SCENARIOS) == [
        "quiet-night",
        "saturday",
        "morning-rush",
        "flaky-links",
        "reboots",
        "clock-trouble",
        "outage",
        "clones",
    ]
    for scenario in SCENARIOS.values():
        plans = [scenario.plan(random.Random(seed), 600.0) for seed in range(300)]
        assert plans == [scenario.plan(random.Random(seed), 600.0) for seed in range(300)]
        for plan in plans:
            assert [t.at_s for t in plan] == sorted(t.at_s for t in plan)
            assert all(0 <= t.at_s + t.for_s <= 600 for t in plan)
        struck = {t.fault for plan in plans for t in plan}
        storage = {Fault.CLONE, Fault.ROLLBACK, Fault.WIPE, Fault.SNAPSHOT}
        assert bool(struck & storage) is scenario.needs_files
        assert scenario.expect.minutes or struck & {Fault.POWER, Fault.WRONG}


def test_a_scenarios_public_lives_at_its_own_local_time() -> None:
    zone = ZoneInfo("Europe/Stockholm")
    now = datetime(2026, 11, 24, 3, 10, tzinfo=zone)
    now_ms = int(now.timestamp() * 1000)
    there = datetime.fromtimestamp(
        (now_ms + SCENARIOS["saturday"].shift_ms(now_ms, zone.key)) / 1000, zone
    )
    assert (there.weekday(), there.hour, there.minute) == (5, 14, 0)


def test_claims_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "claims"
    path.write_text("# made today\nvst1.a\n\nvst1.b, kiosk\nvst1.c,counter,Europe/Copenhagen\n")
    assert read_claims(path) == [
        Claim("vst1.a"),
        Claim("vst1.b", "kiosk"),
        Claim("vst1.c", "counter", "Europe/Copenhagen"),
    ]
    path.write_text("vst1.a,toaster\n")
    with pytest.raises(ValueError, match=r"claims:1: expected counter or kiosk, got 'toaster'"):
        read_claims(path)


def member(name: str, *, kind: str = "counter", questionnaire: bytes = bytes(8)) -> Member:
    nowhere = Path("nowhere")
    identity = Identity(device_id(name), "localhost", 1, nowhere, nowhere, nowhere)
    return Member(identity, "kiosk" if kind == "kiosk" else "counter", questionnaire=questionnaire)


async def test_enrolments_are_bounded_and_keep_their_order() -> None:
    busy = most = 0

    async def enrol(claim: Claim) -> Identity:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0)
        busy -= 1
        return member(claim.token).identity

    done: list[int] = []
    claims = [Claim(f"device-{index:04}", "kiosk") for index in range(50)]
    members = await enrol_all(claims, enrol, on_done=lambda number, total: done.append(number))
    assert [m.identity.device for m in members] == [claim.token for claim in claims]
    assert {m.kind for m in members} == {"kiosk"}
    assert most == 16
    assert done == list(range(1, 51))


def test_a_devices_hardware_depends_on_its_id_and_the_seed_alone() -> None:
    saturday = SCENARIOS["saturday"]
    one = spec_of(member("device-0001"), saturday, seed=1)
    assert one == spec_of(member("device-0001"), saturday, seed=1)
    assert one != spec_of(member("device-0001"), saturday, seed=2)
    assert one.kiosk is None
    plain = spec_of(member("device-0001", kind="kiosk"), saturday, seed=1)
    asking = spec_of(
        member("device-0001", kind="kiosk", questionnaire=b"12345678"), saturday, seed=1
    )
    assert plain.kiosk is not None
    assert asking.kiosk is not None
    assert (plain.kiosk.follow_up, asking.kiosk.follow_up) == (0.0, 0.35)


def test_a_fleet_too_large_for_the_file_limit_is_told_so() -> None:
    raise_file_limit(1, in_memory=True)
    with pytest.raises(OSError, match="open files"):
        raise_file_limit(1_000_000_000, in_memory=False)
