"""Presses added up: from presses_day, and from presses_15m where days cannot be taken whole.

The same patches as for counts (`server.rollup.patches`): what the deriver has not worked in yet
is added from the quarters, so an answer is right at once. What the misuse filter left of them comes
from responses_day and responses_15m instead, as far as it has been worked in: `waiting` says of
which buckets more is to come.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import NamedTuple

import asyncpg

from server.feedback.misuse import Reason
from server.rollup.buckets import Size
from server.rollup.opening import Part
from server.rollup.patches import Entity, Key
from server.rollup.quality import Scope
from server.rollup.sums import ROW_KEYS, Patch, row_key


class Question(NamedTuple):
    """A question of a questionnaire, by the questionnaire's hash."""

    questionnaire: int
    question: int


@dataclass(slots=True)
class Answers:
    """How often each answer was given in one bucket, and the rows' revisions."""

    presses: dict[int, int] = field(default_factory=dict)
    revision: int = 0
    excluded: dict[Reason, int] = field(default_factory=dict)
    filter_version: int | None = None

    def add(self, answer: int, presses: int, revision: int) -> None:
        self.presses[answer] = self.presses.get(answer, 0) + presses
        self.revision += revision


Sheet = dict[Question, dict[int, Answers]]
"""Of one entity: answers by question and bucket number."""


async def answers_by_day(
    connection: asyncpg.Connection,
    size: Size,
    entities: Sequence[Entity],
    *,
    scope: Scope,
    days: tuple[date, date],
    left_out: Sequence[tuple[int, Key]],
    patches: Sequence[Patch],
) -> list[Sheet]:
    """Add up days, weeks or months, with `patches` for the spot-days `left_out`."""
    sheets: list[Sheet] = [{} for _ in entities]
    column = "open_presses" if scope is Scope.OPEN else "presses"
    placed = [(spot.id, number) for number, e in enumerate(entities) for spot in e.spots]
    bases = [row_key(size, entity.grid[0].start_day) for entity in entities]
    rows = await connection.fetch(
        _DAYS.replace("{presses}", column).replace("{key}", ROW_KEYS[size]),
        [spot for spot, _ in placed],
        [number for _, number in placed],
        *days,
        [spot for spot, _ in left_out],
        [key for _, key in left_out],
    )
    _enter(sheets, entities, rows, bases)
    if patches:
        rows = await connection.fetch(
            _PATCHES,
            [p.spot for p in patches],
            [p.entity for p in patches],
            [p.key for p in patches],
            [p.part.from_s for p in patches],
            [p.part.until_s for p in patches],
            _at(min(p.part.from_s for p in patches)),
            _at(max(p.part.until_s for p in patches)),
        )
        _enter(sheets, entities, rows, bases)
    return sheets


async def answers_by_quarter(
    connection: asyncpg.Connection,
    entities: Sequence[Entity],
    *,
    scope: Scope,
    span: tuple[int, int],
) -> list[Sheet]:
    """Add up quarters and hours, straight from the 15-minute rows."""
    sheets: list[Sheet] = [{} for _ in entities]
    placed = [(spot.id, number) for number, e in enumerate(entities) for spot in e.spots]
    rows = await connection.fetch(
        _QUARTERS,
        [spot for spot, _ in placed],
        [number for _, number in placed],
        *(_at(instant_s) for instant_s in span),
    )
    starts = [[bucket.start_s for bucket in entity.grid] for entity in entities]
    opened = [_open_parts(entity) if scope is Scope.OPEN else None for entity in entities]
    kept: list[Sequence[int]] = []
    for row in rows:
        entity, at = row[0], row[1]
        parts = opened[entity]
        if parts is None or _within(parts, at):
            kept.append((entity, bisect_right(starts[entity], at) - 1, *row[2:]))
    _enter(sheets, entities, kept, [0] * len(entities))
    return sheets


async def responses_of(
    connection: asyncpg.Connection,
    size: Size,
    entities: Sequence[Entity],
    *,
    span: tuple[int, int],
    days: tuple[date, date],
) -> list[Sheet]:
    """Add up what the misuse filter kept, and what it did not by reason, in buckets of `size`.

    Only what was pressed in opening hours is kept, so all hours and the open ones are the same.
    """
    sheets: list[Sheet] = [{} for _ in entities]
    placed = [(spot.id, number) for number, e in enumerate(entities) for spot in e.spots]
    spots, numbers = [spot for spot, _ in placed], [number for _, number in placed]
    if size.is_days:
        sql = _RESPONSE_DAYS.replace("{key}", ROW_KEYS[size])
        rows = await connection.fetch(sql, spots, numbers, *days)
    else:
        rows = await connection.fetch(_RESPONSES, spots, numbers, *(_at(at) for at in span))
    starts = [[bucket.start_s for bucket in entity.grid] for entity in entities]
    for entity, key, questionnaire, question, answer, version, kept, *left_out in rows:
        if size.is_days:
            number = key - row_key(size, entities[entity].grid[0].start_day)
        else:
            number = bisect_right(starts[entity], key) - 1
        if not 0 <= number < len(starts[entity]):
            continue
        by_bucket = sheets[entity].setdefault(Question(questionnaire, question), {})
        answers = by_bucket.setdefault(number, Answers(excluded=dict.fromkeys(Reason, 0)))
        answers.add(answer, kept, 0)
        for reason, presses in zip(Reason, left_out, strict=True):
            answers.excluded[reason] += presses
        answers.filter_version = min(version, answers.filter_version or version)
    return sheets


