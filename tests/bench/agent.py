"""What an agent costs its device: memory, CPU, bytes and fsyncs a day.

    python -m tests.bench.agent

Memory and CPU are a real process's, connected over mTLS to a real server, with a device's own
settings: a minute in which nothing happens, and a minute in which somebody passes each second. A
day's CPU is 86,400 such idle seconds and the price of each of the day's people.

Bytes and fsyncs are a day's of the real recorder and outbox in virtual time, on disk, fsync on,
with a receipt a second after each frame and health every 15 minutes: at the median door (400 enter
a day) and at a busy one (3,000, the 95th percentile). Beside it a journal that commits each person
by itself, in SQLite's WAL with its own defaults. Bytes are what is handed to write(2); what the
card makes of them is its own. Checkpoints of the log count two fsyncs each.
"""

import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from agent.clock import ManualClock
from agent.outbox import Outbox
from agent.recorder import Recorder
from ops.chaos.device import AgentSettings, Device
from ops.chaos.system import running
from ops.services.stack import Stack
from simulators.hardware import DeviceSpec, Event, record, size
from simulators.history import record_history
from simulators.traffic import Door, Sensor

AS_A_DEVICE = AgentSettings(
    interval_s=60,
    frame_s=300,
    quiet_frame_s=1_800,
    flush_s=1.0,
    health_s=900.0,
    retry_min_s=1.0,
    retry_max_s=60.0,
)
WATCH_S = 60
SETTLE_S = 10
DAY_S = 86_400
HEALTH_S = 900
MEMORY_MAX_MB = 192.0  # MemoryMax in ops/systemd/vestibule-agent.service
HISTORY_DAYS = 28
MONDAY = datetime(2026, 11, 15, 23, tzinfo=UTC)  # midnight in Stockholm
QUIET_HOUR = (3 * 3600, 4 * 3600)
SEED = 2026
BARE = "import asyncio, sqlite3, ssl, aiomqtt, time; asyncio.new_event_loop(); time.sleep(60)"


class Row(TypedDict):
    """One measured value; `ratio` is value over `limit`, less is better throughout."""

    name: str
    value: float
    unit: str
    limit: float | None
    limit_name: str
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Live:
    """A running agent: MB resident (ours, a bare interpreter's), CPU a second and a person."""

    rss_mb: float
    bare_mb: float
    idle_share: float
    person_s: float
    quiet_writes: int


@dataclass(frozen=True, slots=True)
class Day:
    """A day on disk; `quiet` are the commits of the quiet hour that no frame asked for."""

    people: int
    bytes: int
    fsyncs: int
    frames: int
    quiet: int
    seconds: float


def run() -> list[Row]:
    """Measure all."""
    live = measure_live()
    rows = [
        row("agent.rss.ours", live.rss_mb, "MB", MEMORY_MAX_MB, "MemoryMax of its systemd unit"),
        row("agent.rss.bare", live.bare_mb, "MB", None, "Python that has imported aiomqtt"),
    ]
    with tempfile.TemporaryDirectory(prefix="vestibule-agent-") as name:
        folder = Path(name)
        for label, median_day in (("", 400.0), ("busy_", 3_000.0)):
            spec = DeviceSpec(
                "dc-bench", Door("bench", median_day=median_day), SEED, Sensor(lines=(0.5, 0.5))
            )
            day = virtual_day(spec, folder / f"{label}ours")
            naive = naive_day(spec, folder / f"{label}naive")
            cpu_s = live.idle_share * DAY_S + live.person_s * day.people
            rows += _rows(label, day, naive, cpu_s)
            if not label:
                quiet = day.quiet + live.quiet_writes
                rows.append(
                    row("agent.quiet_hour_writes.ours", quiet, "writes", None, "0: nothing happens")
                )
                took, people = history(spec, folder / "history")
                name_ = f"agent.history_{HISTORY_DAYS}d.ours"
                rows.append(row(name_, took, "s", None, f"{people:,} people into the outbox"))
    return rows


