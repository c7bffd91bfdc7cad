"""Surveys on one's own phone: made, published, handed out as tokens, answered once, summed up.

Invariants:
- A version is never edited, and has one population. Employees and journey audits are surveys of
  their own: no result reads two surveys, so neither ever counts among visitors.
- An answer is stored in the transaction that uses up its token, or not at all. The same form sent
  again finds the same thanks; another one with the same token is refused.
- A visitor's words are masked before they reach the database. An answer holds neither address nor
  browser nor token, and its time is cut to the hour.
- One-time answers and posters' are never summed into one number.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg
import msgspec

from server.audit.log import record
from server.errors import ConflictError, NotFoundError, RefusedError
from server.feedback import tokens
from server.feedback.battery import (
    Battery,
    BatteryError,
    ItemKind,
    Population,
    answer_of,
    check,
    content_of,
    digest,
    draw,
)
from server.feedback.masking import mask
from server.feedback.tokens import Binding, Channel, Delay, Shown, Token
from server.fleet import checks
from server.fleet.checks import FieldError
from server.fleet.register import lock_organisation, named_row, new_ref

MOST_SURVEYS, MOST_TOKENS, MOST_TOUCHPOINT = 500, 1_000, 60
MOST_ANSWERS = 50_000  # of a result: the latest
FORGOTTEN_S = 1_800.0  # a form left lying says nothing about how long answering takes
_POSTERS = 0x706F7374  # "post"


@dataclass(frozen=True, slots=True)
class Survey:
    """A version of a battery, for one population."""

    id: int
    ref: str
    name: str
    version: int
    population: Population
    hash: bytes
    content: bytes = field(repr=False)
    made_at: datetime
    published_at: datetime | None
    closed_at: datetime | None

    @property
    def battery(self) -> Battery:
        return msgspec.json.decode(self.content, type=Battery)

    @property
    def state(self) -> str:
        if self.closed_at is not None:
            return "closed"
        return "draft" if self.published_at is None else "published"


@dataclass(frozen=True, slots=True)
class Round:
    """A survey asked at a site for a while, as one before it or after."""

    ref: str
    survey: str
    site: str
    name: str
    delay: Delay
    follows: str | None
    opened_at: datetime
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Open:
    """What a token leads to. `kept` is the token's own hash, however it was brought."""

    token: int
    organisation: int
    site_id: int
    site: str
    site_name: str
    round_id: int | None
    kept: bytes
    used: bool
    binding: Binding
    survey: Survey


@dataclass(frozen=True, slots=True)
class Answered:
    """One stored answer, as results read it."""

    site: str
    round: str | None
    channel: Channel
    touchpoint: str
    delay: Delay
    locale: str
    seconds: float | None
    answers: dict[str, int]
    words: str
    at: datetime


Cell = tuple[str, str]
"""A site and a round of it."""

_SURVEY = (
    "select id, ref, name, version, population, hash, content, made_at, published_at, closed_at "
    "from surveys"
)


def _survey(row: asyncpg.Record) -> Survey:
    id_, ref, name, version, population, *rest = row.values()
    return Survey(id_, ref, name, version, Population(population), *rest)


# -- by people -----------------------------------------------------------------------------------


async def make(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    name: str,
    population: Population,
    battery: Battery,
    actor: str,
    now: datetime,
) -> Survey:
    """Add a version; what is there already is returned. FieldError names what the builder refuses.

    Raises ConflictError.
    """
    await lock_organisation(connection, organisation)
    name = checks.name(name)
    try:
        check(battery)
    except BatteryError as error:
        raise FieldError(error.where or "content", str(error)) from error
    content = content_of(battery)
    row = await connection.fetchrow(
        f"{_SURVEY} where organisation_id = $1 and population = $2 and hash = $3",
        *(organisation, population, digest(content)),
    )
    if row is not None:
        there = _survey(row)
        if there.name != name:
            raise ConflictError(f"the same is there as {there.name!r}, version {there.version}")
        return there
    count, last = await connection.fetchrow(
        "select count(*), coalesce(max(version) filter (where name = $2 and population = $3), 0) "
        "from surveys where organisation_id = $1",
        *(organisation, name, population),
    )
    if count >= MOST_SURVEYS:
        raise ConflictError(f"an organisation has at most {MOST_SURVEYS} surveys")
    row = await connection.fetchrow(
        "insert into surveys (organisation_id, ref, name, version, population, hash, content, "
        "made_at, made_by) values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning id, ref, name, "
        "version, population, hash, content, made_at, published_at, closed_at",
        *(organisation, new_ref("survey"), name, last + 1, population, digest(content), content),
        *(now, actor),
    )
    made = _survey(row)
    detail = {"name": name, "population": population, "hash": made.hash.hex()}
    await record(
        connection, actor=actor, act="survey made", subject=made.ref, detail=detail,
        organisation=organisation, now=now,
    )  # fmt: skip
    return made


