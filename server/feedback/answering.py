"""A survey answered by who holds a token, and what was answered.

Invariants:
- An answer is stored in the transaction that uses up its token, or not at all. The same form sent
  again finds the same thanks; another one with the same token is refused.
- A visitor's words are masked before they reach the database. An answer holds neither address nor
  browser nor token, and its time is cut to the hour. One that came by a kiosk's code names the spot
  that showed it, and no press.
- One-time answers and posters' are never summed into one number.
"""

import asyncio
import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
import msgspec

from server.errors import RefusedError
from server.feedback import tokens
from server.feedback.battery import (
    Battery,
    BatteryError,
    ItemKind,
    Population,
    answer_of,
    draw,
)
from server.feedback.masking import mask
from server.feedback.scores import kept
from server.feedback.surveys import Survey, of_row
from server.feedback.tokens import Binding, Channel, Delay, Shown

MOST_ANSWERS = 50_000  # of a result: the latest
FORGOTTEN_S = 1_800.0  # a form left lying says nothing about how long answering takes
_POSTERS = 0x706F7374  # "post"
_ANSWERS = msgspec.json.Decoder(dict[str, int])


@dataclass(frozen=True, slots=True)
class Open:
    """What a token leads to. `kept` is the token's own hash, however it was brought."""

    token: int
    organisation: int
    site_id: int
    site: str
    site_name: str
    spot_id: int | None
    round_id: int | None
    kept: bytes
    used: bool
    binding: Binding
    survey: Survey


@dataclass(frozen=True, slots=True)
class Answered:
    """One stored answer, as results read it; `spot`: of the kiosk whose code it came by."""

    site: str
    spot: str
    round: str | None
    channel: Channel
    touchpoint: str
    delay: Delay
    locale: str
    seconds: float | None
    answers: dict[str, int]
    words: str
    at: datetime


class WordsRecord(msgspec.Struct, frozen=True):
    """What somebody wrote, masked before it was stored; the time is cut to the hour."""

    site: str
    channel: Channel
    touchpoint: str
    delay: Delay
    locale: str
    at: datetime
    words: str


Cell = tuple[str, str]
"""A site and a round of it."""


async def opened(
    connection: asyncpg.Connection, key: bytes, shown: Shown, *, now: datetime, again: bool = False
) -> Open:
    """Return what a token leads to, its row locked. RefusedError; `again`: it may be used."""
    row = await connection.fetchrow(
        "select t.id, t.organisation_id, t.site_id, s.ref as site, s.name as site_name, "
        "t.spot_id, p.ref as spot, t.round_id, t.kept, t.used_at is not null as used, t.channel, "
        "t.touchpoint, t.delay, t.expires_at, t.survey_id, r.closed_at is not null as round_over "
        "from survey_tokens t join sites s on s.id = t.site_id "
        "left join spots p on p.id = t.spot_id "
        "left join survey_rounds r on r.id = t.round_id "
        "where $1 in (t.kept, t.kept_code) for update of t",
        shown.kept,
    )
    if row is None:
        tokens.demand(key, shown, None, used=False, closed=False, now=now)
        raise RefusedError("unknown_code", "there is no survey behind this code")
    survey = await of_row(connection, row["survey_id"])
    channel, delay = Channel(row["channel"]), Delay(row["delay"])
    binding = Binding(
        *(survey.ref, row["site"], channel, row["touchpoint"], delay, row["expires_at"]),
        row["spot"] or "",
    )
    closed = survey.state != "published" or bool(row["round_over"])
    tokens.demand(key, shown, binding, used=row["used"] and not again, closed=closed, now=now)
    return Open(
        *(row["id"], row["organisation_id"], row["site_id"], row["site"], row["site_name"]),
        *(row["spot_id"], row["round_id"], row["kept"], row["used"]),
        binding=binding,
        survey=survey,
    )


def drawn(found: Open, sheet: tokens.Sheet) -> tuple[str, ...]:
    """Return what is asked: by the token, so that it stays; of a poster by the form."""
    seed = found.kept if found.binding.channel.one_time else sheet.nonce.encode()
    return draw(found.survey.battery, seed)


async def answer(
    connection: asyncpg.Connection,
    key: bytes,
    shown: Shown,
    *,
    sheet: str,
    form: Mapping[str, str],
    locale: str,
    now: datetime,
) -> Open:
    """Store an answer, once; the same sent again changes nothing. RefusedError says what is wrong.

    Codes: as `tokens.demand`, and `stale_form`, `bad_answer`, `nothing_answered`, `busy_poster`.
    """
    found = await opened(connection, key, shown, now=now, again=True)
    seen_sheet = tokens.read_sheet(key, found.kept, sheet, now=now)
    seen = drawn(found, seen_sheet)
    answers, words = _read(found.survey.battery, seen, form)
    if not answers and not words:
        raise RefusedError("nothing_answered", "at least one answer is needed")
    one_time = found.binding.channel.one_time
    once = _keyed(key, b"once", found.kept + (b"" if one_time else seen_sheet.nonce.encode()))
    said = _keyed(key, b"said", msgspec.json.encode([sorted(answers.items()), words]))
    before = await connection.fetchval("select digest from survey_answers where once = $1", once)
    if before is not None and hmac.compare_digest(before, said):
        return found
    if before is not None or (found.used and one_time):
        raise RefusedError("answered_already", "this code was used, and each counts once")
    hour = now.replace(minute=0, second=0, microsecond=0)
    if one_time:
        await connection.execute(
            "update survey_tokens set used_at = $2 where id = $1", found.token, hour
        )
    else:
        await _demand_calm(connection, found.site_id, hour)
    taken = (now - seen_sheet.begun).total_seconds()
    await connection.execute(
        "insert into survey_answers (organisation_id, survey_id, site_id, spot_id, round_id, "
        "channel, touchpoint, delay, once, digest, seen, answers, words, locale, seconds, "
        "answered_at) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        *(found.organisation, found.survey.id, found.site_id, found.spot_id, found.round_id),
        *(found.binding.channel, found.binding.touchpoint, found.binding.delay, once, said),
        *(list(seen), msgspec.json.encode(answers).decode(), words, locale),
        *(taken if taken <= FORGOTTEN_S else None, hour),
    )
    return found


