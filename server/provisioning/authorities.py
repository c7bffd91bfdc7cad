"""Roots and authorities in the database, and which devices have proved to trust the next root.

The authority's directory is the truth about what there is; the table follows it. The database is
the truth about devices: who trusts what, and whose certificate is whose.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg

from server.pki.authority import Authority, Described
from server.pki.files import LOG

SEEN_WITHIN = timedelta(days=30)
LIVE = ("staged", "active", "retiring")
"""States of a certificate that its device may still use."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Of the devices seen lately: how many there are, and which have not proved a root yet."""

    seen: int
    stragglers: tuple[str, ...]

    @property
    def proved(self) -> int:
        return self.seen - len(self.stragglers)

    @property
    def share(self) -> float:
        """From 0 to 1; a fleet without devices trusts everything."""
        return self.proved / self.seen if self.seen else 1.0


async def authority_row(connection: asyncpg.Connection, described: Described) -> int:
    """Return the row of a root or an authority, made or brought to its state."""
    row: int | None = await connection.fetchval(
        "select id from authorities where name = $1 and state = $2", described.name, described.state
    )
    if row is None:
        row = await connection.fetchval(
            "insert into authorities (name, kind, certificate, spki_sha256, not_after, state) "
            "values ($1, $2, $3, $4, $5, $6) "
            "on conflict (name) do update set state = excluded.state returning id",
            described.name,
            described.kind,
            described.pem,
            described.spki_sha256,
            described.not_after,
            described.state,
        )
    assert row is not None
    return row


async def follow(connection: asyncpg.Connection, authority: Authority) -> None:
    """Make the tables of authorities and of signatures say what the directory says."""
    for described in authority.described():
        await authority_row(connection, described)
    await _import_log(connection, authority.directory / LOG)


async def trust_in(connection: asyncpg.Connection, root_spki: bytes, *, now: datetime) -> Trust:
    """Return who of the admitted devices seen within 30 days has proved to trust the root."""
    rows = await connection.fetch(
        "select d.device, p.device_id is not null as proved from devices d "
        "left join trust_proofs p on p.device_id = d.id and p.root_spki_sha256 = $1 "
        "where d.admitted and (d.enrolled_at > $2 or exists (select from boots b "
        "where b.device_id = d.id and coalesce(b.last_stored, b.first_seen) > $2)) "
        "order by d.device",
        root_spki,
        now - SEEN_WITHIN,
    )
    return Trust(len(rows), tuple(row["device"] for row in rows if not row["proved"]))


async def holders(
    connection: asyncpg.Connection, names: Sequence[str], *, now: datetime
) -> list[str]:
    """Return the admitted devices whose only valid certificates are of these authorities."""
    rows = await connection.fetch(
        "select d.device from devices d join certificates c on c.device_id = d.id "
        "join authorities a on a.id = c.authority_id "
        "where d.admitted and c.state = any($2) and c.revoked_at is null and c.not_after > $3 "
        "group by d.device having bool_and(a.name = any($1)) order by d.device",
        names,
        LIVE,
        now,
    )
    return [row["device"] for row in rows]


async def hurry(
    connection: asyncpg.Connection, names: Sequence[str], *, now: datetime, over: timedelta
) -> int:
    """Bring renewals of certificates of these authorities forward, spread evenly `over` a time."""
    done: str = await connection.execute(
        "update certificates c set renew_after = least(c.renew_after, "
        "$3::timestamptz + $4::interval * "
        "((hashtext(c.serial)::bigint + 2147483648) / 4294967296.0)) "
        "from authorities a where a.id = c.authority_id and a.name = any($1) "
        "and c.state = any($2) and c.revoked_at is null",
        names,
        LIVE,
        now,
        over,
    )
    return int(done.split()[-1])


async def _import_log(connection: asyncpg.Connection, path: Path) -> None:
    """Add what was signed while no database was there to note it."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    await connection.executemany(
        "insert into issuance_log (at, serial, event, subject, authority) "
        "select $1, $2, $3, $4, $5 where not exists "
        "(select from issuance_log where serial = $2 and event = $3)",
        [
            (datetime.fromisoformat(r["at"]), r["serial"], r["event"], r["subject"], r["authority"])
            for r in rows
        ],
    )
