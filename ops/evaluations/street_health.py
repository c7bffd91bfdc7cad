"""What is promised of real streets: faults put into Leeds' counts, and what cries wolf in them.

Thresholds were chosen while looking at other years of the same file; `HELD_OUT` are the stretches
of it that nobody had looked at by then, and all of them is measured here, with the rules as they
are. The counts are of an hour and of one direction, in streets that never close. So an hour's
people are spread evenly over its quarters and half of them are said to go out; of a counter that
takes in for out, of what enters and does not leave, and of people counted while it is closed such
counts can say nothing, nor of what a device says of itself.
"""

import random
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

from ops.evaluations import shops, streets
from ops.evaluations.findings import Line, Quiet
from ops.evaluations.promise import Size
from ops.evaluations.shops import Fault, Shop
from ops.evaluations.truth_conditions import Found, false_alarms, put_in
from server.health.judgement import Condition
from server.health.series import QUIET

HELD_OUT = ((date(2011, 5, 1), date(2012, 1, 1)), (date(2014, 3, 1), date(2015, 1, 1)))
"""From and to before, by their local days."""
SEEN = (
    (date(2009, 2, 1), date(2011, 5, 1)),
    (date(2012, 1, 1), date(2014, 3, 1)),
)
"""The rest, which thresholds were chosen on; asked for by name, since it takes long."""
LEARNT_DAYS = 119
"""Days before a stretch that are learnt from, and not looked at."""
OF = "eight streets of Leeds, in months not seen before"
OF_SEEN = "eight streets of Leeds, in months thresholds are from"
BUSY = 120.0
_BESIDE = 3
_HOUR = 3600.0


class Kind(NamedTuple):
    """A fault of one street, and what is promised of it."""

    condition: Condition
    fault: str
    change: Fault
    within: timedelta
    median_s: float | None
    p95_s: float | None = None
    share: float = 0.95
    busy_h: int = 2
    many: int = 30
    every: int = 1


_FLAT, _BLOCKED, _SHIFT = Condition.FLATLINE, Condition.BLOCKED_VIEW, Condition.LEVEL_SHIFT
_DAYS = timedelta(days=2)
KINDS = (
    Kind(_FLAT, "a street, while busy", shops.dead, timedelta(hours=8), _HOUR, _HOUR),
    Kind(_BLOCKED, "95 % of a street, while busy", shops.covered(0.05, 0.05), _DAYS, 2.5 * _HOUR),
    Kind(_BLOCKED, "70 % of a street, while busy", shops.covered(0.3, 0.3), _DAYS, 4 * _HOUR,
         many=20),
    Kind(_BLOCKED, "40 % of a street, while busy", shops.covered(0.6, 0.6), _DAYS, None, many=20),
    Kind(Condition.STUCK_COUNTER, "a street, the same in each hour (30 readings)", shops.stuck,
         _DAYS, 30 * _HOUR, every=4),
    Kind(_SHIFT, "a street, two and a half times as many", shops.louder(2.5),
         timedelta(days=12), 6 * 24 * _HOUR, many=12),
    Kind(_SHIFT, "a street, 60 % less", shops.covered(0.4, 0.4), timedelta(days=12),
         6 * 24 * _HOUR, many=12),
)  # fmt: skip
_ONE_WAY = "the counts have one direction"
_NO_WORD = "counts hold no word of a device"
NOT_HERE = {
    Condition.REVERSED: _ONE_WAY,
    Condition.IMBALANCE: _ONE_WAY,
    Condition.CLOSED_COUNTING: "streets never close",
    Condition.STUCK_BUTTON: "streets have no kiosks",
    Condition.CLOCK_DRIFT: _NO_WORD,
    Condition.REBOOT_LOOP: _NO_WORD,
    Condition.FLAPPING: _NO_WORD,
    Condition.DUPLICATE_IDENTITY: _NO_WORD,
    Condition.BACKLOG: _NO_WORD,
    Condition.CERTIFICATE: _NO_WORD,
    Condition.STORAGE: _NO_WORD,
    Condition.TEMPERATURE: _NO_WORD,
}
"""What cannot be put into streets, and why."""


@dataclass(slots=True)
class Streets:
    """The file, and the days that were invented in it; `held_out` are its stretches as places.

    `well` are the same without the hours that were dead, which the server masks: what one learns of
    a street, to put faults into it, is not learnt from these.
    """

    counts: Mapping[str, streets.Counts]
    gone: Mapping[str, Set[date]]
    held_out: list[Shop] = field(default_factory=list)
    well: list[Shop] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path, *, days: int | None = None) -> "Streets":
        """Read a file; `days`: take the first of each stretch alone."""
        counts = streets.read(path)
        found = cls(counts, {name: streets.invented(each) for name, each in counts.items()})
        dead = streets.dead(counts)
        well = {
            name: {at: n for at, n in each.items() if not _within(at, dead[name])}
            for name, each in counts.items()
        }
        for since, until in HELD_OUT:
            most = until if days is None else min(until, since + timedelta(days=days))
            found.held_out += found.between(since, most)
            found.well += found.between(since, most, well)
        return found

    def between(
        self, since: date, until: date, counts: Mapping[str, streets.Counts] | None = None
    ) -> list[Shop]:
        """Return a stretch as a place, its days to learn from before it; none if it is not here."""
        first = since - timedelta(days=LEARNT_DAYS)
        last = min(until, streets.last_day(self.counts))
        if last <= since:
            return []
        known = self.counts if counts is None else counts
        return [streets.place(known, first=first, until=last, gone=self.gone)]


def _within(at: int, stretches: Sequence[streets.Stretch]) -> bool:
    return any(low <= at < high for low, high in stretches)


def found(known: Streets, size: Size, *, only: Condition | None = None) -> Iterator[Line]:
    """Put faults into streets, and yield what was found of each kind."""
    for kind in KINDS:
        if only not in (None, kind.condition):
            continue
        rng = random.Random(f"{size.seed}/{kind.fault}")  # noqa: S311 - repeatable
        result = Found()
        for number in range(kind.many if size.full else 2):
            result.times_s.append(
                put_in(
                    known.well[number % len(known.well)],
                    kind.change,
                    kind.condition,
                    rng,
                    within=kind.within,
                    busy=BUSY,
                    part=QUIET,
                    busy_h=kind.busy_h,
                    warm_days=LEARNT_DAYS,
                    every=kind.every,
                    beside=min(_BESIDE, len(known.counts) - 1),
                )
            )
        yield Line(kind.condition, kind.fault, result, kind.median_s, kind.p95_s, kind.share)


def quiet(known: Streets, *, short: bool) -> Quiet:
    """Look at the streets as they are."""
    return _looked(known, known.held_out, of=OF, short=short)


def quiet_seen(known: Streets) -> Quiet:
    """Look at them in the months which thresholds were chosen on."""
    places = [place for stretch in SEEN for place in known.between(*stretch)]
    return _looked(known, places, of=OF_SEEN, short=False)


def _looked(known: Streets, places: Sequence[Shop], *, of: str, short: bool) -> Quiet:
    alarms = false_alarms(places, warm_days=LEARNT_DAYS, proven=streets.proof(known.counts))
    return Quiet(of, alarms.false, alarms.years, short, alarms.proven)
