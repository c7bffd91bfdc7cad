"""What several modules read of rows alike: presence as a value, and what an incident is called."""

from datetime import timedelta

import asyncpg

from server.health.presence import Limits, Presence, Session, State

COLUMNS = """
    p.state, p.since, p.session, p.epoch, p.session_at, p.reason, p.until, p.closed,
    p.heartbeat_at, p.data_at, p.due_at, p.noted_at, p.heartbeat_s, p.data_s
"""
"""Of `presences p`: what `presence_of` reads."""

ROOT = """case i.subject when 'platform' then 'the platform' when 'site' then s.name
    when 'device' then coalesce(nullif(p.name, ''), d.device) else coalesce(p.name, '') end"""
"""Of `incidents i`, its `sites s`, `devices d` and `spots p`: what is wrong, by its name."""


def presence_of(row: asyncpg.Record) -> Presence:
    """Return the presence that a row with COLUMNS says."""
    return Presence(
        since=row["since"],
        state=State(row["state"]),
        session=Session(row["session"]),
        epoch=row["epoch"],
        session_at=row["session_at"],
        reason=row["reason"],
        until=row["until"],
        closed=tuple(row["closed"]),
        heartbeat_at=row["heartbeat_at"],
        data_at=row["data_at"],
        due_at=row["due_at"],
        limits=Limits(timedelta(seconds=row["heartbeat_s"]), timedelta(seconds=row["data_s"])),
    )
