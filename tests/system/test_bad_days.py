"""Bad days of a whole system: each ends with every person where they belong, once.

What goes wrong at random is chaos's; here each thing goes wrong on purpose, and the verifier says
after each that nothing was lost, doubled or altered in all that these devices have ever counted.
"""

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from agent.clock import ManualClock, SystemClock
from agent.outbox import Outbox
from agent.recorder import Profile, Recorder
from ops.chaos.device import AgentSettings, Device
from ops.chaos.record import Crossing
from ops.chaos.system import System, blocking, running
from ops.services.account import data_directory, service_account
from ops.services.child import Child
from ops.services.stack import Stack, free_ports
from protocol.frame import Quality
from server.fleet import register

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

DAY_MS = 86_400_000
WEEK = AgentSettings(interval_s=60, frame_s=300, quiet_frame_s=900, max_mb=0.06)


@pytest.fixture
def device(system: System) -> Iterator[Device]:
    """A fresh counter whose agent runs; it is ended afterwards."""
    (made,) = system.enrol(1)
    made.start()
    yield made
    made.agent.kill()


def crowd(device: Device, groups: int = 20) -> None:
    """Let people cross both lines."""
    rng = random.Random(len(device.told))
    device.count(*((rng.randrange(2), rng.randrange(4), rng.randrange(4)) for _ in range(groups)))


def wait(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.1)


def sql(system: System, statement: str, *values: object) -> list[asyncpg.Record]:
    """Run one statement as the owner."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(system.dsn)
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()

    return blocking(run())


def proved(system: System) -> None:
    verdict = system.converge()
    assert verdict.proved, verdict.report()


def stored(system: System, device: Device) -> int:
    """Return how many people of the device stand in readings."""
    (row,) = sql(
        system,
        "select coalesce(sum(c), 0) as people from readings r join boots b on b.id = r.boot "
        "join devices d on d.id = b.device_id, unnest(r.counts) c where d.device = $1",
        device.device,
    )
    return int(row["people"])


def told(device: Device) -> int:
    return sum(e.entered + e.left for e in device.told if isinstance(e, Crossing))


def test_a_broker_that_restarts_with_nothing_costs_nothing(system: System, device: Device) -> None:
    crowd(device)
    system.stack.broker.kill()
    crowd(device)
    system.stack.broker.start()
    crowd(device)
    proved(system)


def test_a_database_that_crashes_is_waited_for(system: System, device: Device) -> None:
    before = system.server.pid
    crowd(device)
    system.stack.postgres.kill()
    crowd(device)
    system.stack.postgres.start()
    system.stack.postgres.wait_ready()
    crowd(device)
    proved(system)
    assert system.server.running
    assert system.server.pid == before


@pytest.mark.long
def test_a_server_that_starts_before_its_database_waits_for_it(
    system: System, device: Device
) -> None:
    system.stack.postgres.kill()
    system.server.kill()
    crowd(device)
    system.server.start()
    pid = system.server.pid
    wait(lambda: "database away" in system.server.tail(), "the server sees that it is away")
    system.stack.postgres.start()
    system.stack.postgres.kill()
    system.stack.postgres.start()
    system.wait_ready()
    proved(system)
    assert system.server.pid == pid


@pytest.mark.long
def test_a_database_that_fails_over_to_read_only_is_waited_for(
    system: System, device: Device
) -> None:
    before = system.server.pid
    crowd(device)
    proved(system)
    with read_only(system):
        crowd(device)
        wait(lambda: "read-only" in system.server.tail(200), "the server sees that it cannot write")
        assert stored(system, device) < told(device)
    proved(system)
    assert system.server.pid == before


def test_a_full_disk_is_waited_for_and_nothing_is_acknowledged(tmpfs: Path) -> None:
    stack = Stack(tmpfs / "stack", role="test")
    try:
        with running(stack, root=tmpfs.parent / "run") as system:
            (device,) = system.enrol(1)
            device.start()
            ballast = tmpfs / "ballast"
            fill(ballast)
            crowd(device)
            wait(
                lambda: "No space left" in system.server.tail(200) or not stack.postgres.running,
                "the disk is full",
            )
            before = system.server.pid
            ballast.unlink()
            stack.postgres.start()  # a full disk may have ended it
            stack.postgres.wait_ready()
            crowd(device)
            proved(system)
            assert system.server.pid == before
    finally:
        stack.remove()


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A small file system of its own, so that it can be filled."""
    folder = Path(tempfile.mkdtemp(prefix="vestibule-disk-"))
    folder.chmod(0o755)
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2g,mode=755", "none", str(disk)]
    try:
        if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
            pytest.skip("only root may mount the small disk that this test fills")
        yield disk
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fill(path: Path) -> None:
    """Take every byte that the file system has left."""
    for size in (1 << 20, 1 << 12):
        with path.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(size))


