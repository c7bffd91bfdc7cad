"""One look at a site: every condition that its counters' quarters can tell of. Pure.

The worker (`server.health.checks`, through `looking`) and the evaluation (`ops.eval_health`) look
through these alone, so what is measured is what runs. `Quick` goes over the last `QUICK_DAYS` every
few minutes; `Daily` over `DAILY_DAYS` once a day, for what shows in days only, and for doors so
quiet that a silence is known after days.

Neither keeps a counter: what holds one against the others are sums (`server.health.doors`), so a
site's counters may come in parts, in the same order in each pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field

from server.health.conditions import (
    blocked_view,
    closed_counting,
    flatline,
    imbalance,
    level_shift,
    reversed_door,
    stuck_counter,
)
from server.health.conditions.stuck_counter import Reading
from server.health.doors import Doors
from server.health.judgement import Condition, Judgement, Subject
from server.health.series import Series
from server.health.verdict import Before, Case

QUICK_DAYS = 8
DAILY_DAYS = 35

Memory = Callable[[Subject, Condition], Before]
"""How a condition of a subject stood when it was last known."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter's spot on its site's grid; `readings`: its latest, for what comes like clockwork.

    `perimeter`: it makes its site's visits.
    """

    subject: Subject
    series: Series
    readings: Sequence[Reading] = ()
    days: Sequence[level_shift.Day] = ()
    perimeter: bool = True


@dataclass(slots=True)
class Quick:
    """A look at the last hours of a site: its counters thrice, together or in parts.

    All of them are `add`ed, then `weigh`ed, before any is judged.
    """

    now_s: int
    doors: Doors = field(default_factory=lambda: Doors(blocked_view.LEAST))

    def add(self, counter: Counter) -> None:
        """Take in what a counter counted, and what will be asked of the others for it."""
        self.doors.add(counter.series)
        self.doors.ask(blocked_view.windows(counter.series))

    def weigh(self, counter: Counter) -> None:
        """Take in what a counter did when it is asked about."""
        self.doors.weigh(counter.subject.row, counter.series)

    def judge(self, counter: Counter, memory: Memory) -> list[Judgement]:
        """Judge what shows within hours of one counter, beside the others of its site."""
        series, doors = counter.series, self.doors

        def case(condition: Condition) -> Case:
            return Case(counter.subject, self.now_s, memory(counter.subject, condition))

        return [
            flatline.judge(case(flatline.CONDITION), series, doors),
            blocked_view.judge(case(blocked_view.CONDITION), series, doors),
            closed_counting.judge(case(closed_counting.CONDITION), series),
            reversed_door.judge(case(reversed_door.CONDITION), series),
            stuck_counter.judge(case(stuck_counter.CONDITION), counter.readings),
        ]


@dataclass(slots=True)
class Daily:
    """A look at the last weeks of a site: its counters twice, together or in parts.

    All of them are `add`ed before any is judged; `peers`: log ratios of the organisation's other
    sites.
    """

    peers: InitVar[Mapping[int, Sequence[float]]]
    now_s: int
    doors: Doors = field(default_factory=lambda: Doors(blocked_view.LEAST))
    together: level_shift.Together = field(default_factory=level_shift.Together)
    days: imbalance.Days = field(default_factory=imbalance.Days)

    def __post_init__(self, peers: Mapping[int, Sequence[float]]) -> None:
        for day, ratios in peers.items():
            for ratio in ratios:
                self.together.add_peer(day, ratio)

    def add(self, counter: Counter) -> None:
        """Take in what a counter counted."""
        self.doors.add(counter.series)
        self.together.add(counter.days)
        if counter.perimeter:
            self.days.add(counter.series)

    def judge(self, counter: Counter, memory: Memory) -> list[Judgement]:
        """Judge what shows within days of one counter, beside the others of its site."""
        subject = counter.subject
        flat = Case(subject, self.now_s, memory(subject, flatline.CONDITION))
        shift = Case(subject, self.now_s, memory(subject, level_shift.CONDITION))
        return [
            flatline.judge(flat, counter.series, self.doors),
            level_shift.judge(shift, counter.days, self.together.beside(counter.days)),
        ]

    def site(self, site: Subject, memory: Memory) -> Judgement:
        """Judge what shows within days of all counters together."""
        case = Case(site, self.now_s, memory(site, imbalance.CONDITION))
        return imbalance.judge(case, self.days)


def quick(counters: Sequence[Counter], memory: Memory, *, now_s: int) -> list[Judgement]:
    """Judge what shows within hours of a site that is in memory."""
    look = _looked(counters, now_s=now_s)
    return [judged for counter in counters for judged in look.judge(counter, memory)]


def quick_of(
    number: int, counters: Sequence[Counter], memory: Memory, *, now_s: int
) -> list[Judgement]:
    """Judge what shows within hours of one counter, beside the others of its site."""
    return _looked(counters, now_s=now_s).judge(counters[number], memory)


def _looked(counters: Sequence[Counter], *, now_s: int) -> Quick:
    look = Quick(now_s)
    for counter in counters:
        look.add(counter)
    for counter in counters:
        look.weigh(counter)
    return look


def daily(
    site: Subject,
    counters: Sequence[Counter],
    peers: Mapping[int, Sequence[float]],
    memory: Memory,
    *,
    now_s: int,
) -> list[Judgement]:
    """Judge what shows within days of a site that is in memory; `peers`: see `Daily`."""
    look = Daily(peers, now_s)
    for counter in counters:
        look.add(counter)
    found = [judged for counter in counters for judged in look.judge(counter, memory)]
    return [*found, look.site(site, memory)]
