"""Where a survey is offered at kiosks: after a press, on the visitor's own phone, by a code.

Invariants:
- Only what is published and asks visitors is offered. Of several in force at a kiosk the spot's own
  come before the site's, and later offered before earlier.
- A kiosk holds a stock of one-time codes, handed out beforehand, and is handed another when few are
  left, when half of their time is over, or when something else is offered. A code's token is bound
  to the survey, the site and the spot, and to no press: nothing says when it was shown.
- A stock may be shown for `SHOWN_FOR`, its tokens are good for `ANSWERED_WITHIN` longer. What was
  handed out and never came, or was never shown, ends with its time; a spot is handed at most
  `MOST_A_DAY` a day.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from protocol.codes import Code, Stock
from server.audit.log import record
from server.errors import ConflictError, NotFoundError
from server.feedback.battery import Population
from server.feedback.handing_out import Rows, handed
from server.feedback.questionnaires import ring
from server.feedback.surveys import asked_at
from server.feedback.tokens import Binding, Channel, Delay
from server.fleet.checks import FieldError
from server.fleet.register import lock_organisation, new_ref

STOCK, FEW = 100, 40
SHOWN_FOR, ANSWERED_WITHIN = timedelta(days=30), timedelta(days=2)
MOST_A_DAY = 1_000  # tokens of one spot: a queue of visitors all day long needs fewer
MOST_OFFERS = 2_000  # in force, of one organisation


@dataclass(frozen=True, slots=True)
class Offer:
    """A survey at a site's kiosks, or at one of its spots."""

    ref: str
    survey: str
    site: str
    spot: str | None
    offered_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Held:
    """What a kiosk says it holds: codes of which offer, how many are left, until when."""

    offer: str = ""
    left: int = 0
    until_ms: int = 0


_OFFER = (
    "select o.ref, v.ref, s.ref, p.ref, o.offered_at, o.ended_at from survey_offers o "
    "join surveys v on v.id = o.survey_id join sites s on s.id = o.site_id "
    "left join spots p on p.id = o.spot_id "
)


async def make(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    survey: str,
    site: str,
    spot: str | None,
    actor: str,
    now: datetime,
) -> Offer:
    """Offer a survey at all of a site's kiosks, or at one. FieldError, ConflictError."""
    await lock_organisation(connection, organisation)
    asked, site_row = await asked_at(connection, organisation, survey, site)
    if asked.population is not Population.VISITORS:
        raise ConflictError(f"{survey} asks {asked.population}, and a kiosk's visitors are asked")
    spot_row = None if spot is None else await _kiosk(connection, site_row, spot)
    there, count = await connection.fetchrow(
        "select count(*) filter (where survey_id = $2 and site_id = $3 "
        "and spot_id is not distinct from $4::int), count(*) from survey_offers "
        "where organisation_id = $1 and ended_at is null",
        *(organisation, asked.id, site_row, spot_row),
    )
    if there:
        raise ConflictError(f"{survey} is offered there already")
    if count >= MOST_OFFERS:
        raise ConflictError(f"an organisation has at most {MOST_OFFERS} offers in force")
    ref = new_ref("offer")
    await connection.execute(
        "insert into survey_offers (organisation_id, ref, survey_id, site_id, spot_id, offered_at) "
        "values ($1, $2, $3, $4, $5, $6)",
        *(organisation, ref, asked.id, site_row, spot_row, now),
    )
    detail = {"survey": survey, "site": site, "spot": spot or ""}
    await record(
        connection, actor=actor, act="survey offered", subject=ref, detail=detail,
        organisation=organisation, now=now,
    )  # fmt: skip
    await ring(connection, site_row, spot_row, now=now)
    return await find(connection, organisation, ref)


async def _kiosk(connection: asyncpg.Connection, site: int, spot: str) -> int:
    row = await connection.fetchrow(
        "select id, kind from spots where site_id = $1 and ref = $2", site, spot
    )
    if row is None:
        raise FieldError("spot", f"no spot {spot[:40]!r} at this site")
    if row["kind"] != "kiosk":
        raise FieldError("spot", f"{spot} is no kiosk's")
    found: int = row["id"]
    return found


async def find(connection: asyncpg.Connection, organisation: int, ref: str) -> Offer:
    """Return an offer. Raises NotFoundError."""
    row = await connection.fetchrow(
        _OFFER + "where o.organisation_id = $1 and o.ref = $2", organisation, ref
    )
    if row is None:
        raise NotFoundError(f"no offer {ref[:40]!r}")
    return Offer(*row.values())


