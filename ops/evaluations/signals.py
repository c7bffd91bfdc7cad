"""What a device tells of itself, simulated: minutes at a door, presses at a kiosk, gauges, boots.

People and touches are those of `simulators.traffic`. A healthy device starts anew now and then,
loses its connection about once a day and sometimes for hours (its outbox then fills, and empties),
is warmer by day than by night, and renews its certificate.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import pi, sin
from zoneinfo import ZoneInfo

from ops.evaluations.shops import FIRST, ZONE
from server.feedback.misuse import Press
from server.health.conditions import (
    backlog,
    certificate,
    clock_drift,
    duplicate_identity,
    flapping,
    reboot_loop,
    storage,
    stuck_button,
    stuck_counter,
    temperature,
)
from server.health.conditions.certificate import Certificate
from server.health.conditions.clock_drift import Arrival
from server.health.conditions.duplicate_identity import Finding
from server.health.conditions.gauge import Value
from server.health.conditions.stuck_counter import Reading
from server.health.judgement import Condition, Judgement, Standing, Subject, SubjectKind
from server.health.verdict import NEVER, Before, Case
from simulators.traffic import Door, people, random_kiosk, random_sensor, sense, touches

DAY_S = 86_400
START_S = int(datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=ZoneInfo(ZONE)).timestamp())
_SPOT = Subject(SubjectKind.SPOT, 1)
_DEVICE = Subject(SubjectKind.DEVICE, 1)
_HELD = 120

Judge = Callable[[Case], Judgement]


def watch(judge: Judge, subject: Subject, times_s: Sequence[int]) -> list[tuple[int, Judgement]]:
    """Look at each time; return when it began to fire, and what was said."""
    found: list[tuple[int, Judgement]] = []
    before = NEVER
    for now_s in times_s:
        said = judge(Case(subject, now_s, before))
        if said.standing is Standing.UNKNOWN:
            continue
        firing = said.standing is Standing.FIRING
        if firing and not before.firing:
            found.append((now_s, said))
        before = Before(firing, int(said.since.timestamp()), None)
    return found


# -- minutes -------------------------------------------------------------------------------------


def minutes(rng: random.Random, *, days: int, busy: float) -> list[Reading]:
    """Return a counter's minutes: in and out."""
    door = Door(f"minutes-{rng.random()}", zone=ZONE, median_day=busy)
    start_ms = START_S * 1000
    crowd = people(door, seed=rng.randrange(1 << 30), start_ms=start_ms,
                   end_ms=start_ms + days * DAY_S * 1000)  # fmt: skip
    counts = [[0, 0] for _ in range(days * 1440)]
    for crossing in sense(crowd, random_sensor(rng)):
        pair = counts[(crossing.at_ms - start_ms) // 60_000]
        pair[0] += crossing.entered
        pair[1] += crossing.left
    return [Reading(START_S + 60 * n, 60, (a, b)) for n, (a, b) in enumerate(counts)]


def stuck_lines(readings: Sequence[Reading], times_s: Sequence[int]) -> list[tuple[int, Judgement]]:
    """Watch a counter's minutes."""

    def judge(case: Case) -> Judgement:
        high = (case.now_s - START_S) // 60
        return stuck_counter.judge(case, readings[max(0, high - _HELD) : high])

    return watch(judge, _SPOT, times_s)


def stuck_line(rng: random.Random, *, busy: float) -> float | None:
    """Let a line count once in every minute from a minute on; return when it was found."""
    readings = minutes(rng, days=1, busy=busy)
    at = rng.randrange(8 * 60, 18 * 60)
    column, every = rng.randrange(2), rng.choice((1, 1, 2))
    for number in range(at, len(readings)):
        counts = list(readings[number].counts)
        counts[column] = every
        readings[number] = readings[number]._replace(counts=tuple(counts))
    low = START_S + at * 60
    found = stuck_lines(readings, range(low + 600, low + 4 * 3600, 60))
    return found[0][0] - low if found else None


# -- presses -------------------------------------------------------------------------------------


def presses(rng: random.Random, *, days: int) -> list[Press]:
    """Return what is pressed at a kiosk, played with now and then."""
    door = Door(f"kiosk-{rng.random()}", zone=ZONE, median_day=rng.choice((400.0, 1500.0)))
    start_ms = START_S * 1000
    touched = touches(door, random_kiosk(rng), seed=rng.randrange(1 << 30), start_ms=start_ms,
                      end_ms=start_ms + days * DAY_S * 1000)  # fmt: skip
    return sorted(Press(t.at_ms, 1, t.visit, 7, t.question, t.answer) for t in touched)


def stuck_buttons(pressed: Sequence[Press], times_s: Sequence[int]) -> list[tuple[int, Judgement]]:
    """Watch a kiosk's presses."""
    at = [press.at_ms for press in pressed]
    low = high = 0

    def judge(case: Case) -> Judgement:
        nonlocal low, high
        while high < len(at) and at[high] < case.now_s * 1000:
            high += 1
        while low < high and at[low] < (case.now_s - 3600) * 1000:
            low += 1
        return stuck_button.judge(case, pressed[low:high], observed_to_s=case.now_s)

    return watch(judge, _SPOT, times_s)


def stuck_press(rng: random.Random) -> float | None:
    """Let a button repeat itself every half to twelve seconds; return when it was found."""
    pressed = presses(rng, days=1)
    at_s = START_S + rng.randrange(11 * 3600, 17 * 3600)
    every_ms = rng.choice((500, 1_000, 2_500, 5_000, 8_000, 12_000))
    own = [
        Press(at_s * 1000 + n * every_ms + rng.randrange(20), 1, 90_000 + n, 7, 0, 2)
        for n in range(600_000 // every_ms)
    ]
    found = stuck_buttons(sorted([*pressed, *own]), range(at_s + 10, at_s + 600, 10))
    return found[0][0] - at_s if found else None


# -- gauges, boots, connections ------------------------------------------------------------------


@dataclass(slots=True)
class Device:
    """A device's year or day, as its own words and its connection tell it."""

    starts_s: list[float]
    losses_s: list[float]
    outbox: list[Value]
    free: list[Value]
    celsius: list[Value]
    arrivals: list[Arrival]
    findings: list[Finding]
    certificates: list[Certificate]
    away: list[tuple[float, float]]

    def heard_s(self, now_s: float) -> float:
        """Return when it was heard last."""
        return next((low for low, high in self.away if low <= now_s < high), now_s)


def device(rng: random.Random, *, days: int) -> Device:
    """Return a device in which nothing is wrong."""
    end_s = START_S + days * DAY_S
    away = []
    at: float = START_S
    while (at := at + rng.expovariate(1 / (12 * DAY_S))) < end_s:
        away.append((at, at + rng.uniform(0.1, 8) * 3600))
        at = away[-1][1]
    losses = sorted(
        [START_S + rng.random() * days * DAY_S for _ in range(days)] + [low for low, _ in away]
    )
    starts = sorted(START_S + rng.random() * days * DAY_S for _ in range(max(1, days // 15)))
    outbox, free, celsius, arrivals = [], [], [], []
    waiting = 0.0
    for now in range(START_S, end_s, 900):
        gone = any(low <= now < high for low, high in away)
        waiting = waiting + 4 if gone else max(float(rng.randrange(3)), waiting - 400)
        if gone:
            continue
        outbox.append(Value(now, waiting))
        free.append(Value(now, 4e9 + rng.gauss(0, 2e8)))
        warm = 52 + 9 * sin(2 * pi * (now % DAY_S) / DAY_S) + rng.gauss(0, 3)
        celsius.append(Value(now, warm))
        arrivals.append(Arrival(now + rng.gauss(0, 4), now + rng.uniform(0, 6)))
    year = 365 * DAY_S
    certificates = [
        Certificate(START_S - 100 * DAY_S + n * year * 0.6, START_S - 100 * DAY_S + n * year * 0.6
                    + year)
        for n in range(2 + days // 200)
    ]  # fmt: skip
    return Device(starts, losses, outbox, free, celsius, arrivals, [], certificates, away)


def conditions_of(known: Device) -> dict[Condition, Judge]:
    """Return what looks at a device, each condition by itself, over the last hours."""

    def values(gauge: Sequence[Value], case: Case) -> Sequence[Value]:
        low = _first(gauge, case.now_s - 4 * 3600)
        return gauge[low : _first(gauge, case.now_s)]

    def recent(times: Sequence[float], case: Case) -> list[float]:
        return [each for each in times if case.now_s - 4 * 3600 < each <= case.now_s]

    def frame(case: Case) -> list[Arrival]:
        low = _first_arrival(known.arrivals, case.now_s)
        return known.arrivals[max(0, low - 1) : low]

    def held(case: Case) -> Certificate | None:
        return max((c for c in known.certificates if c.begins_s <= case.now_s), default=None)

    return {
        Condition.REBOOT_LOOP: lambda case: reboot_loop.judge(
            case, recent(known.starts_s, case), heard_s=known.heard_s(case.now_s)
        ),
        Condition.FLAPPING: lambda case: flapping.judge(
            case, recent(known.losses_s, case), heard_s=known.heard_s(case.now_s)
        ),
        Condition.DUPLICATE_IDENTITY: lambda case: duplicate_identity.judge(
            case,
            [each for each in known.findings if each.at_s <= case.now_s],
            heard_s=known.heard_s(case.now_s),
        ),
        Condition.CLOCK_DRIFT: lambda case: clock_drift.judge(
            case, frame(case), (), wild=0, undated=0
        ),
        Condition.BACKLOG: lambda case: backlog.judge(case, values(known.outbox, case)),
        Condition.STORAGE: lambda case: storage.judge(case, values(known.free, case)),
        Condition.TEMPERATURE: lambda case: temperature.judge(case, values(known.celsius, case)),
        Condition.CERTIFICATE: lambda case: certificate.judge(
            case, held(case), heard_s=known.heard_s(case.now_s), pause_s=DAY_S
        ),
    }


def _first(values: Sequence[Value], at_s: float) -> int:
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle].at_s <= at_s:
            low = middle + 1
        else:
            high = middle
    return low


def _first_arrival(arrivals: Sequence[Arrival], at_s: float) -> int:
    low, high = 0, len(arrivals)
    while low < high:
        middle = (low + high) // 2
        if arrivals[middle].arrived_s <= at_s:
            low = middle + 1
        else:
            high = middle
    return low


def break_device(rng: random.Random, condition: Condition) -> float | None:
    """Let one thing go wrong with a device at a time of its second day; return when it shows."""
    known = device(rng, days=4)
    at = START_S + DAY_S + rng.random() * DAY_S
    quiet = [pair for pair in known.away if pair[1] < at - DAY_S / 2]
    known.away = quiet

    def after(gauge: list[Value], change: Callable[[float, float], float]) -> list[Value]:
        return [v if v.at_s < at else Value(v.at_s, change(v.value, v.at_s - at)) for v in gauge]

    match condition:
        case Condition.REBOOT_LOOP:
            known.starts_s = [*known.starts_s, *(at + 420 * n for n in range(60))]
            known.starts_s.sort()
        case Condition.FLAPPING:
            known.losses_s = sorted([*known.losses_s, *(at + 300 * n for n in range(60))])
        case Condition.DUPLICATE_IDENTITY:
            known.findings = [Finding(at, "cloned")]
        case Condition.CLOCK_DRIFT:
            known.arrivals = [
                a if a.arrived_s < at else a._replace(device_s=a.device_s + 250)
                for a in known.arrivals
            ]
        case Condition.BACKLOG:
            known.outbox = after(known.outbox, lambda _, since: since / 900 * 4)
        case Condition.STORAGE:
            known.free = after(known.free, lambda _, since: 1.5e8)
        case Condition.TEMPERATURE:
            known.celsius = after(known.celsius, lambda value, _: value + 38)
        case _:
            known.certificates = [Certificate(at - 360 * DAY_S, at + 1.5 * DAY_S)]
    judge = conditions_of(known)[condition]
    times = range(int(at) - 3600, START_S + 4 * DAY_S, 120)
    found = watch(judge, _DEVICE, times)
    return max(0.0, found[0][0] - at) if found else None


def false_alarms(rng: random.Random, *, devices: int, days: int) -> dict[Condition, int]:
    """Watch devices in which nothing is wrong; return what fired."""
    found: dict[Condition, int] = {}
    for _ in range(devices):
        known = device(rng, days=days)
        times = range(START_S + 3600, START_S + days * DAY_S, 3600)
        for condition, judge in conditions_of(known).items():
            alarms = watch(judge, _DEVICE, times)
            found[condition] = found.get(condition, 0) + len(alarms)
    return found
