"""What fleet health promises of its truth conditions, beside what was measured.

A `Line` is one fault of one condition: how often it was found, and how soon. A `Quiet` is how often
anything fires where nothing is wrong, all conditions together: simulated shops, devices, kiosks,
and, where a file of counts is at hand, real streets, of whose own faults those that
`ops.evaluations.streets` proves from the counts are no false alarms.
"""

import random
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from ops.evaluations import shops, signals, street_health
from ops.evaluations.findings import Line, Quiet
from ops.evaluations.promise import Size
from ops.evaluations.shops import Fault, Shop
from ops.evaluations.truth_conditions import (
    WARM_DAYS,
    Found,
    crossings_needed,
    false_alarms,
    put_in,
)
from server.health.judgement import Condition
from server.health.usual import SHARES

PARTS = ("all", "faults", "quiet", "seen")
BUSY = 120.0
"""Crossings an hour, both ways, from which a door is busy."""
SHORT_WARM = 28
LEAST_VIEW = crossings_needed(0.3, share_variance=SHARES[0], hours=2, sure=1.645)
"""Crossings an hour from which two hours tell a door that sees 30 %, in 95 % of cases: derived, for
a door whose share of the people is as steady as is ever assumed (122)."""
BUSY_VIEW = 250.0
"""The same for doors whose share varies as simulated shops' does: measured."""
FEWER_VIEW = crossings_needed(0.6, share_variance=SHARES[0], hours=2, sure=1.645)
"""As LEAST_VIEW, of a door that sees 60 % (894)."""
_HOUR = 3600.0


@dataclass(slots=True)
class _Sites:
    """Shops to put faults into, made when they are first wanted."""

    size: Size
    _made: dict[tuple[int, float], list[Shop]] = field(default_factory=dict)

    def of(self, doors: int, busy: float) -> list[Shop]:
        """Return shops of so many doors, through each of which `busy` people come a day."""
        key = doors, busy
        if key not in self._made:
            number, after = (3, 18) if self.size.full else (1, 10)
            self._made[key] = [
                shops.shop(
                    self.size.seed, 100 * doors + n, days=_warm(self.size) + after,
                    doors=doors, busy=busy * doors,
                )
                for n in range(number)
            ]  # fmt: skip
        return self._made[key]


def _warm(size: Size) -> int:
    """Return how many days come before anything is looked at."""
    return WARM_DAYS if size.full else SHORT_WARM


def found(size: Size, *, only: Condition | None = None) -> Iterator[Line]:
    """Put faults in, and yield what was found of each kind."""
    for kind in _kinds(size):
        if only in (None, kind.condition):
            yield kind.make()


def names(size: Size) -> list[str]:
    """Return what is put into simulated fleets, as the lines begin."""
    return [f"{kind.condition:<19} {kind.fault}" for kind in _kinds(size)]


class _Kind(NamedTuple):
    condition: Condition
    fault: str
    make: Callable[[], Line]


def _kinds(size: Size) -> list[_Kind]:
    return [*_of_counts(_Sites(size), size), *_of_signals(size)]


