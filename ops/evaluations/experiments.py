"""Trials without a treatment: how often a difference is found all the same, which is to be 5 %.

Each trial is whole: sites matched into pairs on their weeks before, a sealed draw, exclusion, the
test. Simulated chains share their weather and season, and hang together from week to week; of the
streets of Leeds, which no one made for this, several stretches of time give pairs enough.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from ops.evaluations.leeds import LEEDS
from ops.evaluations.promise import Promise, Size
from server.insight.trial import (
    ALPHA,
    Arm,
    Candidate,
    Matched,
    Pair,
    Week,
    draw,
    effect_of,
    least_pairs,
    matched,
)
from simulators.counts_file import interpret, read_rows

DRAWS, SHORT = 1000, 200
LOW, HIGH = 0.03, 0.07
BEFORE, AFTER = 12, 8
SITES = 20
STREET_PAIRS = 10
_WEEK_HOURS = 168
_ZONE = "Europe/London"

Panel = Mapping[str, Sequence[Week]]
"""Sites by name, each with the same `BEFORE` + `AFTER` weeks."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What trials without a treatment found: p of each, and whether its interval held no change."""

    p: tuple[float, ...]
    held: tuple[bool, ...]

    @property
    def false_positives(self) -> float:
        return sum(p <= ALPHA for p in self.p) / len(self.p)

    @property
    def coverage(self) -> float:
        return sum(self.held) / len(self.held)


def calibrate(
    panels: Sequence[Panel], *, pairs: int, draws: int, rng: random.Random
) -> Calibration:
    """Run `draws` trials of `pairs` pairs, in which nothing was done to any site.

    Each takes panels in a random order, of each a random half or more of its sites, until it has
    pairs enough; a trial that has fewer than can be decided is drawn anew.
    """
    found: list[float] = []
    held: list[bool] = []
    while len(found) < draws:
        differences: list[float] = []
        for number, panel in enumerate(rng.sample(panels, len(panels))):
            if len(differences) >= pairs:
                break
            names = rng.sample(sorted(panel), rng.randint((len(panel) + 1) // 2, len(panel)))
            differences += placebo(panel, names, seed=rng.randbytes(32), design=str(number))
        differences = differences[:pairs]
        if len(differences) < least_pairs():
            continue
        effect = effect_of(differences, rng=rng)
        found.append(effect.p)
        held.append(effect.low <= 0 <= effect.high)
    return Calibration(tuple(found), tuple(held))


def placebo(panel: Panel, names: Sequence[str], *, seed: bytes, design: str) -> list[float]:
    """Return the pairs' differences of one trial that treats nobody."""
    paired: list[Matched] = matched(
        [
            Candidate(
                name,
                {"visits": [w.value if w.counts else None for w in panel[name][:BEFORE]]},
            )
            for name in names
        ]
    )
    found = []
    for pair, side in zip(paired, draw(seed, design, pairs=len(paired)), strict=True):
        arms = [
            Arm(panel[name][:BEFORE], panel[name][BEFORE:]) for name in (pair.first, pair.second)
        ]
        trial = Pair(arms[side], arms[1 - side])
        if trial.excluded is None:
            found.append(trial.difference)
    return found


def experiments(size: Size) -> list[Promise]:
    """Return how often nothing was taken for something, simulated and in real streets."""
    rng = random.Random(size.seed)  # noqa: S311 - repeatable
    draws = DRAWS if size.full else SHORT
    found = []
    for pairs in (7, 10, 16):
        if pairs > 12 and not size.full:
            continue
        chains = [simulated(rng, sites=2 * pairs + 2) for _ in range(12)]
        result = calibrate(chains, pairs=pairs, draws=draws, rng=rng)
        found += _promises(f"{pairs} pairs of simulated sites", result)
    if LEEDS.exists() and size.full:
        streets = real_panels()
        result = calibrate(streets, pairs=STREET_PAIRS, draws=draws, rng=rng)
        found += _promises(f"{STREET_PAIRS} pairs of streets in Leeds", result)
    return found


def _promises(of: str, result: Calibration) -> list[Promise]:
    n = len(result.p)
    chance = 0.0 if n >= DRAWS else 2.5 * math.sqrt(0.05 * 0.95 / n)
    return [
        Promise(f"differences found of none, {of}", result.false_positives, LOW, HIGH, n, chance),
        Promise(
            f"intervals that hold no change, {of}", result.coverage, 1 - HIGH, 1 - LOW, n, chance
        ),
    ]


def simulated(rng: random.Random, *, sites: int) -> Panel:
    """Return a chain: levels, one season, each site's own noise that lasts, gaps now and then."""
    weeks = BEFORE + AFTER
    season = [0.2 * math.sin(w / 4) + rng.gauss(0, 0.05) for w in range(weeks)]
    found: dict[str, list[Week]] = {}
    for number in range(sites):
        level, trend = rng.gauss(8, 0.7), rng.gauss(0, 0.004)
        noise = [rng.gauss(0, 0.06)]
        for _ in range(weeks - 1):
            noise.append(0.5 * noise[-1] + rng.gauss(0, 0.06 * math.sqrt(0.75)))
        if rng.random() < 0.2:  # one of the weeks in which something happened
            noise[rng.randrange(weeks)] += rng.gauss(0, 0.5)
        coverage = [rng.choice((1.0, 1.0, 1.0, 0.96, 0.85)) for _ in range(weeks)]
        found[f"{number:02}"] = [
            Week(math.exp(level + trend * w + season[w] + noise[w]) * coverage[w], coverage[w])
            for w in range(weeks)
        ]
    return found


def real_panels() -> list[Panel]:
    """Return stretches of Leeds' streets, one after the other, each of whole weeks."""
    file = interpret(read_rows(LEEDS), zone=_ZONE, duplicates="first")
    zone = ZoneInfo(_ZONE)
    hours: dict[str, dict[tuple[int, int], list[int]]] = {}
    for place, readings in file.readings.items():
        weeks = hours.setdefault(place, {})
        for reading in readings:
            year, week, _ = datetime.fromtimestamp(reading.start_s, zone).isocalendar()
            weeks.setdefault((year, week), []).append(reading.people)
    every = sorted({week for weeks in hours.values() for week in weeks})
    length = BEFORE + AFTER
    panels: list[Panel] = []
    for at in range(0, len(every) - length + 1, length):
        panel = {
            place: [
                Week(
                    float(sum(weeks.get(week, []))),
                    min(1.0, len(weeks.get(week, [])) / _WEEK_HOURS),
                )
                for week in every[at : at + length]
            ]
            for place, weeks in hours.items()
        }
        panels.append(panel)
    return panels
