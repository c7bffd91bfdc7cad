"""One look at a site: every condition that its counters' quarters can tell of. Pure.

The worker (`server.health.checks`) and the evaluation (`ops.eval_health`) look through these
functions alone, so what is measured is what runs. `quick` goes over the last `QUICK_DAYS` every few
minutes, counter by counter (`quick_of`); `daily` over `DAILY_DAYS` once a day, for what shows in
days only, and for doors so quiet that a silence is known after days.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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


def quick(counters: Sequence[Counter], memory: Memory, *, now_s: int) -> list[Judgement]:
    """Judge what shows within hours."""
    return [
        judged
        for number in range(len(counters))
        for judged in quick_of(number, counters, memory, now_s=now_s)
    ]


def quick_of(
    number: int, counters: Sequence[Counter], memory: Memory, *, now_s: int
) -> list[Judgement]:
    """Judge what shows within hours of one counter, beside the others of its site."""
    counter = counters[number]
    others = [each.series for n, each in enumerate(counters) if n != number]

    def case(condition: Condition) -> Case:
        return Case(counter.subject, now_s, memory(counter.subject, condition))

    return [
        flatline.judge(case(flatline.CONDITION), counter.series, others),
        blocked_view.judge(case(blocked_view.CONDITION), counter.series, others),
        closed_counting.judge(case(closed_counting.CONDITION), counter.series),
        reversed_door.judge(case(reversed_door.CONDITION), counter.series),
        stuck_counter.judge(case(stuck_counter.CONDITION), counter.readings),
    ]


def daily(
    site: Subject,
    counters: Sequence[Counter],
    peers: Mapping[int, Sequence[float]],
    memory: Memory,
    *,
    now_s: int,
) -> list[Judgement]:
    """Judge what shows within days; `peers`: log ratios of the organisation's other sites."""
    found: list[Judgement] = []
    beside = [level_shift.ratios(counter.days) for counter in counters]
    for number, counter in enumerate(counters):
        others = [each.series for n, each in enumerate(counters) if n != number]
        subject = counter.subject
        case = Case(subject, now_s, memory(subject, flatline.CONDITION))
        found.append(flatline.judge(case, counter.series, others))
        case = Case(subject, now_s, memory(subject, level_shift.CONDITION))
        compared = level_shift.together([*beside[:number], *beside[number + 1 :]], peers)
        found.append(level_shift.judge(case, counter.days, compared))
    edge = [counter.series for counter in counters if counter.perimeter]
    case = Case(site, now_s, memory(site, imbalance.CONDITION))
    found.append(imbalance.judge(case, edge))
    return found