async def find(connection: asyncpg.Connection, organisation: int, ref: str) -> Survey:
    """Return a survey. Raises NotFoundError."""
    row = await connection.fetchrow(
        f"{_SURVEY} where organisation_id = $1 and ref = $2", organisation, ref
    )
    if row is None:
        raise NotFoundError(f"no survey {ref[:40]!r}")
    return _survey(row)


async def listed(
    connection: asyncpg.Connection, organisation: int, *, after: str = "", limit: int = MOST_SURVEYS
) -> list[Survey]:
    """Return the surveys whose ref follows `after`."""
    rows = await connection.fetch(
        f"{_SURVEY} where organisation_id = $1 and ref > $2 order by ref limit $3",
        *(organisation, after, limit),
    )
    return [_survey(row) for row in rows]


async def move(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    to: str,
    actor: str,
    now: datetime,
) -> Survey:
    """Publish a draft, or close what is asked; closed is for good. FieldError, ConflictError."""
    await lock_organisation(connection, organisation)
    found = await find(connection, organisation, ref)
    if to not in ("published", "closed"):
        raise FieldError("state", f"expected published or closed; got {to[:40]!r}")
    if found.state == to:
        return found
    if found.closed_at is not None or (to == "closed" and found.published_at is None):
        raise ConflictError(f"{ref} is {found.state}, and can't become {to}")
    column = "published_at" if to == "published" else "closed_at"
    await connection.execute(
        f"update surveys set {column} = $2 where id = $1",  # noqa: S608 - one of two names
        *(found.id, now),
    )
    await record(
        connection, actor=actor, act=f"survey {to}", subject=ref, organisation=organisation, now=now
    )
    return await find(connection, organisation, ref)


async def begin_round(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    survey: str,
    site: str,
    name: str,
    delay: Delay,
    follows: str | None,
    actor: str,
    now: datetime,
) -> Round:
    """Begin a round; one that follows another asks the same survey at the same site. FieldError."""
    await lock_organisation(connection, organisation)
    name = checks.name(name)
    asked, site_id = await _asked(connection, organisation, survey, site)
    before = None
    if follows is not None:
        before = await connection.fetchval(
            "select id from survey_rounds where organisation_id = $1 and ref = $2 "
            "and survey_id = $3 and site_id = $4",
            *(organisation, follows, asked.id, site_id),
        )
        if before is None:
            raise FieldError("follows", f"no round {follows[:40]!r} of this survey at this site")
    ref = new_ref("round")
    await connection.execute(
        "insert into survey_rounds (organisation_id, ref, survey_id, site_id, name, delay, "
        "follows_id, opened_at) values ($1, $2, $3, $4, $5, $6, $7, $8)",
        *(organisation, ref, asked.id, site_id, name, delay, before, now),
    )
    detail = {"survey": survey, "site": site, "name": name, "follows": follows or ""}
    await record(
        connection, actor=actor, act="round begun", subject=ref, detail=detail,
        organisation=organisation, now=now,
    )  # fmt: skip
    (made,) = [each for each in await rounds(connection, organisation) if each.ref == ref]
    return made


async def end_round(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> Round:
    """End a round: its tokens are good for nothing any more. Raises NotFoundError."""
    await lock_organisation(connection, organisation)
    ended = await connection.execute(
        "update survey_rounds set closed_at = $3 "
        "where organisation_id = $1 and ref = $2 and closed_at is null",
        *(organisation, ref, now),
    )
    found = [each for each in await rounds(connection, organisation) if each.ref == ref]
    if not found:
        raise NotFoundError(f"no round {ref[:40]!r}")
    if ended != "UPDATE 0":
        await record(
            connection, actor=actor, act="round ended", subject=ref, organisation=organisation,
            now=now,
        )  # fmt: skip
    return found[0]


async def rounds(
    connection: asyncpg.Connection, organisation: int, *, after: str = "", limit: int = 10_000
) -> list[Round]:
    """Return the rounds whose ref follows `after`."""
    rows = await connection.fetch(
        "select r.ref, v.ref, s.ref, r.name, r.delay, f.ref, r.opened_at, r.closed_at "
        "from survey_rounds r join surveys v on v.id = r.survey_id "
        "join sites s on s.id = r.site_id "
        "left join survey_rounds f on f.id = r.follows_id "
        "where r.organisation_id = $1 and r.ref > $2 order by r.ref limit $3",
        *(organisation, after, limit),
    )
    found: list[Round] = []
    for row in rows:
        ref, survey, site, name, delay, follows, at, closed = row.values()
        found.append(Round(ref, survey, site, name, Delay(delay), follows, at, closed))
    return found


async def mint(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    key: bytes,
    survey: str,
    site: str,
    channel: Channel,
    touchpoint: str,
    delay: Delay,
    life: timedelta,
    count: int,
    round_: str | None,
    random: Callable[[int], bytes],
    actor: str,
    now: datetime,
) -> tuple[Binding, list[Token]]:
    """Make tokens of a published survey; they are shown this once. FieldError, ConflictError."""
    touchpoint = touchpoint.strip()
    if len(touchpoint) > MOST_TOUCHPOINT or not touchpoint.isprintable():
        raise FieldError("touchpoint", f"at most {MOST_TOUCHPOINT} printable characters")
    if not timedelta(hours=1) <= life <= tokens.MOST_LIFE:
        raise FieldError("days", f"a token lasts an hour to {tokens.MOST_LIFE.days} days")
    if not 1 <= count <= (MOST_TOKENS if channel.one_time else 1):
        raise FieldError("count", f"1 to {MOST_TOKENS} at once, and one of a poster")
    asked, site_id = await _asked(connection, organisation, survey, site)
    round_id = None
    if round_ is not None:
        round_id = await connection.fetchval(
            "select id from survey_rounds where organisation_id = $1 and ref = $2 "
            "and survey_id = $3 and site_id = $4 and delay = $5 and closed_at is null",
            *(organisation, round_, asked.id, site_id, delay),
        )
        if round_id is None:
            raise FieldError("round", f"no open round {round_[:40]!r} of this survey, site, delay")
    end = now.replace(microsecond=0) + life
    binding = Binding(survey, site, channel, touchpoint, delay, end)
    made = [tokens.make(key, binding, random(10)) for _ in range(count)]
    await connection.executemany(
        "insert into survey_tokens (organisation_id, survey_id, site_id, round_id, channel, "
        "touchpoint, delay, kept, kept_code, made_at, expires_at) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        [
            (organisation, asked.id, site_id, round_id, channel, touchpoint, delay,
             tokens.kept_of(token.text), tokens.kept_of_code(key, token.code), now, end)
            for token in made
        ],
    )  # fmt: skip
    detail = {"site": site, "channel": channel, "touchpoint": touchpoint, "count": count}
    await record(
        connection, actor=actor, act="survey tokens made", subject=survey, detail=detail,
        organisation=organisation, now=now,
    )  # fmt: skip
    return binding, made


