"""Kiosk results of sites and spots in time buckets: n, distribution, index and interval.

Rows say which presses were counted: all of them (raw), or those that the misuse filter kept, with
its version and how many it left out for which reason. Only kiosks are counted here: what was
answered on phones is another channel, and never added to these. A bucket in which a kiosk
was heard and nobody pressed has n 0; one in which no kiosk was heard has n null. A questionnaire
that the server does not know gives its distribution without an index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum

import asyncpg
import msgspec

from server.errors import RefusedError
from server.feedback.answers import (
    Answers,
    Question,
    Sheet,
    answers_by_day,
    answers_by_quarter,
    responses_of,
    waiting,
)
from server.feedback.indices import Index, Kind, index_of
from server.feedback.misuse import VERSION
from server.rollup.answer import CountQuery, CountRow, Position
from server.rollup.buckets import Size
from server.rollup.patches import Entity, plan
from server.rollup.places import load_histories
from server.rollup.quality import Hours, State
from server.rollup.query import collect, last_day, page_of, sums_of, what_is_behind
from server.rollup.rows import Worth, fold
from server.rollup.sums import segments

BUILT_IN = 0
"""The questionnaire of a kiosk that was given none: one question, four smileys."""


class Basis(StrEnum):
    """What was counted: raw presses, or those that the misuse filter kept."""

    RAW = "raw"
    FILTERED = "filtered"


class Excluded(msgspec.Struct, frozen=True, gc=False):
    """Presses that the misuse filter did not keep, by its reason."""

    repeated: int
    children: int
    stuck: int
    closed: int


class FeedbackRow(msgspec.Struct, frozen=True, gc=False):
    """One question's answers in one bucket at one site or spot.

    `answers` are presses by answer number. `index` is of the kind's scale: smileys 0 to 100 (from
    the best), NPS -100 to 100, CSAT and `agree` in %, CES 1 to 7. Where `small`, show the interval.
    `pending`: presses of this bucket wait to be filtered, so the filtered row is not yet whole.
    """

    site: str
    spot: str | None
    start: str = msgspec.field(name="from")
    until: str
    local: str
    fold: int
    questionnaire: str | None
    question: int | None
    kind: Kind | None
    basis: Basis
    filter_version: int | None
    excluded: Excluded | None
    pending: bool
    n: int | None
    answers: tuple[int, ...]
    index: float | None
    low: float | None
    high: float | None
    agree: float | None
    small: bool
    coverage: float | None
    hours: Hours
    state: State
    revision: int


@dataclass(frozen=True, slots=True)
class FeedbackPage:
    """Rows by site or spot, question and time; `next` is None on the last page."""

    rows: list[FeedbackRow]
    next: Position | None


async def feedback(
    connection: asyncpg.Connection,
    query: CountQuery,
    *,
    now_s: int,
    basis: Basis = Basis.RAW,
) -> FeedbackPage:
    """Return one page of kiosk results; the page's limit counts buckets, not questions."""
    if query.size is Size.MINUTE:
        raise RefusedError("bad_parameter", "feedback has buckets of 15m and larger")
    entities, following = await page_of(connection, query, kind="kiosk")
    entities = [entity for entity in entities if entity.grid]
    if not entities:
        return FeedbackPage([], following)
    span = (min(e.grid[0].start_s for e in entities), max(e.grid[-1].end_s for e in entities))
    spots = [spot for entity in entities for spot in entity.spots]
    histories = await load_histories(connection, spots, start_s=span[0], end_s=span[1])
    cut = {spot.id: segments(()) for spot in spots}
    columns = await sums_of(connection, query, entities, cut=cut, span=span)
    cells = list(collect(query.size, entities, columns))
    pending = [[False] * len(entity.grid) for entity in entities]
    if basis is Basis.RAW:
        sheets = await _sheets(connection, query, entities, span=span)
    else:
        sheets = await responses_of(
            connection, query.size, entities, span=span, days=_days_of(entities)
        )
        pending = await waiting(connection, entities, span=span)
    kinds = await kinds_of(connection)
    worth = Worth(scope=query.scope, now_s=now_s)
    rows: list[FeedbackRow] = []
    for entity, sums, sheet, more in zip(entities, cells, sheets, pending, strict=True):
        own = [histories[spot.id] for spot in entity.spots]
        heard = [cell is not None and cell[2] > 0 for cell in sums]
        frame = fold(entity, sums, worth.of(entity, own, cut=cut), placed={})
        rows += _rows(frame, heard, sheet, kinds, basis=basis, pending=more)
    return FeedbackPage(rows, following)