def _of_counts(sites: _Sites, size: Size) -> list[_Kind]:
    def kind(
        condition: Condition, fault: str, change: Fault, *, doors: int = 2, people: float = 800.0,
        within: timedelta, median_s: float, p95_s: float | None = None, share: float = 0.95,
        busy: float = 0.0, busy_h: int = 1,
    ) -> _Kind:  # fmt: skip
        def make() -> Line:
            rng = _drawn(size, fault)
            places = sites.of(doors, people)
            result = Found()
            for number in range(30 if size.full else 4):
                place = places[number % len(places)]
                result.times_s.append(
                    put_in(
                        place,
                        change,
                        condition,
                        rng,
                        within=within,
                        busy=busy,
                        busy_h=busy_h,
                        warm_days=_warm(size),
                    )
                )
            return Line(condition, fault, result, median_s, p95_s, share)

        return _Kind(condition, fault, make)

    week, days = timedelta(days=8), timedelta(days=2)
    flat, blocked = Condition.FLATLINE, Condition.BLOCKED_VIEW
    full: list[_Kind] = []
    if size.full:
        full = [
            kind(flat, "a door of 800 a day, at any hour", shops.dead, within=days,
                 median_s=90 * 60),
            kind(flat, f"a single door, {_at(2 * BUSY)}", shops.dead, doors=1, people=1500,
                 within=days, busy=2 * BUSY, median_s=_HOUR, p95_s=90 * 60),
            kind(flat, "a door of 150 a day", shops.dead, people=150, within=timedelta(days=4),
                 median_s=8 * _HOUR),
            kind(blocked, "70 % of one of two doors, at any hour", shops.covered(0.3, 0.3),
                 within=days, median_s=2 * _HOUR),
            kind(blocked, f"40 % of one of two doors, {_at(FEWER_VIEW)}", shops.covered(0.6, 0.6),
                 people=7000.0, within=days, busy=FEWER_VIEW, busy_h=2, median_s=2 * _HOUR),
            kind(blocked, "half of one of two doors", shops.covered(0.5, 0.5), within=days,
                 median_s=3 * _HOUR),
            kind(blocked, "95 % of a single door", shops.covered(0.05, 0.05), doors=1,
                 people=1500, within=days, median_s=3 * _HOUR),
            kind(blocked, "70 % of those who come in, a single door", shops.covered(0.3, 1.0),
                 doors=1, people=1500, within=days, median_s=2 * _HOUR),
            kind(Condition.REVERSED, "a door of 300 a day, one of two", shops.swapped,
                 people=300, within=week, median_s=5 * 24 * _HOUR, share=0.9),
            kind(Condition.IMBALANCE, "30 % of those who leave are missed",
                 shops.covered(1.0, 0.7), doors=1, people=1500, within=week,
                 median_s=3 * 24 * _HOUR),
            kind(Condition.LEVEL_SHIFT, "two and a half times as many", shops.louder(2.5),
                 doors=1, people=1500, within=timedelta(days=12), median_s=6 * 24 * _HOUR),
        ]  # fmt: skip
    return [
        kind(flat, f"one of two doors, {_at(BUSY)}", shops.dead, within=days, busy=BUSY,
             median_s=_HOUR, p95_s=_HOUR),
        kind(blocked, f"70 % of one of two doors, {_at(BUSY_VIEW)}", shops.covered(0.3, 0.3),
             people=1500.0, within=days, busy=BUSY_VIEW, busy_h=2, median_s=2 * _HOUR,
             p95_s=2 * _HOUR),
        kind(Condition.REVERSED, "a single door of 1,500 a day", shops.swapped, doors=1,
             people=1500, within=week, median_s=2 * 24 * _HOUR),
        kind(Condition.CLOSED_COUNTING, "phantoms by day and night", shops.haunted, doors=1,
             people=1500, within=days, median_s=14 * _HOUR),
        *full,
    ]  # fmt: skip


def _at(busy: float) -> str:
    return f"{busy:,.0f} crossings an hour"


def _drawn(size: Size, fault: str) -> random.Random:
    """Return what a fault's moments are drawn from: no other kind of fault changes them."""
    return random.Random(f"{size.seed}/{fault}")  # noqa: S311 - repeatable


