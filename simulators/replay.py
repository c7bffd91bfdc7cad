"""Replay of a counts file through real agents: record, send, and prove.

Recording: each place is one agent with an hourly interval and virtual time. A stretch of missing
hours is a stretch in which the agent did not run, so it stays unobserved. Each hour is journalled
in one transaction with its feeder's id (one source a local day), so a replay that was killed goes
on where its outbox ends, and a day that a policy releases later is recorded then, once.

Proof: for each place and local day, `file_total - excluded` must be what the API serves; where
the file says nothing, nothing may be served.
"""

import asyncio
import csv
import hashlib
import random
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from agent.clock import ManualClock, SystemClock
from agent.link import Identity, Link, LinkOptions
from agent.outbox import Outbox
from agent.recorder import Feed, Profile, Recorder
from simulators.counts_file import HOUR_S, CountsFile, Day, Reading

HOUR_MS = HOUR_S * 1000
STALL_S = HOUR_S / 2
PROFILE = Profile(
    kind="counter",
    lines=1,
    interval_s=HOUR_S,
    frame_s=24 * HOUR_S,
    quiet_frame_s=24 * HOUR_S,
    stall_s=STALL_S,
)
PART_HOURS = 24 * 31
POLL_S = 0.2
MAX_BYTES = 1 << 30  # a replay holds years; an outbox on a device holds weeks
MAX_AGE_MS = 100 * 366 * 86_400_000

Served = Mapping[tuple[str, date], int | None]
"""People in per place and local day, from the API; None or absent where nothing was observed."""
Progress = Callable[[int, int], None]
"""Hours recorded, and hours receipted, since the start."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A place and local day whose served total is not the file's."""

    location: str
    date: date
    expected: int
    served: int | None

    def __str__(self) -> str:
        """Name the place and the difference."""
        served = "nothing" if self.served is None else f"{self.served:,}"
        return f"{self.location} on {self.date}: expected {self.expected:,}, served {served}"


def open_outbox(path: Path) -> Outbox:
    """Open a replay's outbox: it keeps what a device's would thin out."""
    return Outbox(path, max_bytes=MAX_BYTES, max_age_ms=MAX_AGE_MS, reserve_ms=MAX_AGE_MS)


