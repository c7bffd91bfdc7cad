"""A replay through real recorders, outboxes and sessions, up to what a server would serve."""

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from agent.clock import ManualClock
from agent.outbox import Outbox
from agent.session import Session
from protocol.counter import Counts, decode_lines
from protocol.frame import Section, decode_time, need, read_body, read_header
from protocol.session import (
    Answer,
    BootCursor,
    Receipt,
    decode_hello,
    encode_answer,
    encode_receipt,
)
from simulators.counts_file import CountsFile, Policy, interpret, parse_rows
from simulators.replay import Recording, Replayer, open_outbox, proof, prove, write_report

ZONE = "Europe/London"
HEADER = "Date,Hour,LocationName,InCount"
EVERY_QUIRK = [
    *(f"2012-03-{d},{hour},Briggate,{d * 100 + hour}" for d in (24, 25) for hour in range(24)),
    *(f"{day}/10/2012,{hour},Briggate,{hour}" for day in (27, 28) for hour in range(24)),
    "28/10/2012,1,Twice,5",
    "28/10/2012,1,Twice,6",
    *(f"1-May-12,{hour},Gappy,{hour}" for hour in (0, 1, 5, 6, 7, 23)),
    "2012-05-03,0,Gappy,0",
    "2012-05-03,1,Gappy,0",
    "2012-05-04,9,Gappy,12",
    "2012-05-04,9,Gappy,12",
    "2012-05-05,9,Differs,1",
    "2012-05-05,9,Differs,2",
    "2012-05-06,9,Differs,3",
    "2012-05-06,10,Differs,-3",
    "2012-05-06,11,Differs,none",
    "2012-05-06,24,Differs,4",
]  # fmt: skip


class Server:
    """The smallest server: takes what is next in a boot's sequence, and says so."""

    def __init__(self) -> None:
        self.next: dict[int, int] = {}
        self.digest: dict[int, int] = {}
        self.frames: list[Counts] = []

    def hear(self, frame: bytes) -> bytes:
        header = read_header(frame)
        if not header.kind < 16:
            hello = decode_hello(frame)
            boots = tuple(
                BootCursor(b.boot_id, self.next.get(b.boot_id, 0), self.digest.get(b.boot_id, 0),
                           b.boot_id in self.next)
                for b in hello.boots
            )  # fmt: skip
            return encode_answer(Answer(hello.nonce, 1, 1_800_000_000_000, 1, boots))
        if header.seq == self.next.get(header.boot_id, 0):
            sections = read_body(frame, header)
            span = decode_time(need(sections, Section.TIME))
            self.frames.append(decode_lines(need(sections, Section.LINES), span))
            self.next[header.boot_id] = header.seq + 1
            self.digest[header.boot_id] = header.digest
        next_seq = self.next.get(header.boot_id, 0)
        digest = self.digest.get(header.boot_id, 0)
        return encode_receipt(Receipt(header.boot_id, next_seq, digest, 1, 1_800_000_000_000))

    def drain(self, outbox: Outbox) -> None:
        clock = ManualClock(utc_ms=1_800_000_000_000)
        session = Session(outbox, clock=clock, rng=random.Random(1))
        session.connected(1)
        while frames := session.next(clock.now_ms):
            for frame in frames:
                session.received(self.hear(frame), clock.now_ms)
        assert outbox.pending() == 0

    def hours(self) -> dict[int, int]:
        """People in by UTC hour; only hours that were observed in full."""
        found: dict[int, int] = {}
        for counts in self.frames:
            step = counts.interval_s
            first = counts.first_cell_ms() // 1000
            start = counts.span.utc_ms / 1000
            end = start + counts.span.span_ms / 1000
            for cell in range(counts.cells):
                second = first + cell * step
                people = counts.lines[0].counts[2 * cell]
                if start <= second and second + step <= end + 0.002:
                    assert second not in found
                    found[second] = people
                else:
                    assert people == 0
        return found


def read(lines: Iterable[str], *, duplicates: Policy | None = None) -> CountsFile:
    return interpret(parse_rows([HEADER, *lines]), zone=ZONE, duplicates=duplicates)


def replay(file: CountsFile, state: Path, servers: dict[str, Server], *, part: int = 50) -> None:
    replayer = Replayer(file, state)
    state.mkdir(exist_ok=True)
    for place, readings in file.readings.items():
        outbox = open_outbox(replayer.outbox_path(place))
        recording = Recording(outbox, readings, zone=file.zone)
        while recording.part(part):
            pass
        servers[place].drain(outbox)
        outbox.close()


def served(servers: dict[str, Server]) -> dict[tuple[str, date], int | None]:
    found: dict[tuple[str, date], int | None] = defaultdict(int)
    for place, server in servers.items():
        for second, people in server.hours().items():
            day = datetime.fromtimestamp(second, ZoneInfo(ZONE)).date()
            found[place, day] = (found[place, day] or 0) + people
    return dict(found)


def test_a_file_with_every_quirk_is_served_hour_for_hour(tmp_path: Path) -> None:
    file = read(EVERY_QUIRK)
    servers: dict[str, Server] = defaultdict(Server)
    replay(file, tmp_path, servers)
    for place, readings in file.readings.items():
        assert servers[place].hours() == {r.start_s: r.people for r in readings}
    assert proof(file, served(servers)) == []


def test_missing_hours_are_not_observed_and_zero_hours_are(tmp_path: Path) -> None:
    file = read(EVERY_QUIRK)
    servers: dict[str, Server] = defaultdict(Server)
    replay(file, tmp_path, servers)
    hours = servers["Gappy"].hours()
    zone = ZoneInfo(ZONE)
    observed = {datetime.fromtimestamp(s, zone).strftime("%d %H") for s in hours}
    assert "03 00" in observed
    assert not any(hour.startswith("02") for hour in observed)
    assert "01 04" not in observed
    # the repeated hour with one row: its first pass alone
    fold = [s for s in servers["Briggate"].hours() if datetime.fromtimestamp(s, zone).fold]
    assert fold == []
    assert len([s for s in servers["Twice"].hours() if datetime.fromtimestamp(s, zone).fold]) == 1


