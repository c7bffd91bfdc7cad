"""The verdict: the truth's file against the database and the API.

    python -m ops.chaos.verify TRUTH --dsn-env NAME [--api URL --key-env NAME]

It imports nothing of server, agent, ext or protocol, so that a mistake there cannot hide itself.
What it proves, each difference with its place:

1. By device and line, by kiosk, visit, question and answer: what the truth's file holds is stored,
   no more and no less (readings plus unplaced people of gaps).
2. In time: up to each minute, no less than what was confirmed before it, no more than what was
   offered before it. A device's offset to UTC may lag by 2 s.
3. Within the database: all of `checks`.
4. Over HTTP: what the API serves for each spot and day is the sum of the readings.
"""

import argparse
import asyncio
import os
import sys
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path

import asyncpg

from ops.chaos import checks
from ops.chaos.differences import Difference, Wrong
from ops.chaos.record import Crossing, Touch, Truth, read
from ops.chaos.served import Api, served

CLOCK_MS = 2_000
_MINUTE_MS = 60_000
_SHOWN = 25

Line = tuple[str, int]
Press = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was compared, and what was wrong."""

    people: int
    presses: int
    frames: int
    unplaced: int
    differences: tuple[Difference, ...]

    def amount(self, wrong: Wrong) -> int:
        return sum(each.amount for each in self.differences if each.wrong is wrong)

    @property
    def proved(self) -> bool:
        """Nothing is wrong, and there was something to be wrong."""
        return not self.differences and self.people > 0

    def closing(self) -> str:
        """Return the closing line."""
        words = " ".join(f"{wrong.value} {self.amount(wrong)}" for wrong in Wrong)
        return (
            f"people {self.people} presses {self.presses} frames {self.frames} "
            f"unplaced {self.unplaced} {words}"
        )

    def report(self) -> str:
        """Return each difference with its place, and the closing line."""
        shown = [f"  {each}" for each in self.differences[:_SHOWN]]
        more = len(self.differences) - len(shown)
        return "\n".join([*shown, *([f"  ... and {more} more"] if more else []), self.closing()])


async def verify(truth: Truth, dsn: str, *, api: Api | None = None) -> Verdict:
    """Compare the truth with what is stored and served now."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            await checks.prepare(connection)
            differences = await _crossings(connection, truth.crossings)
            differences += await _touches(connection, truth.touches)
            for question in checks.QUESTIONS:
                differences += await question(connection)
            if api is not None:
                differences += await served(connection, api)
            frames, unplaced = await connection.fetchrow(
                "select (select sum(next_seq) from all_boots), (select coalesce(sum((select sum(c) "
                "from unnest(counts) c)), 0) from gaps where filled_at is null)"
            )
    finally:
        await connection.close()
    return Verdict(
        truth.people, len(truth.touches), int(frames or 0), int(unplaced), tuple(differences)
    )


async def _crossings(
    connection: asyncpg.Connection, crossings: Sequence[Crossing]
) -> list[Difference]:
    by_line: dict[Line, list[Crossing]] = defaultdict(list)
    for event in crossings:
        by_line[event.device, event.line].append(event)
    stored: dict[Line, list[asyncpg.Record]] = defaultdict(list)
    for row in await connection.fetch(
        "select device, line::int, (extract(epoch from at) * 1000)::bigint as at_ms, interval_s, "
        "entered, left_ from verify_cells where entered + left_ > 0 order by at"
    ):
        stored[row["device"], row["line"]].append(row)
    unplaced = {
        (row["device"], row["line"]): (int(row["entered"]), int(row["left_"]))
        for row in await connection.fetch(
            "select d.device, l as line, sum(g.counts[2 * l + 1]) as entered, "
            "sum(g.counts[2 * l + 2]) as left_ from gaps g join devices d on d.id = g.device_id, "
            "generate_series(0, 3) l where g.filled_at is null group by 1, 2"
        )
    }
    found: list[Difference] = []
    for line in sorted(by_line.keys() | stored.keys()):
        events, cells = by_line.get(line, []), stored.get(line, [])
        gap = unplaced.get(line, (0, 0))
        for at, way, true in (
            (0, "entered", [e.entered for e in events]),
            (1, "left_", [e.left for e in events]),
        ):
            place = f"{line[0]} line {line[1]} {'in' if at == 0 else 'out'}"
            kept = [int(cell[way]) for cell in cells]
            found += _total(place, expected=sum(true), found=sum(kept) + gap[at])
            if not gap[at]:
                found += _in_time(place, events, true, cells=cells, kept=kept)
    return found


