"""Experiments of an organisation: design, seal, decide, and the register of what was learnt.

An experiment is in the state `design` until it is sealed, `sealed` until its first day, `running`
until it is decided, `decided`, and `archived`, from whichever of these. Rules, each with its code:

1. A design has pairs enough to be decidable at all (`too_few_pairs`), of sites with a history.
2. A site is in one experiment at a time (`sites_overlap`), from its first day to its last.
3. It is sealed before its first day (`starts_too_soon`): then seed, time and design are bound by a
   hash, the coins fall, and nothing of it is changed any more; the database refuses that too.
4. Until its last day is over everywhere an answer is "no decision", without any number, and
   nothing is decided (`look_too_early`).
5. What is decided keeps its result with the weeks it was made of and their SHA-256, and shows the
   seed. A pair that had to be left out says why.

Each act is audited in its own transaction, the caller's.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from math import isfinite, log

import asyncpg
import msgspec

from server.audit.log import record
from server.errors import ConflictError, RefusedError
from server.fleet import checks
from server.fleet.checks import FieldError
from server.fleet.register import lock_organisation, new_ref
from server.insight import trial
from server.insight.register import (
    Decision,
    Experiment,
    LeftOut,
    MetricResult,
    Planned,
    Result,
    State,
    find,
)
from server.insight.trial import Arm, Candidate, Pair, Spread, Standing, Week
from server.insight.weeks import (
    WEEK,
    Metric,
    SiteWeek,
    WeekQuery,
    changed_sites,
    metric_of,
    monday,
    weeks_of,
)

PRE_WEEKS = (12, 26)
WEEKS = (2, 26)
AHEAD = timedelta(weeks=26)
MOST_SITES = 400
SEED_BYTES = 32


@dataclass(frozen=True, slots=True)
class Design:
    """What is wished: the sites (none: all), what is measured, from which Monday, how long."""

    name: str
    metrics: tuple[str, ...]
    starts_on: date
    weeks: int = 8
    pre_weeks: int = 12
    hypothesis: str = ""
    by_region: bool = False
    sites: tuple[str, ...] = ()


class TooFewPairsError(RefusedError):
    """The design could not be decided whatever came of it (1)."""

    def __init__(self, pairs: int, metrics: int) -> None:
        self.parameter = "sites"
        self.pairs, self.least_p = pairs, trial.least_p(pairs)
        self.least = least = trial.least_pairs(metrics)
        shared = "" if metrics == 1 else f", shared by {metrics} metrics"
        super().__init__(
            "too_few_pairs",
            f"{pairs} pairs of sites can be made, {least} are needed: of {pairs} pairs the least "
            f"two-sided p is {trial.least_p(pairs):.4g}, and 0.05 is asked for{shared}, so no "
            "outcome could be told from chance. Take more sites with at least nine weeks in "
            "twelve of history" + ("" if metrics == 1 else ", or fewer metrics"),
        )


class OverlapError(RefusedError):
    """A site is in another experiment at the time (2)."""

    def __init__(self, site: str, other: str, *, site_name: str, other_name: str) -> None:
        self.parameter = "sites"
        self.site_name, self.other_name = site_name, other_name
        super().__init__(
            "sites_overlap",
            f"{site!r} is in {other!r} at this time: of two treatments at once neither effect is "
            "known. Leave it out, or start later",
        )


class TooSoonError(RefusedError):
    """It would begin before it is sealed (3)."""

    def __init__(self, starts_on: date) -> None:
        self.parameter = "starts_on"
        self.starts_on = starts_on
        super().__init__(
            "starts_too_soon",
            f"it begins on {starts_on}: a draw is sealed before its first day, or nobody could "
            "know that it was not chosen for what had come of it",
        )


class TooEarlyError(RefusedError):
    """Its horizon is not past (4)."""

    def __init__(self, over_on: date) -> None:
        self.over_on = over_on
        super().__init__(
            "look_too_early",
            f"no decision before {over_on}: who looks often and stops at the first p below 0.05 "
            "finds effects that are none",
        )


class StateError(ConflictError):
    """It is not in the state that this asks for."""

    code = "wrong_state"


# -- design --------------------------------------------------------------------------------------


async def create(
    connection: asyncpg.Connection,
    organisation: int,
    wanted: Design,
    *,
    actor: str,
    now: datetime,
) -> Experiment:
    """Match a design's sites into pairs, and keep it with what it can find.

    Raises FieldError, UnknownMetricError, UnknownPlaceError, TooFewPairsError, OverlapError.
    """
    wanted, metrics = _checked(wanted, today=now.date())
    pairs, planned = await plan(connection, wanted, now=now)
    await _demand_free(connection, [ref for pair in pairs for ref in (pair.first, pair.second)],
                       wanted.starts_on, wanted.starts_on + wanted.weeks * WEEK)  # fmt: skip
    ref = new_ref("experiment")
    row = await connection.fetchval(
        "insert into experiments (organisation_id, ref, name, hypothesis, metrics, starts_on, "
        "weeks, pre_weeks, by_region, planned, created_at, created_by) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) returning id",
        *(organisation, ref, wanted.name, wanted.hypothesis, list(metrics), wanted.starts_on),
        *(wanted.weeks, wanted.pre_weeks, wanted.by_region),
        *(msgspec.json.encode(planned).decode(), now, actor),
    )
    await connection.executemany(
        "insert into experiment_pairs (experiment_id, organisation_id, number, first_site_id, "
        "second_site_id, distance) select $1, $2, $3, a.id, b.id, $6 from sites a, sites b "
        "where a.ref = $4 and b.ref = $5",
        [
            (row, organisation, number, pair.first, pair.second, pair.distance)
            for number, pair in enumerate(pairs)
        ],
    )
    await record(
        connection,
        actor=actor,
        act="experiment designed",
        subject=ref,
        detail={"name": wanted.name, "metrics": list(metrics), "pairs": len(pairs)},
        organisation=organisation,
        now=now,
    )
    return await find(connection, ref, now=now)


async def plan(
    connection: asyncpg.Connection, wanted: Design, *, now: datetime
) -> tuple[list[trial.Matched], list[Planned]]:
    """Return the pairs of a design and what it can find, keeping nothing.

    Sites are matched on the last whole weeks there are. Raises as `create` does.
    """
    wanted, metrics = _checked(wanted, today=now.date())
    until = monday(now.date())
    since = until - wanted.pre_weeks * WEEK
    asked = WeekQuery(frozenset(metrics), since, until, tuple(wanted.sites))
    weeks = await weeks_of(connection, asked, now_s=int(now.timestamp()))
    if len(weeks) > MOST_SITES:
        raise FieldError("sites", f"at most {MOST_SITES} sites, got {len(weeks)}")
    blocks = dict(
        await connection.fetch(
            "select s.ref, coalesce(r.ref, '') from sites s left join regions r "
            "on r.id = s.region_id where s.ref = any($1::text[])",
            list(weeks),
        )
    )
    pairs, planned = await asyncio.to_thread(
        _planned, weeks, metrics, wanted, blocks if wanted.by_region else {}
    )
    if len(pairs) < trial.least_pairs(len(metrics)):
        raise TooFewPairsError(len(pairs), len(metrics))
    return pairs, planned


def _planned(
    weeks: Mapping[str, Sequence[SiteWeek]],
    metrics: Sequence[Metric],
    wanted: Design,
    blocks: Mapping[str, str],
) -> tuple[list[trial.Matched], list[Planned]]:
    series = {
        ref: {metric: _usable(rows, metric) for metric in metrics} for ref, rows in weeks.items()
    }
    pairs = trial.matched(
        [
            Candidate(ref, {str(metric): each[metric] for metric in metrics}, blocks.get(ref, ""))
            for ref, each in series.items()
        ]
    )
    found = []
    for metric in metrics:
        gaps = [_gaps(series[pair.first][metric], series[pair.second][metric]) for pair in pairs]
        spread = trial.spread_of(gaps)
        found.append(_what_is_found(metric, spread, len(pairs), len(metrics), wanted))
    return pairs, found


def _what_is_found(
    metric: Metric, spread: Spread | None, pairs: int, metrics: int, wanted: Design
) -> Planned:
    if spread is None or pairs < trial.least_pairs(metrics):
        return Planned(metric, None, None, None)
    least = trial.detectable(
        spread, pairs=pairs, before=wanted.pre_weeks, after=wanted.weeks, metrics=metrics
    )
    return Planned(metric, round(least, 5), round(spread.sd, 5), round(spread.lag1, 3))


def _usable(rows: Sequence[SiteWeek], metric: Metric) -> list[float | None]:
    weeks = [Week(row.value(metric), row.covered(metric)) for row in rows]
    return [week.value if week.counts else None for week in weeks]


def _gaps(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float | None]:
    return [
        None if a is None or b is None else log(a / b) for a, b in zip(ours, theirs, strict=True)
    ]


def _checked(wanted: Design, *, today: date) -> tuple[Design, tuple[Metric, ...]]:
    metrics = tuple(dict.fromkeys(metric_of(each) for each in wanted.metrics))
    if not 1 <= len(metrics) <= trial.MOST_METRICS:
        raise FieldError("metrics", f"expected 1 to {trial.MOST_METRICS} metrics")
    for field, value, (low, high) in (
        ("weeks", wanted.weeks, WEEKS),
        ("pre_weeks", wanted.pre_weeks, PRE_WEEKS),
    ):
        if not low <= value <= high:
            raise FieldError(field, f"expected {low} to {high} weeks, got {value}")
    if wanted.starts_on.isoweekday() != 1:
        raise FieldError("starts_on", f"expected a Monday, got {wanted.starts_on:%A %Y-%m-%d}")
    if wanted.starts_on <= today:
        raise TooSoonError(wanted.starts_on)
    if wanted.starts_on > today + AHEAD:
        raise FieldError("starts_on", f"expected a day within {AHEAD.days // 7} weeks")
    if wanted.sites and len(set(wanted.sites)) < len(wanted.sites):
        raise FieldError("sites", "a site is named twice")
    found = replace(
        wanted,
        name=checks.name(wanted.name),
        hypothesis=checks.line(wanted.hypothesis, "hypothesis"),
    )
    return found, metrics


async def _demand_free(
    connection: asyncpg.Connection, sites: Sequence[str], since: date, until: date
) -> None:
    """Refuse sites that are in a sealed experiment within [since, until) (2)."""
    row = await connection.fetchrow(
        "select s.ref, e.ref, s.name, e.name from experiments e "
        "join experiment_pairs p on p.experiment_id = e.id "
        "join sites s on s.id in (p.first_site_id, p.second_site_id) "
        "where s.ref = any($1::text[]) and e.sealed_at is not null "
        "and (e.archived_at is null or e.decided_at is not null) "
        "and e.starts_on < $3 and e.starts_on + 7 * e.weeks > $2 order by 1, 2 limit 1",
        *(list(sites), since, until),
    )
    if row is not None:
        site, other, site_name, other_name = row.values()
        raise OverlapError(site, other, site_name=site_name, other_name=other_name)


# -- seal, decide, archive -----------------------------------------------------------------------


async def seal(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    seed: bytes,
    seen: str | None,
    actor: str,
    now: datetime,
) -> Experiment:
    """Bind seed, time and design, and let the coins fall; `seed` is 32 secret bytes.

    Raises NotFoundError, ChangedError, StateError, TooSoonError, OverlapError.
    """
    await lock_organisation(connection, organisation)
    known = await _locked(connection, ref, seen=seen, now=now)
    _demand_state(known, State.DESIGN)
    if known.starts_on <= now.date():
        raise TooSoonError(known.starts_on)
    sites = [site for pair in known.pairs for site in (pair.first, pair.second)]
    await _demand_free(connection, sites, known.starts_on, known.ends_on)
    now = now.replace(microsecond=0)
    design = design_text(known)
    commitment = trial.commitment(seed, now, design)
    treated = trial.draw(seed, design, pairs=len(known.pairs))
    await connection.execute(
        "update experiments set sealed_at = $2, design = $3, seed = $4, commitment = $5, "
        "treated = $6 where id = $1",
        *(known.id, now, design, seed, commitment, list(treated)),
    )
    await record(
        connection,
        actor=actor,
        act="experiment sealed",
        subject=ref,
        detail={"commitment": commitment, "treated": list(treated)},
        organisation=organisation,
        now=now,
    )
    return await find(connection, ref, now=now)


def design_text(known: Experiment) -> str:
    """Return what is sealed, as canonical JSON: sorted keys, no spaces."""
    return _canonical(
        {
            "experiment": known.ref,
            "metrics": list(known.metrics),
            "before_from": str(known.before_from),
            "starts_on": str(known.starts_on),
            "ends_on": str(known.ends_on),
            "pairs": [[pair.first, pair.second] for pair in known.pairs],
            "alpha": trial.ALPHA,
            "test": "sign flips, two-sided; Holm over metrics",
        }
    )


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


async def decide(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    decision: Decision,
    *,
    note: str,
    seen: str | None,
    actor: str,
    now: datetime,
) -> Experiment:
    """Keep the result with its weeks, and what becomes of the treatment; the seed is shown.

    Raises NotFoundError, ChangedError, StateError, TooEarlyError, FieldError.
    """
    known = await _locked(connection, ref, seen=seen, now=now)
    _demand_state(known, State.SEALED, State.RUNNING)
    note = checks.line(note, "note")
    if not known.over(now):
        raise TooEarlyError(known.ends_on)
    result, snapshot = await _measured(connection, known, now=now)
    digest = hashlib.sha256(snapshot.encode()).hexdigest()
    await connection.execute(
        "update experiments set decided_at = $2, decision = $3, note = $4, result = $5, "
        "snapshot = $6, snapshot_sha256 = $7, revealed = seed where id = $1",
        *(known.id, now, decision, note, msgspec.json.encode(result).decode(), snapshot, digest),
    )
    await record(
        connection,
        actor=actor,
        act="experiment decided",
        subject=ref,
        detail={"decision": decision, "standing": result.standing, "snapshot": digest},
        organisation=organisation,
        now=now,
    )
    return await find(connection, ref, now=now)


async def archive(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    note: str,
    seen: str | None,
    actor: str,
    now: datetime,
) -> Experiment:
    """Put an experiment away, for ever: decided, or called off, which asks for a note.

    Raises NotFoundError, ChangedError, StateError, FieldError.
    """
    known = await _locked(connection, ref, seen=seen, now=now)
    _demand_state(known, State.DESIGN, State.SEALED, State.RUNNING, State.DECIDED)
    note = known.note if known.decided_at else checks.line(note, "note")
    if not note and known.sealed_at is not None and known.decided_at is None:
        raise FieldError("note", "say why a sealed experiment is called off")
    await connection.execute(
        "update experiments set archived_at = $2, note = $3, revealed = seed where id = $1",
        *(known.id, now, note),
    )
    await record(
        connection,
        actor=actor,
        act="experiment archived",
        subject=ref,
        detail={"from": known.state, "note": note},
        organisation=organisation,
        now=now,
    )
    return await find(connection, ref, now=now)


async def _locked(
    connection: asyncpg.Connection, ref: str, *, seen: str | None, now: datetime
) -> Experiment:
    await connection.execute("select from experiments where ref = $1 for no key update", ref)
    known = await find(connection, ref, now=now)
    if seen is not None and seen != known.version:
        raise checks.ChangedError(f"{ref} was changed by somebody else meanwhile")
    return known


def _demand_state(known: Experiment, *wanted: State) -> None:
    if known.state not in wanted:
        raise StateError(f"{known.ref} is {known.state}; this asks for {' or '.join(wanted)}")


# -- the result ----------------------------------------------------------------------------------


async def result_of(connection: asyncpg.Connection, known: Experiment, *, now: datetime) -> Result:
    """Return what may be said of an experiment now: as it was decided, else as it stands.

    Raises StateError for one that was never sealed, or was called off.
    """
    if known.result is not None:
        return known.result
    _demand_state(known, State.SEALED, State.RUNNING)
    if not known.over(now):
        return Result(Standing.EARLY, known.ends_on)
    return (await _measured(connection, known, now=now))[0]


async def _measured(
    connection: asyncpg.Connection, known: Experiment, *, now: datetime
) -> tuple[Result, str]:
    """Return the result and the weeks it was made of, as canonical JSON."""
    sites = [ref for arm in known.arms for ref in arm]
    asked = WeekQuery(frozenset(known.metrics), known.before_from, known.ends_on, tuple(sites))
    weeks = await weeks_of(connection, asked, now_s=int(now.timestamp()))
    changed = await changed_sites(connection, sites, since=known.before_from, until=known.ends_on)
    return await asyncio.to_thread(judged, known, weeks, changed)


def judged(
    known: Experiment, weeks: Mapping[str, Sequence[SiteWeek]], changed: set[str]
) -> tuple[Result, str]:
    """Return the result of a trial that is over, and its snapshot."""
    effects, left_out = {}, []
    for metric in known.metrics:
        differences = []
        for treated, control in known.arms:
            pair = Pair(
                _arm(weeks[treated], metric, known.pre_weeks, changed=treated in changed),
                _arm(weeks[control], metric, known.pre_weeks, changed=control in changed),
            )
            if (reason := pair.excluded) is None:
                differences.append(pair.difference)
            else:
                first, second = sorted((treated, control))
                left_out.append(LeftOut(first, second, metric, reason))
        rng = random.Random(known.commitment)  # noqa: S311 - repeatable, from what was sealed
        effects[metric] = trial.effect_of(differences, rng=rng)
    adjusted = trial.holm({metric: effect.p for metric, effect in effects.items()})
    pairs = min(effect.pairs for effect in effects.values())
    standing = trial.standing_of(
        adjusted.values(), pairs=pairs, metrics=len(known.metrics), over=True
    )
    found = []
    for metric, effect in effects.items():
        change, low, high = (
            round(value, 6) if effect.pairs and isfinite(value) else None
            for value in effect.relative
        )
        if low == -1:
            low = None  # exp(-inf) - 1: nothing bounds it
        p = round(effect.p, 6)
        found.append(
            MetricResult(
                metric,
                effect.pairs,
                change,
                low,
                high,
                p,
                round(adjusted[metric], 6),
                effect.exact,
            )
        )
    return Result(standing, known.ends_on, found, left_out), _snapshot(known, weeks, changed)


def _arm(rows: Sequence[SiteWeek], metric: Metric, before: int, *, changed: bool) -> Arm:
    weeks = [Week(row.value(metric), row.covered(metric)) for row in rows]
    return Arm(weeks[:before], weeks[before:], changed)


def _snapshot(known: Experiment, weeks: Mapping[str, Sequence[SiteWeek]], changed: set[str]) -> str:
    return _canonical(
        {
            "experiment": known.ref,
            "sites": {
                ref: {
                    "changed": ref in changed,
                    "weeks": [
                        {
                            "from": str(row.start),
                            "revision": row.revision,
                            **{m: [row.value(m), row.covered(m)] for m in known.metrics},
                        }
                        for row in weeks[ref]
                    ],
                }
                for arm in known.arms
                for ref in arm
            },
        }
    )
