"""Write and read the chain. `record` belongs into the transaction of the act itself.

Whoever changes something takes the locks in one order, or two may wait for each other: devices by
their row's id, the spot, technicians' claims, the voucher, boots, and the organisation's chain
last. Who holds the chain keeps all of the organisation waiting; after it nothing is locked that is
not held already, and the transaction ends soon. Advisory locks of one key (`issuing.key_lock`) or
one phone's act (`acts.once`) come before all of these.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import asyncpg

from server.audit.chain import BEGINNING, Break, Entry, breaks, said

PLATFORM = 0
"""The chain of acts that concern no one organisation."""

Heads = Mapping[int, tuple[int, bytes]]
"""Number and hash of each chain's last row."""

_LOCK = 0x6175_6469  # "audi"


def holding(chain: str) -> str:
    """Return the call, in SQL, that holds a chain (`$1`, say) until the transaction ends."""
    return f"pg_advisory_xact_lock({_LOCK}, {chain})"


async def record(
    connection: asyncpg.Connection,
    *,
    actor: str,
    act: str,
    subject: str = "",
    detail: Mapping[str, object] | None = None,
    organisation: int | None = None,
    now: datetime,
    held: bool = False,
) -> None:
    """Add a row; whoever else adds to the same chain waits until this transaction ends.

    `actor` is `user <ref>`, `device <id>`, `command` or `server`; `act` is `<noun> <verb>ed`, such
    as `device revoked`. Secrets do not belong into `detail`. `held`: an earlier statement of this
    transaction has taken the chain with `holding`.
    """
    chain = organisation or PLATFORM
    if not held:
        await connection.execute(_HOLD, chain)
    content = detail or {}
    await connection.execute(
        _ADD,
        chain,
        now,
        actor,
        act,
        subject,
        json.dumps(content),
        said(now, actor, act, subject, content),
        BEGINNING,
    )


_HOLD = f"select {holding('$1')}"

# A statement of its own after the lock's: it sees what whoever held the chain before has added.
# The hash is `server.audit.chain.digest`, computed where the row before it is read.
_ADD = """
with last as (select number, hash from audit where chain = $1 order by number desc limit 1),
next as (select coalesce((select number from last), 0) + 1 as number,
  coalesce((select hash from last), $8::bytea) as previous)
insert into audit (chain, number, at, actor, act, subject, detail, previous, hash)
select $1, n.number, $2, $3, $4, $5, $6, n.previous, sha256(convert_to(
  '[' || $1::int || ',' || n.number || ',' || $7 || ',"' || encode(n.previous, 'hex') || '"]',
  'UTF8')) from next n
"""


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
