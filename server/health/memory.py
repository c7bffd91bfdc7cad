"""What was judged last, in rows; the masks that follow from it; and what was declared false.

A judgement is written only where something changed, or its evidence is hours old. *Unknown*
changes neither what is known nor a mask. What somebody declared false (`withdraw`) is undone by the
worker at its next look, and does not fire again until it has been clear once: the same evidence
does not bring back what a person has denied.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg

from server.audit.log import record
from server.errors import ConflictError, NotFoundError
from server.fleet import checks
from server.fleet.checks import FieldError
from server.health.judgement import Condition, Judgement, Standing, Subject, SubjectKind
from server.health.verdict import NEVER, Before
from server.rollup import masks

MASKING = frozenset(
    {
        Condition.FLATLINE,
        Condition.STUCK_COUNTER,
        Condition.STUCK_BUTTON,
        Condition.REVERSED,
        Condition.BLOCKED_VIEW,
    }
)
"""Conditions of a spot under which its counts are not true. Others are about what may become so,
or cannot say which counter of a site it is; people at night, and a rebuilt entrance, are real."""

_FRESH = {Standing.FIRING: timedelta(hours=1)}
_FRESH_ELSE = timedelta(hours=6)
_MOST_WHY = 500
_COLUMNS: Mapping[SubjectKind, str] = {
    SubjectKind.SITE: "site_id",
    SubjectKind.DEVICE: "device_id",
    SubjectKind.SPOT: "spot_id",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One condition of one subject as its row has it."""

    standing: Standing
    before: Before
    judged_at: datetime
    since: datetime
    withdrawn_at: datetime | None = None


Key = tuple[Subject, Condition]


@dataclass(slots=True)
class Memory:
    """What is known of some subjects; what is declared false counts as clear."""

    rows: dict[Key, Row] = field(default_factory=dict)

    def __call__(self, subject: Subject, condition: Condition) -> Before:
        row = self.rows.get((subject, condition))
        return NEVER if row is None else row.before


async def remembered(connection: asyncpg.Connection, subjects: Iterable[Subject]) -> Memory:
    """Read what is known of `subjects`."""
    wanted: dict[SubjectKind, list[int]] = {kind: [] for kind in _COLUMNS}
    for subject in subjects:
        wanted[subject.kind].append(subject.row)
    memory = Memory()
    rows = await connection.fetch(_KNOWN, *wanted.values())
    for site, device, spot, condition, standing, firing, since, from_at, at, gone in rows:
        subject = _subject(site, device, spot)
        before = Before(
            bool(firing) and gone is None,
            None if firing is None else int(since.timestamp()),
            None if from_at is None else int(from_at.timestamp()),
        )
        row = Row(Standing(standing), before, at, since, gone)
        memory.rows[subject, Condition(condition)] = row
    return memory


def _subject(site: int | None, device: int | None, spot: int | None) -> Subject:
    if site is not None:
        return Subject(SubjectKind.SITE, site)
    if device is not None:
        return Subject(SubjectKind.DEVICE, device)
    assert spot is not None  # one of the three, by the table's check
    return Subject(SubjectKind.SPOT, spot)


async def take(
    connection: asyncpg.Connection,
    judgements: Sequence[Judgement],
    memory: Memory,
    *,
    organisation: int,
    now: datetime,
) -> list[Judgement]:
    """Write judgements down, with the masks that follow; return those that are news."""
    news: list[Judgement] = []
    for each in judgements:
        key = each.subject, each.condition
        row = memory.rows.get(key)
        if row is not None and row.withdrawn_at is not None:
            if each.standing is not Standing.CLEAR:
                continue  # denied by a person, and not yet seen clear
        elif row is not None and not _worth(each, row, now):
            continue
        changed = row is None or row.standing is not each.standing
        await connection.execute(
            _WRITE.replace("{column}", _COLUMNS[each.subject.kind]),
            *(organisation, each.subject.row, each.condition.value, each.standing.value),
            *(each.since, json.dumps(dict(each.evidence)), each.affected_from),
            *(each.affected_until, now),
        )
        if changed:
            news.append(each)
        if each.subject.kind is SubjectKind.SPOT and each.condition in MASKING:
            await _mask(connection, each, row, now=now)
    return news


def _worth(judgement: Judgement, row: Row, now: datetime) -> bool:
    """Whether a judgement says something new."""
    if judgement.standing is not row.standing:
        return True
    if now - row.judged_at >= _FRESH.get(judgement.standing, _FRESH_ELSE):
        return True
    if judgement.standing is Standing.UNKNOWN:
        return False
    affected = judgement.affected_from
    from_s = None if affected is None else int(affected.timestamp())
    return int(judgement.since.timestamp()) != row.before.since_s or from_s != row.before.from_s


