"""The register of experiments: what each is, found and searched, and how much is learnt a year."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

import asyncpg
import msgspec

from server.errors import NotFoundError
from server.insight.trial import Excluded, Standing
from server.insight.weeks import WEEK, Metric

OVER_EVERYWHERE = timedelta(hours=14)  # a day ends last at UTC-12; and devices send what they have


class State(StrEnum):
    """Where an experiment is; see above."""

    DESIGN = "design"
    SEALED = "sealed"
    RUNNING = "running"
    DECIDED = "decided"
    ARCHIVED = "archived"


class Decision(StrEnum):
    """What became of the treatment."""

    KEPT = "kept"
    DROPPED = "dropped"


class Planned(msgspec.Struct, frozen=True):
    """What a design can find of a metric: the least relative change, in 80 of 100 trials.

    `spread` and `lag1`: of a pair's weekly difference of ln, before the start. Null: unknown.
    """

    metric: Metric
    detectable: float | None
    spread: float | None
    lag1: float | None


class MetricResult(msgspec.Struct, frozen=True):
    """One metric's effect: relative change with its 95 % interval, p, and p adjusted (Holm).

    `low` and `high` are null where the pairs left bound nothing.
    """

    metric: Metric
    pairs: int
    change: float | None
    low: float | None
    high: float | None
    p: float | None
    adjusted_p: float | None
    exact: bool


class LeftOut(msgspec.Struct, frozen=True):
    """A pair that does not count for a metric, and why."""

    first: str
    second: str
    metric: Metric
    reason: Excluded


class Result(msgspec.Struct, frozen=True):
    """What may be said; without a number before the horizon (`no_decision_early`)."""

    standing: Standing
    over_on: date
    metrics: list[MetricResult] = []
    left_out: list[LeftOut] = []
    estimator: str = "ratio of ratios: pair difference of the mean weekly ln, after less before"


@dataclass(frozen=True, slots=True)
class PairOf:
    """Two sites, by ref and name; the first of them by ref comes first."""

    first: str
    second: str
    first_name: str
    second_name: str
    distance: float


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment as it is kept; `treated` by pair, 0 for its first site."""

    id: int
    ref: str
    name: str
    hypothesis: str
    metrics: tuple[Metric, ...]
    starts_on: date
    weeks: int
    pre_weeks: int
    by_region: bool
    planned: tuple[Planned, ...]
    created_at: datetime
    created_by: str
    state: State
    pairs: tuple[PairOf, ...]
    sealed_at: datetime | None
    design: str | None
    commitment: str | None
    treated: tuple[int, ...]
    decided_at: datetime | None
    decision: Decision | None
    note: str
    result: Result | None
    snapshot_sha256: str | None
    archived_at: datetime | None
    seed: str | None

    @property
    def ends_on(self) -> date:
        """The first day after it."""
        return self.starts_on + self.weeks * WEEK

    @property
    def before_from(self) -> date:
        """The first day of the weeks it is compared with."""
        return self.starts_on - self.pre_weeks * WEEK

    def over(self, now: datetime) -> bool:
        """Whether its last day is over at every site."""
        ends = datetime(self.ends_on.year, self.ends_on.month, self.ends_on.day, tzinfo=UTC)
        return now >= ends + OVER_EVERYWHERE

    @property
    def version(self) -> str:
        """Which state this is; `seen` of a change."""
        text = repr((self.ref, self.sealed_at, self.decided_at, self.archived_at, self.note))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def arms(self) -> tuple[tuple[str, str], ...]:
        """The treated site and its partner of each pair, once they are drawn."""
        return tuple(
            (pair.second, pair.first) if side else (pair.first, pair.second)
            for pair, side in zip(self.pairs, self.treated, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Year:
    """What a year taught: experiments begun and decided in it, and of the latter those kept."""

    year: int
    begun: int
    decided: int
    kept: int


async def find(connection: asyncpg.Connection, ref: str, *, now: datetime) -> Experiment:
    """Return an experiment. Raises NotFoundError."""
    rows = await _read(connection, "and e.ref = $2", now, ref)
    if not rows:
        raise NotFoundError(f"no experiment {ref[:60]!r}")
    return rows[0]


async def register(
    connection: asyncpg.Connection,
    *,
    words: str = "",
    state: State | None = None,
    after: str = "",
    limit: int,
    now: datetime,
) -> list[Experiment]:
    """Return experiments by ref, those whose name, hypothesis or note has `words` in it."""
    like = "%" + words.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%"
    return await _read(
        connection,
        "and (e.name ilike $2 or e.hypothesis ilike $2 or e.note ilike $2) "
        f"and ($3::text is null or {_STATE} = $3) and e.ref > $4 order by e.ref limit $5",
        *(now, like, state, after, limit),
    )


async def learning(connection: asyncpg.Connection, *, today: date) -> list[Year]:
    """Return by year how many experiments were begun, decided and kept, newest first."""
    rows = await connection.fetch(_LEARNING, today)
    return [Year(row["year"], row["begun"], row["decided"], row["kept"]) for row in rows]


_LEARNING = """
    select year::int, sum(begun)::int as begun, sum(decided)::int as decided,
           sum(kept)::int as kept
    from (select extract(year from starts_on) as year, 1 as begun, 0 as decided, 0 as kept
          from experiments
          where sealed_at is not null and starts_on <= $1
            and (archived_at is null or decided_at is not null)
          union all
          select extract(year from decided_at at time zone 'UTC'), 0, 1,
                 (decision = 'kept')::int
          from experiments where decided_at is not null) each
    group by year order by year desc
"""
_STATE = """(case when e.archived_at is not null then 'archived'
    when e.decided_at is not null then 'decided' when e.sealed_at is null then 'design'
    when e.starts_on <= ($1::timestamptz at time zone 'UTC')::date then 'running'
    else 'sealed' end)"""
_EXPERIMENTS = f"""
    select e.id, e.ref, e.name, e.hypothesis, e.metrics, e.starts_on, e.weeks, e.pre_weeks,
           e.by_region, e.planned, e.created_at, e.created_by, e.sealed_at, e.design, e.commitment,
           e.treated, e.decided_at, e.decision, e.note, e.result, e.snapshot_sha256, e.archived_at,
           e.revealed, {_STATE} as state
    from experiments e where true
"""  # noqa: S608 - of constants
_PAIRS = """
    select p.experiment_id, a.ref, b.ref, a.name, b.name, p.distance
    from experiment_pairs p join sites a on a.id = p.first_site_id
    join sites b on b.id = p.second_site_id
    where p.experiment_id = any($1::int[]) order by p.experiment_id, p.number
"""


async def _read(connection: asyncpg.Connection, where: str, *values: object) -> list[Experiment]:
    """Return the experiments of a condition on `e`; `$1` is the time."""
    rows = await connection.fetch(_EXPERIMENTS + where, *values)
    pairs: dict[int, list[PairOf]] = {row["id"]: [] for row in rows}
    for number, *pair in await connection.fetch(_PAIRS, list(pairs)):
        pairs[number].append(PairOf(*pair))
    return [
        Experiment(
            id=row["id"],
            ref=row["ref"],
            name=row["name"],
            hypothesis=row["hypothesis"],
            metrics=tuple(Metric(each) for each in row["metrics"]),
            starts_on=row["starts_on"],
            weeks=row["weeks"],
            pre_weeks=row["pre_weeks"],
            by_region=row["by_region"],
            planned=tuple(msgspec.json.decode(row["planned"], type=list[Planned])),
            created_at=row["created_at"],
            created_by=row["created_by"],
            state=State(row["state"]),
            pairs=tuple(pairs[row["id"]]),
            sealed_at=row["sealed_at"],
            design=row["design"],
            commitment=row["commitment"],
            treated=tuple(row["treated"] or ()),
            decided_at=row["decided_at"],
            decision=None if row["decision"] is None else Decision(row["decision"]),
            note=row["note"],
            result=(
                None if row["result"] is None else msgspec.json.decode(row["result"], type=Result)
            ),
            snapshot_sha256=row["snapshot_sha256"],
            archived_at=row["archived_at"],
            seed=None if row["revealed"] is None else row["revealed"].hex(),
        )
        for row in rows
    ]


async def snapshot_of(connection: asyncpg.Connection, ref: str) -> str | None:
    """Return the weeks that a decided experiment's result was made of, as they were kept."""
    found: str | None = await connection.fetchval(
        "select snapshot from experiments where ref = $1", ref
    )
    return found