@contextmanager
def read_only(system: System) -> Iterator[None]:
    """Let every connection to the database find it read-only, as after a failover."""
    postgres, name = system.stack.postgres, system.database
    ended = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
    postgres.execute(f"alter database {name} set default_transaction_read_only = on; {ended}")
    try:
        yield
    finally:
        postgres.execute(f"alter database {name} reset default_transaction_read_only; {ended}")


def test_a_server_that_stands_still_and_goes_on_stores_once(system: System, device: Device) -> None:
    crowd(device)
    system.server.freeze()
    crowd(device)
    system.stack.broker.kill()
    system.stack.broker.start()
    crowd(device)
    system.server.thaw()
    proved(system)


@pytest.mark.parametrize(
    "resync",
    [False, pytest.param(True, marks=pytest.mark.long)],
    ids=["same-dataset", "other-dataset"],
)
def test_a_database_restored_from_an_hour_ago_gets_the_rest_again(
    system: System, device: Device, *, resync: bool
) -> None:
    """Agents keep 24 hours of what was receipted; the restored server asks for it."""
    postgres = system.stack.postgres
    home = data_directory(system.stack.root, "postgres", account=service_account())
    crowd(device)
    proved(system)
    postgres.stop()
    subprocess.run(["cp", "-a", home / "data", home / "backup"], check=True)
    postgres.start()
    postgres.wait_ready()
    crowd(device)
    proved(system)
    device.agent.kill()
    device.start()
    crowd(device)
    proved(system)
    postgres.kill()
    shutil.rmtree(home / "data")
    (home / "backup").rename(home / "data")
    (home / "data/postmaster.pid").unlink(missing_ok=True)
    postgres.start()
    postgres.wait_ready()
    if resync:
        sql(system, "update dataset set id = id + 1")
    crowd(device)
    proved(system)


@pytest.mark.long
def test_a_store_that_was_wiped_begins_anew(system: System, device: Device) -> None:
    crowd(device)
    proved(system)
    device.agent.kill()
    for file in device.state.glob("outbox.db*"):
        file.unlink()
    device.start()
    crowd(device)
    proved(system)


def test_a_store_that_was_put_back_repeats_nothing(system: System, device: Device) -> None:
    crowd(device)
    device.agent.kill()
    copy = device.folder / "copy"
    shutil.copytree(device.state, copy)
    device.start()
    crowd(device)
    proved(system)
    crowd(device)
    proved(system)
    device.agent.kill()
    shutil.rmtree(device.state)
    copy.rename(device.state)
    device.start()
    crowd(device)
    proved(system)


def test_a_cloned_device_is_found_and_doubles_nothing(system: System, device: Device) -> None:
    crowd(device)
    device.agent.kill()
    twin = cloned(device)
    try:
        device.start()
        twin.start()
        for _ in range(3):
            crowd(device)
            crowd(twin)
        system.devices.append(twin)  # what it counts is counted too, as the same device's
        proved(system)
        (row,) = sql(
            system,
            "select count(*) from findings f join devices d on d.id = f.device_id "
            "where d.device = $1 and f.finding in ('cloned', 'ordinal repeated')",
            device.device,
        )
        assert row["count"] > 0
    finally:
        twin.agent.kill()


def cloned(device: Device) -> Device:
    """Return a second piece of hardware with a copy of the device's storage."""
    folder = device.folder.with_name("clone")
    shutil.copytree(device.folder, folder, ignore=shutil.ignore_patterns("s"))
    env = {name: value.replace(str(device.folder), str(folder))
           for name, value in device.agent.env.items()}  # fmt: skip
    agent = Child("clone", device.agent.command, folder / "log", env=env)
    # its store knows the feeder's ids up to here, so its own go on from there
    return Device(device.device, device.settings, folder, agent, _id=len(device.told))


@pytest.mark.parametrize(
    "wrong", [datetime(1970, 1, 2, tzinfo=UTC), datetime(2038, 1, 20, tzinfo=UTC)], ids=str
)
def test_counts_of_a_clock_that_nobody_believes_are_placed_when_it_is_right(
    system: System, wrong: datetime
) -> None:
    (device,) = system.enrol(1)
    wrong_ms = round(wrong.timestamp() * 1000)
    clock = SystemClock(utc_ms=lambda: wrong_ms, synced=lambda: False)
    device.state.mkdir(exist_ok=True)
    outbox = Outbox(device.state / "outbox.db")
    recorder = Recorder(
        outbox, clock=clock, profile=profile(device), new_boot_id=lambda: random.getrandbits(64)
    )
    for _ in range(10):
        now_ms = round(time.time() * 1000)
        recorder.count(0, entered=2, left=1)
        device.told.append(Crossing(device.device, 1, 0, 2, 1, now_ms, now_ms))
    recorder.close()
    outbox.close()
    device.start()
    crowd(device)
    proved(system)
    device.agent.kill()


def profile(device: Device) -> Profile:
    settings = device.settings
    return Profile(
        kind="counter",
        lines=settings.lines,
        interval_s=settings.interval_s,
        frame_s=settings.frame_s,
        quiet_frame_s=settings.quiet_frame_s,
    )


