"""Write and read the chain. `record` belongs into the transaction of the act itself."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import asyncpg

from server.audit.chain import BEGINNING, Break, Entry, breaks, digest

PLATFORM = 0
"""The chain of acts that concern no one organisation."""

Heads = Mapping[int, tuple[int, bytes]]
"""Number and hash of each chain's last row."""

_LOCK = 0x6175_6469  # "audi"


async def record(
    connection: asyncpg.Connection,
    *,
    actor: str,
    act: str,
    subject: str = "",
    detail: Mapping[str, object] | None = None,
    organisation: int | None = None,
    now: datetime,
) -> None:
    """Add a row; whoever else adds to the same chain waits until this transaction ends.

    `actor` is `user <ref>`, `device <id>`, `command` or `server`; `act` is `<noun> <verb>ed`, such
    as `device revoked`. Secrets do not belong into `detail`.
    """
    chain = organisation or PLATFORM
    await connection.execute("select pg_advisory_xact_lock($1, $2)", _LOCK, chain)
    last = await connection.fetchrow(
        "select number, hash from audit where chain = $1 order by number desc limit 1", chain
    )
    entry = Entry(
        chain,
        1 if last is None else last["number"] + 1,
        now,
        actor,
        act,
        subject,
        dict(detail or {}),
        BEGINNING if last is None else last["hash"],
    )
    await connection.execute(
        "insert into audit (chain, number, at, actor, act, subject, detail, previous, hash) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        entry.chain,
        entry.number,
        entry.at,
        entry.actor,
        entry.act,
        entry.subject,
        json.dumps(entry.detail),
        entry.previous,
        digest(entry),
    )


async def heads(connection: asyncpg.Connection) -> Heads:
    """Return where each chain ends."""
    rows = await connection.fetch(
        "select distinct on (chain) chain, number, hash from audit order by chain, number desc"
    )
    return {row["chain"]: (row["number"], row["hash"]) for row in rows}


async def verify(
    connection: asyncpg.Connection, *, heads: Heads | None = None
) -> tuple[int, list[Break]]:
    """Return how many rows there are, and where chains do not hold; `heads` were noted earlier."""
    heads = heads or {}
    chains: dict[int, list[Entry]] = {chain: [] for chain in heads}
    for row in await connection.fetch(
        "select chain, number, at, actor, act, subject, detail, previous, hash from audit "
        "order by chain, number"
    ):
        entry = replace(Entry(*row.values()), detail=json.loads(row["detail"]))
        chains.setdefault(entry.chain, []).append(entry)
    found = [
        replace(each, chain=chain)  # also of a chain that is gone
        for chain, entries in chains.items()
        for each in breaks(entries, head=heads.get(chain))
    ]
    return sum(map(len, chains.values())), found