def _rows(label: str, day: Day, naive: Day, cpu_s: float) -> list[Row]:
    people = f"a commit a person, {naive.people:,} people"
    return [
        row(f"agent.{label}cpu_day.ours", cpu_s, "s", DAY_S, "one core"),
        row(f"agent.{label}bytes_day.ours", day.bytes, "bytes", naive.bytes, people),
        row(f"agent.{label}bytes_day.naive", naive.bytes, "bytes", None, people),
        row(f"agent.{label}fsyncs_day.ours", day.fsyncs, "fsyncs", naive.fsyncs, people),
        row(f"agent.{label}fsyncs_day.naive", naive.fsyncs, "fsyncs", None, people),
    ]


# -- a live process --------------------------------------------------------------------------


def measure_live() -> Live:
    """Watch one agent process for a quiet and for a busy minute."""
    with tempfile.TemporaryDirectory(prefix="vestibule-agent-") as name:
        root = Path(name)
        root.chmod(0o755)
        stack = Stack(root / "stack", role="bench")
        try:
            with running(stack, root=root / "run") as system:
                (device,) = system.enrol(1, settings=AS_A_DEVICE)
                device.start()
                return _watched(device)
        finally:
            stack.remove()


def _watched(device: Device) -> Live:
    device.count((0, 1, 0))
    time.sleep(SETTLE_S)
    before = cpu_s(device.agent.pid)
    for _ in range(WATCH_S):
        device.count((0, 1, 0))  # returns when it is journalled, at most a second later
    busy = cpu_s(device.agent.pid) - before
    _sleep_past_the_next_frame()
    before, files = cpu_s(device.agent.pid), _written(device)
    began = time.monotonic()
    time.sleep(WATCH_S)
    idle = (cpu_s(device.agent.pid) - before) / (time.monotonic() - began)
    quiet = sum(a != b for a, b in zip(files, _written(device), strict=True))
    rss = resident_mb(device.agent.pid)
    with subprocess.Popen([sys.executable, "-c", BARE]) as bare:
        time.sleep(5)
        bare_mb = resident_mb(bare.pid)
        bare.kill()
    return Live(rss, bare_mb, idle, max(0.0, busy / WATCH_S - idle), quiet)


def _sleep_past_the_next_frame() -> None:
    """Return at a moment after which no frame is due for a minute."""
    left = AS_A_DEVICE.frame_s - time.time() % AS_A_DEVICE.frame_s
    if left < WATCH_S + 5:
        time.sleep(left + 5)