def _total(place: str, *, expected: int, found: int) -> list[Difference]:
    if expected == found:
        return []
    wrong = Wrong.LOST if found < expected else Wrong.DUPLICATED
    return [Difference(wrong, abs(expected - found), place, f"{expected}", f"{found}")]


def _in_time(
    place: str,
    events: Sequence[Crossing],
    true: Sequence[int],
    *,
    cells: Sequence[asyncpg.Record],
    kept: Sequence[int],
) -> list[Difference]:
    """Compare sums up to each minute; the first one that is out of bounds is named."""
    if not events or not cells:
        return []
    sent, upper = _upto([e.sent_ms for e in events], true)
    stored, lower = _upto([e.stored_ms for e in events], true)
    begins, begun = _upto([cell["at_ms"] for cell in cells], kept)
    ends, ended = _upto([cell["at_ms"] + cell["interval_s"] * 1000 for cell in cells], kept)
    first = min(sent[0], begins[0]) // _MINUTE_MS * _MINUTE_MS
    last = max(stored[-1], ends[-1]) + _MINUTE_MS
    for minute in range(first, last, _MINUTE_MS):
        least = lower[bisect_left(stored, minute - CLOCK_MS)]
        most = upper[bisect_right(sent, minute + CLOCK_MS)]
        at_most, at_least = begun[bisect_left(begins, minute)], ended[bisect_right(ends, minute)]
        wrong = at_most - least if at_most < least else max(0, at_least - most)
        if wrong:
            place = f"{place} up to {_clock(minute)}"
            found = f"{at_least} to {at_most}"
            return [Difference(Wrong.ALTERED, abs(wrong), place, f"{least} to {most}", found)]
    return []


def _upto(times: Iterable[int], values: Iterable[int]) -> tuple[list[int], list[int]]:
    """Return the times in order, and the sum of the values before each (one more at the end)."""
    pairs = sorted(zip(times, values, strict=True))
    return [at for at, _ in pairs], [0, *accumulate(value for _, value in pairs)]


async def _touches(connection: asyncpg.Connection, touches: Sequence[Touch]) -> list[Difference]:
    """Compare press by press: visits are numbered, so that each one has a name."""
    true = Counter((t.device, t.visit, t.question, t.answer) for t in touches)
    spans: dict[Press, tuple[int, int]] = {}
    for t in touches:
        key = (t.device, t.visit, t.question, t.answer)
        low, high = spans.get(key, (t.sent_ms, t.stored_ms))
        spans[key] = min(low, t.sent_ms), max(high, t.stored_ms)
    stored: Counter[Press] = Counter()
    found: list[Difference] = []
    for row in await connection.fetch(
        "select d.device, p.visit, p.question::int, p.answer::int, "
        "(extract(epoch from p.time) * 1000)::bigint as at_ms from presses p "
        "join all_boots b on b.id = p.boot join devices d on d.id = b.device_id order by 1, at_ms"
    ):
        key = (row["device"], row["visit"], row["question"], row["answer"])
        stored[key] += 1
        low, high = spans.get(key, (row["at_ms"], row["at_ms"]))
        if not low - CLOCK_MS <= row["at_ms"] <= high + CLOCK_MS:
            expected = f"{_clock(low)} to {_clock(high)}"
            where = _clock(row["at_ms"])
            found.append(Difference(Wrong.ALTERED, 1, _named(key), expected, where))
    for key in sorted(true.keys() | stored.keys()):
        found += _total(_named(key), expected=true[key], found=stored[key])
    return found


def _clock(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%F %T}"


def _named(press: Press) -> str:
    device, visit, question, answer = press
    return f"{device} visit {visit} question {question} answer {answer}"


def main(argv: list[str]) -> int:
    """Print the report; 0 only if it is proved."""
    parser = argparse.ArgumentParser(prog="ops.chaos.verify", description=__doc__)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--dsn-env", required=True, help="the variable that holds the owner's DSN")
    parser.add_argument("--api", help="the server's address")
    parser.add_argument("--key-env", help="the variable that holds an API key")
    options = parser.parse_args(argv)
    api = None
    if options.api and options.key_env:
        api = Api(options.api, (os.environ[options.key_env],))
    verdict = asyncio.run(verify(read(options.truth), os.environ[options.dsn_env], api=api))
    print(verdict.report())
    return 0 if verdict.proved else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