def _read(
    battery: Battery, seen: Sequence[str], form: Mapping[str, str]
) -> tuple[dict[str, int], str]:
    """Return a form's answers and its words, masked. Raises RefusedError (`bad_answer`)."""
    answers: dict[str, int] = {}
    words, items = "", battery.by_key
    for key in seen:
        if items[key].kind is ItemKind.TEXT:
            words = mask(form.get(key, ""))
            continue
        try:
            given = answer_of(items[key], form.get(key, ""))
        except BatteryError as error:
            raise RefusedError("bad_answer", str(error)) from error
        if given is not None:
            answers[key] = given
    return answers, words


async def _demand_calm(connection: asyncpg.Connection, site: int, hour: datetime) -> None:
    """Raise RefusedError (`busy_poster`) if a site's posters brought too much in this hour."""
    await connection.execute("select pg_advisory_xact_lock($1, $2)", _POSTERS, site)
    n = await connection.fetchval(
        "select count(*) from survey_answers "
        "where site_id = $1 and answered_at = $2 and channel = 'poster'",
        *(site, hour),
    )
    if n >= tokens.POSTER_PER_HOUR:
        raise RefusedError("busy_poster", "this poster was answered very often in this hour")


def _keyed(key: bytes, purpose: bytes, data: bytes) -> bytes:
    return hmac.digest(key, purpose + b"\n" + data, hashlib.sha256)


# -- what came of it -----------------------------------------------------------------------------


async def answered(
    connection: asyncpg.Connection,
    survey: Survey,
    *,
    sites: Sequence[str] | None = None,
    round_: str | None = None,
) -> list[Answered]:
    """Return a survey's answers, the latest first, of `sites` (None: all) or of one round."""
    rows = await connection.fetch(
        "select s.ref, coalesce(p.ref, '') as spot, r.ref as round, a.channel, a.touchpoint, "
        "a.delay, a.locale, a.seconds, a.answers, a.words, a.answered_at "
        "from survey_answers a join sites s on s.id = a.site_id "
        "left join spots p on p.id = a.spot_id "
        "left join survey_rounds r on r.id = a.round_id where a.survey_id = $1 "
        "and coalesce(s.ref = any($2::text[]), true) and coalesce(r.ref = $3, $3::text is null) "
        "order by a.answered_at desc, a.id desc limit $4",
        *(survey.id, None if sites is None else list(sites), round_, MOST_ANSWERS),
    )
    return await asyncio.to_thread(lambda: [_answered(row) for row in rows])


def _answered(row: asyncpg.Record) -> Answered:
    return Answered(
        *(row["ref"], row["spot"], row["round"], Channel(row["channel"]), row["touchpoint"]),
        *(Delay(row["delay"]), row["locale"], row["seconds"]),
        *(_ANSWERS.decode(row["answers"]), row["words"], row["answered_at"]),
    )


async def written(
    connection: asyncpg.Connection,
    survey: Survey,
    *,
    before: tuple[datetime, int] | None = None,
    limit: int,
) -> list[tuple[int, WordsRecord]]:
    """Return what was written, the latest first, with its id.

    `before` is the time and the id that the page before ended with.

    Of any population but visitors, nothing of a site at which too few answered (`kept`).
    """
    sites: list[str] | None = None
    if survey.population is not Population.VISITORS:
        counts = Counter[str]()
        for (site, _), n in (await cells_of(connection, survey)).items():
            counts[site] += n
        sites = list(kept(counts))
    rows = await connection.fetch(_WRITTEN, survey.id, sites, *(before or (None, None)), limit)
    return [
        (id_, WordsRecord(site, Channel(channel), touchpoint, Delay(delay), *rest))
        for id_, site, channel, touchpoint, delay, *rest in rows
    ]


async def cells_of(connection: asyncpg.Connection, survey: Survey) -> dict[Cell, int]:
    """Return how many answers a survey has by site and round (none: "")."""
    rows = await connection.fetch(
        "select s.ref, coalesce(r.ref, ''), count(*)::int from survey_answers a "
        "join sites s on s.id = a.site_id left join survey_rounds r on r.id = a.round_id "
        "where a.survey_id = $1 group by 1, 2",
        survey.id,
    )
    return {(site, round_): n for site, round_, n in rows}


async def told(connection: asyncpg.Connection, site: int, language: str) -> list[str]:
    """Return a site's "you said, we did", the latest first, in a language (else English)."""
    rows = await connection.fetch(
        "select coalesce(told ->> $2, told ->> 'en') from actions where site_id = $1 "
        "and published_at is not null order by published_at desc limit 3",
        *(site, language),
    )
    return [row[0] for row in rows if row[0]]


_WRITTEN = """
    select a.id, s.ref, a.channel, a.touchpoint, a.delay, a.locale, a.answered_at, a.words
    from survey_answers a join sites s on s.id = a.site_id
    where a.survey_id = $1 and a.words <> '' and ($2::text[] is null or s.ref = any($2))
      and ($3::timestamptz is null or (a.answered_at, a.id) < ($3, $4::bigint))
    order by a.answered_at desc, a.id desc limit $5
"""