def test_a_week_in_a_full_outbox_leaves_gaps_whose_people_are_known(system: System) -> None:
    (device,) = system.enrol(1, settings=WEEK)
    sql(
        system,
        "update assignments set valid = tstzrange(now() - interval '20 days', null) "
        "where device_id = (select id from devices where device = $1)",
        device.device,
    )
    week(device)
    device.start()
    verdict = system.converge()
    device.agent.kill()
    assert verdict.proved, verdict.report()
    assert 0 < verdict.unplaced < told(device)


def week(device: Device) -> None:
    """Record seven days that ended yesterday, in virtual time, with nobody to send them to."""
    start_ms = round(time.time() * 1000) - 8 * DAY_MS
    clock = ManualClock(utc_ms=start_ms)
    device.state.mkdir(exist_ok=True)
    outbox = Outbox(device.state / "outbox.db", max_bytes=round(device.settings.max_mb * (1 << 20)))
    rng = random.Random(7)
    recorder = Recorder(
        outbox,
        clock=clock,
        profile=Profile(kind="counter", lines=2, frame_s=300),
        new_boot_id=lambda: rng.getrandbits(64),
    )
    with outbox.bulk():
        for second in range(0, 7 * 86_400, 60):
            clock.advance(60_000)
            recorder.tick()
            line, entered, left = rng.randrange(2), rng.randrange(9), rng.randrange(9)
            recorder.count(line, entered=entered, left=left)
            now_ms = start_ms + clock.monotonic_ms()
            device.told.append(Crossing(device.device, second, line, entered, left, now_ms, now_ms))
    recorder.close()
    outbox.close()


def test_late_data_after_a_swap_goes_to_where_the_device_then_was(system: System) -> None:
    old, new = system.enrol(2)
    (spot,) = sql(
        system,
        "select p.ref, p.id from assignments a join devices d on d.id = a.device_id "
        "join spots p on p.id = a.spot_id where d.device = $1",
        old.device,
    )
    broker_port = system.deployment.settings.device_broker_port
    old.dial(free_ports(1)[0])  # its cable leads nowhere
    old.start()
    crowd(old)
    old.agent.kill()
    swap(system, new.device, spot["ref"])
    new.start()
    crowd(new)
    old.dial(broker_port)
    old.start()
    proved(system)
    old.agent.kill()
    new.agent.kill()
    (row,) = sql(
        system,
        "select sum(coalesce(in0, 0) + coalesce(out0, 0) + coalesce(in1, 0) + coalesce(out1, 0)) "
        "as people from rollup_15m where spot = $1",
        spot["id"],
    )
    assert row["people"] == told(old) + told(new)


def swap(system: System, device: str, spot: str) -> None:
    """Record that `device` hangs at `spot` from now on."""

    async def assign() -> None:
        connection = await asyncpg.connect(system.dsn)
        try:
            async with connection.transaction():
                await register.assign(connection, device=device, spot=spot, since=datetime.now(UTC))
        finally:
            await connection.close()

    blocking(assign())


def test_a_wild_clock_makes_no_bucket_and_is_listed(system: System) -> None:
    """A clock that is believed and four years wrong: held, until someone decides.

    Nor does the device lock itself out: it does not hold certificates to a time that it guessed.
    """
    (device,) = system.enrol(1)
    ahead_ms = round(time.time() * 1000) + 4 * 365 * DAY_MS
    outbox = Outbox(device.state / "outbox.db")
    recorder = Recorder(
        outbox,
        clock=ManualClock(utc_ms=ahead_ms, quality=Quality.ESTIMATED),
        profile=profile(device),
        new_boot_id=lambda: random.getrandbits(64),
    )
    recorder.count(0, entered=5)
    recorder.close()
    outbox.close()
    device.start()
    listed = (
        "select u.reason from undated_frames u join boots b on b.id = u.boot "
        "join devices d on d.id = b.device_id where d.device = $1"
    )
    try:
        wait(lambda: sql(system, listed, device.device) != [], "the frame is held")
    finally:
        device.agent.kill()
    assert {row["reason"] for row in sql(system, listed, device.device)} == {"wild clock"}
    for table, column in (("readings", "time"), ("rollup_15m", "bucket"), ("rollup_day", "day")):
        late = f"select 1 from {table} where {column} > now() + interval '1 day'"
        assert sql(system, late) == []
    (verdict,) = [each for each in system.verdict().differences if "wild clock" in each.found]
    assert device.device in verdict.place


def test_a_server_is_told_to_stop_in_the_middle_of_work(system: System, device: Device) -> None:
    """SIGTERM is no fault: it ends in time, by itself, with exit code 0."""
    crowd(device)
    assert system.server.end(timeout_s=20) == 0
    crowd(device)
    system.start()
    wait(lambda: stored(system, device) == told(device), "all is stored")