async def waiting(
    connection: asyncpg.Connection, entities: Sequence[Entity], *, span: tuple[int, int]
) -> list[list[bool]]:
    """Return of each entity's buckets whether presses are still to be filtered in them."""
    placed = {spot.id: number for number, e in enumerate(entities) for spot in e.spots}
    found = [[False] * len(entity.grid) for entity in entities]
    rows = await connection.fetch(_WAITING, list(placed), *(_at(at) for at in span))
    for spot, low, high in rows:
        entity = placed[spot]
        for number, bucket in enumerate(entities[entity].grid):
            if bucket.start_s < high and low < bucket.end_s:
                found[entity][number] = True
    return found


def _enter(
    sheets: list[Sheet],
    entities: Sequence[Entity],
    rows: Iterable[Sequence[int]],
    bases: Sequence[int],
) -> None:
    """Enter rows into the sheets; `bases` are the keys of the entities' first buckets."""
    for entity, key, questionnaire, question, answer, presses, revision in rows:
        number = key - bases[entity]
        if 0 <= number < len(entities[entity].grid):
            by_bucket = sheets[entity].setdefault(Question(questionnaire, question), {})
            by_bucket.setdefault(number, Answers()).add(answer, presses, revision)


def _open_parts(entity: Entity) -> list[Part]:
    grid = entity.grid
    return entity.site.calendar.parts(grid[0].start_s, grid[-1].end_s)


def _within(parts: Sequence[Part], instant_s: int) -> bool:
    at = bisect_right(parts, instant_s, key=lambda part: part.from_s) - 1
    return at >= 0 and instant_s < parts[at].until_s


def _at(instant_s: int) -> datetime:
    return datetime.fromtimestamp(instant_s, UTC)


_DAYS = """
    with source as materialized (
        select * from unnest($1::int[], $2::int[]) as source(spot, entity))
    select source.entity, {key}, r.questionnaire, r.question::int, r.answer::int,
           sum(r.{presses})::bigint, sum(r.revision)::bigint
    from my_presses_day r join source on source.spot = r.spot
    where r.spot = any($1::int[]) and r.day >= $3 and r.day < $4
      and (r.spot, r.day) not in (select * from unnest($5::int[], $6::date[]))
    group by 1, 2, 3, 4, 5
"""
_PATCHES = """
    with patch as materialized (
        select * from unnest($1::int[], $2::int[], $3::int[], $4::bigint[], $5::bigint[])
        as patch(spot, entity, key, from_s, until_s))
    select patch.entity, patch.key, r.questionnaire, r.question::int, r.answer::int,
           sum(r.presses)::bigint, sum(r.revision)::bigint
    from patch join my_presses_15m r on r.spot = patch.spot
      and r.bucket >= to_timestamp(from_s) and r.bucket < to_timestamp(until_s)
    where r.bucket >= $6 and r.bucket < $7
    group by 1, 2, 3, 4, 5
"""
_QUARTERS = """
    select source.entity, extract(epoch from r.bucket)::bigint, r.questionnaire,
           r.question::int, r.answer::int, r.presses, r.revision
    from my_presses_15m r
    join unnest($1::int[], $2::int[]) as source(spot, entity) on source.spot = r.spot
    where r.spot = any($1::int[]) and r.bucket >= $3 and r.bucket < $4
"""
_COLUMNS = ", ".join(f"sum(r.{name})::bigint" for name in ("kept", *Reason))
_RESPONSE_DAYS = f"""
    with source as materialized (
        select * from unnest($1::int[], $2::int[]) as source(spot, entity))
    select source.entity, {{key}}, r.questionnaire, r.question::int, r.answer::int,
           min(r.filter_version)::int, {_COLUMNS}
    from my_responses_day r join source on source.spot = r.spot
    where r.spot = any($1::int[]) and r.day >= $3 and r.day < $4
    group by 1, 2, 3, 4, 5
"""  # noqa: S608 - names of ours
_RESPONSES = f"""
    select source.entity, extract(epoch from r.bucket)::bigint, r.questionnaire, r.question::int,
           r.answer::int, min(r.filter_version)::int, {_COLUMNS}
    from my_responses_15m r
    join unnest($1::int[], $2::int[]) as source(spot, entity) on source.spot = r.spot
    where r.spot = any($1::int[]) and r.bucket >= $3 and r.bucket < $4
    group by 1, 2, 3, 4, 5
"""  # noqa: S608 - names of ours
_WAITING = """
    select distinct spot, extract(epoch from bucket)::bigint,
           extract(epoch from bucket)::bigint + 900
    from my_rollup_dirty where spot = any($1::int[]) and bucket >= $2 and bucket < $3
    union select spot, extract(epoch from from_at)::bigint, extract(epoch from until_at)::bigint
    from my_responses_dirty where spot = any($1::int[]) and until_at > $2 and from_at < $3
"""
