"""Surveys on one's own phone: made, published, closed, and asked again in rounds.

Invariants:
- A version is never edited, and has one population. Employees and journey audits are surveys of
  their own: no result reads two surveys, so neither ever counts among visitors.
- What is closed is asked nobody any more: kiosks that offered it are rung for.
"""

from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

import asyncpg
import msgspec

from server.audit.log import record
from server.errors import ConflictError, NotFoundError
from server.feedback.battery import Battery, BatteryError, Population, check, content_of, digest
from server.feedback.questionnaires import ring
from server.feedback.tokens import Delay
from server.fleet import checks
from server.fleet.checks import FieldError
from server.fleet.register import lock_organisation, named_row, new_ref

MOST_SURVEYS = 500


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
        return battery_of(self.content)

    @property
    def state(self) -> str:
        if self.closed_at is not None:
            return "closed"
        return "draft" if self.published_at is None else "published"


@lru_cache(maxsize=64)
def battery_of(content: bytes) -> Battery:
    """Return what a version asks, read once: neither it nor its content is ever changed."""
    return msgspec.json.decode(content, type=Battery)


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


async def of_row(connection: asyncpg.Connection, row: int) -> Survey:
    """Return the survey in a row that something else names."""
    return _survey(await connection.fetchrow(f"{_SURVEY} where id = $1", row))


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
    if to == "closed":
        offered = await connection.fetch(
            "update survey_offers set ended_at = $2 where survey_id = $1 and ended_at is null "
            "returning site_id, spot_id",
            *(found.id, now),
        )
        for row in offered:
            await ring(connection, row["site_id"], row["spot_id"], now=now)
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
    asked, site_id = await asked_at(connection, organisation, survey, site)
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


async def asked_at(
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