def _of_signals(size: Size) -> list[_Kind]:
    def kind(
        condition: Condition, fault: str, one: Callable[[random.Random], float | None],
        median_s: float, p95_s: float | None = None,
    ) -> _Kind:  # fmt: skip
        def make() -> Line:
            rng = _drawn(size, fault)
            times = [one(rng) for _ in range(40 if size.full else 4)]
            return Line(condition, fault, Found(times), median_s, p95_s)

        return _Kind(condition, fault, make)

    def broken(condition: Condition) -> Callable[[random.Random], float | None]:
        return lambda rng: signals.break_device(rng, condition)

    def line(rng: random.Random) -> float | None:
        return signals.stuck_line(rng, busy=rng.choice((100.0, 500.0, 2000.0)))

    minutes = 60.0
    return [
        kind(Condition.STUCK_COUNTER, "a line counts once or twice a minute", line,
             30 * minutes, 45 * minutes),
        kind(Condition.STUCK_BUTTON, "every 0.5 to 12 s", signals.stuck_press,
             3 * minutes, 3 * minutes),
        kind(Condition.REBOOT_LOOP, "every 7 minutes", broken(Condition.REBOOT_LOOP),
             30 * minutes, _HOUR),
        kind(Condition.FLAPPING, "every 5 minutes", broken(Condition.FLAPPING), 30 * minutes,
             _HOUR),
        kind(Condition.DUPLICATE_IDENTITY, "one finding", broken(Condition.DUPLICATE_IDENTITY),
             2 * minutes, 2 * minutes),
        kind(Condition.CLOCK_DRIFT, "250 s ahead, a frame each 15 min",
             broken(Condition.CLOCK_DRIFT), 18 * minutes, 18 * minutes),
        kind(Condition.BACKLOG, "nothing leaves", broken(Condition.BACKLOG), 4 * _HOUR),
        kind(Condition.STORAGE, "the disk is full", broken(Condition.STORAGE), _HOUR),
        kind(Condition.TEMPERATURE, "38 degrees warmer", broken(Condition.TEMPERATURE),
             2 * _HOUR),
        kind(Condition.CERTIFICATE, "a day and a half left, not renewed",
             broken(Condition.CERTIFICATE), _HOUR),
    ]  # fmt: skip


def quiet(size: Size) -> Iterator[Quiet]:
    """Look where nothing is wrong; yield what fired."""
    rng = random.Random(size.seed + 1)  # noqa: S311 - repeatable
    short = not size.full
    devices, days = (40, 365) if size.full else (1, 90)
    told = Tally(signals.false_alarms(rng, devices=devices, days=days))
    yield Quiet("devices", told, devices * days / 365, short)
    pieces, days = (40, 14) if size.full else (1, 4)
    rng = random.Random(f"{size.seed}/minutes")  # noqa: S311 - repeatable
    read: Tally[Condition] = Tally()
    pressed: Tally[Condition] = Tally()
    for _ in range(pieces):
        low, high = signals.START_S + 7200, signals.START_S + days * 86_400
        readings = signals.minutes(rng, days=days, busy=rng.choice((100.0, 600.0, 3000.0)))
        looked = signals.stuck_lines(readings, range(low, high, 600))
        read[Condition.STUCK_COUNTER] += len(looked)
        held = signals.stuck_buttons(signals.presses(rng, days=days), range(low, high, 300))
        pressed[Condition.STUCK_BUTTON] += len(held)
    yield Quiet("lines that are read by the minute", read, pieces * days / 365, short)
    yield Quiet("kiosks", pressed, pieces * days / 365, short)
    places = [
        shops.shop(size.seed, n, days=_warm(size) + (60 if size.full else 4), doors=1 + n % 3)
        for n in range(16 if size.full else 2)
    ]
    alarms = false_alarms(places, warm_days=_warm(size))
    yield Quiet("counters of simulated shops", alarms.false, alarms.years, short)


def everything(
    size: Size, *, only: Condition | None = None, part: str = "all", leeds: Path | None = None
) -> Iterator[Line | Quiet]:
    """Yield every line of the report as it is known, or those of one `part` of `PARTS`.

    `seen` is no part of all: see `street_health.SEEN`.
    """
    known = None
    if leeds is not None:
        known = street_health.Streets.of(leeds, days=None if size.full else 16)
    if part in ("all", "faults"):
        yield from found(size, only=only)
        if known is not None:
            yield from street_health.found(known, size, only=only)
    if part in ("all", "quiet"):
        yield from quiet(size)
        if known is not None:
            yield street_health.quiet(known, short=not size.full)
    if part == "seen" and known is not None:
        yield street_health.quiet_seen(known)


def broken(lines: Sequence[Line | Quiet]) -> list[Line | Quiet]:
    """Return the promises that were not kept."""
    return [each for each in lines if not each.kept]