def _written(device: Device) -> list[int]:
    """Return when each of the outbox's files was written last."""
    return [path.stat().st_mtime_ns for path in sorted(device.state.glob("outbox*"))]


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that all threads of a process have used, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def resident_mb(pid: int) -> float:
    """Return a process's resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no memory")


# -- a day on disk ---------------------------------------------------------------------------


def virtual_day(spec: DeviceSpec, path: Path) -> Day:
    """Record a day as the agent does: a tick a second, the journal a second after a change."""
    start_ms = round(MONDAY.timestamp() * 1000)
    clock = ManualClock(utc_ms=start_ms)
    began, written = time.monotonic(), bytes_written()
    outbox = Outbox(path)
    recorder = Recorder(outbox, clock=clock, profile=spec.profile(), new_boot_id=lambda: SEED)
    day = _Seconds(outbox, recorder, clock, start_ms)
    people = 0
    for event in spec.events(start_ms, start_ms + DAY_S * 1000):
        day.until(event.at_ms)
        record(recorder, event)
        people += size(event)
        day.changed()
    day.until(start_ms + DAY_S * 1000)
    recorder.close()
    outbox.close()
    return Day(
        people,
        bytes_written() - written,
        outbox.commits + 2 * day.checkpoints,
        day.frames,
        day.quiet,
        time.monotonic() - began,
    )


class _Seconds:
    """The agent's tasks in virtual time: tick, journal, health, and the server's receipts."""

    def __init__(
        self, outbox: Outbox, recorder: Recorder, clock: ManualClock, start_ms: int
    ) -> None:
        self.frames = self.quiet = self.checkpoints = 0
        self._outbox, self._recorder, self._clock = outbox, recorder, clock
        self._start_ms = start_ms
        self._flush_ms: int | None = None
        self._receipt_due = False
        self._wal = Path(f"{outbox.path}-wal")
        self._generation = self._log_generation()
        outbox.on_put = self._put

    def changed(self) -> None:
        if self._flush_ms is None:
            self._flush_ms = self._clock.now_ms + 1000

    def until(self, at_ms: int) -> None:
        """Let the seconds pass up to `at_ms` (UTC)."""
        end = at_ms - self._start_ms
        while (second := self._clock.now_ms // 1000 * 1000 + 1000) <= end:
            if self._flush_ms is not None and self._flush_ms <= second:
                self._clock.advance(self._flush_ms - self._clock.now_ms)
                self._flush_ms = None
                self._recorder.flush()
            self._clock.advance(second - self._clock.now_ms)
            self._second(second // 1000)
        self._clock.advance(end - self._clock.now_ms)

    def _second(self, number: int) -> None:
        commits, frames = self._outbox.commits, self.frames
        boot = self._outbox.current
        if self._receipt_due and boot is not None:
            self._receipt_due = False
            server_ms = self._start_ms + self._clock.now_ms
            self._outbox.stored(boot, boot.next_seq, server_ms=server_ms)
        self._recorder.tick()
        if number % HEALTH_S == 0:
            self._recorder.health({f"metric.{n}": float(number + n) for n in range(14)})
        if QUIET_HOUR[0] < number <= QUIET_HOUR[1] and self.frames == frames:
            self.quiet += self._outbox.commits - commits
        generation = self._log_generation()
        self.checkpoints += generation != self._generation
        self._generation = generation

    def _put(self) -> None:
        self.frames += 1
        self._receipt_due = True

    def _log_generation(self) -> bytes:
        """Return the salt in the log's header: it changes when the log begins anew."""
        with self._wal.open("rb") as file:
            return file.read(24)[16:]


def naive_day(spec: DeviceSpec, path: Path) -> Day:
    """Commit each person by himself."""
    start_ms = round(MONDAY.timestamp() * 1000)
    began, written = time.monotonic(), bytes_written()
    people = 0
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = full")
        db.execute("create table people (at_ms integer, line integer, entered integer)")
        for event in spec.events(start_ms, start_ms + DAY_S * 1000):
            for _ in range(size(event)):
                db.execute("insert into people values (?, ?, ?)", _columns(event))
                people += 1
    return Day(people, bytes_written() - written, people, 0, 0, time.monotonic() - began)


def _columns(event: Event) -> tuple[int, int, int]:
    return event.at_ms, event[1], event[2]


def bytes_written() -> int:
    """Return how many bytes this process has handed to write(2) so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise ValueError("the kernel does not account for writes")


def history(spec: DeviceSpec, path: Path) -> tuple[float, int]:
    """Return how long weeks of history take, and how many people they are."""
    end_ms = round(MONDAY.timestamp() * 1000)
    start_ms = end_ms - HISTORY_DAYS * DAY_S * 1000
    began = time.monotonic()
    people = record_history(spec, path, truth=None, start_ms=start_ms, end_ms=end_ms)
    return time.monotonic() - began, people


def row(name: str, value: float, unit: str, limit: float | None, limit_name: str) -> Row:
    return Row(
        name=name,
        value=round(value, 2),
        unit=unit,
        limit=None if limit is None else round(limit, 2),
        limit_name=limit_name,
        ratio=None if limit is None else round(value / limit, 4),
    )


def main() -> int:
    """Print the rows."""
    for each in run():
        ratio = "" if each["ratio"] is None else f"{each['ratio']:.4f} of"
        sys.stdout.write(
            f"{each['name']:30} {each['value']:>12,.2f} {each['unit']} {ratio}"
            f" {each['limit_name']}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