async def _mask(
    connection: asyncpg.Connection, judgement: Judgement, row: Row | None, *, now: datetime
) -> None:
    spot, cause = judgement.subject.row, judgement.condition.value
    if judgement.standing is Standing.FIRING and judgement.affected_from is not None:
        await masks.begin(connection, spot, cause, from_at=judgement.affected_from, now=now)
        if judgement.affected_until is not None:
            await masks.end(connection, spot, cause, until_at=judgement.affected_until)
    elif judgement.standing is Standing.CLEAR and row is not None and row.before.firing:
        await masks.end(connection, spot, cause, until_at=judgement.since)


async def withdraw(
    connection: asyncpg.Connection,
    subject: Subject,
    condition: Condition,
    *,
    why: str,
    actor: str,
    now: datetime,
) -> None:
    """Declare false what fires. Raises NotFoundError, FieldError; ConflictError if it does not.

    The worker undoes its masks at once: the check is made due. Within the caller's transaction.
    """
    why = " ".join(why.split())
    if not 0 < len(why) <= _MOST_WHY or not why.isprintable():
        raise FieldError("why", f"expected 1 to {_MOST_WHY} characters")
    actor = checks.name(actor, "actor")
    column = _COLUMNS.get(subject.kind)
    if column is None:
        raise NotFoundError("no such judgement")
    row = await connection.fetchrow(
        f"select id, organisation_id, firing, withdrawn_at from judgements "  # noqa: S608 - ours
        f"where {column} = $1 and condition = $2 for update",
        *(subject.row, condition.value),
    )
    if row is None:
        raise NotFoundError("no such judgement")
    if not row["firing"] or row["withdrawn_at"] is not None:
        raise ConflictError("this does not fire now")
    await connection.execute(
        "update judgements set withdrawn_at = $2, withdrawn_by = $3, withdrawn_why = $4 "
        "where id = $1",
        *(row["id"], now, actor, why),
    )
    await connection.execute(_DUE_NOW, row["id"], now)
    await record(
        connection,
        actor=actor,
        act="judgement withdrawn",
        subject=f"{subject.kind.value} {subject.row}",
        detail={"condition": condition.value, "why": why},
        organisation=row["organisation_id"],
        now=now,
    )


async def undo(
    connection: asyncpg.Connection, memory: Memory, subjects: Iterable[Subject], *, now: datetime
) -> int:
    """Undo the masks of what was declared false of these subjects; return how many."""
    wanted = set(subjects)
    undone = 0
    for (subject, condition), row in memory.rows.items():
        if row.withdrawn_at is not None and subject in wanted and condition in MASKING:
            since = row.since
            if row.before.from_s is not None:
                since = min(since, datetime.fromtimestamp(row.before.from_s, since.tzinfo))
            undone += await masks.withdraw(
                connection, subject.row, condition.value, since=since, now=now
            )
    return undone


_KNOWN = """
    select site_id, device_id, spot_id, condition, standing, firing, since, affected_from,
           judged_at, withdrawn_at
    from judgements
    where site_id = any($1::int[]) or device_id = any($2::int[]) or spot_id = any($3::int[])
"""
_WRITE = """
    insert into judgements as j (organisation_id, {column}, condition, standing, firing, since,
        evidence, affected_from, affected_until, judged_at, changed_at)
    values ($1, $2, $3, $4, case $4 when 'firing' then true when 'clear' then false end,
        $5, $6, $7, $8, $9, $9)
    on conflict (site_id, device_id, spot_id, condition) do update set
        organisation_id = excluded.organisation_id,
        standing = excluded.standing, evidence = excluded.evidence,
        judged_at = excluded.judged_at,
        firing = coalesce(excluded.firing, j.firing),
        since = case when excluded.firing is null and j.firing is not null
                     then j.since else excluded.since end,
        affected_from = case when excluded.firing is null
                             then j.affected_from else excluded.affected_from end,
        affected_until = case when excluded.firing is null
                              then j.affected_until else excluded.affected_until end,
        changed_at = case when j.standing = excluded.standing
                           and (excluded.firing is null or j.since = excluded.since)
                          then j.changed_at else excluded.changed_at end,
        withdrawn_at = case when excluded.firing is not null then null else j.withdrawn_at end,
        withdrawn_by = case when excluded.firing is not null then '' else j.withdrawn_by end,
        withdrawn_why = case when excluded.firing is not null then '' else j.withdrawn_why end
"""
_DUE_NOW = """
    update health_checks h set due_at = least(h.due_at, $2) from judgements j
    where j.id = $1 and (h.site_id = j.site_id or h.device_id = j.device_id
        or h.site_id = (select s.site_id from spots s where s.id = j.spot_id)
        or h.device_id in (select a.device_id from assignments a
                           where a.spot_id = j.spot_id and a.valid @> $2::timestamptz))
"""
