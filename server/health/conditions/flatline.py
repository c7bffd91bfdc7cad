"""A counter that counts nobody in opening time, while people come in elsewhere. Pure.

The chance that a door which is well counts nobody for so long is that of a negative binomial zero:
(1 + e / k)^-k, where e is how many groups were to be expected of the whole run and one gamma factor
is shared by all of it (M. Greenwood, G. Yule, JRSS 83, 255, 1920), so that a slow day is not taken
for a dead sensor. Other doors of the site say how busy the day is: then only the door's share of
its people is unsure, and less silence tells. It fires below `FIRES` if those count meanwhile.

- If those count nobody either, the shop may be shut: nobody can tell.
- A door without others to compare fires below `ALONE`, and only if it counted earlier in the same
  opening, or has been silent for `ALONE_S` of opening time: who forgot to enter a holiday is not
  told of a dead sensor first thing in the morning, and may be at noon.
- Hours in which less than `QUIET` of the busiest is usual add nothing to what was to be expected:
  who passes a street at night, and where, has little to do with the day.
- A door that was silent before, where many were usual, and came back by itself (hours of the night
  in a street) must be silent for `LONGER` times as many.
- It clears once `BACK` of what was usual was counted again in an hour, and `LEAST` people.

Evidence `known_after_h` is after how many hours of opening such a silence can be told from chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, log1p

from server.health.doors import Doors
from server.health.judgement import Condition, Evidence, Judgement
from server.health.series import (
    ALIVE,
    GROUP,
    HOUR_S,
    QUARTER_S,
    Quarter,
    Series,
    backwards,
    summed,
    telling,
)
from server.health.verdict import Case, clear, firing, held, unknown

FIRES = 1e-6
ALONE = 1e-9
CLEARS = 1e-3
ALONE_S = 4 * HOUR_S
_ALIVE_LEAST = 5.0
LONGER = 2.0
BUSIER = 1.5
"""How much busier than usual a door is taken to be at most, since its site is."""
BACK = 0.1
LEAST = 3
CONDITION = Condition.FLATLINE


@dataclass(slots=True)
class _Run:
    """Zeros without a break, up to now."""

    start_s: int = 0
    observed_s: int = 0
    usual_in: float = 0.0
    usual_out: float = 0.0
    known: bool = False
    since_opening: bool = False  # it reaches back to where the shop was closed

    @property
    def expected(self) -> float:
        return max(self.usual_in, self.usual_out)


def judge(case: Case, door: Series, doors: Doors) -> Judgement:
    """Judge a counter against the other counters of its site; `doors` are all of them."""
    latest = next(backwards(door.quarters), None)
    if latest is None:
        return unknown(case, CONDITION, "nothing was observed in opening time")
    run = _run(door.quarters)
    if not run.observed_s:
        run.start_s = latest.end_s
    elif not run.known:
        return unknown(case, CONDITION, "too few weeks are known")
    chance = zero_chance(run.expected, door.spread)
    evidence = _evidence(door, run, chance)
    if case.before.firing and not _silent(door):
        return clear(case, CONDITION, evidence, since_s=_back_s(case, door))
    if chance >= CLEARS and not case.before.firing:
        return clear(case, CONDITION, evidence, since_s=run.start_s)
    if door.silence:
        evidence["silence_before_people"] = round(door.silence, 1)
        if run.usual_in + run.usual_out < LONGER * door.silence:
            return held(case, CONDITION, evidence)
    low = max(0, (run.start_s - door.quarters[0].start_s) // QUARTER_S)
    counted, usual = doors.since(low, door)
    evidence |= {"others_counted": round(counted, 4), "others_usual": round(usual, 1)}
    if usual >= _ALIVE_LEAST:
        if counted < ALIVE * usual:
            return unknown(case, CONDITION, "the other doors count nobody either", evidence)
        tied = 1 / (door.share_variance + 2 * GROUP / counted)
        evidence["chance"] = chance = min(
            chance, zero_chance(run.expected * min(counted / usual, BUSIER), tied)
        )
        if chance < FIRES:
            return _fires(case, run, evidence)
    elif chance < ALONE and (not run.since_opening or run.observed_s >= ALONE_S):
        return _fires(case, run, evidence)
    return held(case, CONDITION, evidence)


def zero_chance(expected: float, spread: float) -> float:
    """Return the chance that nobody was counted where so many people were to be expected."""
    return exp(-spread * log1p(expected / GROUP / spread))


def people_until(chance: float, spread: float) -> float:
    """Return how many people must have been expected until a silence has so small a chance."""
    return GROUP * spread * (exp(-log(chance) / spread) - 1)


def _run(quarters: Sequence[Quarter]) -> _Run:
    run = _Run()
    least = telling(quarters)
    for each in reversed(quarters):
        if each.people:
            break
        if not each.is_open:
            run.since_opening = run.since_opening or run.observed_s > 0
        elif each.observed_s:
            run.start_s = each.start_s
            run.observed_s += each.observed_s
            if each.usual_in is not None:
                run.known = True
            if each.usual_in is not None and each.usual > least:
                run.usual_in += each.usual_in * each.share
                run.usual_out += (each.usual_out or 0.0) * each.share
    return run


def _evidence(door: Series, run: _Run, chance: float) -> dict[str, float | str]:
    people = usual_in = usual_out = 0.0
    known = 0
    for _, entered, left, observed_s, is_open, came, went, _ in door.quarters:
        if is_open and came is not None:
            known += 1
            usual_in += came
            usual_out += went or 0.0
            if observed_s:
                people += entered + left
    rate = max(usual_in, usual_out) / max(1, known * QUARTER_S / HOUR_S)
    found: dict[str, float | str] = {
        "silent_s": run.observed_s,
        "expected_people": round(run.expected, 1),
        "chance": chance,
        "counted_people": people,
    }
    if rate > 0:
        found["known_after_h"] = round(people_until(FIRES, door.spread) / rate, 1)
    return found


def _silent(door: Series) -> bool:
    """Return whether too little was counted in the last observed hour to call it well."""
    last = [each for each, _ in zip(backwards(door.quarters), range(4), strict=False)]
    found = summed(last)
    people = sum(each.people for each in last)
    return people < max(LEAST, BACK * found.usual)


def _back_s(case: Case, door: Series) -> int:
    """Return when somebody was counted again, after it fired."""
    since = case.before.from_s if case.before.from_s is not None else case.before.since_s or 0
    return next((q.start_s for q in door.quarters if q.people and q.start_s >= since), case.now_s)


def _fires(case: Case, run: _Run, evidence: Evidence) -> Judgement:
    return firing(case, CONDITION, evidence, since_s=run.start_s, from_s=run.start_s)