def test_one_boot_records_a_place_however_often_it_pauses(tmp_path: Path) -> None:
    file = read(EVERY_QUIRK)
    servers: dict[str, Server] = defaultdict(Server)
    replay(file, tmp_path, servers, part=7)
    assert {len(server.next) for server in servers.values()} == {1}


@pytest.mark.parametrize("part", [1, 5, 24, 25])
def test_an_interrupted_replay_goes_on_where_its_outbox_ends(tmp_path: Path, part: int) -> None:
    file = read(EVERY_QUIRK)
    servers: dict[str, Server] = defaultdict(Server)
    path = Replayer(file, tmp_path).outbox_path("Briggate")
    for _ in range(3):  # three lives, each killed after one part and half of its sending
        outbox = open_outbox(path)
        recording = Recording(outbox, file.readings["Briggate"], zone=ZONE)
        recording.part(part)
        servers["Briggate"].drain(outbox)
        outbox.close()
    replay(file, tmp_path, servers)
    replay(file, tmp_path, servers)  # and once more, for nothing
    assert proof(file, served(servers)) == []


def test_a_day_that_a_policy_releases_is_recorded_then_and_once(tmp_path: Path) -> None:
    servers: dict[str, Server] = defaultdict(Server)
    stopped = read(EVERY_QUIRK)
    assert stopped.stopped == (("Differs", date(2012, 5, 5)),)
    replay(stopped, tmp_path, servers)
    assert proof(stopped, served(servers)) == []
    released = read(EVERY_QUIRK, duplicates="sum")
    assert len(proof(released, served(servers))) == 1
    replay(released, tmp_path, servers)
    replay(released, tmp_path, servers)
    assert proof(released, served(servers)) == []


def test_years_pass_through_an_outbox_without_being_thinned(tmp_path: Path) -> None:
    start = date(2009, 1, 1)
    lines = (
        f"{start + timedelta(days=n):%d/%m/%Y},{n % 24},A,{n % 300}" for n in range(0, 1_100, 3)
    )
    file = read(lines)
    servers: dict[str, Server] = defaultdict(Server)
    replay(file, tmp_path, servers, part=2_000)
    assert proof(file, served(servers)) == []


def test_the_proof_fails_and_names_the_place_if_one_count_is_altered_by_one(
    tmp_path: Path,
) -> None:
    file = read(EVERY_QUIRK)
    servers: dict[str, Server] = defaultdict(Server)
    replay(file, tmp_path, servers)
    right = served(servers)
    counts = servers["Briggate"].frames[0]
    (line,) = counts.lines
    altered = replace(line, counts=(line.counts[0] + 1, *line.counts[1:]))
    servers["Briggate"].frames[0] = replace(counts, lines=(altered,))
    (mismatch,) = proof(file, served(servers))
    assert (mismatch.location, mismatch.date) == ("Briggate", date(2012, 3, 24))
    assert str(mismatch) == "Briggate on 2012-03-24: expected 57,876, served 57,877"
    servers["Briggate"].frames[0] = counts
    assert proof(file, served(servers)) == []
    for key, number in right.items():
        for wrong in (number + 1 if number is not None else 1, None):
            found = proof(file, {**right, key: wrong})
            assert [(m.location, m.date) for m in found] == [key]


def test_the_proof_names_a_lost_row_a_doubled_frame_and_an_invented_day(tmp_path: Path) -> None:
    file = read(["2012-05-01,1,A,7", "2012-05-02,1,A,0"])
    key, zero = ("A", date(2012, 5, 1)), ("A", date(2012, 5, 2))
    assert proof(file, {key: 7, zero: 0}) == []
    assert [str(m) for m in proof(file, {key: 7})] == [
        "A on 2012-05-02: expected 0, served nothing"
    ]
    assert [m.served for m in proof(file, {key: 14, zero: 0})] == [14]
    invented = ("A", date(2012, 5, 3))
    assert [m.date for m in proof(file, {key: 7, zero: 0, invented: 1})] == [date(2012, 5, 3)]
    assert proof(file, {key: 7, zero: 0, invented: None}) == []


async def test_the_report_has_a_row_a_day_with_its_quirks(tmp_path: Path) -> None:
    file = read(EVERY_QUIRK)
    servers: dict[str, Server] = defaultdict(Server)
    replay(file, tmp_path / "state", servers)
    numbers = served(servers)

    async def fetch(location: str, first: date, last: date) -> dict[date, int | None]:
        span = [first + timedelta(days=n) for n in range((last - first).days + 1)]
        return {day: numbers.get((location, day)) for day in span}

    report = tmp_path / "report.csv"
    assert await prove(file, fetch, report=report) == []
    rows = report.read_text().splitlines()
    assert rows[0] == "location,date,file_total,excluded,served_total,quirks"
    (spring,) = [row for row in rows if row.startswith("Briggate,2012-03-25")]
    assert spring.split(",")[2:5] == ["60276", "0", "60276"]
    assert "no-such-hour at 01" in spring
    (stopped,) = [row for row in rows if row.startswith("Differs,2012-05-05")]
    assert stopped.split(",")[2:5] == ["3", "3", ""]
    (missing,) = [row for row in rows if row.startswith("Gappy,2012-05-02")]
    assert missing.split(",")[2:5] == ["0", "0", ""]
    write_report(report, file, {})
    assert report.read_text().count("\n") >= len(file.days)