async def _sheets(
    connection: asyncpg.Connection,
    query: CountQuery,
    entities: Sequence[Entity],
    *,
    span: tuple[int, int],
) -> list[Sheet]:
    if not query.size.is_days:
        return await answers_by_quarter(connection, entities, scope=query.scope, span=span)
    spots = [spot for entity in entities for spot in entity.spots]
    behind = await what_is_behind(connection, [spot.id for spot in spots], span=span)
    left_out, patches = plan(
        entities,
        size=query.size,
        scope=query.scope,
        cut={spot.id: segments(()) for spot in spots},
        behind=behind,
    )
    return await answers_by_day(
        connection,
        query.size,
        entities,
        scope=query.scope,
        days=_days_of(entities),
        left_out=left_out,
        patches=patches,
    )


def _days_of(entities: Sequence[Entity]) -> tuple[date, date]:
    return (
        min(entity.grid[0].start_day for entity in entities),
        max(last_day(entity) for entity in entities) + timedelta(days=1),
    )


async def kinds_of(connection: asyncpg.Connection) -> dict[Question, Kind]:
    """Return what the organisation's questionnaires ask; malformed questions are left out."""
    found = {Question(BUILT_IN, 0): Kind.SMILEY4}
    for questionnaire, definition in await connection.fetch(
        "select hash, definition from questionnaires"
    ):
        try:
            known = msgspec.json.decode(definition, type=_Definition)
        except msgspec.MsgspecError:
            continue
        for number, question in enumerate(known.questions):
            found[Question(questionnaire, number)] = question.kind
    return found


class _Question(msgspec.Struct):
    kind: Kind


class _Definition(msgspec.Struct):
    """What is read of a questionnaire's definition: `{"questions": [{"kind": "smiley4"}]}`."""

    questions: list[_Question]


def _rows(
    frame: Sequence[CountRow],
    heard: Sequence[bool],
    sheet: Sheet,
    kinds: Mapping[Question, Kind],
    *,
    basis: Basis,
    pending: Sequence[bool],
) -> list[FeedbackRow]:
    """Return rows by question and bucket; without any press, one row a bucket without question."""
    rows: list[FeedbackRow] = []
    questions: list[Question | None] = [*sorted(sheet)]
    for question in questions or [None]:
        given = {} if question is None else sheet[question]
        kind = None if question is None else kinds.get(question)
        width = max((max(each.presses) + 1 for each in given.values()), default=0)
        for number, base in enumerate(frame):
            answers = given.get(number, Answers())
            counts = tuple(answers.presses.get(at, 0) for at in range(width))
            known = heard[number] or sum(counts) > 0
            rows.append(
                _row(
                    base,
                    question,
                    kind,
                    answers,
                    counts=counts if known else None,
                    basis=basis,
                    pending=pending[number],
                )
            )
    return rows


def _row(
    base: CountRow,
    question: Question | None,
    kind: Kind | None,
    answers: Answers,
    *,
    counts: tuple[int, ...] | None,
    basis: Basis,
    pending: bool,
) -> FeedbackRow:
    index: Index | None = None
    if kind is not None and counts is not None:
        index = index_of(kind, counts)
    return FeedbackRow(
        base.site,
        base.spot,
        base.start,
        base.until,
        base.local,
        base.fold,
        None if question is None else f"{question.questionnaire & (1 << 64) - 1:016x}",
        None if question is None else question.question,
        kind,
        basis,
        VERSION
        if basis is Basis.FILTERED and answers.filter_version is None
        else answers.filter_version,
        Excluded(**answers.excluded) if answers.excluded else None,
        pending,
        None if counts is None else sum(counts),
        counts or (),
        _rounded(index.value if index else None),
        _rounded(index.low if index else None),
        _rounded(index.high if index else None),
        _rounded(index.agree if index else None),
        index is not None and index.small,
        base.coverage,
        base.hours,
        base.state,
        base.revision + answers.revision,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
