"""The rules of organisations, as stored: read, and changed by another version, audited."""

from dataclasses import dataclass, field
from datetime import datetime

import asyncpg
import msgspec

from server.audit.log import record
from server.fleet.checks import ChangedError
from server.health.decisions import hold
from server.health.judgement import Condition
from server.health.rules import Rule, Rules, checked, rule_of

NONE = Rules()


@dataclass(frozen=True, slots=True)
class Version:
    """The rules that hold, and since when; version 0: the defaults alone."""

    number: int
    rules: Rules
    made_at: datetime | None = None
    made_by: str = ""


@dataclass(slots=True)
class Rulebook:
    """The rules of the organisations that are asked for, read once."""

    connection: asyncpg.Connection
    _known: dict[int, Rules] = field(default_factory=dict)

    async def rules(self, organisation: int | None) -> Rules:
        """Return an organisation's rules; the platform's are the defaults."""
        if organisation is None:
            return NONE
        if organisation not in self._known:
            self._known[organisation] = (await current(self.connection, organisation)).rules
        return self._known[organisation]

    async def rule(self, organisation: int | None, condition: Condition) -> Rule:
        """Return how an organisation deals with a condition."""
        return rule_of(await self.rules(organisation), condition)


async def current(connection: asyncpg.Connection, organisation: int) -> Version:
    """Return the rules that hold."""
    row = await connection.fetchrow(_CURRENT, organisation)
    if row is None:
        return Version(0, NONE)
    return Version(
        row["version"],
        msgspec.json.decode(row["content"], type=Rules),
        row["made_at"],
        row["made_by"],
    )


async def change(
    connection: asyncpg.Connection,
    organisation: int,
    wanted: Rules,
    *,
    seen: int | None,
    actor: str,
    now: datetime,
) -> Version:
    """Let other rules hold from now on. Raises RuleError; ChangedError if `seen` is of before."""
    wanted = checked(wanted)
    await hold(connection)
    await connection.execute("select from organisations where id = $1 for update", organisation)
    before = await current(connection, organisation)
    if seen is not None and seen != before.number:
        raise ChangedError(f"version {before.number} of the rules was made meanwhile")
    number, content = before.number + 1, msgspec.json.encode(wanted).decode()
    await connection.execute(_MADE, organisation, number, content, now, actor)
    await connection.execute(_LOOK, organisation, now)
    await record(
        connection,
        actor=actor,
        act="health rules changed",
        subject=f"version {number}",
        detail={"before": msgspec.to_builtins(before.rules), "after": msgspec.to_builtins(wanted)},
        organisation=organisation,
        now=now,
    )
    return await current(connection, organisation)


_CURRENT = """
    select version, content::text as content, made_at, made_by from health_rules
    where organisation_id = $1 order by version desc limit 1
"""
_MADE = """
    insert into health_rules (organisation_id, version, content, made_at, made_by)
    values ($1, $2, $3::text::jsonb, $4, $5)
"""
_LOOK = "update incidents set look_at = $2 where organisation_id = $1 and state = 'open'"
