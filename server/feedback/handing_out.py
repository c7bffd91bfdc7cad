"""Tokens of a survey handed out: in batches by people, and to kiosks by their stock.

A token is shown to whoever asked for it, this once; the row holds its hash.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from server.audit.log import record
from server.feedback import tokens
from server.feedback.surveys import asked_at
from server.feedback.tokens import Binding, Channel, Delay, Token
from server.fleet.checks import FieldError

MOST_TOKENS, MOST_TOUCHPOINT = 1_000, 60


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
    asked, site_id = await asked_at(connection, organisation, survey, site)
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
    rows = Rows(organisation, asked.id, site_id, round_=round_id)
    made = await handed(connection, rows, binding, key=key, count=count, random=random, now=now)
    detail = {"site": site, "channel": channel, "touchpoint": touchpoint, "count": count}
    await record(
        connection, actor=actor, act="survey tokens made", subject=survey, detail=detail,
        organisation=organisation, now=now,
    )  # fmt: skip
    return binding, made


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of what tokens are bound to."""

    organisation: int
    survey: int
    site: int
    spot: int | None = None
    round_: int | None = None


async def handed(
    connection: asyncpg.Connection,
    rows: Rows,
    binding: Binding,
    *,
    key: bytes,
    count: int,
    random: Callable[[int], bytes],
    now: datetime,
) -> list[Token]:
    """Make tokens of a binding, and keep their hashes."""
    made = [tokens.make(key, binding, random(10)) for _ in range(count)]
    await connection.executemany(
        "insert into survey_tokens (organisation_id, survey_id, site_id, spot_id, round_id, "
        "channel, touchpoint, delay, kept, kept_code, made_at, expires_at) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        [
            (rows.organisation, rows.survey, rows.site, rows.spot, rows.round_, binding.channel,
             binding.touchpoint, binding.delay, tokens.kept_of(token.text),
             tokens.kept_of_code(key, token.code), now, binding.expires_at)
            for token in made
        ],
    )  # fmt: skip
    return made