class Recording:
    """Records the readings of one place that its outbox does not hold yet, part by part.

    Each part is one transaction and waits for nothing: a link must never send what is not on disk.
    """

    def __init__(self, outbox: Outbox, readings: list[Reading], *, zone: str) -> None:
        self._outbox = outbox
        self._waiting = deque(
            (reading, feed) for reading, feed in _fed(readings, zone) if not _held(outbox, feed)
        )
        self.done = len(readings) - len(self._waiting)
        if self._waiting:
            self._begin_ms = self._waiting[0][0].start_s * 1000
            self._clock = ManualClock(utc_ms=self._begin_ms)
            self._recorder = Recorder(
                outbox,
                clock=self._clock,
                profile=PROFILE,
                new_boot_id=lambda: random.getrandbits(64),
            )

    def part(self, hours: int) -> bool:
        """Record up to that many hours; False if there were none left."""
        if not self._waiting:
            return False
        with self._outbox.bulk():
            for _ in range(min(hours, len(self._waiting))):
                self._hour(*self._waiting.popleft())
            if self._waiting:
                self._recorder.flush()
            else:
                self._recorder.close()
        return True

    def _hour(self, reading: Reading, feed: Feed) -> None:
        # a jump of more than STALL_S is time in which this agent did not run
        self._clock.advance(reading.start_s * 1000 - self._begin_ms - self._clock.now_ms)
        self._recorder.tick()
        self._recorder.count(0, entered=reading.people, feed=feed)
        for _ in range(2):
            self._clock.advance(HOUR_MS // 2)
            self._recorder.tick()
        self.done += 1


def _fed(readings: list[Reading], zone: str) -> Iterator[tuple[Reading, Feed]]:
    """Yield each reading with its feeder's id: the hour's ordinal in its local day."""
    info = ZoneInfo(zone)
    for reading in readings:
        day = datetime.fromtimestamp(reading.start_s, info)
        midnight = datetime(day.year, day.month, day.day, tzinfo=info)
        ordinal = (reading.start_s - int(midnight.timestamp())) // HOUR_S + 1
        yield reading, Feed(f"day {day:%Y-%m-%d}", ordinal)


def _held(outbox: Outbox, feed: Feed) -> bool:
    return outbox.last_id(feed.source) >= feed.id


@dataclass(slots=True)
class Replayer:
    """Drives one file: an outbox and an agent per place, under `state` (kept between runs)."""

    file: CountsFile
    state: Path
    hours_recorded: int = 0
    hours_sent: int = 0

    def outbox_path(self, location: str) -> Path:
        """Return where a place's outbox is, the same for any part of the file."""
        safe = "".join(c if c.isalnum() else "-" for c in location)[:40]
        digest = hashlib.sha256(location.encode()).hexdigest()[:8]
        return self.state / f"{safe}-{digest}.outbox"

    @property
    def hours(self) -> int:
        """All hours of the file that are to be served."""
        return sum(len(readings) for readings in self.file.readings.values())

    async def run(
        self,
        identities: Mapping[str, Identity],
        *,
        on_progress: Progress = lambda recorded, sent: None,
        stalled_s: float = 120.0,
    ) -> None:
        """Record what is not recorded, and send all; TimeoutError if nothing moves any more."""
        self.state.mkdir(parents=True, exist_ok=True)
        places = [place for place, readings in self.file.readings.items() if readings]
        outboxes = {place: open_outbox(self.outbox_path(place)) for place in places}
        try:
            async with asyncio.TaskGroup() as group:
                links = [self._link(identities[place], outboxes[place]) for place in places]
                tasks = [group.create_task(link.run()) for link in links]
                try:
                    for place in places:
                        await self._record(place, outboxes[place], on_progress)
                    await self._sent(list(outboxes.values()), links, on_progress, stalled_s)
                finally:
                    for task in tasks:
                        task.cancel()
        finally:
            for outbox in outboxes.values():
                outbox.close()

    def _link(self, identity: Identity, outbox: Outbox) -> Link:
        options = LinkOptions(retry_max_s=5.0)
        return Link(identity, outbox, clock=SystemClock(), rng=random.Random(), options=options)

    async def _record(self, place: str, outbox: Outbox, on_progress: Progress) -> None:
        recording = Recording(outbox, self.file.readings[place], zone=self.file.zone)
        before = self.hours_recorded
        while recording.part(PART_HOURS):
            self.hours_recorded = before + recording.done
            on_progress(self.hours_recorded, self.hours_sent)
            await asyncio.sleep(0)  # links have their turn
        self.hours_recorded = before + recording.done

    async def _sent(
        self,
        outboxes: list[Outbox],
        links: list[Link],
        on_progress: Progress,
        stalled_s: float,
    ) -> None:
        """Wait until the server has answered every link and receipted every frame."""
        loop = asyncio.get_running_loop()
        best, since = -1, loop.time()
        while True:
            frames = sum(b.next_seq for outbox in outboxes for b in outbox.boots)
            acked = sum(b.acked for outbox in outboxes for b in outbox.boots)
            self.hours_sent = self.hours * acked // max(1, frames)
            on_progress(self.hours_recorded, self.hours_sent)
            if acked >= frames and all(link.session.answered for link in links):
                return
            if acked != best:
                best, since = acked, loop.time()
            elif loop.time() - since > stalled_s:
                raise TimeoutError(
                    f"{frames - acked} of {frames} frames wait, and for {stalled_s:.0f} s the"
                    " server receipted none; run the same command again to go on"
                )
            await asyncio.sleep(POLL_S)


def proof(file: CountsFile, served: Served) -> list[Mismatch]:
    """Return where the API does not serve the file, in order; empty is the proof."""
    found: list[Mismatch] = []
    for key in sorted(file.days.keys() | served.keys()):
        day = file.days.get(key, Day())
        number = served.get(key)
        nothing_is_right = day.readings == 0 and not number
        if number != day.expected and not nothing_is_right:
            found.append(Mismatch(*key, day.expected, number))
    return found


def write_report(path: Path, file: CountsFile, served: Served) -> None:
    """Write one row per place and local day: what the file says, what is served, and why."""
    notes: dict[tuple[str, date], list[str]] = defaultdict(list)
    for quirk in file.quirks:
        if quirk.date is not None:
            hour = "" if quirk.hour is None else f" at {quirk.hour:02}"
            notes[quirk.location, quirk.date].append(f"{quirk.kind.value}{hour}: {quirk.action}")
    with path.open("w", newline="", encoding="utf-8") as stream:
        out = csv.writer(stream)
        out.writerow(("location", "date", "file_total", "excluded", "served_total", "quirks"))
        for key in sorted(file.days.keys() | served.keys() | notes.keys()):
            day = file.days.get(key, Day())
            number = served.get(key)
            total = "" if number is None else number
            said = "; ".join(notes.get(key, []))
            out.writerow((key[0], key[1], day.file_total, day.excluded, total, said))


async def prove(
    file: CountsFile,
    fetch: Callable[[str, date, date], Awaitable[Mapping[date, int | None]]],
    *,
    report: Path | None = None,
) -> list[Mismatch]:
    """Fetch what is served, place by place, write the report, and return what does not match.

    `fetch(location, first, last)` gives people in per local day from the HTTP API.
    """
    served: dict[tuple[str, date], int | None] = {}
    for location in file.readings:
        dates = [day for place, day in file.days if place == location]
        if dates:
            found = await fetch(location, min(dates), max(dates))
            served.update({(location, day): number for day, number in found.items()})
    if report is not None:
        write_report(report, file, served)
    return proof(file, served)