async def listed(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    survey: int | None = None,
    sites: Sequence[str] = (),
    open_only: bool = False,
    after: str = "",
    limit: int = MOST_OFFERS,
) -> list[Offer]:
    """Return the offers whose ref follows `after`, of one survey's row, of some sites."""
    rows = await connection.fetch(
        _OFFER + "where o.organisation_id = $1 and o.ref > $2 and coalesce(v.id = $4, true) "
        "and coalesce(s.ref = any($5::text[]), true) and (o.ended_at is null or not $6) "
        "order by o.ref limit $3",
        *(organisation, after, limit, survey, list(sites) or None, open_only),
    )
    return [Offer(*row.values()) for row in rows]


async def end(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> Offer:
    """Offer it there no longer; one that has ended stays so. Raises NotFoundError."""
    await lock_organisation(connection, organisation)
    row = await connection.fetchrow(
        "update survey_offers set ended_at = $3 where organisation_id = $1 and ref = $2 "
        "and ended_at is null returning site_id, spot_id",
        *(organisation, ref, now),
    )
    found = await find(connection, organisation, ref)
    if row is not None:
        detail = {"survey": found.survey, "site": found.site, "spot": found.spot or ""}
        await record(
            connection, actor=actor, act="survey offer ended", subject=ref, detail=detail,
            organisation=organisation, now=now,
        )  # fmt: skip
        await ring(connection, row["site_id"], row["spot_id"], now=now)
    return found


# -- a kiosk's stock -----------------------------------------------------------------------------


class Enough(Exception):
    """Nothing is handed out: what the kiosk holds is good still, or it had too much today."""


async def stock_of(
    connection: asyncpg.Connection,
    device: int,
    held: Held,
    *,
    key: bytes,
    address: str,
    random: Callable[[int], bytes],
    now: datetime,
) -> Stock | None:
    """Return another stock for a device (its row, locked); None: nothing is offered there.

    Raises Enough.
    """
    row = await connection.fetchrow(
        "select d.device, o.organisation_id, o.ref as offer, v.id as survey_id, v.ref as survey, "
        "s.id as site_id, s.ref as site, p.id as spot_id, p.ref as spot "
        "from devices d join assignments a on a.device_id = d.id and a.valid @> $2::timestamptz "
        "join spots p on p.id = a.spot_id and p.kind = 'kiosk' join sites s on s.id = p.site_id "
        "join survey_offers o on o.site_id = s.id and coalesce(o.spot_id = p.id, true) "
        "and o.ended_at is null join surveys v on v.id = o.survey_id and v.closed_at is null "
        "where d.id = $1 order by o.spot_id nulls last, o.offered_at desc, o.id desc limit 1",
        *(device, now),
    )
    if row is None:
        return None
    fresh_ms = round((now + SHOWN_FOR / 2).timestamp() * 1000)
    if held.offer == row["offer"] and held.left >= FEW and held.until_ms >= fresh_ms:
        raise Enough
    made_today = await connection.fetchval(
        "select count(*) from survey_tokens where spot_id = $1 and made_at > $2",
        *(row["spot_id"], now - timedelta(days=1)),
    )
    if made_today + STOCK > MOST_A_DAY:
        if held.offer == row["offer"]:
            raise Enough
        return None
    until = now.replace(microsecond=0) + SHOWN_FOR
    binding = Binding(
        *(row["survey"], row["site"], Channel.TERMINAL, "", Delay.NOW, until + ANSWERED_WITHIN),
        row["spot"],
    )
    rows = Rows(row["organisation_id"], row["survey_id"], row["site_id"], row["spot_id"])
    made = await handed(connection, rows, binding, key=key, count=STOCK, random=random, now=now)
    detail = {"survey": row["survey"], "site": row["site"], "spot": row["spot"], "count": STOCK}
    await record(
        connection, actor=f"device {row['device']}", act="survey codes handed out",
        subject=row["offer"], detail=detail, organisation=row["organisation_id"], now=now,
    )  # fmt: skip
    codes = tuple(Code(token.text, token.typed) for token in made)
    until_ms = round(until.timestamp() * 1000)
    return Stock(row["device"], row["offer"], address, until_ms, codes)
