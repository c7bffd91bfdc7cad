"""Bundles: releases that are installed together, in their order, all or none. The operator's.

A bundle is made once and never changed: what was approved is what is installed.
"""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from server.audit.log import record
from server.errors import RefusedError
from server.firmware import releases
from server.fleet import checks
from server.fleet.checks import FieldError, TakenError
from server.fleet.register import new_ref

MOST_PARTS = 8


async def make(
    connection: asyncpg.Connection,
    name: str,
    parts: Sequence[tuple[str, str]],
    *,
    actor: str,
    now: datetime,
) -> str:
    """Bundle releases, each a (component, version), and return the bundle's ref.

    Raises FieldError, NotFoundError for what was never released, RefusedError (withdrawn),
    TakenError for a name that another bundle has.
    """
    name = checks.name(name)
    if not 1 <= len(parts) <= MOST_PARTS:
        raise FieldError("releases", f"expected 1 to {MOST_PARTS} releases, got {len(parts)}")
    if len({component for component, _ in parts}) < len(parts):
        raise FieldError("releases", "a bundle has one version of each component")
    found = [await releases.find(connection, *part) for part in parts]
    for part, row in zip(parts, found, strict=True):
        if row.withdrawn_at is not None:
            raise RefusedError("withdrawn", f"{' '.join(part)} was withdrawn")
    ref = new_ref("bundle")
    made = await connection.fetchval(
        "insert into bundles (ref, name, releases, created_at) values ($1, $2, $3, $4) "
        "on conflict (name) do nothing returning id",
        *(ref, name, [row.id for row in found], now),
    )
    if made is None:
        raise TakenError(f"there is a bundle {name!r} already")
    detail = {"name": name, "releases": ", ".join(" ".join(part) for part in parts)}
    await record(connection, actor=actor, act="bundle made", subject=ref, detail=detail, now=now)
    return ref