async def _asked(
    connection: asyncpg.Connection, organisation: int, survey: str, site: str
) -> tuple[Survey, int]:
    """Return a published survey and a site's row. Raises FieldError, ConflictError."""
    try:
        found = await find(connection, organisation, survey)
    except NotFoundError as error:
        raise FieldError("survey", str(error)) from error
    site_id = await named_row(connection, organisation, "sites", site, field="site")
    if found.state != "published":
        raise ConflictError(f"{survey} is {found.state}, and only what is published is asked")
    return found, site_id


# -- by visitors ---------------------------------------------------------------------------------


async def opened(
    connection: asyncpg.Connection, key: bytes, shown: Shown, *, now: datetime, again: bool = False
) -> Open:
    """Return what a token leads to, its row locked. RefusedError; `again`: it may be used."""
    row = await connection.fetchrow(
        "select t.id, t.organisation_id, t.site_id, s.ref as site, s.name as site_name, "
        "t.round_id, t.kept, t.used_at is not null as used, t.channel, t.touchpoint, t.delay, "
        "t.expires_at, t.survey_id, r.closed_at is not null as round_over "
        "from survey_tokens t join sites s on s.id = t.site_id "
        "left join survey_rounds r on r.id = t.round_id "
        "where $1 in (t.kept, t.kept_code) for update of t",
        shown.kept,
    )
    if row is None:
        tokens.demand(key, shown, None, used=False, closed=False, now=now)
        raise RefusedError("unknown_code", "there is no survey behind this code")
    survey = _survey(await connection.fetchrow(f"{_SURVEY} where id = $1", row["survey_id"]))
    channel, delay = Channel(row["channel"]), Delay(row["delay"])
    binding = Binding(survey.ref, row["site"], channel, row["touchpoint"], delay, row["expires_at"])
    closed = survey.state != "published" or bool(row["round_over"])
    tokens.demand(key, shown, binding, used=row["used"] and not again, closed=closed, now=now)
    return Open(
        *(row["id"], row["organisation_id"], row["site_id"], row["site"], row["site_name"]),
        *(row["round_id"], row["kept"], row["used"], binding, survey),
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
        "insert into survey_answers (organisation_id, survey_id, site_id, round_id, channel, "
        "touchpoint, delay, once, digest, seen, answers, words, locale, seconds, answered_at) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        *(found.organisation, found.survey.id, found.site_id, found.round_id),
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
        "select s.ref, r.ref as round, a.channel, a.touchpoint, a.delay, a.locale, a.seconds, "
        "a.answers, a.words, a.answered_at from survey_answers a join sites s on s.id = a.site_id "
        "left join survey_rounds r on r.id = a.round_id where a.survey_id = $1 "
        "and coalesce(s.ref = any($2::text[]), true) and coalesce(r.ref = $3, $3::text is null) "
        "order by a.answered_at desc, a.id desc limit $4",
        *(survey.id, None if sites is None else list(sites), round_, MOST_ANSWERS),
    )
    return [
        Answered(
            *(row["ref"], row["round"], Channel(row["channel"]), row["touchpoint"]),
            *(Delay(row["delay"]), row["locale"], row["seconds"]),
            *(msgspec.json.decode(row["answers"], type=dict[str, int]), row["words"]),
            row["answered_at"],
        )
        for row in rows
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
